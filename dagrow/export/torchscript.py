"""TorchScript: the network as a program that torch's C++ and Python run."""

from __future__ import annotations

import copy
import io
import warnings
from typing import Literal

from dagrow.errors import ExportError
from dagrow.export import REGISTRY, Format
from dagrow.registry import Options


@REGISTRY.register("torchscript")
class TorchScript(Format):
    """One .pt file for torch.jit.load, in Python or C++; takes raw rows of any dtype."""

    suffix = ".pt"
    loader = """
def load(path):
    texts = {"spec.yaml": "", "architecture.json": "", "meta.json": ""}
    return torch.jit.load(path, map_location="cpu", _extra_files=texts), texts
"""

    class Options(Options):
        """freeze: weights become constants of the program: a little faster, but no longer a state dict."""

        output: Literal["logits", "probabilities"] = "logits"
        freeze: bool = False

    @classmethod
    def encode(cls, bundle, options):
        import torch

        from dagrow.compiler import with_source

        deployed = _plain(bundle.deployed(options.output))
        buffer = io.BytesIO()
        with warnings.catch_warnings():
            # We know; pt2 is the other format. Only here, only this: the user's own warnings stay.
            warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is", DeprecationWarning)
            try:
                with with_source(deployed):
                    program = torch.jit.script(deployed)
                if options.freeze:
                    program = torch.jit.freeze(program)
                torch.jit.save(program, buffer, _extra_files=cls.texts(bundle, options))
            except (torch.jit.frontend.FrontendError, RuntimeError, TypeError, AttributeError, OSError) as error:
                reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
                raise ExportError(f"the network cannot be put into TorchScript: {reason}", fix="export pt2 instead") from None
        return buffer.getvalue()


def _plain(network):
    """The network with what parametrized tensors (weight norm, spectral norm) come to: scripts know no others."""
    from torch import nn
    from torch.nn.utils import parametrize

    if not any(map(parametrize.is_parametrized, network.modules())):
        return network
    network = copy.deepcopy(network)
    for module in filter(parametrize.is_parametrized, list(network.modules())):
        values = {name: getattr(module, name).detach().clone() for name in module.parametrizations}
        # Not by remove_parametrizations: it changes the class, which the user's module has too.
        module.__class__ = parametrize.type_before_parametrizations(module)
        del module.parametrizations
        for name, value in values.items():
            module.register_parameter(name, nn.Parameter(value, requires_grad=False))
    return network
