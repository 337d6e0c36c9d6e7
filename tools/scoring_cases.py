"""The networks and rows that bench_scoring.py scores: two small conv nets, MLPs of several depths."""

from __future__ import annotations

import io
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

import dagrow.spec
from dagrow.check import check
from dagrow.compiler import initialise
from dagrow.data import Fold
from dagrow.growth import Search
from dagrow.planning import make_plan
from dagrow.rng import stream
from dagrow.select import Trial
from dagrow.standing import Network, Plan

ROOT = Path(__file__).resolve().parent.parent
ALL_EDITS = ({"widen": {"units": 4}}, {"deepen": {"units": 8}}, "connect", "prune")
# channels, stride, pooled afterwards: the conv nets as both sides build them. The second has 71.8k parameters.
DIGITS_CONVS = ((4, 1, False), (8, 2, False), (8, 1, False))
VGG_CONVS = ((8, 1, True), (16, 1, True), (32, 1, False), (32, 1, True), (64, 1, False), (64, 1, False))


@dataclass(frozen=True)
class Case:
    """A network trained a little, its plan, and its shape in plain values for a peer."""

    name: str
    plan: Plan
    network: Network
    shape: dict

    @property
    def rows(self) -> int:
        return len(self.plan.data.train.x)

    def looking_at(self, rows: int, edits: tuple = (), race: bool = True) -> Search:
        """The search that would decide now, from a pass of its own over `rows` training rows (and, where given, by other edits).

        race: whether it may score on fewer of them where that is enough to tell.
        """
        plain = self.plan.spec.to_dict()
        plain["score"] |= {"rows": max(2, rows), "when": "own_pass", "race": race}
        plain["edits"] = list(edits) or plain["edits"]
        spec = dagrow.spec.load(plain, folder=self.plan.spec.folder)
        plan = make_plan(check(spec))
        return Search.standing(plan, self.network)

    def epoch(self, rows: int | None = None) -> int:
        """One plain epoch over the training rows (or one batch of the first few); how many steps that took."""
        recipe, fold = self.plan.recipe, self.plan.data.train
        if rows is not None:
            recipe, fold = replace(recipe, batch=rows), Fold(fold.x[:rows], fold.y[:rows])
        arch, weights, moments = self.network.arch, self.network.weights, self.network.moments
        return recipe.epoch(arch, weights, moments, fold, lambda _: 1e-3, 0, ("bench",))[2].steps


def trained(name: str, spec: dict | str | Path, epochs: int, shape: dict, sets: tuple[str, ...] = (), folder: str | None = None) -> Case:
    """The spec's seed network after `epochs` epochs at a constant rate."""
    plan = make_plan(check(dagrow.spec.load(spec, sets, folder=folder)))
    arch, recipe = plan.architecture, plan.recipe
    weights, moments = initialise(arch, plan.spec.seed), {slot: {} for slot in recipe.optimizer.slots}
    for number in range(epochs):
        weights, moments, _ = recipe.epoch(arch, weights, moments, plan.data.train, lambda _: recipe.options.lr, 0, ("trained", number))
    shape = {"input": list(plan.data.input_shape), "outputs": plan.data.outputs, "batch": recipe.batch, **shape}
    return Case(name, plan, Network(arch, weights, moments), shape)


# ---- the cases

def digits_conv(epochs: int = 2, **_) -> Case:
    """The seed network of specs/digits.yaml."""
    return trained("digits conv", ROOT / "specs" / "digits.yaml", epochs, {"convs": DIGITS_CONVS}, ("export=[]", "budget.time=null"))


def mlp(depth: int, epochs: int = 2) -> Case:
    """`depth` hidden layers of 16 units on flat digits. The folds a decision looks at, train and val, are 1,347 rows together."""
    layers = [layer for _ in range(depth) for layer in ("linear 16", "relu")]
    spec = {
        "name": f"mlp{depth}", "export": [], "model": {"layers": [*layers, "linear 10"]},
        "data": {"source": {"name": "digits", "shape": "flat"}, "normalise": "global", "batch": 128, "split": {"test": 0.25, "val": 0.15}},
        "train": {"optimizer": {"name": "adamw", "lr": 3e-3}}, "edits": [{"widen": {"units": 4}}], "score": {"rows": 1347},
    }
    return trained(f"mlp of depth {depth}", spec, epochs, {"width": 16, "depth": depth})


