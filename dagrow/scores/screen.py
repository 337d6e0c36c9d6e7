"""What every site may gain, all at once: one matrix product of all sources, whitened, with all that is missing, whitened.

Each source's features are centred and whitened by their own Gram matrix, each target's bottleneck by its curvature.
The block of the product that a source and a target share is then the natural gradient of a connection between them: half
its squared norm is what a connection gains, and half its largest squared singular values what so many new units gain,
as far as their activation is linear. This ranks sites, it does not value them: a unit's curvature is taken to be that of
its source on average. What the target's parents can make of a feature they give way with, so that only the rest of its
energy counts, feature by feature.

A source that the target's own parents read has nothing linear left to give. What counts there is the even part of new
units: random units of the source, less what the parents can make of them, whitened, against the same bottleneck.

Only vectors are understood. Gram matrices are factored in double precision, products are in single precision.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor

from dagrow.graph import Architecture, Node
from dagrow.measure import Evidence, Link, Pass, Site, Units
from dagrow.measure.features import grouped, template
from dagrow.measure.grid import Grid
from dagrow.rng import stream

RIDGE = 1e-2  # of the curvature, relative to its largest eigenvalue, as where sites are valued
CARRIES = ("activation", "sum", "norm")
RANDOM = 16  # random units of a source
OVERLAP = 512  # rows that say how alike sources are
FLOOR = 0.05  # of a feature's energy is taken to be new at least
BLOCK = 2**24  # values of one product, 64 MB
VALUES, FEWEST = 2**22, 256  # of all vectors in all rows that are looked at; rows


def screen(evidence: Evidence, sites: Sequence[Site], ridge: float) -> np.ndarray:
    """Nats each site may gain, [sites]; NaN for what is not understood. `ridge` of the sources' Gram matrices."""
    try:
        return _screened(evidence, sites, ridge)
    except torch.linalg.LinAlgError:  # numbers that are none: no order, and no value in any of them
        return np.zeros(len(sites))


def _screened(evidence: Evidence, sites: Sequence[Site], ridge: float) -> np.ndarray:
    if ("screen", ridge) not in evidence.memo:
        evidence.memo["screen", ridge] = Field.of(evidence.train, ridge)
    field = evidence.memo["screen", ridge]
    if isinstance(sites, Grid):
        return _joined(field, sites) if len(sites) else np.zeros(0)
    found = np.full(len(sites), np.nan)
    known = [k for k, site in enumerate(sites) if isinstance(site.form, Units) and field.understands(site.form)]
    found[known] = _widened(field, [sites[k] for k in known])
    return found


