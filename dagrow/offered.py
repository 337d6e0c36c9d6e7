"""Where each edit of a spec may act, in bulk: grids of pairs of nodes are not made into sites until somebody asks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dagrow.graph import Architecture
from dagrow.measure.grid import Grid, Several
from dagrow.measure.sites import Site


@dataclass(frozen=True, eq=False)
class Places:
    """Sites of one edit. `chosen`: the places in `sites` that are meant, all of them unless told."""

    edit: type
    options: object
    sites: Sequence[Site]
    chosen: np.ndarray

    def __iter__(self) -> Iterator[Site]:
        return (self.sites[k] for k in self.chosen.tolist())

    def but(self, chosen: np.ndarray) -> Places:
        return replace(self, chosen=chosen)


def sites(arch: Architecture, edits: Sequence[tuple[type, object]]) -> Iterator[tuple[type, object, Site]]:
    """Every site of every edit of the spec; an edit listed twice offers a site once."""
    return ((p.edit, p.options, site) for p in places(arch, edits) for site in p)


def places(arch: Architecture, edits: Sequence[tuple[type, object]]) -> list[Places]:
    """The sites of each edit of the spec, in bulk; an edit listed twice offers a site once."""
    made, listed, seen = [], [e for e, _ in edits], set()
    for edit, options in edits:
        for found in _alike(edit.match(arch, options)):
            chosen = range(len(found))
            if listed.count(edit) > 1:
                chosen = [k for k in chosen if found[k].key not in seen]
                seen.update(found[k].key for k in chosen)
            made.append(Places(edit, options, found, np.array(chosen, np.int64)))
    return made


def _alike(found: Iterable[Site]) -> list[Sequence[Site]]:
    """The sites, those of one form together; grids as they are."""
    parts = found.parts if isinstance(found, Several) else (found,)
    grids, forms = [p for p in parts if isinstance(p, Grid)], {}
    for site in (s for p in parts if not isinstance(p, Grid) for s in p):
        forms.setdefault((type(site.form), site.form.grows), []).append(site)
    return [*grids, *forms.values()] or [[]]


def named(at: Places, keys: frozenset[str]) -> np.ndarray:
    """The places of the sites with these keys."""
    if isinstance(at.sites, Grid):
        return np.array(sorted(k for k in map(at.sites.find, keys) if k is not None), np.int64)
    return np.array([k for k, site in enumerate(at.sites) if site.key in keys], np.int64)
