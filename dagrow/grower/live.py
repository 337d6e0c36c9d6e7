"""The user's model object kept alive: a grown architecture put into it, module by module, where its own modules were.

Modules of nodes that stay as they are remain the very objects, and so do parameters of unchanged shape. A parameter of
another shape is a new object: autograd keeps, for as long as a parameter lives, a node that gathers its gradient and
remembers its shape, so changing `.data` alone would fail at the next backward.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from dagrow.compiler import compile_architecture, prefixed_name
from dagrow.errors import GraphError
from dagrow.graph import Architecture
from dagrow.graph.node import build
from dagrow.grower.wiring import Loan, Record, Step, Wiring, rewire, wiring_of
from dagrow.importing import Imported

KINDS = ("_parameters", "_buffers")


@dataclass
class Change:
    """What an edit did to the model's parameters: old object -> the one in its place, or None; new ones, by "node.local".

    parts: of the new ones those that were a part of another parameter, and which.
    """

    replaced: dict[nn.Parameter, nn.Parameter | None] = field(default_factory=dict)
    newborn: dict[str, nn.Parameter] = field(default_factory=dict)
    parts: dict[str, nn.Parameter] = field(default_factory=dict)


@dataclass
class Live:
    """A model, the architecture it runs, and where its tensors and modules are.

    names: "node.local" -> the model's own dotted name of the parameter or buffer. paths: node -> the path of the module that
    is the node, where there is one. leads: of tensors that the model holds with so many more dimensions of size 1 in front.
    constants: "node.local" -> tensors that nodes hold and the model does not, such as a part of a mask, until it runs the nodes.
    """

    model: nn.Module
    arch: Architecture
    names: dict[str, str]
    paths: dict[str, str]
    leads: dict[str, int] = field(default_factory=dict)
    constants: dict[str, Tensor] = field(default_factory=dict)

    @staticmethod
    def of(model: nn.Module, found: Imported) -> Live:
        """A model as its user made it. Of its modules those of torch.nn, and those kept whole, are nodes; the user's own only hold some."""
        arch, calls = found.arch, {}
        for node, path in found.modules.items():
            if path and (arch.nodes[node].rule.closed or type(model.get_submodule(path)).__module__.startswith("torch.nn.")):
                calls.setdefault(path, []).append(node)
        # A module that became several nodes is none of them.
        forms = {node: (arch.nodes[node].op, arch.nodes[node].attrs, tuple(arch.formed.locals[node].items())) for nodes in calls.values() for node in nodes}
        paths = {node: path for path, nodes in calls.items() for node in nodes if all(forms[n] == forms[nodes[0]] for n in nodes)}
        return Live(model, found.arch, dict(found.names), paths, dict(found.leads), {n: t for n, t in found.weights.items() if n not in found.names})

    @staticmethod
    def known(model: nn.Module) -> Live | None:
        """A model that a Grower has changed before; None where there is none."""
        wiring = wiring_of(model)
        return wiring and Live(model, wiring.record.arch, dict(wiring.record.names), dict(wiring.record.paths), dict(wiring.record.leads))

    @property
    def wired(self) -> bool:
        return wiring_of(self.model) is not None

    def tensors(self) -> dict[str, Tensor]:
        """"node.local" -> the live parameter or buffer."""
        held = dict(self.model.named_parameters(remove_duplicate=False)) | dict(self.model.named_buffers(remove_duplicate=False))
        missing = [name for name in self.names.values() if name not in held]
        if missing:
            raise GraphError(f"the model no longer has {missing[0]!r}", fix="change the model through its Grower only")
        return {full: held[name] for full, name in self.names.items()}

    @property
    def packed(self) -> bool:
        """Whether some tensor of the model is those of several nodes."""
        return len(set(self.names.values())) < len(self.names)

    def weights(self) -> dict[str, Tensor]:
        """Copies on the CPU, of single precision at least, to measure with. GraphError where the model has been changed."""
        found, shapes = {}, {**self.arch.params, **self.arch.buffers}
        for full, t in (self.tensors() | self.constants).items():
            t = t.detach().to("cpu", copy=True)
            t = t.reshape(t.shape[self.leads.get(full, 0) :])
            if tuple(t.shape) != tuple(shapes[full]):
                message = f"{self.names[full]!r} is {list(t.shape)}, its Grower knows it as {list(shapes[full])}"
                raise GraphError(message, fix="change the model through its Grower only, or make another Grower")
            found[full] = t.float() if t.is_floating_point() and t.dtype not in (torch.float32, torch.float64) else t
        return found

    def planned(self, arch: Architecture, weights: Mapping[str, Tensor], paths: Mapping[str, str] | None = None) -> Plan:
        """How the model would become `arch` with `weights`; nothing is touched. paths: where new nodes' modules go; None: anywhere."""
        return Plan(self, arch, weights, paths or {})

    def put(self, plan: Plan) -> None:
        """The model becomes what was planned. All that can fail has been done by then."""
        plan.commit()
        self.arch, self.names, self.paths, self.constants = plan.arch, plan.names, plan.paths, {}


