"""Index lists that cannot be meant, and names that may not be: refused with a reason, before anything is made."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import block_network

import dagrow
from dagrow import spec
from dagrow.compiler import compile_architecture
from dagrow.errors import DagrowError, GraphError, SpecError
from dagrow.graph import Architecture, Node, Refusal, Rewrite, resize, transfer
from dagrow.graph.node import check_name

of = Node.of
NET = Architecture({"x": of("input", shape=(4,)), "h": of("linear", "x", width=3), "a": of("relu", "h"), "y": of("linear", "a", width=2)})


@pytest.mark.parametrize(("index", "reason"), [
    ([], "without units"), ((), "without units"), (torch.tensor([], dtype=torch.long), "without units"),
    ([3], "there is no 3"), ([0, 1, -2], "there is no -2"), ([2**63], f"there is no {2**63}"), ([-(2**70)], f"there is no {-2**70}"),
    ([-1], "keep none of its units"), ([-1, -1, -1], "keep none of its units"),
    ([0.0, 1.0], "whole numbers"), ([True, False], "whole numbers"), ([np.float32(1)], "whole numbers"), (["0"], "whole numbers"), ("012", "whole numbers"),
    ([None], "whole numbers"), ([[0]], "whole numbers"), (7, "whole numbers"), (None, "whole numbers"), ({0: 1}, "whole numbers"), ({0, 1}, "whole numbers"),
    (torch.tensor([[0, 1]]), "whole numbers"), (torch.tensor(1), "whole numbers"), (np.array([True, False]), "whole numbers"), (np.array([0.5]), "whole numbers"),
    (iter([0]), "whole numbers"), (b"\x00", None),
    (range(2**20 + 1), "more than"), (range(2**80), "more than"), ([-1] * (2**20 + 1), "more than"),
], ids=lambda v: ascii(v)[:24])
def test_an_index_that_cannot_be_is_refused(index, reason):
    start = time.perf_counter()
    made = resize(NET, {"h": index})
    if reason is None:  # bytes are numbers: unit 0 alone
        assert isinstance(made, Rewrite) and made.arch.axes["h"].size == 1
        return
    assert isinstance(made, Refusal) and reason in made.reason and made.nodes == ("h",)
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize("index", [np.array([2, 0]), torch.tensor([2, 0]), (np.int64(2), np.int32(0)), range(2, -1, -2)], ids=lambda v: type(v).__name__)
def test_whole_numbers_of_any_make_are_taken(index):
    assert resize(NET, {"h": index}) == resize(NET, {"h": [2, 0]})


def test_a_repeated_unit_is_a_clone():
    made = resize(NET, {"h": [0, 1, 1, 2]})
    weights = {n: torch.randn(s) for n, s in NET.params.items()}
    after = transfer(made, weights, 0.0)
    assert torch.equal(after["h.weight"], weights["h.weight"][[0, 1, 1, 2]]) and torch.equal(after["y.weight"], weights["y.weight"][:, [0, 1, 1, 2]])
    assert made.zero is None and not made.keeps


def test_an_axis_that_is_not_there_is_refused():
    for name in ("hh", "h.weight", "", "y", "h~1", None, 3, "h\n"):
        made = resize(NET, {name: [0]})
        assert isinstance(made, Refusal) and "no axis" in made.reason


anything = st.one_of(st.integers(-3, 8), st.integers(-(2**70), 2**70), st.floats(), st.booleans(), st.none(), st.text(max_size=2))


@settings(max_examples=30)
@given(seed=st.integers(0, 40), index=st.lists(st.one_of(st.integers(-1, 5), anything), max_size=8))
def test_any_list_is_refused_or_made(seed, index):
    """In range, whole numbers, an old one among them: then only the structure of the axes may stand against it."""
    arch = block_network(seed)
    axis = sorted(arch.axes)[seed % len(arch.axes)]
    made = resize(arch, {axis: index})
    whole = all(type(i) is int and -1 <= i < arch.axes[axis].size for i in index) and any(i >= 0 for i in index if type(i) is int)
    if isinstance(made, Refusal):
        assert made.reason and (not whole or len(index) < 2 or made.nodes)
    else:
        assert whole and made.arch.axes[axis].size == len(index)


# Names. What torch.fx, HTML, shells, terminals and readers would make of them, and what merely looks like a letter.

CODE = [
    "x: __import__('os').system('touch /tmp/owned')", "x=print(1)", "x):\n    import os\n    os.abort()\ndef f(y", "x;import os", "x\nimport os", "x\rimport os",
    "a b", "a-b", "a+b", "a(b)", "a[0]", "a{0}", "a,b", "a:b", "a=b", "a@b", "a!b", "a~b", "a|b", "a&b", "a^b", "a%b", "a?b", "a*b", "a#b", "a\\b", "a/b", "a'b",
    'a"b', "a`b", "'''", '"""', "lambda: 0", "*args", "**kw", "->", ":=", "%s", "{}", "{x.__class__}", "{0.__globals__}", "$x", "${x}", "a\x00b", "\x00", "", " ",
    ".", "..", ".a", "a.", "a..b", "1a", "0", "-1", "1e5", "a.1b", "a.b.", "a. b", "a .b", "a.\nb", "\ta", "a\t", "a\x0b", "a\x0c", "a\x85b", "a\u2028b", "a\u2029b",
]
HTML = [
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "&lt;", "a<b", "a>b", "</td>", "<!--", "-->", "javascript:alert(1)", "\"><svg/onload=alert(1)>", "a&amp;b",
    "%3Cscript%3E", "<style>*{display:none}</style>", "]]>", "<a href=//x>", "x' onclick='1", "data:text/html,1", "<iframe>", "{{7*7}}", "{% raw %}", "graph TD; a-->b",
    "a[\"b\"]", "end", "a-->b", "subgraph", "click a call b()", "%%{init: {}}%%",
]
SHELL = [
    "; rm -rf /", "$(touch x)", "`touch x`", "a|b", "a&&b", "a||b", "> x", "< x", "a\\\nb", "~", "~/x", "../x", "../../etc/passwd", "/etc/passwd", "*", "?", "[a]", "!!", "!x",
    "$HOME", "${IFS}", "a b c", "'; drop table events; --", "\" or 1=1 --", "--help", "-rf", "\\x41", "a\\nb", "con:", "NUL.", "file://x", "\\\\x\\y", "%PATH%",
]
TERMINAL = [
    "\x1b[31mred", "\x1b]0;title\x07", "\x1b[2J", "\x1b[1A", "\x9b31m", "\x07", "\x08\x08", "a\rb", "\x7f", "\x1bc", "\x1b]8;;http://x\x07a\x1b]8;;\x07", "\x0e", "\x0f", "\x1b(0", "\x1b[6n",
    "\x1bP1$r\x1b\\", "\x90", "\x9d0;x\x9c", "\u009b1m", "[red]a[/red]", "[/]", "[bold]", "[link=http://x]a[/link]",
]
READERS = [
    "a\u202eb", "\u202a", "\u202b", "\u202c", "\u202d", "\u2066a", "\u2067a", "\u2068a", "\u2069", "a\u200bb", "a\u200cb", "a\u200db", "\u200ea", "\u200fa", "\u061ca", "\ufeffa", "a\u00adb", "a\u2060b",
    "a\u00a0b", "a\u3000b", "a\u1680b", "а", "е", "о", "р", "с", "ｈ", "ｃｏｎｖ", "ⅰ", "ª", "µ", "ﬁ", "ǆ", "é", "e\u0301", "ñ", "ß", "İ", "ı", "ſ", "Å", "Ω",
    "日本", "한", "ก", "अ", "١", "²", "½", "𝐚", "𝒂", "𝟘", "😀", "a\U000e0041", "a\ufe0f", "a\ufe00", "\ud800", "a\udfff", "\uffff", "\U0010ffff", "〆", "_\u0301", "a·b", "a‿b", "℘",
    "℮", "゛", "᧚", "a\u034fb", "a\u115fb", "a\u3164b", "a\uffa0b", "a\u17b4b",
]
LONG = ["a" * 65, "a" * 10**6, ".".join(["a"] * 17), ".".join(["a"] * 10**5), "a." * 20, "a." + "b" * 65, "_" * 65, "Z" * 64 + "." + "Z" * 65]
MADE = [f"{a}{b}{c}" for a in ("", "a", "a.b") for b in "\n\t\"'<>()[]{};:,=+*&^%$#@!~`|\\/? -" for c in ("", "a")]
NAMES = list(dict.fromkeys([*CODE, *HTML, *SHELL, *TERMINAL, *READERS, *LONG, *MADE]))
# They only look dangerous: prefixed, they are names like any other.
INNOCENT = ["end", "subgraph"]
HOSTILE = [n for n in NAMES if n not in INNOCENT]


