"""Random edits one after another: resizes of any axis, and every registered edit. Not a test.

After each step the network is run node by node: shapes are those declared, the cost is what was said before it was made,
weights and optimizer state fit it. What claims to keep the function is held to it over the whole sequence.
"""

from __future__ import annotations

import random
import warnings
from collections import Counter
from dataclasses import dataclass, field

import torch
from axis_oracles import shapes_and_macs_are_real
from random_networks import inputs_for
from torch import Tensor

from dagrow import losses
from dagrow.applying import Applied, Part, apply
from dagrow.compiler import compile_architecture, initialise, parameters_by_name, with_source
from dagrow.data import Fold
from dagrow.edits import REGISTRY
from dagrow.graph import Architecture, Refusal, preserving, resize, resized_cost, transfer
from dagrow.graph.node import run
from dagrow.inputs import Inputs
from dagrow.measure import Evidence, measure
from dagrow.measure.passes import materialise
from dagrow.scores import REGISTRY as SCORERS
from dagrow.scores import serving
from dagrow.train import OPTIMIZERS
from dagrow.train.session import Session

ADAM = OPTIMIZERS.get("adamw")
RANDOM = SCORERS.get("random")(SCORERS.get("random").Options())
ROWS = 6
# What all that keeps the function may do to the outputs in a whole sequence, relative to the largest.
TOTAL_DOUBLE, TOTAL_SINGLE = 1e-12, 1e-5
# Networks are kept small: what has more units on one axis, or in all, is made narrower or left.
MOST_UNITS, MOST_NODES = 12, 60
Weights = dict[str, Tensor]


def start_for(arch: Architecture, seed: int) -> Weights:
    """Initial values in double precision, with batch-norm statistics and signs that are not trivial."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name, value in initialise(arch, seed).items():
        if value.is_floating_point():
            value = value.double()
            if name.endswith(("running_mean", "running_var")):
                value = torch.rand(value.shape, generator=generator, dtype=torch.float64) + 0.5
            elif value.dim() < 2:  # scales and shifts that start at 1 and 0
                value = value + 0.2 * torch.randn(value.shape, generator=generator, dtype=torch.float64)
        made[name] = value
    return made


def single(weights: Weights) -> Weights:
    return {n: w.float() if w.is_floating_point() else w.clone() for n, w in weights.items()}


@dataclass
class State:
    """A network as a sequence has made it, in double and single precision, with an optimizer's state."""

    arch: Architecture
    double: Weights
    float: Weights
    moments: dict[str, Weights]


@dataclass
class Report:
    """drift: of what keeps the function, summed over the sequence, relative to the outputs; made, refused: steps by kind."""

    seed: int
    made: Counter = field(default_factory=Counter)
    refused: Counter = field(default_factory=Counter)
    kept: int = 0
    drift: float = 0.0
    drift_single: float = 0.0
    arch: Architecture | None = None


