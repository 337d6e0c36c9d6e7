"""dagrow.graph.labels: cells, products and the grids they are split by."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagrow.graph.labels import Cells, refine


def axes(cells: Cells) -> list[int]:
    return cells.number().sizes


def frozen(cells: Cells, label) -> bool:
    return label is None or all(not cells.atoms(c) for c in label.tolist())


def test_what_is_unified_is_one_axis_in_order_of_birth():
    cells = Cells()
    a, b, c = cells.fresh(3), cells.fresh(4), cells.fresh(3)
    cells.unify(c, a)
    known = cells.number()
    assert known.sizes == [3, 4]
    assert known.codes[cells.find(c)].tolist() == [0, 1, 2]
    assert (known.codes[cells.find(b)] >> 32).tolist() == [1] * 4


def test_frozen_is_forever():
    cells = Cells()
    a, b = cells.fresh(3), cells.fresh(3)
    cells.unify(a, None)
    cells.unify(b, a)
    assert frozen(cells, a) and frozen(cells, b) and axes(cells) == []


def test_units_that_meet_in_part_are_axes_of_their_own():
    cells = Cells()
    whole, left, right = cells.fresh(5), cells.fresh(2), cells.fresh(3)
    cells.unify(whole[:2], left)
    cells.unify(whole[2:], right)
    assert axes(cells) == [2, 3]


def test_a_permuted_sum_ties_pairs():
    cells = Cells()
    a = cells.fresh(4)
    cells.unify(a, a[::-1].copy())
    assert axes(cells) == [2]
    assert cells.number().codes[cells.find(a)].tolist() == [0, 1, 1, 0]


def test_repeated_labels_unify_each_index():
    cells = Cells()
    channels, flat = cells.fresh(3), cells.fresh(12)
    cells.unify(np.repeat(channels, 4), flat)
    assert axes(cells) == [3]
    assert cells.find(flat).tolist() == np.repeat(cells.find(channels), 4).tolist()


def test_shared_atoms_cancel():
    cells = Cells()
    x, s, t = (int(v[0]) for v in (cells.fresh(1), cells.fresh(1), cells.fresh(1)))
    cells.unify(np.array([cells.product([x, s])]), np.array([cells.product([x, t])]))
    assert cells.atoms(s) == cells.atoms(t) != cells.atoms(x)
    cells.unify(np.array([x]), np.array([cells.product([x, s])]))
    assert cells.atoms(s) == () and cells.atoms(x) == (x,)


def test_numbers_of_factors_that_do_not_match_freeze():
    cells = Cells()
    a, b, c, d, e = (int(cells.fresh(1)[0]) for _ in range(5))
    cells.unify(np.array([cells.product([a, b])]), np.array([cells.product([c, d, e])]))
    assert all(cells.atoms(x) == () for x in (a, b, c, d, e))


def test_products_have_one_name():
    cells = Cells()
    a, b = cells.fresh(2).tolist()
    assert cells.product([a, b]) == cells.product([a, b, a]) != a
    assert cells.product([a, a]) == a and cells.product([a, 0]) == a and cells.product([0]) == 0


def test_atoms_split_into_rows_and_columns():
    cells = Cells()
    channels = cells.fresh(6)
    groups, inside = cells.split(channels, (2, 3))
    assert axes(cells) == [2, 3]
    assert [cells.atoms(c) for c in channels.tolist()] == [(g, i) for g in groups.tolist() for i in inside.tolist()]
    # Again, the same.
    again = cells.split(channels, (2, 3))
    assert [x.tolist() for x in again] == [groups.tolist(), inside.tolist()]


def test_finer_grids_refine_what_was_split():
    cells = Cells()
    channels = cells.fresh(24)
    cells.split(channels, (4, 6))
    parts = cells.split(channels, (2, 2, 3, 2))
    assert [len(p) for p in parts] == [2, 2, 3, 2] and axes(cells) == [2, 2, 3, 2]
    first, second = cells.split(channels, (2, 12))
    assert cells.find(first).tolist() == parts[0].tolist() and len(second) == 12
    assert cells.atoms(int(second[0])) == tuple(int(p[0]) for p in parts[1:])


def test_grids_without_a_common_refinement_freeze_the_major_axis():
    cells = Cells()
    channels = cells.fresh(6)
    cells.split(channels, (2, 3))
    first, second = cells.split(channels, (3, 2))
    assert first is None and (second is None or len(second) == 2)


def test_constant_along_a_grid_axis():
    cells = Cells()
    channels = cells.fresh(3)
    flat = np.repeat(channels, 4)
    first, second = cells.split(flat, (3, 4))
    assert first.tolist() == channels.tolist() and second is None
    one = cells.fresh(1)
    first, second = cells.split(np.repeat(one, 4), (1, 4))
    assert first.tolist() == one.tolist() and second is None


def test_merge_is_row_major():
    cells = Cells()
    heads, width = cells.fresh(2), cells.fresh(3)
    flat = cells.merge([None, heads, None, width], [2, 2, 2, 3])
    atoms = [cells.atoms(c) for c in flat.tolist()]
    assert atoms == [(h, w) for _ in range(2) for h in heads.tolist() for _ in range(2) for w in width.tolist()]
    assert cells.merge([None, None], [2, 3]) is None


def test_inherited_births_join_the_axis_not_the_order():
    cells = Cells()
    channels, rows = cells.fresh(6), cells.fresh(2)
    cells.unify(channels[:1], rows[:1])
    cells.split(cells.fresh(6), (2, 3))
    assert axes(cells) == [1, 5, 1, 2, 3]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 7), st.integers(0, 3), st.integers(0, 7), st.integers(1, 8)), max_size=12))
def test_unify_at_once_is_unify_one_by_one(joins):
    """Whole ranges at once and index by index give the same classes."""
    fast, slow = Cells(), Cells()
    labels = [fast.fresh(8) for _ in range(4)]
    for _ in range(4):
        slow.fresh(8)
    for a, i, b, j, n in joins:
        left, right = labels[a][i : i + n], labels[b][j : j + n]
        n = min(len(left), len(right))
        fast.unify(left[:n], right[:n])
        for x, y in zip(left[:n].tolist(), right[:n].tolist(), strict=True):
            slow._union(x, y)
    every = np.arange(33)
    assert fast.find(every).tolist() == slow.find(every).tolist()


@pytest.mark.parametrize(("a", "b", "found"), [
    ((4, 6), (2, 12), ([[2, 2], [6]], [[2], [2, 6]])),
    ((2, 3), (3, 2), None),
    ((6,), (2, 3), ([[2, 3]], [[2], [3]])),
    ((8, 2), (8, 2), ([[8], [2]], [[8], [2]])),
])  # fmt: skip
def test_refine(a, b, found):
    assert refine(a, b) == found
