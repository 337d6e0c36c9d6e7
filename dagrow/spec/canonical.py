"""The short ways to write things, made into the one full form that the fields describe."""

from __future__ import annotations

from dagrow.spec.explaining import did_you_mean
from dagrow.spec.fields import METRICS, DataSpec, ScoreSpec
from dagrow.spec.tree import PLACEHOLDER, Source, Tree, mapping


def spread(tree: Tree, key: str = "name", *, listed: bool = False) -> Tree:
    """`x`, `{name: x, opt: v}` and, in lists, `x: {opt: v}` as a mapping with the name under `key`; anything else as it is."""
    if isinstance(tree.value, str):
        return mapping(tree.place, **{key: tree})
    if listed and isinstance(tree.value, dict) and len(tree.value) == 1 and key not in tree.value:
        (name, options), = tree.items()
        place = tree.key(name)
        head = mapping(place, **{key: Tree(name, place)})
        if options.value is None:
            return head
        if isinstance(options.value, dict) and key not in options.value:
            return Tree({**head.value, **options.value}, place, {**head.keys, **options.keys})
    return tree


def _choice(tree: Tree, source: Source, what: str, key: str = "name", default: str | None = None, listed: bool = False) -> Tree:
    """{name, options} of a registered choice."""
    if listed and (apart := _apart(tree, key)) is not None:
        return apart
    tree = spread(tree, key, listed=listed)
    if not isinstance(tree.value, dict):
        source.report(tree.place, f"{what} is a name or a mapping, not {tree.kind}", f"write {{{key}: …, option: value}}")
        return mapping(tree.place, name=Tree(default or PLACEHOLDER, tree.place), options=Tree({}, tree.place))
    name = tree.get(key)
    if name is None:
        if default is None:
            source.report(tree.place, f"{what} does not say which", f"write {{{key}: …, option: value}}")
        name = Tree(default or PLACEHOLDER, tree.place)
    full = mapping(tree.place, name=name, options=tree.without(key))
    full.keys["name"] = tree.key(key)
    return full


def _apart(tree: Tree, key: str) -> Tree | None:
    """{name, options} of `x: {name: y, opt: v}`, whose options hold a name of their own; None for any other form."""
    if not isinstance(tree.value, dict) or len(tree.value) != 1 or key in tree.value:
        return None
    (name, options), = tree.items()
    if not isinstance(options.value, dict) or key not in options.value:
        return None
    place = tree.key(name)
    return mapping(place, name=Tree(name, place), options=options)


def _choices(tree: Tree, source: Source, what: str) -> Tree:
    rows = tree.value if isinstance(tree.value, list) else [tree]
    return Tree([_choice(row, source, what, listed=True) for row in rows], tree.place)


def _data(tree: Tree, source: Source) -> Tree:
    if isinstance(tree.value, str):
        tree = mapping(tree.place, source=tree)
    if not isinstance(tree.value, dict):
        return tree
    known = [name for name in DataSpec.model_fields if name != "options"]
    unknown = [key for key in tree.value if key not in known]
    for key in unknown:
        beside = f"an option of the source goes with its name: source: {{name: …, {key[:40]}: …}}"
        near = did_you_mean(key, known, "")
        source.report(tree.key(key), f"unknown key {key[:80]!r} in data", f"{near} Or, {beside}" if near else beside)
    tree = tree.without(*unknown)
    if (chosen := tree.get("source")) is not None:
        full = _choice(chosen, source, "data.source")
        tree = tree.having("source", full.value["name"], tree.key("source")).having("options", full.value["options"], tree.key("source"))
    return tree


def _train(tree: Tree, source: Source) -> Tree:
    for key, default in (("optimizer", "adamw"), ("schedule", "cosine")):
        if (chosen := tree.get(key)) is not None:
            tree = tree.having(key, _choice(chosen, source, f"train.{key}", default=default), tree.key(key))
    return tree


def _score(tree: Tree, source: Source) -> Tree:
    if isinstance(tree.value, str):
        tree = mapping(tree.place, by=tree)
    if not isinstance(tree.value, dict):
        return tree
    own = [key for key in tree.value if key in ScoreSpec.model_fields]
    options = tree.without(*own)
    chosen = tree.get("by")
    if chosen is None:
        chosen = Tree("natural", tree.place)
    full = _choice(chosen, source, "score.by", default="natural")
    inner = full.value["options"]
    if "name" in options.value:
        source.report(options.key("name"), "unknown key 'name' in score", "which scorer is said by: by")
        options = options.without("name")
    full.value["options"] = Tree({**inner.value, **options.value}, inner.place, {**inner.keys, **options.keys})
    rest = tree.without("name", *options.value)
    return rest.having("by", full, tree.key("by"))


def _objectives(tree: Tree, source: Source) -> Tree:
    rows = []
    for row in tree.value if isinstance(tree.value, list) else [tree]:
        pair = next(row.items(), None) if isinstance(row.value, dict) and len(row.value) == 1 else None
        if pair is None or pair[0] not in ("maximize", "minimize"):
            source.report(row.place, f"an objective is {{minimize: METRIC}} or {{maximize: METRIC}}, not {row.kind}",
                          did_you_mean(pair[0], ("maximize", "minimize"), "") if pair else None)
            continue
        direction, metric = pair
        if metric.value not in METRICS:
            source.report(metric.place, f"unknown metric {metric.kind}", did_you_mean(str(metric.value), METRICS))
            continue
        rows.append(mapping(row.place, direction=Tree(direction, row.key(direction)), metric=metric))
    return Tree(rows, tree.place)


def canonical(tree: Tree, source: Source) -> Tree:
    """The whole spec in full form, but for its model, which `expanding` does. What cannot be read is reported and left."""
    full = {
        "data": lambda t: _data(t, source),
        "train": lambda t: _train(t, source),
        "edits": lambda t: _choices(t, source, "an edit"),
        "export": lambda t: _choices(t, source, "an export"),
        "score": lambda t: _score(t, source),
        "select": lambda t: _choice(t, source, "select", "by", "greedy"),
        "objectives": lambda t: _objectives(t, source),
    }
    for key, make in full.items():
        if (child := tree.get(key)) is not None:
            tree = tree.having(key, make(child), tree.key(key))
    return tree
