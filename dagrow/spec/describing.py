"""The JSON Schema of a spec: for editors, and for the paths of --set."""

from __future__ import annotations

import copy
from functools import lru_cache

from dagrow.spec.fields import METRICS, Spec

NODE = {
    "type": "object",
    "description": "op and in, with the op's options beside them; or use and in, with the macro's parameters",
    "properties": {
        "op": {"type": "string"},
        "use": {"type": "string", "description": "the name of a macro"},
        "in": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
        "repeat": {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string"}]},
        "tied": {"type": "object", "description": "parameters that are another node's: {weight: encoder.weight}", "additionalProperties": {"type": "string"}},
        "positional": {"description": "the op's main option, as 8 in `linear 8`"},
    },
    "additionalProperties": True,
}
NODES = {"type": "object", "additionalProperties": NODE, "x-existing": "node"}
LAYERS = {"type": "array", "items": {"anyOf": [{"type": "string"}, NODE]}, "description": "a chain: [linear 8, relu, linear 10]"}
MODEL = {
    "type": "object",
    "description": "the seed network",
    "properties": {
        "input": {"type": "object", "properties": {"shape": {"type": "array", "items": {"type": "integer"}}}, "additionalProperties": False},
        "nodes": NODES,
        "layers": LAYERS,
        "output": {"type": "string"},
        "py": {"type": "string", "description": "instead of nodes: a function of yours that returns an nn.Module, package.module:function; runs with --allow-code"},
        "args": {"type": "object", "description": "what that function is called with", "additionalProperties": True},
        "opaque": {"type": "array", "items": {"type": "string"}, "description": "paths of modules of yours that are kept whole"},
    },
    "additionalProperties": False,
}
MACROS = {
    "type": "object",
    "x-existing": "macro",
    "additionalProperties": {
        "type": "object",
        "properties": {"params": {"type": "object", "additionalProperties": True}, "nodes": NODES, "layers": LAYERS},
        "additionalProperties": False,
    },
}
OBJECTIVE = {
    "type": "object",
    "properties": {"maximize": {"enum": list(METRICS)}, "minimize": {"enum": list(METRICS)}},
    "additionalProperties": False, "minProperties": 1, "maxProperties": 1,
}


@lru_cache(maxsize=1)
def _schema() -> dict:
    full = _inlined(Spec.model_json_schema())
    fields = full["properties"]
    fields["model"], fields["macros"] = MODEL, MACROS
    fields["data"]["properties"].pop("options")
    fields["objectives"]["items"] = OBJECTIVE
    score = fields["score"]
    score["additionalProperties"] = True
    fields["score"] = {"anyOf": [{"type": "string"}, score], "x-key": "by"}
    for name in ("edits", "export"):
        fields[name]["items"]["anyOf"].append({"type": "object", "minProperties": 1, "maxProperties": 1, "additionalProperties": True})
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "dagrow spec", **full}


def schema() -> dict:
    """JSON Schema (2020-12) of what a spec may say, without the options of registered things.

    >>> from dagrow import spec
    >>> sorted(spec.schema()["required"])
    ['data', 'model']
    """
    return copy.deepcopy(_schema())


def _inlined(root: dict) -> dict:
    definitions = root.pop("$defs", {})

    def inline(node):
        if isinstance(node, dict):
            if "$ref" in node:
                return {**inline(definitions[node["$ref"].rpartition("/")[2]]), **{k: v for k, v in node.items() if k in ("default", "description")}}
            return {k: inline(v) for k, v in node.items()}
        return [inline(v) for v in node] if isinstance(node, list) else node

    return inline(root)