def vgg_spec(file: str) -> dict:
    """The CIFAR-sized net as a spec that reads images from `file`."""
    nodes, last = {}, "input"
    for k, (channels, stride, pooled) in enumerate(VGG_CONVS):
        nodes[f"c{k}"] = {"op": "conv2d", "in": last, "channels": channels, "stride": stride}
        nodes[f"n{k}"] = {"op": "batchnorm", "in": f"c{k}"}
        nodes[f"a{k}"] = {"op": "relu", "in": f"n{k}"}
        last = f"a{k}"
        if pooled:
            nodes[f"p{k}"] = {"op": "max_pool", "in": last, "kernel": 2}
            last = f"p{k}"
    nodes["pool"] = {"op": "global_avg_pool", "in": last}
    nodes["head"] = {"op": "linear", "in": "pool", "width": 10}
    return {
        "name": "vgg-nano", "export": [], "model": {"nodes": nodes},
        "data": {"source": {"name": "npz", "path": file}, "normalise": "per_channel", "batch": 128, "split": {"test": 0.05, "val": 0.15}},
        "train": {"optimizer": {"name": "adamw", "lr": 3e-3}, "epochs": {"first": 4, "between": 3, "final": 5}},
        "edits": [{"widen": {"units": 8}}], "select": {"by": "greedy", "bundle": 3}, "budget": {"steps": 2},
    }


def vgg(epochs: int = 1, rows: int = 4000, images: Path | None = None) -> Case:
    """VGG-nano (8, pool, 16, pool, 32, 32, pool, 64, 64; batch norms) on images of 3 x 32 x 32: made up, or those of a zip."""
    x, y = made_up(rows) if images is None else from_zip(images, rows)
    folder = Path(tempfile.mkdtemp(prefix="scoring-"))
    KEPT.append(folder)
    np.savez(folder / "images.npz", x=x, y=y)
    return trained("cifar conv", vgg_spec("images.npz"), epochs, {"convs": VGG_CONVS}, folder=str(folder))


def trials(search: Search, few: Search, most: int = 3) -> Callable[[], None]:
    """What tries the best candidates on the rows of `search` by real forwards; they are found here and now, on those of `few`."""
    found = few.candidates()
    members = [s.candidate.index for s in found if s.part is not None][:most]

    def work() -> None:
        bench = search.bench(found)
        for member in members:
            bench.make(Trial(member))

    return work


KEPT: list[Path] = []  # folders of made data, which a case reads again when its spec changes; tidy() removes them


def tidy() -> None:
    while KEPT:
        shutil.rmtree(KEPT.pop(), ignore_errors=True)


CONV_NETS: dict[str, Callable[..., Case]] = {"digits": digits_conv, "cifar": vgg}


# ---- images

def made_up(rows: int, classes: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """(x [rows, 3, 32, 32] uint8, y [rows]): a smooth pattern per class, other smooth patterns over it, and noise."""
    draw = stream(0, "images")
    y = torch.randint(0, classes, (rows,), generator=draw)
    patterns = torch.randn(classes, 3, 4, 4, generator=draw)
    coarse = patterns[y] + 1.5 * torch.randn(rows, 3, 4, 4, generator=draw)
    smooth = F.interpolate(coarse, size=(32, 32), mode="bicubic")
    x = 128 + 32 * smooth + 12 * torch.randn(rows, 3, 32, 32, generator=draw)
    return x.clamp(0, 255).to(torch.uint8).numpy(), y.numpy()


def from_zip(path: Path, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """`rows` of the training images of a zip of JPEGs, drawn (the folder an image lies in is its class), as 32 x 32. Needs pillow."""
    from PIL import Image

    with zipfile.ZipFile(path) as archive:
        names = sorted(n for n in archive.namelist() if n.lower().endswith((".jpg", ".jpeg")))
        names = [n for n in names if "test" not in Path(n).parts]
        folders = sorted({Path(n).parent.name for n in names})
        if len(names) < rows or len(folders) != 10:
            raise SystemExit(f"{path}: {len(names)} images in {len(folders)} classes; {rows} in 10 are needed")
        chosen = [names[i] for i in torch.randperm(len(names), generator=stream(0, "zip"))[:rows].tolist()]
        x = np.stack([np.asarray(Image.open(io.BytesIO(archive.read(n))).convert("RGB").resize((32, 32))).transpose(2, 0, 1) for n in chosen])
    return x, np.array([folders.index(Path(n).parent.name) for n in chosen])
