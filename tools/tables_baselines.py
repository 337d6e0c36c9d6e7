"""What a grown network is compared with in table T6: one function per column, each from a `Contest` to a row of numbers.

Every network is trained by the search's own recipe (optimizer, batch, learning rate, clipping), with one cosine over all its
epochs, on the rows that the search's final phase trains on, for as many training MACs (3 x MACs x rows) as the whole search.
A last epoch on a part of the rows makes that exact. Test rows are only reported.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace

from tables_random import random_edits
from tables_training import Contest, scores, train, trained

from dagrow.data import Fold
from dagrow.graph import Architecture, Node
from dagrow.rng import seed_of

TRIALS, TRIAL_SHARE = 50, 0.5
# A linear seed takes a hundredth of the grown network's MACs: beyond so many times the search's epochs it has long converged.
MOST_EPOCHS = 5


# ---- static networks

def mlp(contest: Contest, widths: Sequence[int]) -> Architecture:
    """Hidden layers of these widths between the data's inputs and outputs."""
    data = contest.plan.data
    nodes, last = {"input": Node.of("input", shape=data.input_shape)}, "input"
    for k, width in enumerate(widths):
        nodes[f"hidden{k}"] = Node.of("linear", last, width=width)
        nodes[f"act{k}"] = Node.of(contest.act, f"hidden{k}")
        last = f"act{k}"
    return Architecture({**nodes, "head": Node.of("linear", last, width=data.outputs)})


def mlp_size(contest: Contest, widths: Sequence[int]) -> int:
    sizes = [math.prod(contest.plan.data.input_shape), *widths, contest.plan.data.outputs]
    return sum((a + 1) * b for a, b in zip(sizes, sizes[1:], strict=False))


def multiplied(seed: Architecture, factors: Sequence[float]) -> Architecture:
    """`seed` with the channels of its convolutions times `factors`, in topological order."""
    convs = [n for n in seed.order if seed.nodes[n].op == "conv2d"]
    nodes = dict(seed.nodes)
    for name, factor in zip(convs, factors, strict=True):
        attrs = nodes[name].attrs
        nodes[name] = replace(nodes[name], attrs=attrs.model_copy(update={"channels": max(1, round(attrs.channels * factor))}))
    return Architecture(nodes, seed.outputs)


def convolutions(arch: Architecture) -> int:
    return sum(node.op == "conv2d" for node in arch.nodes.values())


