"""All parameters of a network in one flat buffer, so that an optimizer's update is a handful of vector operations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Flat:
    """Flat vectors of N elements, of one dtype on one device; an optimizer updates them in place.

    values, grads: the parameters and their gradients. state: one vector per slot of the optimizer but "step".
    scratch: free for temporaries. decayed: weight decay applies to the first `decayed` elements (those of parameters
    with two or more dimensions; biases and norms come after). ages: the distinct step counts at the start; cohort: each
    element's index into `ages`, or None where all are of one age. taken: steps since the start.
    """

    values: Tensor
    grads: Tensor
    state: dict[str, Tensor]
    scratch: Tensor
    decayed: int
    ages: tuple[int, ...]
    cohort: Tensor | None
    taken: int = 0

    def by_age(self, coefficient: Callable[[int], float]) -> float | Tensor:
        """coefficient(step count of the update under way, from 1) for each element: a number where all ages agree, else [N].

        Evaluated once per age in double precision, so an element's bits do not depend on the ages of the others.
        """
        table = [coefficient(age + self.taken) for age in self.ages]
        if self.cohort is None or table.count(table[0]) == len(table):  # Adam's corrections come to the same number, exactly, once all are old
            return table[0]
        return torch.tensor(table, dtype=self.values.dtype, device=self.values.device).index_select(0, self.cohort)
