"""From records to table T4: rates with exact intervals, medians, and how far predictions hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import binomtest

STAGES = ("early", "middle", "converged")
TRULY = 2.0  # standard errors by which test loss falls where it truly falls
SPEAKS, WITHIN = 0.5, 0.15  # a predicted share worth checking, and how near the measured one is to be


def rate(hits: Sequence[bool]) -> dict:
    """{"count", "of", "rate", "interval"}: the exact (Clopper-Pearson) 95% interval of a proportion."""
    count, of = int(sum(hits)), len(hits)
    if not of:
        return {"count": 0, "of": 0, "rate": math.nan, "interval": [0.0, 1.0]}
    made = binomtest(count, of).proportion_ci(0.95, "exact")
    return {"count": count, "of": of, "rate": count / of, "interval": [float(made.low), float(made.high)]}


def groups(records: Sequence[dict]) -> list[tuple[str, list[dict]]]:
    """All records, then those of each stage and of each network, where there is more than one."""
    found = [("all", list(records))]
    for key, names in (("stage", STAGES), ("net", dict.fromkeys(r["net"] for r in records))):
        split = [(name, [r for r in records if r[key] == name]) for name in names]
        split = [(name, some) for name, some in split if some]
        found += split if len(split) > 1 else []
    return found


def _null(records: Sequence[dict]) -> list[dict]:
    found = []
    for mode in dict.fromkeys(r["mode"] for r in records):
        for group, some in groups([r for r in records if r["mode"] == mode]):
            z, sites = np.concatenate([r["z"] for r in some]), sum(r["sites"] for r in some)
            found.append({
                "part": "null", "mode": mode, "group": group, "false": rate([bool(r["grown"]) for r in some]), "sites": sites,
                "sites_grown": sum(len(r["grown"]) for r in some), "z_mean": float(z.mean()), "z_sd": float(z.std()),
                "z_above_1.645": float((z > 1.645).mean()),
            })  # fmt: skip
    return found


def _power(records: Sequence[dict]) -> list[dict]:
    found = []
    for group, some in groups(records):
        truly, grown = [r for r in some if r["drop"] > TRULY * r["drop_stderr"]], [r for r in some if r["grow"]]
        found.append({
            "part": "power", "group": group, "sites": len(some), "power": rate([r["grow"] for r in truly]),
            "fell": rate([r["drop"] > 0 for r in grown]), "rose": rate([r["drop"] < -TRULY * r["drop_stderr"] for r in grown]),
            "truly_share_of_drop": _ratio(sum(r["drop"] for r in truly if r["grow"]), sum(r["drop"] for r in truly)),
        })  # fmt: skip
    return found


def _errors(records: Sequence[dict]) -> list[dict]:
    """How far a prediction with its standard error holds where rows are fresh: their own error is counted in."""
    pairs = [
        ("gain on held-out rows", "gain", "stderr", "held", "held_stderr"), ("gain on test rows", "gain", "stderr", "test", "test_stderr"),
        ("held-out on test rows", "held", "held_stderr", "test", "test_stderr"),
        ("held-out on test rows, by forwards", "held", "held_stderr", "drop", "drop_stderr"),
    ]
    found = []
    for name, *keys in pairs:
        for group, some in groups(records):
            told, error, fresh, other = (np.array([r[k] for r in some]) for k in keys)
            off = (fresh - told) / np.sqrt(error**2 + other**2).clip(min=1e-12)
            found.append({
                "part": "errors", "what": name, "group": group, "sites": len(some), "within_1": float((abs(off) <= 1).mean()),
                "within_2": float((abs(off) <= 2).mean()), "median_off": float(np.median(off)), "spread": float(off.std()),
            })  # fmt: skip
    return found


def _share(records: Sequence[dict]) -> list[dict]:
    """Sites whose gain is signal: of the others the best is chance itself, and there is nothing to capture.

    "within" 15%: of the sites that are predicted to keep half of their gain or more; below that no second order speaks.
    """
    found = []
    real = [r for r in records if r["z"] > TRULY and math.isfinite(r["share"])]
    for n in sorted({r["n"] for r in real}):
        for group, some in groups([r for r in real if r["n"] == n]):
            line = {"part": "share", "n": n, "group": group, "sites": len(some), "share": float(np.median([r["share"] for r in some]))}
            for k in ("predicted", "refined"):
                line[k] = float(np.median([max(r[k], 0.0) for r in some]))
                line[f"{k}_within"] = rate([abs(r["share"] / r[k] - 1) <= WITHIN for r in some if r[k] >= SPEAKS])
            found.append(line)
    return found


def _race(records: Sequence[dict]) -> list[dict]:
    return [
        {
            "part": "race", "group": group, "rows": float(np.mean([r["rows"] / r["of"] for r in some])), "same": rate([r["same"] for r in some]),
            "contends": rate([r["contends"] for r in some]), "lost": _ratio(sum(r["lost"] for r in some), sum(r["gain"] for r in some)),
        }
        for group, some in groups(records)
    ]


def _refusal(records: Sequence[dict]) -> list[dict]:
    return [
        {
            "part": "refusal", "group": group, "refused": rate([not r["grown"] for r in some]), "sites": sum(r["sites"] for r in some),
            "test": float(np.mean([r["test"] for r in some])), "z_max": float(np.median([max(r["z"], default=math.nan) for r in some])),
        }
        for group, some in groups(records)
        if group not in ("all", *STAGES)
    ]


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


SUMMARIES: dict[str, tuple[tuple[str, Callable], ...]] = {
    "null": (("null", _null),), "power": (("power", _power), ("errors", _errors)), "share": (("share", _share),), "race": (("race", _race),),
    "refusal": (("refusal", _refusal),),
}  # fmt: skip


def summary(records: Sequence[dict]) -> list[dict]:
    """One object per line of a table, by its "part"."""
    found = []
    for part, makers in SUMMARIES.items():
        some = [r for r in records if r["part"] == part]
        for _, make in makers if some else ():
            found += make(some)
    return found


def _cell(value: object) -> str:
    if isinstance(value, dict):
        low, high = value["interval"]
        return f"{value['count']}/{value['of']} = {value['rate']:.1%} [{low:.1%}, {high:.1%}]" if value["of"] else "none"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def table(found: Sequence[dict]) -> str:
    """Markdown: a table for each part."""
    lines: list[str] = []
    for part in dict.fromkeys(line["part"] for line in found):
        rows = [{k: v for k, v in line.items() if k != "part"} for line in found if line["part"] == part]
        lines += ["", f"| {part} | " + " | ".join(rows[0]) + " |", "|---" * (len(rows[0]) + 1) + "|"]
        lines += [f"| | {' | '.join(_cell(v) for v in row.values())} |" for row in rows]
    return "\n".join(lines)
