"""The user's own PyTorch model as an architecture with weights."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dagrow.errors import DagrowError, nearest
from dagrow.graph import Architecture
from dagrow.importing.building import Builder, Names
from dagrow.importing.comparing import compare, run, some
from dagrow.importing.errors import ImportingError, Unfit, located
from dagrow.importing.lowering import FICKLE, Lowering
from dagrow.importing.result import Imported
from dagrow.importing.tracing import Stand, Tracer, stands_in
from dagrow.importing.values import ROWS, Held

__all__ = ["Imported", "ImportingError", "from_torch"]


def from_torch(model: nn.Module, example_input: Tensor | Sequence[Tensor], *, opaque: str | type | Collection[str | type] = ()) -> Imported:
    """The architecture and weights of a PyTorch model, to the bit: `compile_architecture(arch, weights)` computes what the model does.

    example_input: a batch of rows that the model takes, batch first, or a list of several inputs. opaque: paths of modules, or
    classes of them, that are kept whole: trained and exported, never grown through. The model is left as it is, and run a few
    times in evaluation mode. Raises ImportingError with the line of the model that cannot be imported, and the way out.

    >>> from torch import nn
    >>> made = from_torch(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(3, 4))
    >>> list(made.arch.nodes), made.names["_0.weight"], made.arch.size
    (['input', '_0', '_1', '_2'], '0.weight', 58)
    """
    opaque = (opaque,) if isinstance(opaque, (str, type)) else opaque
    inputs = _inputs(model, example_input, opaque)
    with _left_alone(model):
        run(model, inputs)
        runs = [tuple(some(x, count) for x in inputs) for count in ROWS]
        first = _followed(model, inputs, runs, opaque, None)
        trained = _followed(model, inputs, runs, opaque, None, training=True)
        for one, other in zip(_shown(first), _shown(trained), strict=True):
            if one != other:
                raise _two_ways(one, other)
        if any(trained.dropouts) or any(first.dropouts):
            first = _followed(model, inputs, runs, opaque, trained.dropouts)
        made = _imported(model, first)
        compare(model, made, inputs)
    return made


class _Followed(Lowering):
    """A lowering that has seen the whole forward."""

    ended: Any = None
    outputs: tuple[str, ...] = ()


def _inputs(model: nn.Module, example: Any, opaque: Collection) -> list[Tensor]:
    if isinstance(model, type) and issubclass(model, nn.Module):
        raise ImportingError(f"{model.__name__} is a class, not a model", fix=f"make one of it: {model.__name__}(…)")
    if not isinstance(model, nn.Module):
        raise ImportingError(f"a {type(model).__name__} is no nn.Module")
    if hasattr(model, "_orig_mod"):
        raise ImportingError("torch.compile has been applied to the model", fix="import the model as it was before: model._orig_mod")
    if isinstance(model, torch.jit.ScriptModule):
        raise ImportingError("a TorchScript module has no Python to follow", fix="import the module that it was made of")
    if isinstance(example, Mapping):
        raise ImportingError("the example input is a mapping", fix="wrap the model in one whose forward takes tensors, one argument each")
    found = [example] if isinstance(example, Tensor) else list(example) if isinstance(example, Sequence) else [example]
    for x in found:
        if not isinstance(x, Tensor):
            raise ImportingError(f"the example input is a {type(x).__name__}, not a tensor", fix="give a tensor, or a list of tensors where forward takes several")
        if x.dim() < 2 or not x.shape[0]:
            raise ImportingError(f"the example input is {list(x.shape)}", fix="give a batch of rows: [rows, features] or [rows, channels, height, width]")
    if not found:
        raise ImportingError("there is no example input")
    if any(t.is_complex() for t in (*found, *model.parameters(), *model.buffers())):
        raise ImportingError("the model computes with complex numbers", fix="dagrow grows networks of real ones")
    paths = [path for path, _ in model.named_modules(remove_duplicate=False)]
    for given in opaque:
        if isinstance(given, str) and (given not in paths or not given):
            near = nearest(given, paths)
            raise ImportingError(f"opaque: the model has no module {given!r}", fix=f"did you mean {near!r}?" if near else None)
    return found


@contextmanager
def _left_alone(model: nn.Module) -> Iterator[None]:
    """The modes and attributes of all modules, and torch's generator, are afterwards what they were."""
    was, modes = model.training, {m: m.training for m in model.modules()}
    held = {m: {k: v for k, v in vars(m).items() if not k.startswith("_")} for m in modes}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            model.train()
            still = [path for path, m in model.named_modules() if isinstance(m, FICKLE) and not m.training]
            model.eval()
            if still:
                fix = "freeze a batch norm by F.batch_norm(…, training=False), and leave a dropout out"
                raise ImportingError(f"{still[0]!r} stays in evaluation mode when the model is trained", fix=fix)
            yield
        finally:
            model.train(was)  # the model's own way, which may do more
            for m in model.modules():
                m.training = modes.get(m, model.training)
                for key in [k for k, v in vars(m).items() if isinstance(v, Stand) or isinstance(v, (list, tuple, dict)) and any(stands_in(v))]:
                    # What forward stored of a run that was followed; a list that was there before has grown.
                    before, value = held.get(m, {}).get(key), vars(m).pop(key)
                    if isinstance(value, list):
                        value[:] = [v for v in value if not isinstance(v, Stand)]
                    vars(m).update({} if before is None else {key: before})


