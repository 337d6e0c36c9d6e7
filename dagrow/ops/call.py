"""call: functions of torch that have no op of their own, as plain values."""

from __future__ import annotations

import math
import re
from functools import lru_cache
from typing import Annotated, Any, Literal

import pydantic

from dagrow.errors import GraphError
from dagrow.ops import MOST, MOST_VALUES, REGISTRY, Example, Op
from dagrow.registry import Options

MOST_STEPS = 256
MOST_SIZES = 2**48
WORD = re.compile(r"[a-z][a-z0-9_]{0,63}\Z")
TEXT = re.compile(r"[A-Za-z_.,> -]{0,64}\Z")
DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
PLAIN = re.compile(r"(Optional\[)?(List\[)?(Optional\[)?(Tensor|int|float|bool|number|str)\]*\Z")
# Not what a network runs, and not safe with any arguments: these read memory that is not theirs, or count as far as they are told.
UNSAFE = re.compile(r"backward|quantized|qparams|sparse|mkldnn|miopen|cudnn|fbgemm|empty|resize|^set$|^data$|pin_memory|polynomial")
# Of these the numbers in a list are no sizes of one tensor.
LISTING = re.compile(r"split|chunk|roll|pad")
SIZED = ("view", "reshape", "_unsafe_view", "expand", "broadcast_to")
Extent = Annotated[int, pydantic.Field(strict=True, ge=0, le=MOST)]
Own = tuple[Annotated[str, pydantic.Field(pattern=r"^w[0-9]{1,3}$")], tuple[Extent, ...], Literal[DTYPES], bool]


@lru_cache(maxsize=1024)
def arguments_of(name: str) -> frozenset[str] | None:
    """The arguments that an aten function of tensors takes by name; None for what is no such function.

    It makes tensors of tensors and plain values, and changes none of them: nothing that reads a file, draws on a device
    or writes into its arguments has such a form.
    """
    import torch

    if not WORD.match(name) or name.endswith("_") or UNSAFE.search(name):
        return None
    packet = getattr(torch.ops.aten, name, None)
    if not isinstance(packet, torch._ops.OpOverloadPacket):
        return None
    found: set[str] = set()
    for overload in packet.overloads():
        schema = getattr(packet, overload)._schema
        needed = [a for a in schema.arguments if not a.has_default_value()]
        makes = [str(r.type) for r in schema.returns]
        if schema.is_mutable or not makes or any(m not in ("Tensor", "List[Tensor]") for m in makes):
            continue
        if not any("Tensor" in str(a.type) for a in needed) or not all(PLAIN.match(str(a.type)) for a in needed):
            continue
        found |= {a.name for a in schema.arguments if PLAIN.match(str(a.type)) and WORD.match(a.name.lower())}
    return frozenset(found - {"out"}) or None


def frozen(value: Any, steps: int, own: frozenset[str], depth: int = 0):
    """A value of a step, lists as tuples; ValueError for what may not stand there."""
    if isinstance(value, (bool, type(None))):
        return value
    if isinstance(value, (int, float)):
        if not math.isfinite(value) or abs(value) > 2**62:
            raise ValueError('a number beyond 2**62 is none; infinity is ["float", "inf"]')
        return value
    if isinstance(value, str):
        if not TEXT.match(value):
            raise ValueError(f"{value[:40]!r} is not a word that a function takes")
        return value
    if not isinstance(value, (list, tuple)) or not value or depth > 8:
        raise ValueError("arguments are plain values and tagged lists")
    tag, *rest = value
    whole = all(type(r) is int and 0 <= r < MOST for r in rest)
    if tag == "list":
        return ("list", *(frozen(v, steps, own, depth + 1) for v in rest))
    fits = {
        "in": whole and len(rest) == 1, "step": whole and len(rest) == 1 and rest[0] < steps, "item": whole and len(rest) == 2 and rest[0] < steps,
        "batch": whole and len(rest) == 1, "own": len(rest) == 1 and rest[0] in own, "dtype": len(rest) == 1 and rest[0] in DTYPES,
        "float": len(rest) == 1 and rest[0] in ("inf", "-inf", "nan"),
    }.get(tag if isinstance(tag, str) else None, False)
    if not fits:
        raise ValueError(f"{str(value)[:60]} stands for nothing here")
    return (tag, *rest)


