"""Architectures become modules: torch.fx graphs whose submodules bear the nodes' names."""

from dagrow.compiler.compiling import (
    Network,
    compile_architecture,
    initialise,
    parameters_by_name,
    plain_name,
    prefixed_name,
    with_source,
    weights_of,
)

__all__ = [
    "Network",
    "compile_architecture",
    "initialise",
    "parameters_by_name",
    "plain_name",
    "prefixed_name",
    "weights_of",
    "with_source",
]
