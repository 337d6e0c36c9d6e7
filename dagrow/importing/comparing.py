"""The imported network against the model: outputs on several numbers of rows, gradients, and rows that know nothing of each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dagrow.compiler import compile_architecture, parameters_by_name
from dagrow.errors import DagrowError
from dagrow.importing.building import CLOSE
from dagrow.importing.errors import ImportingError, located
from dagrow.importing.result import Imported
from dagrow.importing.values import ROWS, equal

NUMBERS = (*ROWS, 1, 5)
MANY = 67  # more rows than a batch is split or cut to
WHOLE = "keep a part of the model whole with opaque=[…]"


def run(model: nn.Module, inputs: Sequence[Tensor]) -> Any:
    """What the model makes of copies of the inputs."""
    try:
        with torch.no_grad():
            return model(*(x.clone() for x in inputs))
    except DagrowError:
        raise
    except Exception as error:  # noqa: BLE001  whatever the user's code raises
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        given = ", ".join(str(list(x.shape)) for x in inputs)
        raise located(ImportingError(f"the model fails on the example input {given}: {type(error).__name__}: {text}"), error) from None


def some(x: Tensor, count: int) -> Tensor:
    """So many rows, made of the example's."""
    return x[torch.arange(count, device=x.device) % x.shape[0]].clone()


def varied(x: Tensor, count: int, seed: int) -> Tensor:
    """So many rows that differ, of values like the example's: where that has one row, or zeros alone, much cannot be told by it."""
    generator = torch.Generator().manual_seed(seed)
    made = some(x, count)
    if not x.is_floating_point():
        places = torch.randint(x.numel(), made.shape, generator=generator)
        return x.flatten()[places.to(x.device)]
    factors = torch.rand(made.shape, generator=generator).to(x.device, x.dtype) + 0.5
    return made * factors if bool(made.abs().sum() > 0) else factors


def compare(model: nn.Module, made: Imported, inputs: Sequence[Tensor]) -> None:
    """Raises ImportingError where the network does not compute what the model does, in evaluation mode."""
    network = compile_architecture(made.arch, made.weights).eval()
    for rows in (tuple(inputs), *(tuple(some(x, count) for x in inputs) for count in NUMBERS)):
        try:
            wanted = _listed(run(model, rows))
        except ImportingError:
            if rows[0].shape[0] == 1:
                continue  # some models need more than one
            raise
        try:
            with torch.no_grad():
                found = _listed(network(*(x.clone() for x in rows)))
        except RuntimeError as error:
            message = f"the network imported does not run on {rows[0].shape[0]} rows: {str(error).splitlines()[0]}"
            raise ImportingError(message, fix=WHOLE) from None
        for a, b in zip(wanted, found, strict=True):
            if not equal(a, b) and model._forward_hooks:
                raise ImportingError("the model itself has forward hooks", fix="remove them, or put the model into another module")
            if not equal(a, b) and not (made.differs and _near(a, b)):
                raise _other(rows)
    _elsewhere(model, network, inputs)
    _alone(model, inputs)
    _gradients(model, network, made, inputs)


def _near(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.allclose(a, b, rtol=CLOSE, atol=CLOSE, equal_nan=True)


def _other(rows: Sequence[Tensor]) -> ImportingError:
    return ImportingError(
        f"the network imported does not give the model's outputs on {rows[0].shape[0]} rows",
        fix=f"does forward write into a tensor while another view of it is in use, or depend on the number of rows? {WHOLE}",
    )


def _elsewhere(model: nn.Module, network: nn.Module, inputs: Sequence[Tensor]) -> None:
    """The same, nearly, on many rows, and on rows that the example does not have; unless these are none that the model takes."""
    for rows in (tuple(some(x, MANY) for x in inputs), *(tuple(varied(x, count, seed) for x in inputs) for seed, count in enumerate((2, 5)))):
        try:
            wanted = _listed(run(model, rows))
        except ImportingError:
            continue
        try:
            with torch.no_grad():
                found = _listed(network(*(x.clone() for x in rows)))
        except RuntimeError:
            raise _other(rows) from None
        if any(not _near(a, b) for a, b in zip(wanted, found, strict=True)):
            raise _other(rows)


def _listed(made: Any) -> list[Tensor]:
    return [made] if isinstance(made, Tensor) else list(made)


def _alone(model: nn.Module, inputs: Sequence[Tensor]) -> None:
    """A row's outputs may not depend on the other rows."""
    try:
        other = tuple(varied(x, 5, 2) for x in inputs)
        pairs = [(_listed(run(model, tuple(x[:2] for x in other))), _listed(run(model, other)))]
    except ImportingError:
        pairs = []
    pairs.append(tuple(_listed(run(model, tuple(some(x, count) for x in inputs))) for count in (2, 5)))
    for a, b in (ab for pair in pairs for ab in zip(*pair, strict=True)):
        if a.is_floating_point() and not torch.allclose(a, b[:2], rtol=1e-3, atol=1e-3 * (1 + float(b.abs().nan_to_num().max())), equal_nan=True):
            raise ImportingError(
                "in evaluation mode what the model gives for a row depends on the other rows of the batch",
                fix="put the batch first in the example input, and in the model; a batch norm has to keep running statistics",
            )


def _gradients(model: nn.Module, network: nn.Module, made: Imported, inputs: Sequence[Tensor]) -> None:
    """What has no gradient in the model has none in the network, and the others are equal but for rounding."""
    theirs = {name: p for name, p in model.named_parameters() if p.requires_grad}
    ours = {made.names[full]: p for full, p in parameters_by_name(network).items() if made.names.get(full) in theirs}
    if not theirs:
        return
    try:
        wanted = _slopes(model, [theirs[n] for n in ours], inputs)
    except RuntimeError:
        return  # the model cannot be trained in evaluation mode; in training mode it may
    try:
        found = _slopes(network, list(ours.values()), inputs)
    except RuntimeError as error:
        raise ImportingError(f"the network imported has no gradients: {str(error).splitlines()[0]}", fix=WHOLE) from None
    for name, a, b in zip(ours, wanted, found, strict=True):
        a, b = (torch.zeros(()) if g is None else g.detach().to_dense() if g.layout != torch.strided else g.detach() for g in (a, b))
        scale = float(a.abs().nan_to_num().max()) if a.numel() else 0.0
        if not torch.allclose(a.reshape(-1), b.reshape(-1), rtol=1e-3, atol=1e-3 * scale + 1e-6, equal_nan=True):
            raise ImportingError(f"the gradients of {name!r} are not those of the model", fix=f"does forward keep gradients from flowing, or make them? {WHOLE}")


def _slopes(part: nn.Module, parameters: list[nn.Parameter], inputs: Sequence[Tensor]) -> Sequence[Tensor | None]:
    with torch.enable_grad():
        made = [y for y in _listed(part(*(x.clone() for x in inputs))) if y.requires_grad]
        if not made:
            return [None] * len(parameters)
        return torch.autograd.grad(made, parameters, [torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=y.device).view(y.shape) for y in made], allow_unused=True)