@dataclass
class Field:
    """All sources of vectors and all that is missing at vectors, whitened: `phi` and `t`, [columns, rows] each."""

    seen: Pass
    ridge: float

    @staticmethod
    def of(seen: Pass, ridge: float) -> Field:
        """On fewer rows where there are many sources: an order needs fewer than a value."""
        columns = sum(shape[0] for shape in seen.arch.shapes.values() if len(shape) == 1)
        return Field(seen.head(max(FEWEST, VALUES // max(1, columns))), ridge)

    @property
    def arch(self) -> Architecture:
        return self.seen.arch

    @cached_property
    def parents(self) -> dict[str, tuple[str, ...]]:
        """Targets that stand for their sums -> the sources that their sums' affine nodes read."""
        groups = dict.fromkeys(group for group in self.arch.meeting.values() if group)
        return {
            g[0]: tuple(dict.fromkeys(self.arch.nodes[p].inputs[0] for p in g))
            for g in groups if len(self.arch.shapes[g[0]]) == 1 and not any(grouped(self.arch.nodes[p]) for p in g)
        }  # fmt: skip

    @cached_property
    def spans(self) -> dict[str, slice]:
        """source -> its place in `phi`; sources of one width lie side by side."""
        every = dict.fromkeys([*self.arch.inputs, *(node.inputs[0] for node in self.arch.nodes.values() if node.rule.role == "affine")])
        return _laid({n: self.arch.shapes[n][0] for n in every if len(self.arch.shapes[n]) == 1})

    @cached_property
    def aims(self) -> dict[str, slice]:
        """target -> its place in `t`; targets of one width lie side by side."""
        return _laid({n: self.arch.shapes[n][0] for n in self.parents})

    @cached_property
    def phi(self) -> Tensor:
        made = torch.empty(_end(self.spans), self.seen.rows)
        for names, span in _runs(self.spans):
            made[span] = _white(_centred([self.seen.values[n] for n in names]), self.ridge).flatten(0, 1)
        return made

    @cached_property
    def t(self) -> Tensor:
        made = torch.empty(_end(self.aims), self.seen.rows)
        # Beside each other in `t`, but not of one number of parents: by both.
        for names in _alike({n: (self.aims[n].stop - self.aims[n].start, self.columns(self.parents[n]).numel()) for n in self.parents}):
            v, probe = _centred([self.seen.v[n] for n in names]), torch.stack([self.seen.probe[n] for n in names]).float()
            free = v - self.explained([self.parents[n] for n in names], v)
            values, vectors = torch.linalg.eigh((probe.transpose(1, 2) @ probe).double() / self.seen.rows)
            top = values[:, -1:].clamp(min=0)
            scale = torch.where(top > 0, (values.clamp(min=0) + RIDGE * top).rsqrt(), 0.0)
            free = ((vectors * scale.unsqueeze(1)) @ vectors.transpose(1, 2)).float() @ free
            made[torch.cat([_range(self.aims[n]) for n in names])] = free.flatten(0, 1)
        return made

    def columns(self, sources: Sequence[str]) -> Tensor:
        """Their places in `phi`."""
        return torch.cat([_range(self.spans[s]) for s in sources])

    def beside(self, groups: Sequence[Sequence[str]]) -> Tensor:
        """`phi` of each group of sources, all of one width: [groups, columns, rows]."""
        return _stacked(self.phi, [self.columns(g) for g in groups])

    def explained(self, groups: Sequence[Sequence[str]], y: Tensor) -> Tensor:
        """What each group of sources can make of `y` [groups, columns, rows]."""
        a = self.beside(groups)
        gram = (a @ a.transpose(1, 2)).double() / self.seen.rows
        half = torch.linalg.cholesky(gram + 1e-6 * torch.eye(gram.shape[-1], dtype=gram.dtype))
        solved = torch.cholesky_solve((a @ y.transpose(1, 2)).double() / self.seen.rows, half)
        return solved.float().transpose(1, 2) @ a

    @cached_property
    def free(self) -> Tensor:
        """The share of each row of `phi` that a target's parents cannot make, [columns, targets]: what is new of a source."""
        phi = self.phi[:, :OVERLAP]
        energy = phi.square().mean(1)
        made, place = torch.empty(len(phi), len(self.aims)), {n: k for k, n in enumerate(self.aims)}
        widths = {n: self.columns(self.parents[n]).numel() for n in self.aims}
        for names in _alike(widths, max(1, BLOCK // max(1, len(phi) * max(widths.values())))):
            index = torch.stack([self.columns(self.parents[n]) for n in names])
            once, back = torch.unique(index.flatten(), return_inverse=True)
            cross = (phi[once] @ phi.T / phi.shape[1]).index_select(0, back).view(*index.shape, -1)
            gram = cross.gather(2, index.unsqueeze(1).expand(-1, index.shape[1], -1)).double()
            half = torch.linalg.cholesky(gram + 1e-5 * torch.eye(gram.shape[-1], dtype=gram.dtype)).float()
            known = torch.linalg.solve_triangular(half, cross, upper=False).square().sum(1)
            made[:, [place[n] for n in names]] = (1 - known / energy.clamp(min=1e-12)).clamp(FLOOR, 1).T
        return made

    def target(self, name: str) -> str:
        """The target that stands for the sum of `name`."""
        return self.arch.meeting[name][0]

    def understands(self, form: Units) -> bool:
        """New units between vectors, carried by ops that act on them one by one."""
        return (
            all(s in self.spans for s in form.sources) and all(self.target(t) in self.aims for t in form.targets)
            and all(form.frame.nodes[n].rule.role in CARRIES for n in form.path)
        )  # fmt: skip

    @cached_property
    def linear(self) -> tuple[dict[str, int], dict[str, int], np.ndarray, np.ndarray]:
        """Places of sources and targets, and for each pair the summed squares of its block, less what chance gives, and how
        many equal singular values would have that sum and its squares' sum: [sources, targets] each."""
        rows, s, t = self.seen.rows, dict.fromkeys(self.spans), dict.fromkeys(self.aims)
        s, t = ({n: k for k, n in enumerate(names)} for names in (s, t))
        total, rank = np.zeros((len(s), len(t)), np.float32), np.ones((len(s), len(t)), np.float32)
        for sources, left in _runs(self.spans):
            phi, width = self.phi[left], len(sources)
            energy = phi.square()
            for targets, right in _runs(self.aims, max(1, BLOCK // max(1, len(phi)))):
                v = self.t[right]
                n = (phi @ v.T).div_(rows).view(width, -1, len(targets), len(v) // len(targets)).transpose(1, 2)
                free = self.free[left][:, [t[x] for x in targets]].view(width, -1, len(targets)).transpose(1, 2)
                n = n * free.rsqrt().unsqueeze(3)
                squares = n.square().sum((2, 3))
                small = n if n.shape[3] <= n.shape[2] else n.transpose(2, 3)
                small = small.reshape(-1, *small.shape[2:])
                fourth = (small.transpose(1, 2) @ small).square().sum((1, 2)).view_as(squares)
                # The part of a squared moment that every row makes with itself.
                chance = energy @ v.square().view(len(targets), -1, rows).sum(1).T / rows**2
                chance = (chance.view(width, -1, len(targets)).transpose(1, 2) / free).sum(2)
                at = np.ix_([s[x] for x in sources], [t[x] for x in targets])
                total[at] = (squares - chance).numpy()
                rank[at] = (squares.square() / fourth.clamp(min=1e-30)).clamp(min=1.0).numpy()
        return s, t, total, rank


def _joined(field: Field, grid: Grid) -> np.ndarray:
    s, t, total, rank = field.linear
    form = grid[0].form
    layer = isinstance(form, Units)
    if not (layer or isinstance(form, Link)) or not total.size:  # a network without vectors
        return np.full(len(grid), np.nan)
    gains = np.maximum(total, 0) / 2
    if layer:
        act, units = form.frame.nodes[form.path[0]], grid[0].units[-1]
        gains = gains * np.max([share * np.minimum(1.0, units / each / rank) for each, share in linear_shares(act)], 0)
        for (source, target), gain in _even(field, act, units).items():
            gains[s[source], t[target]] = gain
    rows = np.array([s.get(n, -1) for n in grid.sources], np.int64)[grid.pairs[:, 0]]
    columns = np.array([t.get(field.target(n), -1) for n in grid.targets], np.int64)[grid.pairs[:, 1]]
    return np.where((rows >= 0) & (columns >= 0), gains[rows, columns], np.nan)


def _even(field: Field, act: Node, units: int) -> dict[tuple[str, str], float]:
    """Gains of new layers beside what the target's parents do with the same source."""
    pairs = [(s, t) for t, sources in field.parents.items() for s in sources]
    widths = {p: (field.spans[p[0]].stop - field.spans[p[0]].start, len(field.columns(field.parents[p[1]])), field.aims[p[1]].stop - field.aims[p[1]].start) for p in pairs}
    found: dict[tuple[str, str], float] = {}
    for alike in _alike(widths, max(1, BLOCK // (8 * RANDOM * field.seen.rows))):
        x = field.beside([(s,) for s, _ in alike])
        drawn = torch.randn(RANDOM, x.shape[1], generator=stream(0, "screen", x.shape[1]))
        r = template(act, (RANDOM,))(drawn / drawn.norm(dim=1, keepdim=True) @ x)
        r = r - r.mean(2, keepdim=True)
        r = _white(r - field.explained([field.parents[t] for _, t in alike], r), RIDGE)
        v = _stacked(field.t, [_range(field.aims[t]) for _, t in alike])
        found |= dict(zip(alike, _largest(r, v, units).tolist(), strict=True))
    return found


def _widened(field: Field, sites: Sequence[Site]) -> np.ndarray:
    """New units that read all sources of an axis at once, for all of its readers at once."""
    sources = [tuple(dict.fromkeys(site.form.sources)) for site in sites]
    targets = [tuple(dict.fromkeys(field.target(t) for t in site.form.targets)) for site in sites]
    gains, aims = np.zeros(len(sites)), [torch.cat([_range(field.aims[t]) for t in ts]) for ts in targets]
    widths = {k: (len(field.columns(sources[k])), len(aims[k]), site.units[-1], _carried(site.form)) for k, site in enumerate(sites)}
    for alike in _alike(widths, max(1, BLOCK // (64 * field.seen.rows))):
        x = _white(field.beside([sources[k] for k in alike]), field.ridge)
        v = _stacked(field.t, [aims[k] for k in alike])
        units, shares = widths[alike[0]][2:]
        gains[alike] = np.max([share * _largest(x, v, -(-units // each)).numpy() for each, share in shares], 0)
    return gains


def _carried(form: Units) -> tuple[tuple[int, float], ...]:
    """The linear shares on the way: those of the activation that is worst at it."""
    acts = [form.frame.nodes[n] for n in form.path if form.frame.nodes[n].rule.role == "activation"]
    return min((linear_shares(act) for act in acts), default=((1, 1.0),))


def linear_shares(act: Node) -> tuple[tuple[int, float], ...]:
    """(units, share) of ways to carry a direction: how much of the energy of one unit's activation, and of the difference of
    two units of opposite sign, is along their input, where that is standard normal. ReLU: a half, and all."""
    return _shares(Node(act.op, (), act.attrs))


@lru_cache(64)
def _shares(act: Node) -> tuple[tuple[int, float], ...]:
    z = torch.linspace(-6, 6, 2401, dtype=torch.float64)
    weight = torch.exp(-z.square() / 2)
    one = template(act, (1,))(z.unsqueeze(1)).squeeze(1)

    def share(a: Tensor) -> float:
        return float((weight * a * z).sum() ** 2 / ((weight * a.square()).sum() * (weight * z.square()).sum()))

    return (1, share(one)), (2, share(one - one.flip(0)))


def _largest(x: Tensor, v: Tensor, units: int) -> Tensor:
    """Half the `units` largest squared singular values of E[x v^T], less their part of what chance gives: [sites].

    `x`, `v`: [sites, columns, rows].
    """
    rows = x.shape[2]
    n = (x @ v.transpose(1, 2)).double() / rows
    small = n.transpose(1, 2) @ n if n.shape[2] <= n.shape[1] else n @ n.transpose(1, 2)
    values = torch.linalg.eigvalsh(small).clamp(min=0).flip(1)
    best, every = values[:, :units].sum(1), values.sum(1)
    chance = (x.square().sum(1) * v.square().sum(1)).sum(1).double() / rows**2
    return (best * (1 - chance / every.clamp(min=1e-300)).clamp(min=0)) / 2


def _white(x: Tensor, ridge: float) -> Tensor:
    """Columns [groups, columns, rows] in the metric of their Gram matrix with `ridge` times its largest eigenvalue."""
    gram = (x @ x.transpose(1, 2)).double() / x.shape[2]
    top = torch.linalg.eigvalsh(gram)[:, -1].clamp(min=1e-30)
    half = torch.linalg.cholesky(gram + ridge * top[:, None, None] * torch.eye(gram.shape[-1], dtype=gram.dtype))
    inverse = torch.linalg.solve_triangular(half, torch.eye(gram.shape[-1], dtype=gram.dtype).expand_as(gram), upper=False)
    return inverse.float() @ x


def _centred(tensors: Sequence[Tensor]) -> Tensor:
    """[rows, columns] each -> [tensors, columns, rows], of mean 0."""
    x = torch.stack(tuple(tensors)).float()
    return (x - x.mean(1, keepdim=True)).transpose(1, 2)


def _stacked(x: Tensor, places: Sequence[Tensor]) -> Tensor:
    """Rows of `x`: as many for each of `places`."""
    return x.index_select(0, torch.cat(tuple(places))).view(len(places), -1, x.shape[1])


def _range(span: slice) -> Tensor:
    return torch.arange(span.start, span.stop)


def _laid(widths: dict[str, int]) -> dict[str, slice]:
    """Columns for each name, those of one width side by side."""
    made, start = {}, 0
    for name, width in sorted(widths.items(), key=lambda item: item[1]):
        made[name] = slice(start, start + width)
        start += width
    return made


def _end(spans: dict[str, slice]) -> int:
    return max((s.stop for s in spans.values()), default=0)


def _runs(spans: dict[str, slice], most: int = 2**60) -> Iterator[tuple[list[str], slice]]:
    """The names of one width, and their columns; at most `most` columns at a time where that is one name or more."""
    for names in _alike({n: s.stop - s.start for n, s in spans.items()}):
        each = max(1, most // max(1, spans[names[0]].stop - spans[names[0]].start))
        for k in range(0, len(names), each):
            part = names[k : k + each]
            yield part, slice(spans[part[0]].start, spans[part[-1]].stop)


def _alike(kinds: dict, most: int = 2**60) -> Iterator[list]:
    """The keys by the value they have, in their order; at most `most` at a time."""
    groups: dict = {}
    for key, kind in kinds.items():
        groups.setdefault(kind, []).append(key)
    for keys in groups.values():
        for k in range(0, len(keys), most):
            yield keys[k : k + most]