class Plan:
    """Where every node of the new architecture goes. change: what becomes of the model's parameters."""

    def __init__(self, live: Live, arch: Architecture, weights: Mapping[str, Tensor], wished: Mapping[str, str]):
        self.live, self.model, self.arch, self.weights, self.wished = live, live.model, arch, weights, wished
        held = live.tensors()
        # Queries, keys and values in one tensor become a tensor each.
        self.packed = {full: t for full, t in held.items() if sum(other is t for other in held.values()) > 1}
        self.old = {full: t for full, t in held.items() if full not in self.packed}
        first = next((t for t in self.old.values() if t.is_floating_point()), torch.zeros(()))
        self.network = compile_architecture(arch, {n: _like(w, self.old.get(n, first)) for n, w in weights.items()})
        self.network.train(self.model.training)
        self.names: dict[str, str] = {}
        self.paths: dict[str, str] = {}
        self.made: dict[str, nn.Module] = {}  # path -> the module that goes there
        self.objects: dict[str, Tensor] = {}  # "node.local" -> the live tensor that it will be
        self.change = Change()
        self.lent: dict[str, nn.Module] = {}  # nodes whose tensors lie elsewhere -> the module that borrows them
        self.functions: dict = {}
        self.grown = next(n for n in ("grown", *(f"grown{k}" for k in range(2, 99))) if self._free(n))
        self._objects()
        for name in arch.order:
            if arch.nodes[name].op != "input":
                self._place(name)

    def _free(self, name: str) -> bool:
        return not hasattr(self.model, name) or isinstance(getattr(self.model, name), Grown)

    def _objects(self) -> None:
        """The live tensor of every name: the one that was there where its shape stays, a new one else."""
        fresh = {f"{node}.{local}": t for node, module in self._modules() for _, local, t in _tensors(module)}
        shapes = {**self.arch.params, **self.arch.buffers}
        for full, shape in shapes.items():
            old, lead = self.old.get(full), (1,) * self.live.leads.get(full, 0)
            if old is not None and tuple(old.shape) == (*lead, *shape):
                self.objects[full] = old
                continue
            made = fresh[full]
            if lead:
                made = nn.Parameter(made.detach().view(*lead, *shape)) if isinstance(made, nn.Parameter) else made.view(*lead, *shape)
            if isinstance(made, nn.Parameter):
                packed = self.packed.get(full)
                made.requires_grad_(all(t.requires_grad for t in (old, packed) if t is not None))
                if old is None:
                    self.change.newborn[full] = made
                if packed is not None:
                    self.change.parts[full] = packed
            self.objects[full] = made
        for full, old in self.old.items():
            if isinstance(old, nn.Parameter) and self.objects.get(full) is not old:
                self.change.replaced[old] = self.objects.get(full)
        self.change.replaced |= {t: None for t in self.packed.values() if isinstance(t, nn.Parameter)}

    def _modules(self) -> Iterator[tuple[str, nn.Module]]:
        for name in self.arch.order:
            module = self._compiled(name)
            if module is not None:
                yield name, module

    def _compiled(self, name: str) -> nn.Module | None:
        try:
            return self.network.get_submodule(prefixed_name(name))
        except AttributeError:
            return None

    def _place(self, name: str) -> None:
        module, node, path = self._compiled(name), self.arch.nodes[name], self.live.paths.get(name)
        if module is None:
            self.functions[name] = build(node, [self.arch.shapes[i] for i in node.inputs], name)
            if path:
                self.paths[name] = path
            return
        locals_ = self.arch.formed.locals[name]
        if path and self._owns(name, path, locals_):
            at = self.live.model.get_submodule(path)
            self.paths[name] = path
            self.made.setdefault(path, at if self._same(name) else module)
        elif locals_ and all(self._lendable(full) for full in locals_.values()):
            self.lent[name] = module
        else:
            self.paths[name] = path = self._new_path(name)
            self.made[path] = module
        for local, full in locals_.items():
            self.names.setdefault(full, f"{path}.{local}" if name in self.paths else self.live.names[full])

    def _owns(self, name: str, path: str, locals_: Mapping[str, str]) -> bool:
        """Whether the module at `path` is this node alone, tensor by tensor, or another call of the same."""
        try:
            at = self.model.get_submodule(path)
        except AttributeError:
            return False
        held = {local: t for _, local, t in _tensors(at)}
        if set(held) != set(locals_) or not path:
            return False
        if any(held[local] is not self.old.get(full) for local, full in locals_.items()):
            return False
        others = [n for n, p in self.paths.items() if p == path and n not in self.functions]
        return all(self.arch.nodes[n].attrs == self.arch.nodes[name].attrs and self.arch.formed.locals[n] == locals_ for n in others)

    def _same(self, name: str) -> bool:
        """Whether the node is as before, so that its module may stay."""
        before, node = self.live.arch.nodes.get(name), self.arch.nodes[name]
        if before is None or (before.op, before.attrs) != (node.op, node.attrs):
            return False
        inputs = [[a.shapes[i] for i in n.inputs] for a, n in ((self.live.arch, before), (self.arch, node))]
        shapes = {**self.arch.params, **self.arch.buffers}
        return inputs[0] == inputs[1] and all(self.objects[f] is self.old[f] for f in self.arch.formed.locals[name].values() if f in shapes)

    def _lendable(self, full: str) -> bool:
        """Whether the tensor has a place of its own in the model, to which it can go back."""
        return full in self.old

    def _new_path(self, name: str) -> str:
        if self.wished.get(name, "").startswith(f"{self.grown}."):
            return self.wished[name]
        stem = path = f"{self.grown}.{name.replace('.', '_')}"
        taken = {*self.made, *self.live.paths.values()}
        number = 1
        while path in taken and self.live.paths.get(name) != path:
            number, path = number + 1, f"{stem}_{number + 1}"
        return path

    # -- nothing below fails -----------------------------------------------------------------------------------------

    def commit(self) -> None:
        for path, module in self.made.items():
            self._put_module(path, module)
        swap = {id(old): new for old, new in ((o, self.objects.get(f)) for f, o in self.old.items()) if old is not new}
        swap |= {id(t): None for t in self.packed.values()}
        for module in list(self.model.modules()):
            for kind in KINDS:
                held = getattr(module, kind)
                for key, t in held.items():
                    if t is not None and id(t) in swap:
                        held[key] = swap[id(t)]
        for name in set(self.live.paths) - set(self.arch.nodes):
            self._drop_module(self.live.paths[name])
        with torch.no_grad():
            for full, t in self.objects.items():
                t.copy_(self.weights[full].view(t.shape))
        rewire(self.model, self._steps())

    def _put_module(self, path: str, module: nn.Module) -> None:
        for node in (n for n, p in self.paths.items() if p == path):
            for local, full in self.arch.formed.locals[node].items():
                owner, key = _holder(module, local)
                kind = "_parameters" if key in owner._parameters else "_buffers"
                getattr(owner, kind)[key] = self.objects[full]
        parent, _, last = path.rpartition(".")
        if parent == self.grown and parent not in self.model._modules:
            self.model._modules[parent] = Grown().train(self.model.training)
        held = self.model.get_submodule(parent)._modules
        if held.get(last) is not module:
            if last in held:
                module.train(held[last].training)
            held[last] = module

    def _drop_module(self, path: str) -> None:
        if path in self.paths.values():
            return
        parent, _, last = path.rpartition(".")
        self.model.get_submodule(parent)._modules.pop(last, None)
        if parent == self.grown and not self.model._modules[parent]._modules:
            del self.model._modules[parent]

    def _steps(self) -> Wiring:
        arch = self.arch
        number = {name: k for k, name in enumerate((*arch.inputs, *(n for n in arch.order if n not in arch.inputs)))}
        steps = []
        for name in number:
            if name in arch.inputs:
                continue
            inputs = tuple(number[i] for i in arch.nodes[name].inputs)
            if name in self.functions:
                steps.append(Step(self.functions[name], inputs))
            elif name in self.lent:
                module = self.lent[name]
                steps.append(Step(module, inputs, tuple(self._loans(name, module)), hidden=True))
            else:
                steps.append(Step(self.model.get_submodule(self.paths[name]), inputs))
        record = Record(arch, dict(self.names), dict(self.paths), dict(self.live.leads))
        return Wiring(len(arch.inputs), steps, number[arch.outputs[0]], record)

    def _loans(self, name: str, module: nn.Module) -> Iterator[Loan]:
        for local, full in self.arch.formed.locals[name].items():
            part, key = _holder(module, local)
            owner, theirs = _holder(self.model, self.names[full])
            kind = "_parameters" if key in part._parameters else "_buffers"
            yield Loan(part, key, owner, kind, theirs, self.live.leads.get(full, 0))


class Grown(nn.Module):
    """Holds the modules of nodes that the model did not have."""


def _tensors(module: nn.Module) -> Iterator[tuple[str, str, Tensor]]:
    """(kind, local name, tensor) of every parameter and buffer below `module`; one that is there twice comes twice."""
    for path, part in module.named_modules():
        for kind in KINDS:
            for key, t in getattr(part, kind).items():
                if t is not None:
                    yield kind, f"{path}.{key}" if path else key, t


def _holder(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, key = name.rpartition(".")
    return module.get_submodule(path), key


def _like(value: Tensor, like: Tensor) -> Tensor:
    return value.to(like.device, like.dtype if value.is_floating_point() and like.is_floating_point() else value.dtype)


__all__ = ["Change", "Grown", "Live", "Plan"]
