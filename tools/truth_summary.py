"""From rows of sites to table T3: what was predicted against what real forwards found."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

import numpy as np
from scipy.stats import ConstantInputWarning, spearmanr

GROUPS = {"all": lambda r: True, "seen": lambda r: not r["blind"], "blind": lambda r: r["blind"]}
VERIFIED = 3
# Drops closer than this are one: rounding.
SAME = 1e-7


def summary(records: Sequence[dict]) -> list[dict]:
    """An object per network, stage and scorer, growing ("grow") and shrinking ("shrink", "remove"); at last one per scorer over all."""
    found = []
    for net, stage in dict.fromkeys((r["net"], r["stage"]) for r in records):
        here = [r for r in records if (r["net"], r["stage"]) == (net, stage)]
        for kind, line in (("grow", grown), ("shrink", shrunk), ("remove", shrunk)):
            for scorer in dict.fromkeys(row["scorer"] for r in here for row in r[kind]):
                runs = [[row for row in r[kind] if row["scorer"] == scorer] for r in here]
                found.append({"kind": kind, "net": net, "stage": stage, "scorer": scorer, **line(runs, here[0].get("outputs"))})
    for scorer in dict.fromkeys(line["scorer"] for line in found if line["kind"] == "grow"):
        lines = [line for line in found if line["kind"] == "grow" and line["scorer"] == scorer]
        total = {key: sum(line[key] for line in lines) for key in ("runs", "first", "verified_first")}
        found.append({"kind": "overall", "scorer": scorer, **total, "least_spearman": min(line["spearman"]["seen"] for line in lines)})
    return found


def grown(runs: Sequence[Sequence[dict]], outputs: int | None = None) -> dict:
    """`runs`: the rows of one seed each. Spearman: its median over seeds. ratio: predicted / LS, quartiles over all sites of
    all seeds. first: in how many runs the best prediction is the best LS; verified_first: the same after real forwards of
    the best three; reached: mean share of the best LS that each choice has. ls: mean LS of the candidates.
    ratio_fixed (regression, its number of outputs given): with the residual variance held at the parent's."""
    ok = [[r for r in run if r["status"] == "ok" and "ls" in r] for run in runs]
    line = {"runs": len(runs), "sites": sum(map(len, runs)), "unserved": sum(map(len, runs)) - sum(map(len, ok))}
    measures = [("spearman", "predicted", "ls"), ("spearman_after", "predicted", "after"), ("ls_after", "ls", "after")]
    for name, x, y in measures:
        if all(y in r for run in ok for r in run):
            line[name] = {g: _median(_spearman(list(filter(of, run)), x, y) for run in ok) for g, of in GROUPS.items()}
    pooled = [r for run in ok for r in run]
    line["ratio"] = {g: _quartiles([_ratio(r["predicted"], r["ls"]) for r in pooled if of(r)]) for g, of in GROUPS.items()}
    if outputs:
        fixed = [(r, outputs / 2 * -np.expm1(-2 * r["ls"] / outputs)) for r in pooled]
        line["ratio_fixed"] = {g: _quartiles([_ratio(r["predicted"], ls) for r, ls in fixed if of(r)]) for g, of in GROUPS.items()}
    line["ls"] = {g: _mean([r["ls"] for r in pooled if of(r)]) for g, of in GROUPS.items()}
    if any("after" in r for r in pooled):
        line["after"] = {g: _mean([r["after"] for r in pooled if of(r)]) for g, of in GROUPS.items()}
    return line | _choices(ok, "ls", "checked")


def shrunk(runs: Sequence[Sequence[dict]], outputs: int | None = None) -> dict:
    """As `grown`. The truth is the real change: for gram after the survivors made up for the loss, for the plain baselines
    without; `spearman_other` is with the other one. cost: mean loss in nats of the choice, of the verified one, of the best there is."""
    ok = [[r for r in run if r["status"] == "ok"] for run in runs]
    mine, other = ("drop", "plain") if ok and ok[0] and ok[0][0]["scorer"] == "gram" else ("plain", "drop")
    line = {"runs": len(runs), "sites": sum(map(len, runs)), "unserved": sum(map(len, runs)) - sum(map(len, ok))}
    line["spearman"] = _median(_spearman(run, "predicted", mine) for run in ok)
    line["spearman_other"] = _median(_spearman(run, "predicted", other) for run in ok)
    if mine == "drop":
        line["ratio"] = _quartiles([r["predicted"] / r["drop"] for run in ok for r in run if r["drop"] < -1e-6])
    picks = [_picked(run, mine, mine) for run in ok if run]
    line["cost"] = [_mean([-p[k][mine] for p in picks]) for k in range(3)]
    return line | _choices(ok, mine, mine, share=False)


