"""Graph rewrites: one file per edit, each found by name.

`match` finds the sites of an architecture, `rewrite` makes one of them real, as values: a refusal is a value that
carries its reason. No edit knows what a scorer does, no scorer what an edit does: they meet in the site's form.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from dagrow.globs import matches
from dagrow.graph import Architecture, Cost, Refusal, Rewrite
from dagrow.measure.sites import Site
from dagrow.registry import Options, Registry
from dagrow.scores import Proposal

REGISTRY = Registry("edit", __name__, verb="edits")


class EditOptions(Options):
    """`where`: a glob over node names (* within a dotted segment, ** across)."""

    where: str = "**"

    def covers(self, *names: str) -> bool:
        return self.where == "**" or any(matches(self.where, name) for name in names)


class Remark(NamedTuple):
    """Something about an edit's options on a network: `at` is the place in the options; `wrong`: an error, else a warning."""

    message: str
    at: tuple[str | int, ...] = ()
    fix: str | None = None
    wrong: bool = False


class Edit:
    """What every edit provides.

    preserves: whether the network computes at the start what it did (at amplitude 0, where there is one); None: at some sites,
    which the rewrite tells (Rewrite.keeps). undone_by: the edits that take it back, to the same architecture and the same bits; none for what only makes a network
    smaller or exchanges one thing for another. examples: options the contract tests try, beside the defaults.
    """

    name: ClassVar[str]
    Options: ClassVar[type[EditOptions]]
    preserves: ClassVar[bool | None] = None
    undone_by: ClassVar[tuple[str, ...]] = ()
    examples: ClassVar[tuple[Mapping[str, Any], ...]] = ()

    @classmethod
    def known_as(cls, options) -> str:
        """What tells its sites from those of other options: a spec may list one twice only where that is the edit itself."""
        return cls.name

    @staticmethod
    def remarks(arch: Architecture, options) -> Iterable[Remark]:
        """What keeps these options from places of the seed network."""
        return ()

    @staticmethod
    def match(arch: Architecture, options) -> Iterable[Site]:
        """Every site of `arch` that the options cover; a Grid, or Several, where there may be as many as pairs of nodes."""
        raise NotImplementedError

    @classmethod
    def price(cls, arch: Architecture, site: Site, proposal: Proposal) -> Cost | Refusal:
        """What the architecture would cost: exactly that of `rewrite`, by building it where no cheaper way is known."""
        made = cls.rewrite(arch, site, proposal)
        return made if isinstance(made, Refusal) else Cost(made.arch.size, made.arch.macs)

    @staticmethod
    def rewrite(arch: Architecture, site: Site, proposal: Proposal) -> Rewrite | Refusal:
        """`arch` with the site's edit made, at the size the proposal says; what is newborn is left to the proposal."""
        raise NotImplementedError

    @staticmethod
    def undo(arch: Architecture, site: Site, proposal: Proposal, weights: Mapping[str, Tensor]) -> tuple[str, str, Proposal] | None:
        """What takes this edit back: (an edit of `undone_by`, `where` of its site in the rewritten network, what to propose there).

        `arch` is the network before the edit, `weights` are those after it. None where it cannot be taken back to the bit: what was
        scaled does not always come back exactly.
        """
        return None
