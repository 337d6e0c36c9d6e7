"""dagrow grows small neural networks to fit your data.

>>> import dagrow
>>> sorted(name for name in dir(dagrow) if not name.startswith("_"))
['Architecture', 'Grower', 'Node', 'from_torch', 'load', 'resize', 'resume', 'score', 'search']

Everything is loaded when it is first used: importing dagrow does not import torch.
"""

from __future__ import annotations

from importlib import import_module

_HOMES = {
    "Architecture": "dagrow.report", "Grower": "dagrow.grower", "Node": "dagrow.graph", "resize": "dagrow.graph",
    "from_torch": "dagrow.importing",
    "load": "dagrow.api", "resume": "dagrow.api", "score": "dagrow.api", "search": "dagrow.api",
}
__all__ = sorted(_HOMES)  # noqa: PLE0604


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'dagrow' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)


