"""Architectures become modules: torch.fx graphs whose submodules bear the nodes' names."""

from dagrow.compiler.compiling import (
    Network,
    compile_architecture,
    initialise,
    owner_of,
    parameters_by_name,
    plain_name,
    prefixed_name,
    weights_of,
    with_source,
)
from dagrow.compiler.deployed import Deployed, deploy

__all__ = [
    "Deployed",
    "Network",
    "compile_architecture",
    "deploy",
    "initialise",
    "owner_of",
    "parameters_by_name",
    "plain_name",
    "prefixed_name",
    "weights_of",
    "with_source",
]
