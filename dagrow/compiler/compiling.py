"""Architecture and weights -> torch.fx.GraphModule, and the weights back by the nodes' names.

A node `body.r0.conv` becomes the submodule `n_body.n_r0.n_conv`: without the prefix a node called `graph`, `code` or
`train` would overwrite a part of GraphModule. Ops that build functions are recorded as the calls they make.
"""

from __future__ import annotations

import linecache
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, fx, nn
from torch.fx import graph_module as fx_graph_module

from dagrow.errors import GraphError
from dagrow.graph import Architecture
from dagrow.graph.collecting import uncollected
from dagrow.graph.node import build, built, copied, tensors_of
from dagrow.graph.ties import node_of
from dagrow.recorded import Held, Recorded
from dagrow.rng import seed_of

PREFIX = "n_"


class Network(fx.GraphModule):
    """A GraphModule that leaves nothing behind: fx keeps the source of every recompile for ever, ours is dropped.

    Networks of one architecture share their `graph`: copy it before changing it.

    `meta["values"]` maps each node of the architecture to the name of the fx node that holds its output, `meta["locals"]` each
    that is a module to its tensors' full names by their local ones: "owner.local" where tied.
    """

    def __init__(self, root: nn.Module | Mapping[str, nn.Module], graph: fx.Graph, class_name: str = "Network"):
        # Also keeps torch.jit.script from warning about the annotations in fx's own __init__.
        super().__init__(root, graph, class_name)

    def recompile(self):
        code = super().recompile()
        _forget(type(self))
        return code


class _Recorder(fx.proxy.GraphAppendingTracer):
    """Records calls on proxies, naming each after the node being compiled."""

    current: str

    def create_node(self, kind, target, args, kwargs, name=None, type_expr=None):
        return super().create_node(kind, target, args, kwargs, self.current, type_expr)


class _Written(Held):
    """What a recorded module holds, as nodes of the graph being written."""

    def __init__(self, module: Recorded, target: str, recorder: _Recorder, parts: dict[str, nn.Module | Tensor]):
        super().__init__(module)
        self.target, self.recorder, self.parts = target, recorder, parts

    def tensor(self, name: str) -> fx.Proxy:
        self.parts[f"{self.target}.{name}"] = getattr(self.module, name)
        return fx.Proxy(self.recorder.graph.get_attr(f"{self.target}.{name}"), self.recorder)

    def call(self, name: str, *args, **kwargs) -> fx.Proxy:
        self.parts[f"{self.target}.{name}"] = getattr(self.module, name)
        return self.recorder.create_proxy("call_module", f"{self.target}.{name}", args, kwargs)


def prefixed_name(name: str) -> str:
    """"body.r0.conv" -> "n_body.n_r0.n_conv"."""
    return ".".join(PREFIX + segment for segment in name.split("."))


def plain_name(name: str) -> str:
    """"n_body.n_r0.n_conv.weight" -> "body.r0.conv.weight": the prefix is taken from the leading segments that bear it."""
    segments = name.split(".")
    for k, segment in enumerate(segments):
        if not segment.startswith(PREFIX):
            break
        segments[k] = segment[len(PREFIX):]
    return ".".join(segments)


@uncollected()
def compile_architecture(arch: Architecture, weights: Mapping[str, Tensor]) -> Network:
    """A module, in training mode, that computes `arch` with clones of `weights` ("node.local" -> parameter or buffer).

    Its inputs are the architecture's, in their order, each [batch, *shape]; it returns the output's tensor, or a tuple
    where the architecture has several outputs. dtypes and devices are those of the tensors given; floating parameters
    require gradients. Raises GraphError where weights are missing, left over or of another shape. An architecture that was
    compiled a short while ago is not generated again.
    """
    with _LOCK:
        bare = _BARE.pop(arch.digest, None) or _generated(arch)
        _BARE[arch.digest] = bare
        while len(_BARE) > _MOST_BARE:
            _BARE.pop(next(iter(_BARE)))
    network = copied(bare)
    network.meta = {"values": dict(bare.meta["values"]), "locals": bare.meta["locals"]}
    wanted: dict[str, tuple[int, ...]] = {}
    made: dict[str, Tensor] = {}
    for name, locals_ in bare.meta["locals"].items():
        module = network.get_submodule(prefixed_name(name))
        _fill(module, locals_, weights, wanted, made)
        if isinstance(module, Recorded):
            module.filled()
    _check(wanted, weights)
    return network


# Networks without values, by their architectures' digests. What one decision compiles, it compiles several times.
_BARE: dict[str, Network] = {}
_MOST_BARE = 16
_LOCK = threading.Lock()


def _generated(arch: Architecture) -> Network:
    """The network with its parameters and buffers on the meta device."""
    shapes, nodes = arch.shapes, arch.nodes
    graph = fx.Graph()
    recorder = _Recorder(graph)
    values = {name: fx.Proxy(graph.placeholder(target), recorder) for name, target in _placeholders(arch).items()}
    modules: dict[str, nn.Module] = {}
    parts: dict[str, nn.Module | Tensor] = {}
    for name in arch.order:
        if nodes[name].op == "input":
            continue
        made = built(nodes[name], [shapes[i] for i in nodes[name].inputs], name)
        target = prefixed_name(name)
        recorder.current = target.replace(".", "_")
        arguments = [values[i] for i in nodes[name].inputs]
        if isinstance(made, Recorded):
            modules[target] = made
            values[name] = made.work(_Written(made, target, recorder, parts), *arguments)
        elif isinstance(made, nn.Module):
            modules[target] = made
            values[name] = fx.Proxy(graph.call_module(target, tuple(a.node for a in arguments)), recorder)
        else:
            values[name] = made(*arguments)
    ends = [values[name].node for name in arch.outputs]
    graph.output(ends[0] if len(ends) == 1 else tuple(ends))
    network = Network({**modules, **parts}, graph)
    for target, made in modules.items():
        if isinstance(made, Recorded):
            network.add_submodule(target, made)  # fx takes over only what the graph names: its parts
    network.meta["values"] = {name: value.node.name for name, value in values.items()}
    network.meta["locals"] = {name: dict(arch.formed.locals[name]) for name in arch.order if prefixed_name(name) in modules}
    return network


