"""What the package's source may not contain: code that runs what a file says, assertions on input, imports against the order."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "dagrow"
FILES = sorted(PACKAGE.rglob("*.py"))
BANNED_MODULES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve", "joblib", "torch.package", "torch.hub"}
BANNED_CALLS = {
    "eval", "exec", "compile", "__import__", "builtins.eval", "builtins.exec", "builtins.compile", "builtins.__import__",
    "torch.load", "torch.save", "torch.jit.load", "torch.serialization.load", "torch.export.load",
    "yaml.load_all", "yaml.unsafe_load", "yaml.unsafe_load_all", "yaml.full_load", "yaml.full_load_all",
    "pandas.read_pickle", "os.system", "os.popen", "sys.modules.__setitem__",
}  # fmt: skip
# The script that loads an export in a process of its own may load what we have just written.
CLEAN_PROCESS = {"torch.jit.load", "torch.export.load"}
ORDER = (
    "errors globs rng registry inputs spec modules recorded ops graph compiler importing losses criteria encoding data train measure scores edits applying check select offered propose racing trials store"
    " standing epochs growth planning scoring report export grower lightning grown api progress scoretable showing cli __main__"
).split()


def module_name(path: Path) -> str:
    parts = ("dagrow", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


def aliases(tree: ast.AST) -> dict[str, str]:
    """Local name -> the dotted name it stands for."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                found[name.asname or name.name.partition(".")[0]] = name.name if name.asname else name.name.partition(".")[0]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for name in node.names:
                found[name.asname or name.name] = f"{node.module}.{name.name}"
    return found


def dotted(node: ast.expr, names: dict[str, str]) -> str | None:
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        inner = dotted(node.value, names)
        return inner and f"{inner}.{node.attr}"
    return None


def offences(source: str, allowed: frozenset[str] = frozenset()) -> Iterator[str]:
    """What is wrong with a source text, one line each."""
    tree = ast.parse(source)
    names = aliases(tree)
    for node in ast.walk(tree):
        place = f"line {getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Assert):
            yield f"{place}: assert"
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            base = getattr(node, "module", None)
            for name in (f"{base}.{n.name}" if base else n.name for n in node.names):
                parts = name.split(".")
                if any(".".join(parts[: i + 1]) in BANNED_MODULES for i in range(len(parts))):
                    yield f"{place}: import {name}"
                if name in BANNED_CALLS - allowed:
                    yield f"{place}: import {name}"
        elif isinstance(node, (ast.Name, ast.Attribute)):
            # The name and not only the call: `loader = eval` is no better.
            name = dotted(node, names)
            if name in BANNED_CALLS - allowed and isinstance(node.ctx, ast.Load):
                yield f"{place}: {name}"
        elif isinstance(node, ast.Call):
            for keyword in node.keywords:
                if keyword.arg in ("allow_pickle", "shell") and not (isinstance(keyword.value, ast.Constant) and not keyword.value.value):
                    yield f"{place}: {keyword.arg}"
            if dotted(node.func, names) == "yaml.load":
                loaders = [*node.args[1:], *(k.value for k in node.keywords if k.arg == "Loader")]
                if not loaders or dotted(loaders[0], names) in {"yaml.Loader", "yaml.UnsafeLoader", "yaml.FullLoader"}:
                    yield f"{place}: yaml.load without a safe loader"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nothing_in_the_package_runs_what_a_file_says(path: Path) -> None:
    in_clean_process = path.parent.name == "export" and "clean" in path.stem
    found = list(offences(path.read_text(), frozenset(CLEAN_PROCESS if in_clean_process else ())))
    assert not found, f"{path}: {found}"


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from pickle import loads", "import torch\ntorch.load(f)", "import torch as t\nt.jit.load(f)",
        "from torch import load", "from torch.jit import load as l", "eval(x)", "f = exec", "import builtins\nbuiltins.eval(x)",
        "assert x", "import yaml\nyaml.load(x)", "import yaml\nyaml.load(x, Loader=yaml.Loader)", "import numpy as np\nnp.load(f, allow_pickle=True)",
        "def f():\n    import joblib.numpy_pickle", "from torch import hub",
    ],
)  # fmt: skip
def test_offences_are_seen(source: str) -> None:
    assert list(offences(source))


@pytest.mark.parametrize(
    "source",
    ["model.eval()", "import numpy as np\nnp.load(f, allow_pickle=False)", "import re\nre.compile(x)", "torch_load = 1", "import torch\ntorch.compile(m)"],
)
def test_innocent_code_is_left_alone(source: str) -> None:
    assert not list(offences(source))


def imports(path: Path) -> set[str]:
    """The modules of the package that a module imports, at the top or deferred, but not for type checkers only."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and dotted(node.test, {}) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            node.body = []
    here = module_name(path).split(".")
    package = here if path.name == "__init__.py" else here[:-1]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])]) if node.level else node.module
            # `from package import module` needs the module, and the package only if something else is taken from it.
            found |= {f"{base}.{name.name}" if f"{base}.{name.name}" in MODULES else base for name in node.names}
    return {name for name in found if name.partition(".")[0] == "dagrow"} - {module_name(path)}


def component(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


GRAPH = {name: imports(path) for name, path in MODULES.items()}


def test_every_module_has_its_place_in_the_order() -> None:
    unknown = {component(name) for name in MODULES} - {*ORDER, ""}
    assert not unknown, f"not in the order of layers: {sorted(unknown)}"


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"dagrow"}))
def test_a_lower_line_imports_only_from_higher_lines(module: str) -> None:
    for target in GRAPH[module]:
        assert target != "dagrow", f"{module} imports the package itself"
        assert ORDER.index(component(target)) <= ORDER.index(component(module)), f"{module} imports {target}, which is below it"


def test_no_import_cycles_not_even_deferred_ones() -> None:
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, "cycle: " + " -> ".join([*path[path.index(module):], module])
        if module not in done:
            for target in sorted(GRAPH.get(module, ())):
                visit(target, (*path, module))
            done.add(module)

    for module in sorted(GRAPH):
        visit(module, ())