def nodes(name) -> dict:
    return {"x": of("input", shape=(4,)), name: of("linear", "x", width=3), "y": of("linear", name, width=2)}


def refused_soon(make) -> DagrowError:
    start = time.perf_counter()
    with pytest.raises(DagrowError) as caught:
        make()
    assert time.perf_counter() - start < 1
    text = str(caught.value)
    # Nothing of it reaches a terminal or a page as it is: what is shown is short and printable ASCII, quoted.
    assert len(text) < 600 and all(c == "\n" or " " <= c <= "~" or c in "…│" for c in text), ascii(text)
    return caught.value


def test_there_are_three_hundred_hostile_names():
    assert len(HOSTILE) >= 300


@pytest.mark.parametrize("way", ["architecture", "input", "output", "from_dict", "tied", "tied_local"])
def test_hostile_names_are_refused(way):
    plain = NET.to_dict()
    for name in HOSTILE:
        if way == "architecture":
            refused_soon(lambda n=name: Architecture(nodes(n)))
        elif way == "input":
            refused_soon(lambda n=name: Architecture({n: of("input", shape=(4,)), "y": of("linear", n, width=2)}))
        elif way == "output":
            refused_soon(lambda n=name: Architecture(NET.nodes, n))
        elif way == "from_dict":
            rows = {name if k == "h" else k: {**v, "in": [name if i == "h" else i for i in v["in"]]} for k, v in plain["nodes"].items()}
            refused_soon(lambda r=rows: Architecture.from_dict({"nodes": r, "order": list(r), "outputs": ["y"]}))
        else:
            tie = ("weight", f"h.{name}") if way == "tied" else (name, "h.weight")
            refused_soon(lambda t=tie: Architecture({**NET.nodes, "y": Node("linear", ("a",), NET.nodes["y"].attrs, (t,))}).shapes)