def _followed(model: nn.Module, inputs: Sequence[Tensor], runs: Sequence, opaque: Collection, plan: list[float] | None, training: bool = False) -> _Followed:
    """The model's forward, lowered; training: as far as the user's own code looks at its mode."""
    names = _input_names(model, len(inputs))
    build = Builder(Names(model, names))
    spoken = {id(t): name for name, t in [*model.named_parameters(), *model.named_buffers()]}
    work = _Followed(build, spoken, tuple(opaque), plan)
    work.moving = {spoken[id(b)] for m in model.modules() if isinstance(m, FICKLE) for b in m.buffers() if id(b) in spoken}
    tracer = Tracer(work, work.leaf)
    try:
        held = [build.input(name, (runs[0][k], runs[1][k])) for k, name in enumerate(names)]
        _train(model, "", training, work.leaf)
        with torch.enable_grad():
            outputs = tracer.follow(model, held)
    except ImportingError as error:
        if training:
            error = ImportingError(f"in training mode, {error.message}", fix=error.fix, place=error.place).with_traceback(error.__traceback__)
        raise located(error, error) from None
    except Unfit as error:
        raise located(ImportingError(str(error), fix=tracer.way_out()), error) from None
    except DagrowError:
        raise
    except Exception as error:  # noqa: BLE001  whatever the user's code raises on stand-ins
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise located(ImportingError(f"it cannot be followed: {type(error).__name__}: {text}", fix=tracer.way_out()), error) from None
    finally:
        model.eval()
    work.outputs = _ends(work, outputs)
    idle = [p for p in names if p not in _read(build, work.outputs)]
    if idle:
        raise ImportingError(f"the model's output does not depend on its input {idle[0]!r}", fix="leave that input out")
    work.ended = build.finished(work.outputs)
    return work


def _train(module: nn.Module, path: str, mode: bool, leaf: Callable[[str, nn.Module], bool]) -> None:
    """Sets the mode of what is followed; what is looked at as one thing stays in evaluation mode, with all that lies in it."""
    module.training = mode = mode and not (path and leaf(path, module))
    for name, part in module.named_children():
        _train(part, f"{path}.{name}" if path else name, mode, leaf)


def _read(build: Builder, outputs: Sequence[str]) -> set[str]:
    """The nodes that lead to the outputs."""
    found: set[str] = set()
    todo = list(outputs)
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo += build.nodes[name].inputs
    return found


def _input_names(model: nn.Module, count: int) -> list[str]:
    """"input", or what the arguments of forward are called."""
    if count == 1:
        return ["input"]
    parameters = [p for p in inspect.signature(model.forward).parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    found = [p.name if p.name.isascii() and len(p.name) < 60 else f"input{k}" for k, p in enumerate(parameters[:count])]
    return [*found, *(f"input{k}" for k in range(len(found), count))]


def _ends(work: _Followed, outputs: Any) -> tuple[str, ...]:
    """The nodes that make the model's outputs."""
    found = list(outputs) if isinstance(outputs, (tuple, list)) else [outputs]
    work.build.path, made = "", []
    for value in found:
        if not isinstance(value, Held):
            kind = "mapping" if isinstance(value, dict) else type(value).__name__
            raise ImportingError(f"the model returns a {kind}", fix="let forward return one tensor, or a tuple of tensors")
        try:
            solid = work.solid(value)
        except Unfit as error:
            raise ImportingError(f"an output of the model cannot be imported: {error}", fix="each row of a batch has to have outputs of its own") from None
        if solid.batch:
            raise ImportingError(f"an output has the batch at dimension {solid.batch}", fix="let forward return it first")
        name = solid.node
        if name in made or work.build.nodes[name].op == "input":
            name = work.build.node("identity", [solid], {}, expected=solid, hint="output").node
        made.append(name)
    return tuple(made)


def _shown(work: _Followed) -> tuple[Mapping, ...]:
    """What has to be the same in evaluation and in training: nodes, which tensors they hold, and the values of those without a name."""
    ended = work.ended
    values = {full: t.tolist() for full, t in ended.weights.items() if full not in ended.names}
    return ended.nodes, ended.names, {full: repr(v) for full, v in values.items()}


def _two_ways(one: Mapping, other: Mapping) -> ImportingError:
    strange = next((n for n in [*other, *one] if one.get(n) != other.get(n)), "")
    return ImportingError(
        f"in training the model does other things than in evaluation (self.training), first at {strange!r}",
        fix="leave that to modules such as nn.Dropout, or keep the module whole with opaque=[…]",
    )


def _imported(model: nn.Module, work: _Followed) -> Imported:
    ended = work.ended
    arch = Architecture(ended.nodes, work.outputs)
    used = set(ended.names.values())
    every = {name: t for name, t in [*model.named_parameters(), *model.named_buffers()]}
    state = model.state_dict(keep_vars=True)
    first = {id(t): name for name, t in every.items()}
    shared = {name: first[id(t)] for name, t in state.items() if isinstance(t, Tensor) and first.get(id(t), name) != name}
    held = {full: name for full, name in ended.names.items()}
    return Imported(
        arch, ended.weights, held, {n: work.build.modules.get(n, "") for n in ended.nodes},
        tuple(n for n in every if n not in used | work.folded), {n: why for n, why in work.kept.items() if n in ended.nodes},
        tuple(n for n in work.build.differs if n in ended.nodes),
        frozenset(full for full, name in held.items() if isinstance(every.get(name), nn.Parameter) and not every[name].requires_grad),
        shared, ended.leads, {name: every[name].detach().clone() for name in state if name in every and name not in used},
    )
