"""From a path in a spec to the place it was written at."""

from __future__ import annotations

from dagrow.spec.tree import Path, Place, Tree

# Where an option goes once a spec is in its full form, beside the keys of the thing it is an option of.
INNER = ("options", "attrs", "by", "source")
WRITTEN = {"in": "inputs"}


def locate(tree: Tree | None, path: Path, *, key: bool = False) -> Place:
    """The place of the value at `path`, of its key, or of the nearest ancestor there is.

    Paths may leave out "options" and "attrs": they say where the user wrote a thing.
    """
    if tree is None:
        return Place(label=".".join(str(p) for p in path))
    place, at_key = tree.place, tree.place
    for segment in path:
        step = _step(tree, segment)
        if step is None:
            # `source: wine` is short for a mapping: its name is the value itself
            return at_key if isinstance(tree.value, (dict, list)) else tree.place
        tree, at_key = step
        place = at_key if isinstance(tree.value, (dict, list)) else tree.place
    return at_key if key else place


def _step(tree: Tree, segment: str | int) -> tuple[Tree, Place] | None:
    if isinstance(tree.value, list):
        inside = isinstance(segment, int) and 0 <= segment < len(tree.value)
        return (tree.value[segment], tree.value[segment].place) if inside else None
    if not isinstance(tree.value, dict):
        return None
    segment = WRITTEN.get(segment, segment) if "inputs" in tree.value else segment
    if segment in tree.value:
        return tree.value[segment], tree.key(segment)
    for inner in INNER:
        child = tree.value.get(inner)
        if isinstance(child, Tree) and (found := _step(child, segment)):
            return found
    return (tree, tree.place) if segment in INNER else None
