"""Making edits real: weights, optimizer moments and batch-norm statistics through a rewrite, as values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dagrow.compiler import initialise
from dagrow.data import Fold
from dagrow.graph import Architecture, Refusal, Rewrite, transfer
from dagrow.inputs import by_name
from dagrow.measure.passes import materialise
from dagrow.measure.recasts import carried
from dagrow.measure.sites import Site
from dagrow.scores import Block, Proposal
from dagrow.train import Moments

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Part:
    """One edit: where, and what to put there. `options` and `edit` find its site again on a changed graph."""

    edit: type
    options: object
    site: Site
    proposal: Proposal


@dataclass
class Applied:
    """An architecture after edits. `weights(a)` has the fan-out of what was added times `a`; at 0 growth changes nothing."""

    arch: Architecture
    empty: Weights
    full: Weights
    moments: Moments

    def weights(self, amplitude: float = 1.0) -> Weights:
        if amplitude == 1.0:
            return self.full
        return {n: torch.lerp(self.empty[n], w, amplitude) if w.is_floating_point() else w for n, w in self.full.items()}


def apply(
    arch: Architecture,
    weights: Mapping[str, Tensor],
    moments: Mapping[str, Mapping[str, Tensor]],
    fills: Mapping[str, float],
    parts: Sequence[Part],
    seed: tuple[int | str, ...],
) -> Applied | Refusal:
    """Applies the parts one after another, each matched again on what the ones before it left.

    `fills`: optimizer slot -> the value a newborn's state starts from. Newborn entries that no proposal sets are freshly
    initialised from `seed`. What is given is left as it is.
    """
    start, full, empty = arch, dict(weights), dict(weights)
    kind = next((w.dtype for w in full.values() if w.is_floating_point()), torch.float32)
    moved: Moments = {slot: dict(named) for slot, named in moments.items()}
    # (param, axis) -> for each present index the one it had at the start, or -1: proposals speak of the start.
    origins: dict[tuple[str, int], list[int]] = {}
    for part in parts:  # what gives way to new units; said of the start, before anything is resized
        for name, shift in part.proposal.shift.items() if part.site.form.grows else ():
            full[name] = full[name] + shift.to(full[name].dtype)
    for number, part in enumerate(parts):
        site = part.site if not number else next((s for s in part.edit.match(arch, part.options) if s.key == part.site.key), None)
        if site is None:
            return Refusal(f"{part.site.key} is no longer there")
        rewrite = part.edit.rewrite(arch, site, part.proposal)
        if isinstance(rewrite, Refusal):
            return rewrite
        for name, shift in part.proposal.shift.items() if not part.site.form.grows else ():
            if name not in full or shift.shape != full[name].shape:
                return Refusal(f"{part.site.key} makes up for its loss in units that are gone", (name,))
            full[name], empty[name] = (w[name] + shift.to(w[name].dtype) for w in (full, empty))
        blocks, begin = (_renamed(part, given, site, start, arch) for given in (part.proposal.blocks, part.proposal.start))
        fresh = {n: w.to(kind) if w.is_floating_point() else w for n, w in initialise(rewrite.arch, (*seed, number)).items()}
        # Newborns of this part that meet newborns of an earlier one: the proposal was made without them.
        fresh |= {n: torch.zeros_like(fresh[n]) for n in arch.params if n not in start.params and n in fresh}
        refusal = _put(fresh, blocks, arch, rewrite, origins)
        if refusal is not None:
            return refusal
        silent = dict(fresh)
        for name, axis in site.form.outgoing:
            silent[name] = fresh[name].index_fill(axis, torch.tensor(_born(arch, rewrite, name, axis), dtype=torch.long), 0.0)
        _put(silent, begin, arch, rewrite, origins)
        carry = carried if site.form.settles else transfer
        before, full, empty = full, carry(rewrite, full, fresh), carry(rewrite, empty, silent)
        made_anew = _settled(rewrite, before, full) if site.form.settles else {}
        for slot, named in moved.items():
            kept = transfer(rewrite, named, fills[slot])
            kept |= {name: kept[name].masked_fill(there, fills[slot]) for name, there in made_anew.items()}
            moved[slot] = {name: kept[name] for name in rewrite.arch.params}
        for move in rewrite.moves:
            before = origins.get((move.param, move.axis))
            origins[move.param, move.axis] = [-1 if o < 0 else (before[o] if before else o) for o in move.index]
        arch = rewrite.arch
    return Applied(arch, empty, full, moved)


def _settled(rewrite: Rewrite, old: Weights, new: Weights) -> dict[str, Tensor]:
    """Where the rewrite gave surviving parameters other values: what an optimizer knows of the old ones says nothing of these."""
    plain = transfer(rewrite, old, new)
    return {name: there for name in rewrite.arch.params if bool((there := plain[name] != new[name]).any())}


def _renamed(part: Part, blocks: Sequence[Block], site: Site, start: Architecture, arch: Architecture) -> list[Block]:
    """The part's blocks, under the names that its new nodes have now that others came first."""
    if not blocks:
        return []
    before, now = ([n for n in form.frame.nodes if n not in held.nodes] for form, held in ((part.site.form, start), (site.form, arch)))
    names = dict(zip(before, now))
    found = []
    for block in blocks:
        node, _, local = block.param.rpartition(".")
        found.append(replace(block, param=f"{names.get(node, node)}.{local}"))
    return found