def nearest_static(contest: Contest, layers: int) -> Architecture:
    """The static network of nearest size: `layers` hidden layers of one width, or the seed's convolutions times one factor."""
    target, seed = contest.grown.size, contest.plan.architecture
    if not contest.convolutional:
        widths = range(1, 2 + max(1, target // max(1, math.prod(contest.plan.data.input_shape))))
        best = min(widths, key=lambda w: (abs(mlp_size(contest, [w] * layers) - target), w))
        return mlp(contest, [best] * layers)
    low, high, seen = 1 / 16, 16.0, {}
    for _ in range(14):
        middle = math.sqrt(low * high)
        made = multiplied(seed, [middle] * convolutions(seed))
        seen[abs(made.size - target)] = made
        low, high = (middle, high) if made.size < target else (low, middle)
    return seen[min(seen)]


def static(contest: Contest) -> dict:
    """(a) One hidden layer, or the seed's convolutions at another width: the size of the grown network."""
    return trained(contest, nearest_static(contest, 1), ("static",))


def static_two(contest: Contest) -> dict | None:
    """(a) with two hidden layers of one width; nothing where the network is convolutional."""
    return None if contest.convolutional else trained(contest, nearest_static(contest, 2), ("static2",))


def scratch(contest: Contest) -> dict:
    """(b) The architecture that was grown, from a fresh start."""
    return trained(contest, contest.grown, ("scratch",))


def seed_net(contest: Contest) -> dict:
    """(c) The network that growth began with (at most MOST_EPOCHS times the search's epochs)."""
    return trained(contest, contest.plan.architecture, ("seed",), most=MOST_EPOCHS * contest.epochs)


# ---- (e) Optuna

def tuned(contest: Contest) -> dict:
    """(e) Optuna's TPE over static widths: 50 short trials by validation loss, then the best one from a fresh start.

    Every trial sees as many rows: as many as make 50 networks like the grown one take half of the search's training MACs
    (equal MACs would favour small networks, which then train longer). What the trials leave trains the winner. Widths (of up
    to two hidden layers; a factor per convolution) are drawn on a log scale, and made smaller together where the network would
    be larger than the grown one: validation loss prefers large networks, which few epochs then remain for. Without a hidden
    layer only where growth was refused: within an epoch or two a linear model is ahead of anything.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed_of(contest.spec.seed, "optuna") % 2**32))
        spent, best, share = 0, (math.inf, contest.plan.architecture), TRIAL_SHARE * contest.work / TRIALS
        for number in range(TRIALS):
            trial = study.ask()
            arch = _suggested(contest, trial)
            # A convolutional network may be small and dear: none takes so much that nothing is left for the winner.
            work = share * min(arch.macs / contest.grown.macs, 1.6)
            weights, report = train(contest, arch, contest.plan.data.train, work, ("tpe", number))
            spent += report["work"]
            loss = scores(contest, arch, weights, "val")["loss"] if report["finite"] else math.inf
            study.tell(trial, loss if math.isfinite(loss) else 1e6)
            best = min(best, (loss, arch), key=lambda pair: pair[0])
    row = trained(contest, best[1], ("tpe", "best"), work=contest.work - spent)
    return {**row, "work": row["work"] + spent, "trials_work": spent}


def _suggested(contest: Contest, trial) -> Architecture:
    """The network of a trial, no larger than the grown one (or of width 1 where none is)."""
    seed = contest.plan.architecture
    if contest.convolutional:
        factors = [trial.suggest_float(f"factor{k}", 0.5, 8.0, log=True) for k in range(convolutions(seed))]
        return _shrunk(lambda share: multiplied(seed, [f * share for f in factors]), lambda arch: arch.size, contest.grown.size)
    most = max(2, contest.grown.size // (math.prod(contest.plan.data.input_shape) + 1))
    widths = [trial.suggest_int(f"width{k}", 1, most, log=True) for k in range(trial.suggest_int("layers", 1 if contest.edits else 0, 2))]
    return mlp(contest, _shrunk(lambda s: [max(1, int(w * s)) for w in widths], lambda w: mlp_size(contest, w), contest.grown.size))


def _shrunk(make: Callable, size: Callable[..., int], budget: int):
    """`make` of the largest share, from 1 down by a twentieth, that fits; where nothing does, of the smallest."""
    made = make(1.0)
    for k in range(1, 100):
        if size(made) <= budget:
            break
        made = make(0.95**k)
    return made


# ---- (g) classical models

def classical(contest: Contest) -> dict:
    """(g) Support vectors, random forest, boosted trees and a linear model: the best on validation rows, over a tiny grid,
    fitted again on the rows of the search's final phase. `others`: the test metric of each kind, chosen in the same way."""
    data, fold = contest.plan.data, contest.fold
    x, y = _arrays(data.train)
    held, test, both = _arrays(data.val), _arrays(data.test), _arrays(fold)
    found = []
    for name, models in _models(data.task, contest.spec.seed).items():
        value, model = max(((m.fit(x, y).score(*held), m) for m in models), key=lambda pair: pair[0])
        found.append((value, name, model.fit(*both).score(*test)))
    value, name, metric = max(found, key=lambda row: row[0])
    return {"metric": metric, "val_metric": value, "model": name, "others": {n: m for _, n, m in found}}


def _arrays(fold: Fold):
    y = fold.y.numpy()
    return fold.x.flatten(1).numpy(), y.reshape(len(y)) if y.size == len(y) else y


def _models(task: str, seed: int) -> dict[str, list]:
    from sklearn import ensemble, linear_model, svm

    if task == "classification":
        return {
            "logistic": [linear_model.LogisticRegression(C=c, max_iter=2000) for c in (0.1, 1.0)],
            "rbf-svm": [svm.SVC(C=c) for c in (1.0, 10.0)],
            "forest": [ensemble.RandomForestClassifier(300, random_state=seed)],
            "boosting": [ensemble.HistGradientBoostingClassifier(random_state=seed)],
        }
    return {
        "ridge": [linear_model.Ridge(c) for c in (1.0, 10.0, 100.0)],
        "rbf-svm": [svm.SVR(C=c) for c in (1.0, 10.0)],
        "forest": [ensemble.RandomForestRegressor(300, random_state=seed)],
        "boosting": [ensemble.HistGradientBoostingRegressor(random_state=seed)],
    }


COLUMNS: dict[str, Callable[[Contest], dict | None]] = {
    "static": static, "static2": static_two, "scratch": scratch, "seed": seed_net, "random": random_edits, "optuna": tuned,
    "classical": classical,
}


def column(name: str, contest: Contest) -> dict | None:
    """The column's row, with its seconds."""
    began = time.perf_counter()
    row = COLUMNS[name](contest)
    return row and {**row, "seconds": time.perf_counter() - began}
