"""gram: which units are missed least, and how the survivors make up for them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import pydantic
import torch
from torch import Tensor

from dagrow.measure import Cut, Drop, Evidence, Pass, Site
from dagrow.measure.carrying import Unsupported
from dagrow.measure.features import at, design, grouped
from dagrow.measure.layout import space
from dagrow.registry import Options
from dagrow.scores import REGISTRY, Proposal, Scorer
from dagrow.scores.aims import power


@REGISTRY.register("gram")
class Gram(Scorer):
    """Removes what the survivors can make up for by least squares, from the activations' Gram matrix.

    A unit's cost is first order plus curvature on the part of it that no survivor makes (optimal brain surgeon on
    activations): -E[v . d] + tr(w E w^T) / (2 [S^-1]_jj) with d = -w h_perp.
    """

    serves = (Drop, Cut)
    default_for = (Drop, Cut)

    class Options(Options):
        ridge: float = pydantic.Field(1e-4, gt=0, le=1e-2, description="ridge of the Gram matrix, relative to its largest eigenvalue")

    def propose(self, evidence: Evidence, site: Site, units: int, key: tuple[int | str, ...]) -> Proposal:
        try:
            if isinstance(site.form, Cut):
                return self._cut(evidence.train, site.form)
            return self._drop(evidence.train, site.form, units)
        except Unsupported as error:
            return Proposal("unsupported", str(error))
        except torch.linalg.LinAlgError as error:
            return Proposal("singular", str(error).splitlines()[0])

    def _drop(self, seen: Pass, form: Drop, units: int) -> Proposal:
        if any(grouped(seen.arch.nodes[r]) for r in form.readers):
            raise Unsupported("it is read in groups")
        _needs_gradients(seen, form.readers)
        views, costs_of = [], []
        for place, r in enumerate(form.readers):
            x = design(seen.arch.nodes[r], seen.values[seen.arch.nodes[r].inputs[0]], seen.places(r)).double()
            x = torch.cat([x, torch.ones(*x.shape[:2], 1, dtype=x.dtype)], 2)
            carried = torch.cat([form.carried(seen, place), torch.tensor([-1])])
            views.append((x, carried))
            costs_of.append(self._costs(seen, r, x, carried))
        goes: list[int] = []
        for _ in range(units):  # one after another: of two units that stand for each other only one is cheap
            costs = {u: sum(cost([*goes, u]) for cost in costs_of) for u in range(form.size) if u not in goes}
            goes.append(min(costs, key=costs.__getitem__))
        keep = tuple(u for u in range(form.size) if u not in goes)
        shift: dict[str, Tensor] = {}
        for r, (x, carried) in zip(form.readers, views, strict=True):
            weight = seen.weights[f"{r}.weight"].double()
            bias = f"{r}.bias" in seen.weights
            gone = torch.isin(carried, torch.tensor(goes))
            stay = ~gone
            if not bias:
                stay[-1] = False
            h = x.flatten(0, 1)
            gram = h.T @ h / len(h)
            regress = power(gram[stay][:, stay], -1.0, self.options.ridge) @ gram[stay][:, gone]
            extra = torch.zeros(len(weight), len(carried), dtype=torch.float64)
            extra[:, stay] = weight.flatten(1)[:, gone[:-1]] @ regress.T
            shift[f"{r}.weight"] = extra[:, :-1].reshape(weight.shape)
            if bias:
                shift[f"{r}.bias"] = extra[:, -1]
        return Proposal(units=len(goes), keep=keep, shift=shift)

    def _costs(self, seen: Pass, reader: str, x: Tensor, carried: Tensor) -> Callable[[list[int]], float]:
        """units -> predicted loss in nats per sample of what `reader` loses when they are removed together."""
        weight = seen.weights[f"{reader}.weight"].double().flatten(1)
        h = x.flatten(0, 1)
        inverse = power(h.T @ h / len(h), -1.0, self.options.ridge)
        places, positions, node = seen.places(reader), x.shape[1], seen.arch.nodes[reader]
        v, probe = (at(g[reader], node, places).double().flatten(0, 1) for g in (seen.v, seen.probe))
        share = math.prod(space(seen.arch.shapes[reader], node)) / positions  # of a map's positions some stand for all

        def cost(units: list[int]) -> float:
            mine = torch.isin(carried, torch.tensor(units)).nonzero().flatten()
            # h_perp of the units' columns: residuals of regressing them on all others, by block inversion.
            perp = h @ (inverse[:, mine] @ torch.linalg.pinv(inverse[mine][:, mine], hermitian=True))
            change = -(perp @ weight[:, mine].T)
            s = (change * v).sum(1).view(-1, positions).sum(1)
            t = (change * probe).sum(1).view(-1, positions).sum(1)
            return -share * float(s.mean() - (t**2).mean() / 2)

        return cost

    def _cut(self, seen: Pass, form: Cut) -> Proposal:
        _needs_gradients(seen, (form.node,))
        if not form.survivors:
            return Proposal()
        places = seen.places(form.node)
        lost = at(seen.values[form.node], seen.arch.nodes[form.node], places).double().flatten(0, 1)
        parts = [design(seen.arch.nodes[s], seen.values[seen.arch.nodes[s].inputs[0]], places).double().flatten(0, 1) for s in form.survivors]
        holder = next((s for s in form.survivors if f"{s}.bias" in seen.weights), None)
        h = torch.cat([*parts, torch.ones(len(lost), 1, dtype=torch.float64)], 1)
        if holder is None:
            h = h[:, :-1]
        weights = power(h.T @ h / len(h), -1.0, self.options.ridge) @ (h.T @ lost / len(h))
        shift, start = {}, 0
        for s, part in zip(form.survivors, parts, strict=True):
            shape = seen.weights[f"{s}.weight"].shape
            shift[f"{s}.weight"] = weights[start : start + part.shape[1]].T.reshape(shape)
            start += part.shape[1]
        if holder is not None:
            shift[f"{holder}.bias"] = weights[-1]
        return Proposal(units=0, shift=shift)


def _needs_gradients(seen: Pass, targets: Iterable[str]) -> None:
    """What leads to outputs that the loss does not see would look free to lose."""
    arch = seen.arch
    for t in targets:
        if len(arch.outputs) > 1 and not (t == arch.outputs[0] or arch.below[t] >> arch.place[arch.outputs[0]] & 1) and not bool(seen.v[t].any()):
            raise Unsupported(f"{t} leads to an output that is not scored")