def frozen_step(step: Any, number: int, own: frozenset[str]) -> tuple:
    if not isinstance(step, (list, tuple)) or len(step) != 3 or not all(isinstance(part, (list, tuple)) for part in step[1:]):
        raise ValueError("a step is [function, arguments, [[name, argument], …]]")
    name, args, kwargs = step
    known = arguments_of(name) if isinstance(name, str) else None
    if known is None:
        raise ValueError(f"{str(name)[:60]!r} is not an aten function that makes tensors of tensors")
    for row in kwargs:
        if not isinstance(row, (list, tuple)) or len(row) != 2 or row[0] not in known:
            raise ValueError(f"{name} takes no argument {str(row[0] if isinstance(row, (list, tuple)) and row else row)[:40]!r}")
    made = name, tuple(frozen(a, number, own) for a in args), tuple((k, frozen(v, number, own)) for k, v in kwargs)
    for value in () if LISTING.search(name) else (*made[1], *(v for _, v in made[2])):
        if isinstance(value, tuple) and value[0] == "list" and math.prod(max(1, abs(v)) for v in value[1:] if type(v) is int) > MOST_SIZES:
            raise ValueError(f"{name} of a tensor of more than {MOST_SIZES:,} values")
    if re.search("split|chunk", name) and any(type(v) is int and v > MOST for v in made[1]):
        raise ValueError(f"{name} into more than {MOST:,} parts")
    return made


@REGISTRY.register("call")
class Call(Op):
    """An expression of aten functions, with tensors of its own where it needs some: what imported models do that is no op."""

    most = None
    examples = (
        Example({"steps": (("sin", (("in", 0),), ()),)}),
        Example({"steps": (("mul", (("in", 0), ("own", "w0")), ()),), "own": (("w0", (1,), "float32", True),)}),
    )

    class Options(Options):
        own: tuple[Own, ...] = ()
        steps: tuple[Any, ...]

        @pydantic.field_validator("own")
        @classmethod
        def _named(cls, value):
            if len({row[0] for row in value}) < len(value) or len(value) > MOST_STEPS or any(len(row[1]) > 8 or math.prod(row[1]) > MOST_VALUES for row in value):
                raise ValueError("own tensors have each a name, and a size that fits a machine")
            return value

        @pydantic.field_validator("steps")
        @classmethod
        def _checked(cls, value, info):
            if not 1 <= len(value) <= MOST_STEPS:
                raise ValueError(f"1 to {MOST_STEPS} steps")
            own = frozenset(row[0] for row in info.data.get("own", ()))
            return tuple(frozen_step(step, k, own) for k, step in enumerate(value))

    @staticmethod
    def build(attrs, *shapes):
        from dagrow.recorded import Expression, evaluated

        if any(k >= len(shapes) for k in inputs_of(attrs.steps)):
            raise GraphError(f"call reads more inputs than the {len(shapes)} that it has")
        if attrs.own:
            return Expression(attrs.steps, attrs.own)
        return lambda *xs: evaluated(attrs.steps, None, xs)

    @staticmethod
    def resize(attrs, params, made, *shapes):
        """Sizes that the last step lays its result out in follow from what it makes; others stay, and a shape that does not fit is refused."""
        own = tuple((name, tuple(params[name]), dtype, trained) for name, _, dtype, trained in attrs.own)
        *before, (name, args, kwargs) = attrs.steps
        if name in SIZED and len(args) == 2 and isinstance(args[1], tuple) and len(args[1]) == len(made) + 2:
            first, *sizes = args[1][1:]
            sizes = [-1 if old == -1 else new for old, new in zip(sizes, made, strict=True)]
            args = (args[0], ("list", first, *sizes))
        return attrs.model_copy(update={"own": own, "steps": (*before, (name, args, kwargs))})


def inputs_of(form: Any) -> set[int]:
    """The numbers of the inputs that steps read."""
    if not isinstance(form, tuple):
        return set()
    if len(form) == 2 and form[0] == "in" and type(form[1]) is int:
        return {form[1]}
    return set().union(*map(inputs_of, form), {0} if form[:1] == ("batch",) else set())