def _index(rewrite: Rewrite, param: str, axis: int) -> tuple[int, ...] | None:
    return next((m.index for m in rewrite.moves if (m.param, m.axis) == (param, axis)), None)


def _born(arch: Architecture, rewrite: Rewrite, param: str, axis: int) -> list[int]:
    """Where along `axis` of `param` the newborns are after the rewrite."""
    made = rewrite.arch
    if param not in arch.params and param not in arch.buffers:
        return list(range((made.params.get(param) or made.buffers[param])[axis]))
    return [k for k, old in enumerate(_index(rewrite, param, axis) or ()) if old < 0]


def _put(fresh: Weights, blocks: Sequence[Block], arch: Architecture, rewrite: Rewrite, origins: Mapping[tuple[str, int], list[int]]) -> Refusal | None:
    """Writes the blocks over fresh values; entries of a block's parameter that no block speaks of become zero."""
    for name in {b.param for b in blocks}:
        if name not in fresh:
            return Refusal(f"{name} went with another edit", (name,))
        fresh[name] = torch.zeros_like(fresh[name])
    for block in blocks:
        target = fresh[block.param]
        index, values = [], block.values.to(target.dtype)
        for axis in range(target.dim()):
            if axis == block.axis:
                born = _born(arch, rewrite, block.param, axis)
                if len(born) != values.shape[axis]:
                    return Refusal(f"{block.param} has {len(born)} newborns, the proposal {values.shape[axis]}", (block.param,))
                index.append((torch.tensor(born, dtype=torch.long), torch.arange(len(born))))
                continue
            moved = _index(rewrite, block.param, axis) or range(target.shape[axis])
            before = origins.get((block.param, axis))
            if block.param not in (*arch.params, *arch.buffers) and target.shape[axis] != values.shape[axis]:
                return Refusal(f"{block.param} joins units that another edit changed", (block.param,))
            old = [-1 if o < 0 else (before[o] if before else o) for o in moved]
            if max(old, default=-1) >= values.shape[axis]:
                return Refusal(f"{block.param} is changed by two edits at once", (block.param,))
            there = [k for k, o in enumerate(old) if o >= 0]
            index.append((torch.tensor(there, dtype=torch.long), torch.tensor([old[k] for k in there], dtype=torch.long)))
        target[torch.meshgrid(*(there for there, _ in index), indexing="ij")] = values[torch.meshgrid(*(old for _, old in index), indexing="ij")]
    return None


def refresh_norms(arch: Architecture, weights: Mapping[str, Tensor], fold: Fold) -> Weights:
    """Batch-norm statistics measured anew on `fold`, with weight and bias changed to keep the function in eval mode.

    After an edit the running statistics are those of the network before it; without this the first training step,
    which normalises by the batch's own, would jump.
    """
    return _normed(arch, weights, fold, keep=True)


def settle_norms(arch: Architecture, weights: Mapping[str, Tensor], fold: Fold) -> Weights:
    """Batch-norm statistics measured anew on `fold`, and nothing else: the function in eval mode becomes that of train mode.

    Running statistics trail the weights. At a high learning rate what they are behind by would pass for missing capacity.
    """
    return _normed(arch, weights, fold, keep=False)


def _normed(arch: Architecture, weights: Mapping[str, Tensor], fold: Fold, keep: bool) -> Weights:
    weights = dict(weights)
    # One that is shared sees several inputs: no one of them gives its statistics.
    shared = {full.rpartition(".")[0] for node in arch.nodes.values() for _, full in node.tied}
    norms = [n for n in arch.order if arch.nodes[n].rule.role == "norm" and not arch.nodes[n].tied and n not in shared]
    if not norms:
        return weights
    modules = materialise(arch, weights)
    values: dict[str, Tensor] = by_name(arch.inputs, fold.x)
    with torch.no_grad():
        for name in arch.order:
            node = arch.nodes[name]
            if node.op == "input":
                continue
            if name in norms:
                fixed = _fixed(values[node.inputs[0]], {k: weights[f"{name}.{k}"] for k in NORM}, node.attrs.eps)
                if not keep:  # what follows sees the function that the new statistics make
                    fixed = {k: fixed[k] for k in STATISTICS}
                    modules[name]._buffers.update(fixed)
                weights |= {f"{name}.{k}": v for k, v in fixed.items()}
            values[name] = modules[name](*(values[i] for i in node.inputs))
    return weights


STATISTICS = ("running_mean", "running_var")
NORM = (*STATISTICS, "weight", "bias")


def _fixed(x: Tensor, now: Mapping[str, Tensor], eps: float) -> Weights:
    """The norm's statistics for the inputs `x`, and the weight and bias that make it the same function with them."""
    over = [0, *range(2, x.dim())]
    # Squares about the mean, in the data's own precision; sums in double.
    mean = x.mean(over, dtype=torch.float64)
    var = (x - mean.to(x.dtype).view(1, -1, *[1] * (x.dim() - 2))).square().mean(over, dtype=torch.float64)
    old_mean, old_var, gamma, beta = (now[k].double() for k in NORM)
    slope = gamma / (old_var + eps).sqrt()
    made = {"running_mean": mean, "running_var": var, "weight": slope * (var + eps).sqrt(), "bias": beta + slope * (mean - old_mean)}
    return {k: v.to(now[k].dtype) for k, v in made.items()}
