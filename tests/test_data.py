"""Splits, preprocessing against scikit-learn's own, and every way data can be unusable."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_digits, make_friedman1
from sklearn.impute import SimpleImputer
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

import dagrow.data
from dagrow.data import Raw, Split, check_batch, infer_task, load, prepare
from dagrow.errors import DataError, UnknownName


def test_digits_split_is_scikit_learns():
    data = load("digits", {"shape": "flat"}, {"test": 0.25, "val": 0.15, "random_state": 0}, "none")
    x, y = load_digits(return_X_y=True)
    rest_x, test_x, rest_y, test_y = train_test_split(x, y, test_size=0.25, random_state=0)
    train_x, val_x, train_y, _ = train_test_split(rest_x, rest_y, test_size=0.15, random_state=0)
    assert torch.equal(data.test.x, torch.tensor(test_x, dtype=torch.float32)) and torch.equal(data.test.y, torch.tensor(test_y))
    assert torch.equal(data.train.x, torch.tensor(train_x, dtype=torch.float32)) and torch.equal(data.train.y, torch.tensor(train_y))
    assert torch.equal(data.val.x, torch.tensor(val_x, dtype=torch.float32)) and len(rest_y) == len(data.train_val)


def test_friedman_is_scikit_learns_and_standardised_by_train_rows():
    data = load("friedman1", {"n": 300, "noise": 0.5, "random_state": 3}, {}, "per_feature")
    x, y = make_friedman1(300, 10, noise=0.5, random_state=3)
    train, _ = train_test_split(train_test_split(np.arange(300), test_size=0.25, random_state=0)[0], test_size=0.15, random_state=0)
    scaler = StandardScaler().fit(y[train, None])
    assert np.allclose(data.train.y.numpy(), scaler.transform(y[train, None]), atol=1e-6)
    assert np.allclose(data.train.x.numpy(), StandardScaler().fit_transform(x[train]), atol=1e-5)
    assert np.allclose(data.target_scale.numpy(), scaler.scale_)
    assert np.allclose(data.decoder(data.train.y).numpy(), y[train, None], atol=1e-4)


def test_stratified_split_keeps_shares():
    y = np.array([0] * 80 + [1] * 20)
    data = prepare(Raw(np.arange(100.0)[:, None], y, "classification"), Split(stratify=True))
    assert [int(f.y.sum()) for f in data.folds.values()] == [13, 2, 5]


def test_given_test_rows_are_kept():
    data = load("teacher_student", {"n": 100, "n_test": 30, "standardise": False}, {"test": 0.9}, "none")
    assert [len(f) for f in data.folds.values()] == [85, 15, 30]
    assert torch.equal(data.test.y, data.decoder(data.test.y)) and torch.equal(data.target_scale, torch.ones(10))
    longer = load("teacher_student", {"n": 100, "n_test": 30}, {"test": 0.1}, "none")
    assert torch.equal(longer.test.x, data.test.x)
    assert torch.allclose(longer.decoder(longer.test.y), data.test.y, atol=1e-5)


def test_spirals_need_more_than_a_line():
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier

    data = load("two_spirals")
    fit = lambda model: model.fit(data.train.x.numpy(), data.train.y.numpy()).score(data.test.x.numpy(), data.test.y.numpy())  # noqa: E731
    assert fit(LogisticRegression()) < 0.7 and fit(KNeighborsClassifier(3)) > 0.98


@pytest.mark.parametrize("normalise", ["per_feature", "per_channel", "global", "none"])
@pytest.mark.parametrize("kind", [np.uint8, np.int64, np.float16, np.float32, np.float64, ">f4"])
def test_images_are_normalised_as_asked(normalise, kind):
    x = np.random.default_rng(0).integers(0, 200, (60, 3, 5, 4)).astype(kind)
    x[:, 1, 2, 2] = 7  # a constant pixel
    data = prepare(Raw(x, np.arange(60) % 3, "classification"), Split(), normalise)
    axes = {"per_feature": (0,), "per_channel": (0, 2, 3), "global": (0, 1, 2, 3), "none": ()}[normalise]
    train = train_test_split(train_test_split(np.arange(60), test_size=0.25, random_state=0)[0], test_size=0.15, random_state=0)[0]
    z = x[train].astype(float)
    if axes:
        std = z.std(axes, keepdims=True)
        z = (z - z.mean(axes, keepdims=True)) / np.where(std == 0, 1, std)
    assert data.input_shape == (3, 5, 4) and np.allclose(data.train.x.numpy(), z, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-100, 1e-38, 1e-20, 1e20, 1e37, 1e100])
def test_any_scale_and_constant_columns(scale):
    x = np.random.default_rng(0).normal(size=(60, 3)) * scale
    x[:, 1] = scale
    data = prepare(Raw(x, np.arange(60) % 2, "classification"), Split())
    assert data.train.x.isfinite().all() and data.train.x[:, 1].abs().max() < 1e-3


def test_too_large_for_any_scale():
    x = np.random.default_rng(0).normal(size=(60, 3)) * 1e200
    with pytest.raises(DataError, match="beyond what float32 holds"):
        prepare(Raw(x, np.arange(60) % 2, "classification"), Split())


def test_large_offsets_keep_their_differences():
    x = 1.7e9 + np.arange(100.0)[:, None]
    data = prepare(Raw(x, np.arange(100) % 2, "classification"), Split())
    assert len(data.train.x.unique()) == len(data.train)


# --- tables -----------------------------------------------------------------------------------------------------------


def table(rows=120, seed=0) -> str:
    draw = np.random.default_rng(seed)
    lines = ["age,city,income,married,price"]
    for i in range(rows):
        city = ["Köln", "Paris", "New York, NY", ""][draw.integers(4)]
        income = "" if draw.random() < 0.2 else f"{draw.normal(5e4, 1e4):.2f}"
        lines.append(f'{draw.integers(18, 90)},"{city}",{income},{["yes", "no"][draw.integers(2)]},{draw.normal():.5f}')
    return "\n".join(lines) + "\n"


def written(folder: Path, text: str | bytes, name="t.csv", **options) -> dict:
    (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return {"path": name, "target": "price", **options}


def test_table_equals_scikit_learns_pipeline(tmp_path):
    data = load("csv", written(tmp_path, table()), {}, "per_feature", tmp_path)
    assert data.task == "regression" and data.features == ("age", "city", "income", "married")
    rows = [line.rsplit(",", 1)[0] for line in table().splitlines()[1:]]
    import csv as reader

    cells = np.array(list(reader.reader(rows)), dtype=object)
    train, val = train_test_split(train_test_split(np.arange(120), test_size=0.25, random_state=0)[0], test_size=0.15, random_state=0)
    numbers = np.array([[float(v) if v else np.nan for v in row] for row in cells[:, [0, 2]]])
    both = np.concatenate([numbers, cells[:, [1, 3]]], 1).astype(object)
    pipeline = ColumnTransformer(
        [
            ("numbers", make_pipeline(SimpleImputer(strategy="median"), StandardScaler()), [0, 1]),
            ("categories", OneHotEncoder(handle_unknown="ignore"), [2, 3]),
        ],
        sparse_threshold=0,
    ).fit(both[train])
    assert data.input_shape == (8,)
    for fold, index in (("train", train), ("val", val)):
        want = pipeline.transform(both[index]).astype(float)[:, [0, 2, 3, 4, 5, 1, 6, 7]]  # ours keep the order of the table
        assert np.allclose(data.folds[fold].x.numpy(), want, atol=1e-5)


def test_new_rows_by_name_in_any_order(tmp_path):
    data = load("csv", written(tmp_path, table()), {}, "per_feature", tmp_path)
    (tmp_path / "new.csv").write_text("extra,married,income,city,age\n1,yes,,Paris,30\n2,no,4e4,Atlantis,31\n")
    x = data.encoder(data.read(tmp_path / "new.csv"))
    assert x.shape == (2, 8) and x.isfinite().all()
    median = np.nanmedian([float(v) if v else np.nan for v in (line.split(",")[-3] for line in table().splitlines()[1:])])
    assert abs(float(x[0, 5])) < 0.5 and median > 0
    assert x[0, 1:5].sum() == 1 and x[1, 1:5].sum() == 0  # Atlantis was not known: all zeros
    (tmp_path / "new.csv").write_text("maried,income,city,age\nyes,1,Paris,30\n")
    with pytest.raises(DataError, match="no column 'married'.*\n.*did you mean 'maried'"):
        data.read(tmp_path / "new.csv")
    (tmp_path / "new.csv").write_text("married,income,city,age\nyes,lots,Paris,30\n")
    with pytest.raises(DataError, match="new.csv:2, column 'income': 'lots' is not a number"):
        data.read(tmp_path / "new.csv")


def test_task_is_inferred():
    assert infer_task(np.array(["a", "b"])) == "classification"
    assert infer_task(np.array([True, False])) == "classification"
    assert infer_task(np.arange(100) % 10) == "classification"
    assert infer_task((np.arange(100) % 3).astype(float)) == "classification"
    assert infer_task(np.arange(100)) == "regression"
    assert infer_task(np.arange(10) / 3) == "regression"
    assert infer_task(np.zeros((10, 2))) == "regression"


def test_fast_enough(tmp_path):
    draw = np.random.default_rng(0)
    lines = [",".join(f"{v:.4f}" for v in row) for row in draw.normal(size=(20_000, 10)).tolist()]
    options = written(tmp_path, "\n".join([",".join([*"abcdefghi", "price"]), *lines]))
    begin = time.perf_counter()
    load("csv", options, {}, "per_feature", tmp_path)
    assert time.perf_counter() - begin < 5


GOOD = "a,b,price\n" + "".join(f"{i},{i * i % 7},{i / 3}\n" for i in range(30))


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (b"", "empty, expected a header line"),
        (b"\n\n\n", "empty, expected a header line"),
        (b"\xef\xbb\xbf", "empty, expected a header line"),
        ("a,b,price\n", "a header line and no rows"),
        ("a,a,price\n1,2,3\n", "1: two columns named 'a'"),
        (",b,price\n1,2,3\n", "1: column 1 has no name"),
        (",,price\n1,2,3\n", "two columns named"),
        (GOOD + "1,2\n", ":32: 2 cells, the header names 3 columns"),
        (GOOD + "1,2,3,4\n", ":32: 4 cells, the header names 3 columns"),
        (GOOD + '1,"2,3\n', ":32: unexpected end of data"),
        (GOOD + '1,"2"2,3\n', ":32: "),
        (GOOD + "1,x,3\n", ":32, column 'b': 'x' is not a number, others of the column are"),
        (GOOD + "1,nan,3\n", ":32, column 'b': 'nan' is not a finite number"),
        (GOOD + "1,-inf,3\n", ":32, column 'b': '-inf' is not a finite number"),
        (GOOD + "1,1_0,3\n", ":32, column 'b': '1_0' is not a number"),
        (GOOD + "1,2,nan\n", ":32, column 'price': 'nan' is not a finite number"),
        (GOOD + "1,2,1e999\n", ":32, column 'price': '1e999' is not a finite number"),
        (GOOD + "1,2,\n", ":32, column 'price': no target"),
        (GOOD.replace("price", "prise"), "1: no target 'price'\n.*did you mean 'prise'"),
        (GOOD.replace(",", ";"), "1: one column.*\n.*separator: ';'"),
        (GOOD.encode("utf-16"), "UTF-16, expected UTF-8"),
        (GOOD.encode() + b"\xff,1,2\n", ":32: byte 0xff is not UTF-8"),
        (GOOD.encode() + b"\0,1,2\n", ":32: a zero byte"),
        ("a,price\n" + ",1\n" * 30, "column 'a' is empty in every row"),
        ("a,price\n" + "1,1\n" * 30, "every row is of the one class '1'"),
        ("a,price\n" + "1,1.5\n" * 30, "the target is 1.5 in every row"),
        ("a,price\n" + "".join(f"n{i},{i / 3}\n" for i in range(300)), "column 'a' has 300 categories"),
        ("a,price\n" + "".join(f'"{i},5",{i / 3}\n' for i in range(300)), "with a point, not a comma"),
        ("price\n1\n2\n", "no column besides the target"),
        ("a,price\n1,0\n2,1\n", "cannot be split"),
        ("a,price\n" + f"{'9' * 200_000},1\n", ":2: field larger than field limit"),
        (",".join(f"c{i}" for i in range(100_000)) + ",price\n", "columns, at most 65536"),
    ],
)
def test_malformed_tables(tmp_path, text, what):
    with pytest.raises(DataError, match=what) as caught:
        load("csv", written(tmp_path, text), {}, "per_feature", tmp_path)
    assert caught.value.fix and str(caught.value).startswith("t.csv") and len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "text",
    [
        "\ufeff" + GOOD,
        GOOD.replace("\n", "\r\n"),
        GOOD.replace("\n", "\n\n"),
        GOOD.rstrip("\n"),
        GOOD.replace(",", " , "),
        GOOD.replace("a,b", '"a","b"'),
        GOOD.replace("a,b", '"ä ""x"", y",列'),
        GOOD + "NA,?,1.25\n",
    ],
)
def test_odd_but_fine_tables(tmp_path, text):
    data = load("csv", written(tmp_path, text), {}, "none", tmp_path)
    assert data.input_shape == (2,) and data.task == "regression" and len(data.features) == 2


def test_a_quoted_cell_may_hold_a_line_end(tmp_path):
    text = "note,a,price\n" + "".join(f'"x\ny",{i},{i / 3}\n' for i in range(20))
    data = load("csv", written(tmp_path, text), {}, "none", tmp_path)
    assert data.schema.categories == (("x\ny",), None)
    with pytest.raises(DataError, match=r":42: 2 cells"):
        load("csv", written(tmp_path, text + "a,b\n"), {}, "none", tmp_path)


PIECES = [*'ab,;"\n\r\t 01.-eé_\0', "price", "nan", "1.5,2\n", "3,4.5\n", "x,1\n"]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.binary(max_size=300), st.lists(st.sampled_from(PIECES), max_size=200).map("".join)))
def test_any_bytes_are_read_or_refused(tmp_path, rows):
    for text in (rows, (b"a,price\n" if isinstance(rows, bytes) else "a,price\n") + rows):
        try:
            data = load("csv", written(tmp_path, text), {}, "per_feature", tmp_path)
        except DataError:
            continue
        assert data.train_val.x.isfinite().all() and data.test.y.isfinite().all()


def test_missing_may_be_written_as_asked(tmp_path):
    options = written(tmp_path, GOOD + "nan,-9,3\n", missing=["nan", "-9"])
    assert load("csv", options, {}, "none", tmp_path).train.x.isfinite().all()


def test_drop_categorical_and_separator(tmp_path):
    options = written(tmp_path, GOOD.replace(",", "\t"), separator="\t", drop=["a"], categorical=["b"])
    data = load("csv", options, {}, "none", tmp_path)
    assert data.features == ("b",) and data.input_shape == (4,) and data.schema.categories == (("0", "1", "2", "4"),)
    with pytest.raises(DataError, match="no column 'bb'"):
        load("csv", written(tmp_path, GOOD, drop=["bb"]), {}, "none", tmp_path)


# --- paths ------------------------------------------------------------------------------------------------------------


def test_paths_stay_in_the_folder(tmp_path):
    home, other = tmp_path / "home", tmp_path / "other"
    home.mkdir(), other.mkdir()
    (other / "t.csv").write_text(GOOD)
    (home / "link.csv").symlink_to(other / "t.csv")
    (home / "up").symlink_to(other)
    (home / "inside.csv").write_text(GOOD)
    (home / "here.csv").symlink_to("inside.csv")
    for path in ("../other/t.csv", str(other / "t.csv"), "link.csv", "up/t.csv", "/etc/passwd", "/dev/zero", "a/../../other/t.csv"):
        for source in ({"csv": {"path": path, "target": "price"}}, {"npz": {"path": path}}):
            with pytest.raises(DataError, match="leads out of the spec's folder"):
                load(*source.popitem(), {}, "none", home)
    assert len(load("csv", {"path": "here.csv", "target": "price"}, {}, "none", home).train)


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "folder.csv").mkdir()
    begin = time.perf_counter()
    for name in ("pipe.csv", "folder.csv"):
        with pytest.raises(DataError, match=f"{name}: not a regular file"):
            load("csv", {"path": name, "target": "price"}, {}, "none", tmp_path)
    (tmp_path / "rows.csv").write_text(GOOD)
    with pytest.raises(DataError, match="rws.csv: no such file\n.*did you mean 'rows.csv'"):
        load("csv", {"path": "rws.csv", "target": "price"}, {}, "none", tmp_path)
    with pytest.raises(DataError, match="is no path"):
        load("csv", {"path": "a\0b", "target": "price"}, {}, "none", tmp_path)
    (tmp_path / "loop.csv").symlink_to("loop.csv")
    with pytest.raises(DataError):
        load("csv", {"path": "loop.csv", "target": "price"}, {}, "none", tmp_path)
    assert time.perf_counter() - begin < 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file(tmp_path):
    (tmp_path / "t.csv").write_text(GOOD)
    (tmp_path / "t.csv").chmod(0)
    with pytest.raises(DataError, match="cannot be opened: Permission denied"):
        load("csv", {"path": "t.csv", "target": "price"}, {}, "none", tmp_path)


# --- arrays -----------------------------------------------------------------------------------------------------------


def saved(folder: Path, **arrays) -> dict:
    np.savez(folder / "t.npz", **arrays)
    return {"path": "t.npz"}


def test_npz_keeps_images_and_takes_any_labels(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (50, 3, 8, 8), dtype=np.uint8)
    half = np.arange(50) % 2
    for y in (np.arange(50) % 3, np.array(["cat", "dog"])[half], np.array([b"a", b"b"])[half], half == 0, half.astype(float)):
        data = load("npz", saved(tmp_path, x=x, y=y), {}, "per_channel", tmp_path)
        assert data.task == "classification" and data.input_shape == (3, 8, 8) and data.raw.dtype == torch.uint8
    data = load("npz", saved(tmp_path, x=x[:, 0, 0], y=x[:, 1, 1, :2] / 3), {}, "per_channel", tmp_path)
    assert data.task == "regression" and data.outputs == 2
    (np.savez(tmp_path / "k.npz", images=x, label=np.arange(50) % 3))
    assert load("npz", {"path": "k.npz", "x": "images", "y": "label"}, {}, "none", tmp_path).schema.key == "images"


def test_unusable_arrays(tmp_path):
    x, y = np.random.default_rng(0).normal(size=(50, 4)), np.arange(50) % 2
    bad = x.copy()
    bad[7, 2], bad[9, 1] = np.nan, np.inf
    images = np.zeros((50, 1, 2, 2), np.float32)
    images[3, 0, 1, 1] = np.nan
    cases = [
        (saved(tmp_path, x=bad, y=y), r"x\[7, 2\] \(row 7, column 2, from 0\) is nan \(2 such in all\)\n.*remove these rows"),
        (saved, dict(x=images, y=y), r"x\[3, 0, 1, 1\] \(row 3, element \[0, 1, 1\]"),
        (saved, dict(x=x, y=np.where(y, np.nan, 1.5)), r"y\[1\] \(row 1, from 0\) is nan"),
        (saved, dict(x=x, y=y[:40]), "'x' has 50 rows, 'y' 40"),
        (saved, dict(x=x, label=y), "no array 'y'"),
        (saved, dict(xs=x, y=y), "no array 'x'\n.*did you mean 'xs'"),
        (saved, dict(x=np.array([{}] * 50), y=y), "is of object"),
        (saved, dict(x=x.astype(str), y=y), "expected numbers"),
        (saved, dict(x=x + 1j, y=y), "is of complex128"),
        (saved, dict(x=x[:0], y=y[:0]), "expected rows"),
        (saved, dict(x=np.float64(3), y=y), "expected rows"),
        (saved, dict(x=x[:, :0], y=y), "columns in x"),
        (saved, dict(x=x, y=y * 0), "the one class '0'"),
        (saved, dict(x=x, y=np.array([f"n{i}" for i in range(50)])), "50 classes in 50 rows"),
        (saved, dict(x=x[:2], y=y[:2]), "cannot be split"),
        (saved, dict(x=x * 1e300, y=np.arange(50) / 3e-200), "beyond what float32 holds"),
    ]
    for make, *rest in cases:
        if callable(make):
            arrays, what = rest
            options = saved(tmp_path, **arrays)
        else:
            options, what = saved(tmp_path, x=bad, y=y), rest[0]
        with pytest.raises(DataError, match=what):
            load("npz", options, {}, "none", tmp_path)


def test_hostile_npz(tmp_path):
    import io
    import pickle
    import zipfile

    def claiming(shape: str) -> bytes:
        header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
        return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()

    y = io.BytesIO()
    np.save(y, np.arange(10) % 2)
    claims = [claiming(shape) for shape in ("(1152921504606846976,)", "(1000000000, 100)", "(-1,)")]
    for member in (*claims, b"junk", b"", pickle.dumps({"a": 1})):
        with zipfile.ZipFile(tmp_path / "t.npz", "w") as archive:
            archive.writestr("x.npy", member)
            archive.writestr("y.npy", y.getvalue())
        with pytest.raises(DataError):
            load("npz", {"path": "t.npz"}, {}, "none", tmp_path)
    good = io.BytesIO()
    np.savez(good, x=np.zeros((30, 2)), y=np.arange(30) % 2)
    rng = np.random.default_rng(0)
    for _ in range(60):  # truncated and with flipped bytes: refused, or read as something that is no error
        damaged = bytearray(good.getvalue()[: rng.integers(1, len(good.getvalue()) + 1)])
        damaged[rng.integers(len(damaged))] ^= 0xFF
        (tmp_path / "t.npz").write_bytes(bytes(damaged))
        try:
            load("npz", {"path": "t.npz"}, {}, "none", tmp_path)
        except DataError:
            pass


# --- options ----------------------------------------------------------------------------------------------------------


def test_options_are_checked():
    with pytest.raises(UnknownName, match="unknown source 'digit'\n.*did you mean 'digits'"):
        load("digit")
    for call, what in (
        (lambda: load("digits", {"shap": "flat"}), "did you mean 'shape'"),
        (lambda: load("digits", {}, {"test": 0}), "data.split: 'test'"),
        (lambda: load("digits", {}, {"test": 1.0}), "data.split: 'test'"),
        (lambda: load("digits", {}, {"val": float("nan")}), "data.split: 'val'"),
        (lambda: load("digits", {}, {"random_state": -1}), "data.split: 'random_state'"),
        (lambda: load("digits", {}, {}, "per_feture"), "did you mean 'per_feature'"),
        (lambda: load("friedman1", {"n": 2**63}), "'n'"),
        (lambda: load("friedman1", {"n": 8}, {"test": 0.999}), "cannot be split"),
        (lambda: load("digits", []), None),
        (lambda: load("digits", "flat"), "expected a mapping"),
    ):
        if what is None:
            assert call()
            continue
        with pytest.raises(DataError, match=what):
            call()


def test_a_class_of_one_row():
    y = np.array([0, 1] * 20 + [2])
    x = np.arange(41.0)[:, None]
    assert prepare(Raw(x, y, "classification"), Split()).outputs == 3
    with pytest.raises(DataError, match="1 rows of class '2'.*\n.*stratify: false"):
        prepare(Raw(x, y, "classification"), Split(stratify=True))


def test_batch_larger_than_the_train_rows():
    data = load("wine")
    check_batch(data, len(data.train))
    with pytest.raises(DataError, match="data.batch is 114, there are 113 train rows"):
        check_batch(data, 114)


def test_shapes_that_do_not_fit():
    data = load("digits")
    assert data.reshaped((64,)).train.x.shape[1:] == (64,) and data.reshaped((8, 8)).input_shape == (8, 8)
    for shape in ((63,), (1, 4, 16), (1, 8, 8, 2)):
        with pytest.raises(DataError, match="the data's rows are"):
            data.reshaped(shape)


def test_importing_pays_for_neither_torch_nor_sklearn():
    code = "import sys, dagrow.data as d; d.REGISTRY.names(); print({'torch', 'sklearn', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_never_unpickles():
    for file in Path(dagrow.data.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert node.value.value is False
