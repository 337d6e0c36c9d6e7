"""What a search says while it runs and how it ended: live on a terminal, one plain line per step elsewhere, JSON if asked."""

from __future__ import annotations

import json
import math
import sys
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars


class Progress:
    """Called with each event's row. Quiet: says nothing but, on stdout, how it ended."""

    @staticmethod
    def of(as_json: bool, quiet: bool) -> Progress:
        if as_json:
            return Json()
        if quiet:
            return Progress()
        return Live() if sys.stderr.isatty() else Lines()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __call__(self, row: dict[str, Any]) -> None:
        if row["event"] == "done":
            print(ending(row), flush=True)


class Json(Progress):
    """Every event as one JSON object on stdout."""

    def __call__(self, row: dict[str, Any]) -> None:
        print(json.dumps(finite(row)), flush=True)


class Lines(Progress):
    """One plain line per step on stderr."""

    def show(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def __call__(self, row: dict[str, Any]) -> None:
        text = line(row)
        if text:
            self.show(text)
        super().__call__(row)


class Live(Lines):
    """A bar for the stretch of training in progress, the steps' lines above it."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False)
        columns = TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[note]}"), TimeElapsedColumn()
        self.bars = Bars(*columns, console=self.console, transient=True)
        self.task = self.bars.add_task("start", total=None, note="")

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def show(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)

    def __call__(self, row: dict[str, Any]) -> None:
        if row["event"] == "done":
            self.bars.stop()
        phase = "final training" if row.get("phase") == "final" else "training"
        note = f"{row['params']} params" + (f", train {row['epoch_loss']:.4f} nats" if "epoch_loss" in row else "")
        self.bars.update(self.task, description=phase, completed=row.get("epoch") or 0, total=row.get("epochs") or None, note=note)
        super().__call__(row)


def finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: null instead."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    return [finite(v) for v in value] if isinstance(value, list | tuple) else value


def line(row: dict[str, Any]) -> str:
    """The line that a step, a roll-back or the end of growth gets; empty for what needs none."""
    left = ", ".join(f"{v} {k}" for k, v in row.get("left", {}).items())
    if row["event"] == "step":
        head = f"step {row['step']:>2}  val {row['val_loss']:.4f}  "
        if row["edit"] == "null":
            return f"{head}no edit: {row['note']}"
        units = f" +{row['units']}" if row["added_params"] > 0 else f" -{row['units']}"
        gain = f"predicted {row['predicted']:+.4f} ± {row['stderr']:.4f}, measured {row['checked']:+.4f} nats"
        if not row["predicted"] and not row["checked"]:  # what derivatives say nothing of was fine-tuned; the note has what came of it
            gain = row["note"]
        return f"{head}{row['edit']} {row['where']}{units}  {gain}  {row['params']} params, {row['macs']} MACs  left: {left}"
    if row["event"] == "epoch" and row.get("status") == "diverged":
        return f"training diverged; undone: {row['undone'] or 'the final phase'}"
    if row["event"] == "final":
        last = row.get("params_last", row["params"])
        which = "" if last == row["params"] else f", the best network seen; the last has {last}"
        return f"growth ends: {row['note']}; final training of {row['params']} params{which}"
    return ""


def ending(row: dict[str, Any]) -> str:
    """What a finished run says for itself."""
    quality = next(f"{k.removeprefix('test_')} {v:.4f}" for k, v in row.items() if k in ("test_accuracy", "test_r2"))
    rows = [
        f"{row['steps']} step{'s' if row['steps'] != 1 else ''}, {row['params']} params, {row['macs']} MACs, {row['seconds']:.1f} s",
        f"test: {quality}, loss {row['test_loss']:.4f} nats (val {row['val_loss']:.4f}, train {row['train_loss']:.4f})",
        f"run: {row['run']}",
        *(f"{name}: {path}" for name, path in row["exports"].items()),
    ]
    return "\n".join(rows)


def eval_table(facts: dict[str, Any]) -> None:
    """Loss and quality of each fold, and the size, on stdout."""
    for name in ("train", "val", "test"):
        loss, *rest = facts[name].items()
        print(f"{name:<6} loss {loss[1]:.4f} nats" + "".join(f"  {k} {v:.4f}" for k, v in rest))
    print(f"size   {facts['params']} params, {facts['macs']} MACs")
