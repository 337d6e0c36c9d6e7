"""What new branches between maps or tokens may gain, one after another, on few rows and places: to rank them, not to value them.

The same as screen does for all vectors at once: half the squared natural gradient of a linear map from the source, as far as
the target's parents cannot make it; of new units its largest singular values, as far as their activation is linear. A source
that the parents make whole counts by random units, less what the parents make of them. Of a kernel only the middle is looked at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dagrow.graph import Node
from dagrow.measure import Evidence, Link, Pass, Site, Units
from dagrow.measure.carrying import Unsupported
from dagrow.measure.features import design, template
from dagrow.rng import stream
from dagrow.scores.aims import Aim, aim_at, power
from dagrow.scores.screen import RANDOM, linear_shares

# Of a source's energy: below it, the target's parents make all of it.
MADE = 1e-6


def placed(evidence: Evidence, sites: Sequence[Site], gains: np.ndarray, ridge: float) -> np.ndarray:
    """`gains` [sites] with new branches filled in that are not known (NaN); `ridge` of the sources' Gram matrices."""
    gains, seen, known = np.array(gains, float), evidence.train.sketch(), evidence.memo.setdefault(("placed", ridge), {})
    for k in np.flatnonzero(np.isnan(gains)).tolist():
        form = sites[k].form
        if isinstance(form, Link):
            node, act, units = form.frame.nodes[form.node], None, None
            source, target = form.source, form.target
        elif isinstance(form, Units) and form.writers[0] not in evidence.arch.nodes:
            node, units = form.frame.nodes[form.writers[0]], sites[k].units[-1]
            act = next((form.frame.nodes[n] for n in form.path if form.frame.nodes[n].rule.role == "activation"), None)
            (source,), (target,) = form.sources, form.targets
        else:
            continue
        evidence.train.focus((target,))
        key = source, target, getattr(node.attrs, "stride", 1)
        try:
            if key not in known:
                known[key] = _squares(seen, node, source, target, ridge)
            gains[k] = _gain(*known[key], units, act)
            if act is not None and not len(known[key][0]):
                gains[k] = _even(seen, node, source, target, ridge, units, act)
        except torch.linalg.LinAlgError:  # numbers that are none
            gains[k] = 0.0
        except Unsupported:
            continue
    return gains


def _columns(seen: Pass, node: Node, source: str, target: str) -> Tensor:
    """What the middle of the kernel sees of the source, of mean 0: [cells, channels]."""
    x = design(node, seen.values[source], seen.places(target)).flatten(0, 1)
    kernel = math.prod(template(node, seen.values[source].shape[1:]).weight.shape[2:])
    x = x.unflatten(1, (-1, kernel))[:, :, kernel // 2].to(seen.span(target).dtype)
    return x - x.mean(0)


def _squares(seen: Pass, node: Node, source: str, target: str, ridge: float) -> tuple[Tensor, float]:
    """(squared singular values of the natural gradient, the part of their sum that is chance); none where the parents make the source."""
    aim, x = aim_at(seen, target), _columns(seen, node, source, target)
    free = aim.free(x)
    if not float(free.square().sum()) > MADE * float(x.square().sum()):
        return torch.zeros(0), 0.0
    return _whitened(aim, free, ridge)


def _whitened(aim: Aim, free: Tensor, ridge: float) -> tuple[Tensor, float]:
    x = free @ power((free.T @ free).double() / len(free), -0.5, ridge).to(free.dtype)
    n = (x.T @ aim.v).double() / aim.rows
    squares = torch.linalg.eigvalsh(n.T @ n if n.shape[1] <= n.shape[0] else n @ n.T).clamp(min=0).flip(0)
    # The part of a squared moment that every cell makes with itself.
    chance = float((x.square().sum(1) * aim.v.square().sum(1)).sum(dtype=torch.float64)) / aim.rows**2
    return squares, min(chance / max(float(squares.sum()), 1e-300), 1.0)


def _gain(squares: Tensor, chance: float, units: int | None, act: Node | None) -> float:
    """Of a map, or of so many units of that activation."""
    ways = ((1, 1.0),) if act is None else linear_shares(act)
    return max(share * float(squares[: None if units is None else -(-units // each)].sum()) for each, share in ways) * (1 - chance) / 2


def _even(seen: Pass, node: Node, source: str, target: str, ridge: float, units: int, act: Node) -> float:
    aim, x = aim_at(seen, target), _columns(seen, node, source, target)
    x = x @ power((x.T @ x).double() / len(x), -0.5, ridge).to(x.dtype)
    drawn = torch.randn(RANDOM, x.shape[1], generator=stream(0, "placed", x.shape[1])).to(x.dtype)
    made = template(act, (RANDOM,))(x @ (drawn / drawn.norm(dim=1, keepdim=True)).T)
    return _gain(*_whitened(aim, aim.free(made - made.mean(0)), ridge), units, None)
