"""What `check`, `show` and `predict` print, as values."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from dagrow.api import Grown, checked_of
from dagrow.errors import UsageError, nearest
from dagrow.globs import matches
from dagrow.graph import Architecture
from dagrow.measure.evidence import bytes_needed
from dagrow.planning import make_plan
from dagrow.propose import sites
from dagrow.report import mermaid, printable, tables
from dagrow.report.axes import axes_mermaid, axes_rows, axes_text, fixed_counts, fixed_summary
from dagrow.standing import Plan


@dataclass(frozen=True)
class Facts:
    """A checked spec: its seed network and how many edits it admits."""

    plan: Plan

    @property
    def architecture(self) -> Architecture:
        return self.plan.architecture

    @property
    def title(self) -> str:
        data = self.plan.data
        return (
            f"{self.plan.spec.name}: {len(data.train)} train, {len(data.val)} val, {len(data.test)} test rows; "
            f"{data.task}, {data.outputs} output{'s' if data.outputs != 1 else ''}"
        )

    def counts(self) -> dict[str, int]:
        """edit -> how many sites it has in the seed network."""
        found = dict.fromkeys((edit.known_as(options) for edit, options in self.plan.edits), 0)
        for edit, options, _ in sites(self.architecture, self.plan.edits):
            found[edit.known_as(options)] += 1
        return found

    def warnings(self) -> list[str]:
        """What to know of an imported seed network, and patterns that keep an edit from every site it has in it. No errors: later nodes may match."""
        spec, rows = self.plan.spec, [f"{self.plan.spec.model.py}: {note}" for note in self.plan.notes]
        for k, (edit, options) in enumerate(self.plan.edits):
            where, said = getattr(options, "where", "**"), list(edit.remarks(self.architecture, options))
            for remark in said:
                rows.append(spec.problem_at(("edits", k, *remark.at), f"warning: {remark.message}", remark.fix).render(spec.file))
            if said or where == "**" or next(sites(self.architecture, [(edit, options)]), None) is not None:
                continue
            others = sum(1 for _ in sites(self.architecture, [(edit, options.model_copy(update={"where": "**"}))]))
            names = [n for n in self.architecture.nodes if matches(where, n)]
            if names and others:
                found = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
                message = f"{edit.name}: {where!r} matches {found}, and none of its {others} sites"
            elif not names:
                message = f"{edit.name}: {where!r} matches no node of the seed network"
            else:
                continue
            problem = spec.problem_at(("edits", k, "where"), f"warning: {message}", "* stays within a dotted segment, ** crosses them")
            rows.append(problem.render(spec.file))
        return rows

    def memory(self) -> int:
        """About how many bytes the first decision takes at most, beside what training does."""
        data, rows = self.plan.data, self.plan.spec.score.rows
        return bytes_needed(self.architecture, min(rows, len(data.train)), min(rows, len(data.val)))

    def row(self) -> dict:
        arch, counts = self.architecture, self.counts()
        nodes = [asdict(row) | {"op": arch.nodes[row.name].op} for row in tables.rows(arch)]
        axes = {axis.id: axis.size for axis in arch.axes.values()}
        opaque = {op: list(found) for op, found in arch.derived.opaque.items()}
        return {
            "params": arch.size, "macs": arch.macs, "nodes": nodes, "edits": sum(counts.values()), "sites": counts, "axes": axes,
            "fixed": fixed_counts(arch), "opaque": opaque, "decision_bytes": self.memory(),
        }  # fmt: skip

    def axes_text(self) -> str:
        arch, counts = self.architecture, self.counts()
        rows = ["", "axes (units that come and go together):"]
        for axis in arch.axes.values():
            writes, reads = (", ".join(dict.fromkeys(u.node for u in uses)) or "-" for uses in (axis.writes, axis.reads))
            rows.append(f"  {printable(axis.id)}  {axis.size} units, written by {printable(writes)}, read by {printable(reads)}")
        if not arch.axes:
            rows.append("  none: every size is fixed by the data")
        rows += [f"  frozen by {op}: {', '.join(nodes)}" for op, nodes in arch.derived.opaque.items()]
        rows.append(f"  fixed dimensions of parameters: {fixed_summary(arch)} (which and why: dagrow show SPEC --axes)")
        rows += ["", "legal edits: " + (", ".join(f"{number} {name}" for name, number in counts.items()) or "none")]
        rows.append(f"a decision takes at most about {max(1, round(self.memory() / 2**20))} MiB beside what training does")
        return "\n".join(rows)


def examine(source: Path, sets: Sequence[str], allow_code: bool = False) -> Facts:
    """Raises SpecError with everything that is wrong."""
    return Facts(make_plan(checked_of(source, sets, allow_code)))


DRAWINGS = {"text": (tables.text, axes_text), "mermaid": (mermaid, lambda arch, names: axes_mermaid(arch))}


def shown(arch: Architecture, form: str, axes: bool, names: Sequence[str]) -> str:
    """The network as `form` says, or its axes: those named, or all. Raises UsageError for a name that none has."""
    plain, told = DRAWINGS[form]
    return told(arch, axes_named(arch, names)) if axes else plain(arch)


def shown_rows(arch: Architecture, axes: bool, names: Sequence[str]) -> list[dict]:
    """The same as plain values: an object for each axis and for each dimension that is fixed, or one for the network."""
    if axes:
        return axes_rows(arch, axes_named(arch, names))
    return [{"params": arch.size, "macs": arch.macs, "outputs": list(arch.outputs), "nodes": [asdict(r) | {"op": arch.nodes[r.name].op} for r in tables.rows(arch)]}]


def axes_named(arch: Architecture, names: Sequence[str]) -> list[str] | None:
    """The axes that the patterns name, by themselves or by a node that holds one; None where there are no patterns."""
    found: list[str] = []
    for name in names:
        mine = [a for a in arch.axes if matches(name, a)]
        mine = mine or [a for a, axis in arch.axes.items() if any(matches(name, owner) for s in axis.slots for owner in arch.derived.owners[s.param])]
        if not mine:
            near = nearest(name, [*arch.axes, *arch.nodes])
            raise UsageError(f"{name!r}: no axis of the network, and no node that holds one", fix=f"did you mean {near!r}?" if near else f"axes: {', '.join(arch.axes) or 'none'}")
        found += mine
    return list(dict.fromkeys(found)) or None


def architecture_of(source: Path, sets: Sequence[str], allow_code: bool = False) -> Architecture:
    """The network of a run's folder, or the seed network of a spec."""
    if sets and source.is_dir():
        raise UsageError(f"--set {sets[0]}: a run keeps its spec", fix="show the spec, or leave out --set")
    return Grown(source, allow_code=allow_code).architecture if source.is_dir() else checked_of(source, sets, allow_code).architecture


def predictions_csv(run: Grown, file: Path) -> str:
    """One row per row of `file`: "prediction" and a probability per class, or the predicted numbers."""
    out = run.predict(file)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    classes = run.data.classes
    if classes:
        writer.writerow(["prediction", *(f"p({c})" for c in classes)])
        for p in torch.softmax(out.double(), 1).tolist():
            writer.writerow([classes[max(range(len(p)), key=p.__getitem__)], *(f"{v:.6g}" for v in p)])
    else:
        names = ["prediction"] if out.shape[1] == 1 else [f"prediction{k}" for k in range(out.shape[1])]
        writer.writerow(names)
        writer.writerows([[f"{v:.9g}" for v in row] for row in out.tolist()])
    return text.getvalue()
