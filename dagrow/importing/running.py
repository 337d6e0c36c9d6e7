"""A call of the user's in both runs."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from dagrow.importing.errors import ImportingError, Unfit
from dagrow.importing.memory import note
from dagrow.importing.values import ROWS, Held, in_run, mapped, sized


def both(function: Callable, args: tuple, kwargs: Mapping) -> Any:
    """The results in the two runs: sizes and plain values, and for tensors held ones that nothing makes yet."""

    def given(value, run):
        if isinstance(value, Held):
            # What the function changes in place stays its own; what is one tensor to it stays one.
            known = next((copy for given, copy in copies[begun:] if given is value.values[run]), None)
            if known is None:
                known = value.values[run].clone()
                copies.append((value.values[run], known))
            return known
        return in_run(value, run)

    made, copies, begun = [], [], 0
    for run in (0, 1):
        begun = len(copies)
        try:
            with torch.no_grad():
                made.append(function(*mapped(args, lambda v, run=run: given(v, run)), **mapped(dict(kwargs), lambda v, run=run: given(v, run))))
        except (RuntimeError, ValueError, IndexError) as error:
            if not run:
                raise
            fix = "where forward makes a tensor of as many rows as the batch has, make it of the batch: x.new_zeros(…), torch.zeros_like(x)"
            raise ImportingError(f"it works with {ROWS[0]} rows, not with {ROWS[1]}: {str(error).splitlines()[0]}", fix=fix) from error
    mapped(made, lambda v: note(v, copies) if isinstance(v, Tensor) else None)
    return paired(*made)


def paired(one: Any, other: Any) -> Any:
    if isinstance(one, Tensor):
        if not isinstance(other, Tensor):
            raise Unfit("a tensor in one run only")
        return Held((one, other))
    if hasattr(type(one), "n_fields") and type(one) is type(other):  # torch.return_types
        return namedtuple(type(one).__name__, type(one).__match_args__)(*map(paired, one, other))
    if isinstance(one, (list, tuple)) and type(one) is type(other) and len(one) == len(other):
        return type(one)(map(paired, one, other)) if type(one) in (list, tuple) else tuple(map(paired, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return {k: paired(v, other[k]) for k, v in one.items()}
    if type(one) is int and type(other) is int:
        return sized((one, other))
    if one is None or one == other:
        return one
    raise ImportingError("what it does depends on the values of a tensor", fix="choose by torch.where")

