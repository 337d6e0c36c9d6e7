"""Sites in bulk: where there are about as many as pairs of nodes, one is made only when somebody asks for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import overload

import numpy as np

from dagrow.graph import Architecture
from dagrow.measure.sites import Site

Shape = tuple[int, ...]


class Sites(Sequence[Site]):
    """Sites that are made one by one: `site(k)` makes the k-th."""

    def site(self, k: int) -> Site:
        raise NotImplementedError

    @overload
    def __getitem__(self, k: int) -> Site: ...
    @overload
    def __getitem__(self, k: slice) -> list[Site]: ...
    def __getitem__(self, k):
        return [self.site(j) for j in range(*k.indices(len(self)))] if isinstance(k, slice) else self.site(range(len(self))[k])

    def __iter__(self) -> Iterator[Site]:
        return (self.site(k) for k in range(len(self)))


class Grid(Sites):
    """The sites of one edit that each lead from one of `sources` into one of `targets`, target by target.

    `pairs` [sites, 2]: places in `sources` and `targets`. `form`: the class of every site's form. `make(source, target,
    stride)` makes a site. `strides` [targets, sources] holds 0 where there is no site. `variant` tells it from other grids of
    the edit between the same tensors: their sites' `where` ends in it.
    """

    def __init__(
        self, edit: str, form: type, arch: Architecture, sources: tuple[str, ...], targets: tuple[str, ...], strides: np.ndarray,
        make: Callable[[str, str, int], Site], variant: str = "",
    ):
        self.edit, self.form, self.arch, self.variant = edit, form, arch, variant
        self.sources, self.targets = sources, targets
        self._strides, self._make = strides, make
        self.pairs = np.argwhere(strides)[:, ::-1]

    def __len__(self) -> int:
        return len(self.pairs)

    def site(self, k: int) -> Site:
        s, t = self.pairs[k]
        return self._make(self.sources[s], self.targets[t], int(self._strides[t, s]))

    def find(self, key: str) -> int | None:
        """The place of the site with this key (Site.key)."""
        edit, _, where = key.partition(" ")
        if not where.endswith(self.variant):
            return None
        source, _, target = where.removesuffix(self.variant).partition(" -> ")
        return self._places.get((source, target)) if edit == self.edit else None

    @cached_property
    def _places(self) -> dict[tuple[str, str], int]:
        return {(self.sources[s], self.targets[t]): k for k, (s, t) in enumerate(self.pairs.tolist())}

    @cached_property
    def kinds(self) -> np.ndarray:
        """[sites]: a number for each pair of shapes; what a site costs depends on that alone."""
        shapes: dict[Shape, int] = {}
        s, t = (np.array([shapes.setdefault(tuple(self.arch.shapes[n]), len(shapes)) for n in names], np.int64) for names in (self.sources, self.targets))
        return s[self.pairs[:, 0]] * max(1, len(shapes)) + t[self.pairs[:, 1]]


class Several(Sites):
    """Sites in some parts, grids or lists, one after another."""

    def __init__(self, *parts: Sequence[Site]):
        self.parts = parts

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def site(self, k: int) -> Site:
        for part in self.parts:
            if k < len(part):
                return part[k]
            k -= len(part)
        raise IndexError(k)

    def __iter__(self) -> Iterator[Site]:
        return (site for part in self.parts for site in part)