def _choices(runs: Sequence[Sequence[dict]], truth: str, checked: str, share: bool = True) -> dict:
    picks = [_picked(run, truth, checked) for run in runs if run]
    hits = [sum(p[k][truth] >= p[2][truth] - SAME for p in picks) for k in (0, 1)]
    line = {"first": hits[0], "verified_first": hits[1]}
    if share:
        line["reached"] = [_mean([p[k][truth] / p[2][truth] for p in picks if p[2][truth] > SAME]) for k in (0, 1)]
    return line


def _picked(run: Sequence[dict], truth: str, checked: str) -> tuple[dict, dict, dict]:
    """(best by prediction, best of the best three by forwards, best there is)."""
    ordered = sorted(run, key=lambda r: -r["predicted"])
    return ordered[0], max(ordered[:VERIFIED], key=lambda r: r[checked]), max(run, key=lambda r: r[truth])


def _ratio(predicted: float, real: float) -> float:
    return predicted / real if real > 0 else (np.inf if predicted > 0 else np.nan)


def _spearman(rows: Sequence[dict], x: str, y: str) -> float:
    import warnings

    if len(rows) < 3:
        return float("nan")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConstantInputWarning)
        return float(spearmanr([r[x] for r in rows], [r[y] for r in rows]).statistic)


def _median(values: Iterator[float]) -> float | None:
    known = [v for v in values if not np.isnan(v)]
    return statistics.median(known) if known else None


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _quartiles(values: Sequence[float]) -> list[float] | None:
    known = [v for v in values if not np.isnan(v)]
    return [float(q) for q in np.quantile(known, [0.25, 0.5, 0.75], method="nearest")] if known else None


# ---- for people

def table(found: Sequence[dict]) -> str:
    lines = []
    for place in dict.fromkeys((f["net"], f["stage"]) for f in found if "net" in f):
        here = [f for f in found if (f.get("net"), f.get("stage")) == place]
        for kind, head, show in (("grow", _GROW, _grown), ("shrink", _SHRINK, _shrunk), ("remove", _SHRINK, _shrunk)):
            shown = [f for f in here if f["kind"] == kind]
            if shown:
                lines += ["", f"{place[0]}, {place[1]}, {kind}: {shown[0]['sites']} sites in {shown[0]['runs']} runs", head]
                lines += [show(f) for f in shown]
    lines.append("")
    for f in found:
        if f["kind"] == "overall":
            first = f"best first {f['first']}, verified {f['verified_first']} of {f['runs']}"
            lines.append(f"overall  {f['scorer']:<11} {first}; least Spearman on sites that are not blind {_number(f['least_spearman'], 2)}")
    return "\n".join(lines).strip("\n")


_GROW = (
    f"  {'':<11}{'Spearman':>9}{'seen':>6}{'blind':>6}{'after':>7}{'LS-after':>9}  {'predicted/LS, seen':<24}{'blind':<24}"
    f"{'first':>6}{'verified':>9}{'reached':>8}{'verified':>9}{'LS seen':>10}{'blind':>10}{'unserved':>9}"
)
_SHRINK = f"  {'':<11}{'Spearman':>9}{'other':>7}  {'predicted/real':<24}{'first':>6}{'verified':>9}{'cost':>10}{'verified':>10}{'least':>10}{'unserved':>9}"


def _grown(f: dict) -> str:
    fixed = f["scorer"] in ("quadratic", "tiny")  # expansions, with the variance held
    ranks, ratio, ls = f["spearman"], f.get("ratio_fixed", f["ratio"]) if fixed else f["ratio"], f["ls"]
    after, best = (f.get(key, {"all": None})["all"] for key in ("spearman_after", "ls_after"))
    return (
        f"  {f['scorer']:<11}{_number(ranks['all'], 2):>9}{_number(ranks['seen'], 2):>6}{_number(ranks['blind'], 2):>6}{_number(after, 2):>7}{_number(best, 2):>9}"
        f"  {_spread(ratio['seen']):<24}{_spread(ratio['blind']):<24}{f['first']:>6}{f['verified_first']:>9}"
        f"{_number(f['reached'][0], 2):>8}{_number(f['reached'][1], 2):>9}{_short(ls['seen']):>10}{_short(ls['blind']):>10}{f['unserved']:>9}"
    )


def _shrunk(f: dict) -> str:
    costs = "".join(f"{_short(c):>10}" for c in f["cost"])
    return (
        f"  {f['scorer']:<11}{_number(f['spearman'], 2):>9}{_number(f['spearman_other'], 2):>7}  {_spread(f.get('ratio')):<24}"
        f"{f['first']:>6}{f['verified_first']:>9}{costs}{f['unserved']:>9}"
    )


def _number(value: float | None, places: int) -> str:
    return "-" if value is None else f"{value:.{places}f}"


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _spread(values: Sequence[float] | None) -> str:
    return "-" if values is None else f"{values[1]:.3g} [{values[0]:.3g}, {values[2]:.3g}]"
