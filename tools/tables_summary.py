"""From runs to table T6: means, paired bootstrap intervals, wins and losses, and what was predicted against what was measured."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np

DRAWS = 10_000


def interval(values: np.ndarray, groups: np.ndarray) -> list[float]:
    """95% bootstrap interval of the mean of `values` [n]; whole groups are drawn, with replacement."""
    names, index = np.unique(groups, return_inverse=True)
    sums, counts = np.bincount(index, values), np.bincount(index)
    drawn = np.random.default_rng(0).integers(0, len(names), (DRAWS, len(names)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    return [float(v) for v in np.quantile(means, [0.025, 0.975])]


def spread(values: Sequence[float], splits: Sequence[int]) -> dict:
    """The mean, and its interval by runs and by splits."""
    array = np.array(values, float)
    return {"mean": float(array.mean()), "interval": interval(array, np.arange(len(array))), "by_splits": interval(array, np.array(splits))}


def summary(records: Sequence[dict], order: Sequence[str]) -> list[dict]:
    """One object per row and column, and per row one on its edits; a last one on the edits of all rows."""
    found, every = [], []
    for row in dict.fromkeys(r["row"] for r in records):
        runs = [r for r in records if r["row"] == row]
        for column in order:
            having = [r for r in runs if column in r["columns"]]
            if having:
                found.append({"row": row, "metric": having[0]["metric"], **_column(column, having)})
        edits = [e for r in runs for e in r["columns"]["dagrow"]["edits"]]
        every += edits
        without = sum(not r["columns"]["dagrow"]["edits"] for r in runs)
        found.append({"row": row, "edits": _edits(edits), "without": without, "runs": len(runs)})
    return [*found, {"row": "all", "edits": _edits(every)}] if found else []


def _column(column: str, runs: Sequence[dict]) -> dict:
    splits = [r["split"] for r in runs]
    rows = [r["columns"][column] for r in runs]
    line = {"column": column, "runs": len(runs), **spread([r["metric"] for r in rows], splits)}
    for key in ("params", "macs", "epochs", "work", "seconds", "deciding"):
        known = [r[key] for r in rows if key in r]
        if known:
            line[key] = statistics.median(known)
    if column == "dagrow":
        return line | {"val": statistics.mean(r["val_metric"] for r in rows), "steps": statistics.median(r["steps"] for r in rows)}
    if "model" in rows[0]:
        kinds = {kind for r in rows for kind in r["others"]}
        line["others"] = {k: statistics.mean(r["others"][k] for r in rows) for k in sorted(kinds)}
        line["model"] = statistics.mode(r["model"] for r in rows)
    ahead = [r["columns"]["dagrow"]["metric"] - r["columns"][column]["metric"] for r in runs]
    line["ahead"] = spread(ahead, splits)
    line["wins"], line["losses"] = sum(a > 1e-9 for a in ahead), sum(a < -1e-9 for a in ahead)
    return line


def _edits(edits: Sequence[dict]) -> dict:
    """Predicted against measured, over edits. ratio: checked / predicted, quartiles (growing edits only: a shrinking one
    predicts a loss near 0); within: share with the measured change on training rows within 2 standard errors."""
    if not edits:
        return {"count": 0}
    predicted, checked, held = (np.array([e[k] for e in edits], float) for k in ("predicted", "checked", "held"))
    growing = predicted > 0
    line = {"count": len(edits), "growing": int(growing.sum())}
    if len(edits) > 2:
        from scipy.stats import spearmanr

        line["spearman"], line["spearman_held"] = (float(spearmanr(predicted, m).statistic) for m in (checked, held))
    if growing.any():
        for name, measured in (("ratio", checked), ("ratio_held", held)):
            line[name] = [float(q) for q in np.quantile(measured[growing] / predicted[growing], [0.25, 0.5, 0.75])]
        errors = np.array([e["stderr"] for e in edits], float)
        line["within"] = float((abs(checked - predicted)[growing] <= 2 * errors[growing]).mean())
    return line


# ---- for people

def table(found: Sequence[dict]) -> str:
    lines = []
    for line in found:
        if "column" in line:
            if line["column"] == "dagrow":
                name = "accuracy %" if line["metric"] == "accuracy" else "R²"
                lines += ["", f"{line['row']}: test {name}, {line['runs']} runs; 95% intervals by runs, then by splits"]
                lines.append(
                    f"  {'':<10}{'mean':>8}  {'interval':<16}{'dagrow ahead by':>16}  {'by runs':<16}  {'by splits':<16}"
                    f"{'won-lost':>9}{'params':>8}{'epochs':>8}{'seconds':>9}"
                )
            lines.append("  " + _shown(line))
        else:
            lines.append("  " + _edits_shown(line))
    return "\n".join(lines).strip("\n")


def _shown(line: dict) -> str:
    scale, places = (100, 2) if line["metric"] == "accuracy" else (1, 3)

    def pair(values, sign="") -> str:
        return "[" + ", ".join(f"{scale * v:{sign}.{places}f}" for v in values) + "]"

    text = f"{line['column']:<10}{scale * line['mean']:>8.{places}f}  {pair(line['interval']):<16}"
    ahead = line.get("ahead")
    if ahead:
        text += f"{scale * ahead['mean']:>+16.{places}f}  {pair(ahead['interval'], '+'):<16}  {pair(ahead['by_splits'], '+'):<16}"
        text += f"{line['wins']:>6}-{line['losses']:<2}"
    else:
        text += f"{'val ' + format(scale * line['val'], f'.{places}f'):>16}{'':<45}"
    text += "".join(f"{line[k]:>{w}.{p}f}" if k in line else " " * w for k, w, p in (("params", 8, 0), ("epochs", 8, 0), ("seconds", 9, 1)))
    if "others" in line:
        text += "  " + ", ".join(f"{k} {scale * v:.{places}f}" for k, v in line["others"].items())
    return text + (f"  ({line['deciding']:.1f} s deciding, {line['steps']:.0f} steps)" if "deciding" in line else "")


def _edits_shown(line: dict) -> str:
    edits = line["edits"]
    text = f"edits {'of all rows' if line['row'] == 'all' else ''}: {edits['count']}"
    if "without" in line:
        text += f"; {line['without']} of {line['runs']} runs made none"
    if "spearman" in edits:
        text += f"; Spearman predicted-measured {edits['spearman']:.2f} (held-out rows {edits['spearman_held']:.2f})"
    if "ratio" in edits:
        low, middle, high = edits["ratio"]
        text += f"; measured/predicted {middle:.2f} [{low:.2f}, {high:.2f}] (held-out {edits['ratio_held'][1]:.2f})"
    return text
