"""What a scorer proposes to put at a site: initial values of the newborns, and what is added to the survivors."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Block:
    """Values of the newborn entries of `param` along `axis`.

    Along every other axis `values` has the size before the edit; entries that meet other newborns there are zero.
    """

    param: str
    axis: int
    values: Tensor = field(repr=False)


@dataclass(frozen=True)
class Proposal:
    """What to put where. `status` is ok, unsupported, singular, nonfinite or trial (it can be made, but derivatives say
    nothing of it); `reason` says why it is not ok.

    Growing: `blocks` for the newborn entries; `start` for those that are not zero at amplitude 0, what they are there.
    Shrinking: `keep`, the units that stay (of a recast the whole index, new -> old, -1 for a newborn); `shift`, what is added to surviving parameters (in the present shapes) beforehand to make up for the loss.
    """

    status: str = "ok"
    reason: str = ""
    units: int = 0
    blocks: tuple[Block, ...] = ()
    start: tuple[Block, ...] = ()
    keep: tuple[int, ...] | None = None
    shift: dict[str, Tensor] = field(default_factory=dict, repr=False)