class Sequence:
    """`steps` random edits of `arch`; `keeping`: only those that claim to keep the function. Raises AssertionError where something is not as said."""

    def __init__(self, arch: Architecture, seed: int, keeping: bool):
        self.draw, self.keeping, self.seed = random.Random(seed), keeping, seed
        generator = torch.Generator().manual_seed(seed + 1)
        weights = start_for(arch, seed)
        moments = {slot: {n: torch.rand(s, generator=generator, dtype=torch.float64) for n, s in arch.params.items()} for slot in ADAM.slots}
        self.state = State(arch, weights, single(weights), moments)
        self.x = inputs_for(arch, ROWS, seed)
        self.before = self.outputs()
        self.report, self.number = Report(seed), 0

    def outputs(self) -> tuple[list[Tensor], list[Tensor]]:
        """In double and single precision, by the nodes' own modules; every declared shape is the real one."""
        state, found = self.state, []
        for weights, x in ((state.double, self.x), (state.float, {n: t.float() for n, t in self.x.items()})):
            with torch.no_grad():
                values = run(state.arch.nodes, state.arch.order, materialise(state.arch, weights), dict(x))
            assert {n: tuple(v.shape[1:]) for n, v in values.items()} == dict(state.arch.shapes)
            found.append([values[n].double() for n in state.arch.outputs])
        return tuple(found)

    def step(self) -> None:
        self.number += 1
        kind = self.draw.choice(["resize", *REGISTRY]) if self.draw.random() < 0.6 else "resize"
        made = self.resized() if kind == "resize" else self.edited(kind)
        if made is None:
            return
        name, keeps, state = made
        self.state = state
        self.fits(name)
        now = self.outputs()
        assert all(bool(t.isfinite().all()) for t in (*now[0], *now[1])), name
        self.report.made[name] += 1
        if keeps:
            self.report.kept += 1
            gaps = [max(float((a - b).abs().max() / b.abs().max().clamp(min=1)) for a, b in zip(*pair, strict=True)) for pair in zip(now, self.before, strict=True)]
            assert gaps[0] < 1e-9 and gaps[1] < 1e-2, (name, gaps)
            self.last = gaps
        if not keeps or self.number % 10 == 0:
            self.settle(now)

    last = (0.0, 0.0)

    def settle(self, now) -> None:
        """The drift so far is counted, and from here on another function is kept."""
        self.report.drift += self.last[0]
        self.report.drift_single += self.last[1]
        self.before, self.last = now, (0.0, 0.0)

    def fits(self, name: str) -> None:
        arch, state = self.state.arch, self.state
        shapes = {**arch.params, **arch.buffers}
        assert arch.size == sum(state.double[n].numel() for n in arch.params), name
        for weights in (state.double, state.float):
            assert {n: tuple(w.shape) for n, w in weights.items()} == shapes, name
        for slot, held in state.moments.items():
            assert {n: tuple(t.shape) for n, t in held.items()} == dict(arch.params), (name, slot)
        assert Architecture.from_dict(arch.to_dict()) == arch, name

    # Resizes

    def resized(self) -> tuple[str, bool, State] | None:
        arch = self.state.arch
        if not arch.axes:
            return None
        axis = self.draw.choice(sorted(arch.axes))
        size = arch.axes[axis].size
        kinds = ["permute", "widen"] if self.keeping else ["permute", "widen", "prune", "clone", "any"]
        kind = self.draw.choice(kinds) if size < MOST_UNITS else ("permute" if self.keeping else "prune")
        index = list(range(size))
        if kind == "permute":
            self.draw.shuffle(index)
        elif kind == "widen":
            for _ in range(self.draw.randint(1, 2)):
                index.insert(self.draw.randint(0, len(index)), -1)
        elif kind == "prune":
            index = self.draw.sample(index, max(1, size - self.draw.randint(1, 3)))
        elif kind == "clone":
            index.append(self.draw.randrange(size))
        else:
            index = [self.draw.randrange(size), *(self.draw.randint(-1, size - 1) for _ in range(self.draw.randint(0, size + 1)))]
            self.draw.shuffle(index)
        if any(arch.nodes[n].op == "moe" for n in arch.axes[axis].mixes):
            # Of two experts with equal logits rounding alone says which is chosen: what comes later could keep no function.
            index = [i for k, i in enumerate(index) if i < 0 or i not in index[:k]]
        said = resized_cost(arch, axis, len(index))
        rewrite = resize(arch, {axis: index})
        if isinstance(rewrite, Refusal):
            assert rewrite.reason and said is None, (axis, index, rewrite, said)
            self.report.refused["resize"] += 1
            return None
        assert rewrite.arch.axes[axis].size == len(index)
        if said is not None:
            assert (said.size, said.macs) == (rewrite.arch.size, rewrite.arch.macs), (axis, index)
        if kind == "permute":
            assert rewrite.zero == () and rewrite.arch == arch
        if self.keeping and not rewrite.keeps:
            return None
        born = initialise(rewrite.arch, (self.seed, self.number))
        if rewrite.keeps:
            double, low = preserving(rewrite, self.state.double, born), preserving(rewrite, self.state.float, born)
        else:
            double, low = transfer(rewrite, self.state.double, born), transfer(rewrite, self.state.float, born)
        moments = {slot: transfer(rewrite, held, 0.0) for slot, held in self.state.moments.items()}
        return f"resize {kind}", rewrite.keeps, State(rewrite.arch, double, low, moments)

    # Registered edits

    def evidence(self) -> Evidence:
        arch = self.state.arch
        generator = torch.Generator().manual_seed(self.seed * 1000 + self.number)
        folds = []
        for rows in (8, 6):
            x = [torch.randn(rows, *arch.shapes[n], generator=generator, dtype=torch.float64) for n in arch.inputs]
            folds.append(Fold(x[0] if len(x) == 1 else Inputs(*x), torch.randint(0, arch.shapes[arch.outputs[0]][0], (rows,), generator=generator)))
        return measure(arch, self.state.double, *folds, losses.get("cross_entropy"), rows=100, seed=self.seed, path=("sequence",))

    def edited(self, kind: str) -> tuple[str, bool, State] | None:
        edit, state = REGISTRY.get(kind), self.state
        options = self.draw.choice([{}, *edit.examples])
        try:
            chosen = edit.Options(**options)
        except ValueError:
            return None
        found = list(edit.match(state.arch, chosen))
        if not found or (len(state.arch.nodes) > MOST_NODES and kind not in ("prune", "remove", "merge", "fold")):
            return None
        site = self.draw.choice(found)
        if self.keeping and not site.form.grows and not site.form.settles:
            return None
        proposal = serving(RANDOM, site.form).propose(self.evidence(), site, self.draw.choice(site.units), (self.seed, self.number))
        if proposal.status not in ("ok", "trial"):
            assert proposal.reason, site.key
            self.report.refused[kind] += 1
            return None
        price = edit.price(state.arch, site, proposal)
        rewrite = edit.rewrite(state.arch, site, proposal)
        if isinstance(rewrite, Refusal) or isinstance(price, Refusal):
            assert isinstance(rewrite, Refusal) and rewrite.reason and isinstance(price, Refusal), (site.key, rewrite, price)
            self.report.refused[kind] += 1
            return None
        keeps = rewrite.keeps if site.form.settles else bool(site.form.grows and (proposal.start or not site.form.trial))
        if self.keeping and not keeps:
            return None
        part, fills = Part(edit, chosen, site, proposal), dict.fromkeys(state.moments, 0.0)
        double = apply(state.arch, state.double, state.moments, fills, [part], (self.seed, self.number))
        low = apply(state.arch, state.float, {}, {}, [part], (self.seed, self.number))
        assert isinstance(double, Applied) and isinstance(low, Applied), (site.key, double)
        made = double.arch
        assert made == low.arch == rewrite.arch and made.inputs == state.arch.inputs and len(made.outputs) == len(state.arch.outputs), site.key
        assert (price.size, price.macs) == (made.size, made.macs), (site.key, price, made)
        amount = 1.0 if site.form.settles or not keeps else 0.0
        return kind, keeps, State(made, double.weights(amount), low.weights(amount), double.moments)

    # The end

    def finish(self) -> Report:
        self.settle(self.before)
        arch, state = self.state.arch, self.state
        shapes_and_macs_are_real(arch)
        network = compile_architecture(arch, state.double).eval()
        given = tuple(self.x[n] for n in arch.inputs)
        eager = network(*given)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            with with_source(network):
                program = torch.jit.script(network)
        with torch.no_grad():
            script = program(*given)
        for a, b, c in zip(*((t,) if isinstance(t, Tensor) else t for t in (eager, script)), self.outputs()[0], strict=True):
            assert torch.allclose(a, b, rtol=1e-12, atol=1e-12) and torch.allclose(a, c, rtol=1e-12, atol=1e-12)
        trains(arch, state, given)
        self.report.arch = arch
        return self.report


def trains(arch: Architecture, state: State, given: tuple[Tensor, ...]) -> None:
    """The optimizer holds every live parameter and no other, goes on from the state that came along, and moves what has a gradient."""
    network = compile_architecture(arch, state.double).train()
    named = parameters_by_name(network)
    assert named.keys() == arch.params.keys()
    with Session(ADAM, None, named, state.moments) as session:
        made = network(*given)
        sum(t.square().sum() for t in ((made,) if isinstance(made, Tensor) else made)).backward()
        sizes = {n: float(p.grad.abs().max()) for n, p in named.items()}
        # A shift before a norm, or the router of equal experts, has none but for rounding.
        moving = [n for n, size in sizes.items() if size > 1e-10 * max(sizes.values())]
        session.step(1e-2)
        moments = session.moments()
    still = [n for n in moving if torch.equal(named[n], state.double[n])]
    assert not still, still
    assert all(held.keys() == arch.params.keys() for held in moments.values())


def sequence(arch: Architecture, seed: int, steps: int, keeping: bool) -> Report:
    one = Sequence(arch, seed, keeping)
    tries = 0
    while sum(one.report.made.values()) < steps and tries < 8 * steps:
        one.step()
        tries += 1
    return one.finish()