def _placeholders(arch: Architecture) -> dict[str, str]:
    """input node -> the argument's name; a.b and a_n_b must not meet."""
    taken: dict[str, str] = {}
    for name in arch.inputs:
        target = prefixed_name(name).replace(".", "_")
        while target in taken.values():
            target += "_"
        taken[name] = target
    return taken


def _fill(
    module: nn.Module, locals_: Mapping[str, str], weights: Mapping[str, Tensor], wanted: dict[str, tuple[int, ...]], made: dict[str, Tensor]
) -> None:
    """Puts clones of `weights` into `module`, where their shapes fit: one for each name, which tied places share (`made`)."""
    for local, held, key in tensors_of(module):
        old, slot = held[key], locals_[local]
        wanted[slot] = tuple(old.shape)
        given = weights.get(slot)
        if given is None or given.shape != old.shape:
            continue
        if slot not in made:
            # Cloned: an alias would let training change the caller's value, and unaligned storage changes bits.
            fresh = given.detach().clone()
            made[slot] = nn.Parameter(fresh, fresh.is_floating_point()) if isinstance(old, nn.Parameter) else fresh
        held[key] = made[slot]


def _check(wanted: Mapping[str, tuple[int, ...]], weights: Mapping[str, Tensor]) -> None:
    wrong = [f"{slot!r} is missing" for slot in wanted if slot not in weights]
    wrong += [f"{slot!r} belongs to no node" for slot in weights if slot not in wanted]
    wrong += [
        f"{slot!r} has shape {list(weights[slot].shape)}, the network needs {list(shape)}"
        for slot, shape in wanted.items() if slot in weights and tuple(weights[slot].shape) != shape
    ]
    if wrong:
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise GraphError(f"these weights are not this network's: {'; '.join(wrong[:5])}{more}")


def initialise(arch: Architecture, seed: int | tuple[int | str, ...], only: Iterable[str] | None = None) -> dict[str, Tensor]:
    """Fresh values, on the CPU, of every parameter and buffer, or of those in `only`, keyed "node.local".

    `seed` is the run's, or (seed, *purpose). A node's values depend on the seed, its name, its attributes and the shapes
    of its inputs only: not on the rest of the network. Raises GraphError for names that are not in `arch`.
    """
    seed, *purpose = seed if isinstance(seed, tuple) else (seed,)
    known = {**arch.params, **arch.buffers}
    chosen = set(known if only is None else only)
    strange = sorted(chosen - known.keys())
    if strange:
        raise GraphError(f"{strange[0]!r} is no parameter of this network")
    owners, made = {owner_of(arch, slot) for slot in chosen}, {}
    # torch's generator of the CPU alone, seeded for each node: seeding those of every device takes longer than a layer.
    before = torch.get_rng_state()
    try:
        with torch.device("cpu"):
            for name in (n for n in arch.order if n in owners):
                node = arch.nodes[name]
                torch.default_generator.manual_seed(seed_of(seed, *purpose, "init", name))
                module = build(node, [arch.shapes[i] for i in node.inputs], name)
                if isinstance(module, nn.Module):
                    made.update({
                        f"{name}.{local}": held[key].detach().clone() for local, held, key in tensors_of(module) if f"{name}.{local}" in chosen
                    })
    finally:
        torch.set_rng_state(before)
    return made


def owner_of(arch: Architecture, slot: str) -> str:
    """The node of a "node.local". Raises GraphError where it is of none."""
    name = node_of(arch.nodes, slot)
    if name is None:
        raise GraphError(f"{slot!r} is no parameter of this network")
    return name


def _named(module: nn.Module, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """By the nodes' names; what is tied goes by its owner's."""
    full = {}
    for name, locals_ in getattr(module, "meta", {}).get("locals", {}).items():
        full.update((id(held[key]), locals_[local]) for local, held, key in tensors_of(module.get_submodule(prefixed_name(name))))
    return {full.get(id(tensor)) or plain_name(name): tensor for name, tensor in tensors}


def parameters_by_name(module: nn.Module) -> dict[str, nn.Parameter]:
    """"node.local" -> the live parameter, each once, in the order of `module.named_parameters()`."""
    return _named(module, module.named_parameters())


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """"node.local" -> a detached clone of each parameter and buffer: what `compile_architecture` takes."""
    held = _named(module, [*module.named_parameters(), *module.named_buffers()])
    return {name: tensor.detach().clone() for name, tensor in held.items()}


@contextmanager
def with_source(module: nn.Module) -> Iterator[nn.Module]:
    """`module` with the generated source of its graphs readable inside the block (torch.jit.script asks for it), dropped after."""
    graphs = [part for part in module.modules() if isinstance(part, fx.GraphModule)]
    try:
        for part in graphs:
            fx.GraphModule.recompile(part)
        yield module
    finally:
        for part in graphs:
            _forget(type(part))


def _forget(kind: type[fx.GraphModule]) -> None:
    """Drops fx's and linecache's copies of the source of `kind.forward`, and fx's wrapper of the call."""
    key = kind.forward.__code__.co_filename
    fx_graph_module._loader.eval_cache.pop(key, None)
    linecache.cache.pop(key, None)
    # The wrapper prints a failing forward's source to stderr; errors here are caught and handled as values.
    if "__call__" in vars(kind):
        del kind.__call__
