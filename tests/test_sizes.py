"""Sizes of any magnitude in any option of any op: refused, or a network is made, before anything is allocated and in no time."""

from __future__ import annotations

import time
import tracemalloc
import types
import typing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dagrow import check, ops, spec
from dagrow.errors import SpecError

SIZES = [-(2**63), -(2**31), -7, -1, 0, 1, 2, 3, 7, 64, 1000, 2**10, 2**20, 2**20 + 1, 2**31, 2**32 - 1, 2**40, 2**53, 2**63 - 1, 2**63, 2**64, 10**30]
SHAPES = [(5,), (8, 6), (2, 8, 8), (2**20,), (2**10, 2**10), (1, 2**12, 2**12), (2**20, 1, 1)]
OPS = [op for op in ops.REGISTRY if op != "input"]
# Of the processor, and of memory that Python and numpy hold. Refusing takes a millisecond or two and no memory to speak of; a network of
# a million units may take what its labels need.
REFUSED, MADE = (0.5, 2**22), (3.0, 2**29)


def numeric(annotation) -> str | None:
    """What an option holds: "int", "ints", "float" or nothing that has a size."""
    if annotation in (int, float):
        return annotation.__name__
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is tuple and numeric(inner[0]) == "int":
        return "ints"
    if origin is typing.Annotated:
        return numeric(inner[0])
    if origin in (typing.Union, types.UnionType):
        found = [k for k in map(numeric, inner) if k]
        return "mixed" if len(found) > 1 else found[0] if found else None
    return None


def options(op: str) -> dict[str, str]:
    fields = ops.REGISTRY.get(op).Options.model_fields
    return {name: kind for name, field in fields.items() if (kind := numeric(field.annotation))}


def example_of(op: str) -> dict:
    rule = ops.REGISTRY.get(op)
    return dict(rule.examples[0].attrs) if rule.examples else {name: 4 for name, field in rule.Options.model_fields.items() if field.is_required()}


def values(kind: str) -> st.SearchStrategy:
    size = st.sampled_from(SIZES)
    several = st.lists(size, max_size=5)
    number = size | st.sampled_from([0.0, 0.5, 1e-300, 1e300, -1.0, float("inf"), float("nan")])
    return {"int": size, "ints": several, "mixed": size | several, "float": number}[kind]


@st.composite
def rows(draw) -> tuple[str, dict, tuple[int, ...]]:
    """An op, options of which some are absurd, the others those of an example, and the shape of its input."""
    op = draw(st.sampled_from(OPS))
    rule = ops.REGISTRY.get(op)
    given = dict(draw(st.sampled_from(rule.examples)).attrs) if rule.examples else example_of(op)
    kinds = options(op)
    for name in draw(st.lists(st.sampled_from(sorted(kinds)), unique=True, max_size=3)) if kinds else ():
        given[name] = draw(values(kinds[name]))
    return op, given, draw(st.sampled_from(SHAPES))


def tried(op: str, given: dict, shape: tuple[int, ...], watch: bool = True) -> tuple[bool, float, int]:
    """(whether a network was made, seconds of the processor, most bytes held)."""
    rule = ops.REGISTRY.get(op)
    node = {"op": op, "in": ["input"] * max(1, rule.fewest), **{k: list(v) if isinstance(v, tuple) else v for k, v in given.items()}}
    made = spec.load({"data": "digits", "model": {"input": {"shape": list(shape)}, "nodes": {"node": node}}})
    if watch:
        tracemalloc.start()
    started = time.thread_time()
    try:
        check.build(made)
        fits = True
    except SpecError as error:
        assert error.problems and all("internal" not in p.message for p in error.problems)
        fits = False
    seconds = time.thread_time() - started
    peak = tracemalloc.get_traced_memory()[1]  # 0 where nothing watches
    tracemalloc.stop()
    return fits, seconds, peak


@pytest.fixture(scope="module", autouse=True)
def _torch_is_loaded() -> None:
    """The first maps of some kinds make torch import its Python kernels, which has nothing to do with sizes."""
    for op in OPS:
        for shape in SHAPES[:3]:
            tried(op, example_of(op), shape, watch=False)
    tried("gelu", {}, SHAPES[5], watch=False)


@given(rows())
@settings(max_examples=200)
def test_absurd_options_are_refused_before_anything_is_allocated(row) -> None:
    fits, seconds, peak = tried(*row)
    most = MADE if fits else REFUSED
    assert seconds < most[0] and peak < most[1], (row, fits, seconds, peak)


@pytest.mark.parametrize("op", OPS)
def test_each_option_alone_at_each_size(op) -> None:
    example = example_of(op)
    for name, kind in options(op).items():
        for size in (2**20 + 1, 2**31, 2**63 - 1, 2**63, -(2**63)):
            for value in ([size], [size, size]) if kind == "ints" else (size, [size, size]) if kind == "mixed" else (size,):
                for shape in SHAPES[:3]:
                    fits, seconds, peak = tried(op, {**example, name: value}, shape)
                    assert seconds < REFUSED[0] and peak < REFUSED[1], (op, name, value, shape, fits, seconds, peak)
                    assert not fits or kind == "float", (op, name, value)
