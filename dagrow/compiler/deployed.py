"""A network with its preprocessing: from raw rows to what is reported. What exports hold and predictions use."""

from __future__ import annotations

import copy
import operator

import torch
from torch import Tensor, fx, nn

from dagrow.compiler.compiling import Network
from dagrow.errors import UsageError


class Deployed(nn.Module):
    """decoder(network(encoder(raw))) on copies of the three, on the CPU, in evaluation mode, without gradients.

    raw: [n, ...] of any dtype the encoder takes (it casts) -> [n, outputs]. `probabilities`: a softmax over them follows.
    """

    def __init__(self, encoder: nn.Module, network: nn.Module, decoder: nn.Module, probabilities: bool = False):
        super().__init__()
        self.encoder = copy.deepcopy(encoder)
        self.network = copy.deepcopy(network)
        self.decoder = copy.deepcopy(decoder)
        self.probabilities = probabilities
        floats = [p.dtype for p in self.network.parameters() if p.is_floating_point()]
        self.dtype = floats[0] if floats else torch.float32
        self.cpu().eval().requires_grad_(False)

    def forward(self, raw: Tensor) -> Tensor:
        y = self.decoder(self.network(self.encoder(raw).to(self.dtype)))
        if self.probabilities:
            y = torch.softmax(y, 1)
        return y


def deploy(encoder: nn.Module, network: nn.Module, decoder: nn.Module, probabilities: bool = False) -> nn.Module:
    """`Deployed`; for a network of several inputs or outputs a module that takes and gives as many tensors.

    Several inputs are taken as they are, cast to the network's dtype: UsageError where an encoder would change them. The first
    output is the one that is decoded; the others follow as they are.
    """
    graph = getattr(network, "graph", None)
    given = [n for n in graph.nodes if n.op == "placeholder"] if isinstance(graph, fx.Graph) else []
    many = isinstance(graph, fx.Graph) and isinstance(next(n for n in graph.nodes if n.op == "output").args[0], tuple)
    if len(given) < 2 and not many:
        return Deployed(encoder, network, decoder, probabilities)
    if len(given) > 1 and not isinstance(encoder, nn.Identity):
        raise UsageError("an encoder prepares one input, the network has several", fix="prepare the rows before they are given")
    parts = Deployed(encoder, network, decoder, probabilities)
    whole = fx.Graph()
    rows = [whole.placeholder(n.name) for n in given]
    encoded = [whole.call_method("to", (x if len(rows) > 1 else whole.call_module("encoder", (x,)), parts.dtype)) for x in rows]
    made = whole.call_module("network", tuple(encoded))
    ends = next(n for n in graph.nodes if n.op == "output").args[0]
    found = [whole.call_function(operator.getitem, (made, k)) for k in range(len(ends))] if many else [made]
    found[0] = whole.call_module("decoder", (found[0],))
    if probabilities:
        found[0] = whole.call_function(torch.softmax, (found[0], 1))
    whole.output(tuple(found) if many else found[0])
    return Network(parts, whole).eval().requires_grad_(False)