def test_hostile_names_in_a_spec_are_refused():
    for name in HOSTILE:
        for model in (
            {"nodes": {name: {"op": "linear", "in": "input", "width": 10}}}, {"layers": [{"op": "linear", "width": 10, "name": name}]},
            {"nodes": {"h": {"op": "linear", "in": "input", "width": 10, "tied": {"weight": f"q.{name}"}}}},
        ):
            with pytest.raises(SpecError):
                found = spec.load({"data": "digits", "model": model})
                from dagrow import check

                check.check(found)


class Sly(str):
    """Says one thing when it is checked and another when it is written."""

    __slots__ = ()

    def split(self, *_):
        return ["fine"]

    def __str__(self):
        return "fine"


@pytest.mark.parametrize("name", [Sly("x):\n import os\ndef f(y"), 3, None, b"h", ("h",), 1.5, Path("h")], ids=lambda n: type(n).__name__)
def test_names_are_strings_and_nothing_else(name):
    with pytest.raises(GraphError):
        Architecture(nodes(name))


@pytest.mark.parametrize("name", [
    *INNOCENT, "graph", "code", "forward", "to", "type", "train", "self", "class", "None", "import", "eval", "__class__", "__init__", "_modules", "n_n_x", "torch",
    "_", "__", "A" * 64, "weight", "training", "call_super_init", "T_destination", "dump_patches", "state_dict", "parameters", "__call__", "lambda_", "print",
])
def test_names_that_only_sound_dangerous_are_compiled(name):
    arch = Architecture(nodes(name))
    weights = {n: torch.randn(s) for n, s in arch.params.items()}
    network, x = compile_architecture(arch, weights), torch.randn(5, 4)
    by_hand = torch.nn.functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])
    assert torch.allclose(network(x), torch.nn.functional.linear(by_hand, weights["y.weight"], weights["y.bias"]), atol=1e-6)


class Odd(torch.nn.Module):
    """A module with a layer and a parameter of any name that torch takes."""

    def __init__(self, name: str):
        super().__init__()
        self.name = name
        self.add_module(name, torch.nn.Linear(4, 3))
        self.last = torch.nn.Module()
        self.last.register_parameter(name, torch.nn.Parameter(torch.ones(3)))

    def forward(self, x):
        return getattr(self, self.name)(x) * getattr(self.last, self.name)


def test_an_import_gives_hostile_names_harmless_ones():
    x, nodes_of_all = torch.randn(2, 4), set()
    # torch itself refuses the empty name, names with dots, and those of its own attributes.
    for name in [n for n in HOSTILE if n and "." not in n and len(n) < 1000][::5]:
        model = Odd(name).eval()
        found = dagrow.from_torch(model, x)
        nodes_of_all |= set(found.arch.nodes)
        made = compile_architecture(found.arch, found.weights).eval()
        assert torch.equal(made(x), model(x)), ascii(name)
        assert set(found.names.values()) == set(dict(model.named_parameters())), ascii(name)
    for node in nodes_of_all:
        check_name(node)
