"""Loops that ask for the same bits, or for a clear refusal: D1, D2, D3, and N4. tools/faults.py runs them."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from dagrow.errors import RunError
from dagrow.store import Run
from dagrow.store.folder import is_run
from tools.faults_bench import DIED, Bench, Failed, Faults

Cases = Iterator[tuple[str, Callable[[], str | None]]]
COMMIT = "committed event"
ZONES = ("UTC", "Asia/Kathmandu", "America/St_Johns", "Antarctica/Troll")
LOCALES = ("C", "C.UTF-8", "tr_TR.UTF-8", "de_DE.ISO-8859-1")
LIES = ("torch", "numpy", "scikit-learn", "optuna", "python", "machine", "instructions")

TABLE = """
name: table
data: {{source: {{name: csv, path: {path}, target: y}}, batch: 64}}
model: {{layers: [linear 1]}}
train: {{optimizer: {{name: adamw, lr: 0.03}}, epochs: {{first: {first}, between: 1, final: 1}}}}
score: {{rows: 200, verify: 2}}
edits: [{{deepen: {{units: [1, 4]}}}}, {{widen: {{units: [1, 2]}}}}, connect]
budget: {{steps: 2}}
export: []
"""


def d1(bench: Bench) -> Cases:
    """The same seed again; stopped after every single event and resumed. For another chooser: --set select=..."""
    for case in range(bench.cases or 20):

        def again() -> str:
            folder = bench.fresh()
            bench.must(bench.launch(bench.start, folder).wait(), "the same again")
            bench.compare(folder)
            shutil.rmtree(folder)
            return "again"

        def chain(skip: int) -> str:
            folder, code, events = bench.fresh(), DIED, 0
            while code == DIED:
                verb = bench.resume if is_run(folder) else bench.start
                code, text = bench.launch(verb, folder, Faults(die_on=COMMIT, after=skip)).wait()
                if code not in (0, DIED):
                    raise Failed(f"exited with {code}: {text[-1500:]}")
                if code == DIED and (found := bench.committed(folder)) != events + skip + 1:
                    raise Failed(f"{events + skip + 1} events were committed, {found} are there")
                events += skip + 1
            bench.compare(folder)
            shutil.rmtree(folder)
            return f"stopped every {skip + 1}"

        yield f"same {case}", again if case % 4 == 3 else lambda skip=case % 4: chain(skip)


def d2(bench: Bench) -> Cases:
    """Another hash seed, working folder, time zone and locale. The commands must name files by absolute paths."""
    for case in range(bench.cases or 24):
        dice = random.Random(case)
        environment = {"PYTHONHASHSEED": str(dice.choice([0, 1, dice.randrange(2**32)])), "TZ": dice.choice(ZONES)}
        environment["LC_ALL"] = environment["LANG"] = dice.choice(LOCALES)

        def elsewhere(environment: dict = environment) -> None:
            folder, place = bench.fresh(), bench.fresh()
            place.mkdir()
            bench.must(bench.launch(bench.start, folder, spawn=True, environment=environment, cwd=place).wait(), f"with {environment}")
            bench.compare(folder)
            shutil.rmtree(folder)
            if left := list(place.iterdir()):
                raise Failed(f"it wrote {left} in its working folder")

        yield f"{environment}", elsewhere


def d3(bench: Bench) -> Cases:
    """Other data, threads, versions or machine on resume, or another spec into the folder: refused, and what differs is said."""
    kinds = ("data", "threads", *LIES, "spec", "copy of the spec")
    for case in range(bench.cases or 30):
        kind = kinds[case % len(kinds)]
        yield f"{kind} {case}", lambda kind=kind, case=case: _differ(bench, kind, case)


def _differ(bench: Bench, kind: str, case: int) -> str:
    dice = random.Random(case)
    place = bench.fresh()
    place.mkdir()
    table, spec, folder = place / "table.csv", place / "spec.yaml", place / "run"
    rows = make_table(table, case, curved=True)
    spec.write_text(TABLE.format(path=table.name, first=1))
    # A path within the spec's folder: what resume needs to find it again is in the run.
    search = ["-m", "dagrow", "search", str(spec), "-o", "{run}", "--quiet"]
    resume = ["-m", "dagrow", "resume", "{run}", "--quiet"]

    def must(command: list[str], what: str, faults: Faults | None = None, code: int = 0) -> str:
        found, text = bench.launch(command, folder, faults).wait()
        if found != code or "Traceback" in text:
            raise Failed(f"{what} exits with {found}, not {code}: {text[-1500:]}")
        return text

    whole = place / "whole"
    bench.must(bench.launch([*search[:4], "-o", str(whole), "--quiet"], whole).wait(), "the whole run")
    must(search, "the run", Faults(die_on=COMMIT, after=dice.randrange(8)), DIED)
    before = _kinds(folder)
    if kind == "spec":
        spec.write_text(TABLE.format(path=table.name, first=2))
        if "another spec" not in (text := must(search, "another spec", code=RunError.exit_code)):
            raise Failed(f"not said that the spec is another one: {text}")
        must(resume, "going on")
    elif kind == "copy of the spec":
        copy = folder / "spec.yaml"
        original = copy.read_bytes()
        copy.write_bytes(original.replace(b"lr: 0.03", b"lr: 0.04"))
        for command in (resume, [*resume, "--accept-different"]):
            if "spec.yaml" not in (text := must(command, "a changed copy", code=RunError.exit_code)):
                raise Failed(f"not named: {text}")
        copy.write_bytes(original)
        must(resume, "going on")
    else:
        faults = Faults(threads=2) if kind == "threads" else Faults(lie=kind if kind in LIES else "")
        if kind == "data":
            victim = dice.randrange(1, len(rows))
            rows[victim] = ",".join([str(dice.random()), *rows[victim].split(",")[1:]])
            table.write_text("\n".join(rows) + "\n")
        text = must(resume, "resuming with another one", faults, RunError.exit_code)
        if f"{kind} was" not in text or "--accept-different" not in text:
            raise Failed(f"the difference in {kind} is not said: {text}")
        if _kinds(folder) != before:
            raise Failed("a refused resume changed the run")
        must([*resume, "--accept-different"], "going on all the same", Faults(**{**vars(faults), "die_on": COMMIT, "after": 1}), DIED)
        must(resume, "going on, accepted before", faults)
        if _kinds(folder).count("different") != 1:
            raise Failed("what was accepted is not recorded once")
        if kind != "threads":
            if kind == "data":
                rows[victim] = "0.5," + rows[victim].split(",", 1)[1]
                table.write_text("\n".join(rows) + "\n")
            must(resume, "different again", Faults() if kind != "data" else faults, RunError.exit_code)
    if kind not in ("data", "threads") and _weights(folder) != _weights(whole):
        raise Failed("its weights are not those of the uninterrupted run")
    shutil.rmtree(place)
    return "refused"


def _kinds(folder: Path) -> list[str]:
    with Run.open(folder) as run:
        return [event.kind for event in run.events()]


def _weights(folder: Path) -> str:
    with Run.open(folder) as run:
        return run.events()[-1].blobs["weights"]


def make_table(path: Path, seed: int, curved: bool) -> list[str]:
    """A csv of 300 rows and four columns, with noise; its lines. A linear model of it lacks something, or nothing."""
    dice = random.Random(seed)
    slopes = [dice.uniform(-2, 2) for _ in range(4)]
    lines = ["a,b,c,d,y"]
    for _ in range(300):
        x = [dice.gauss(0, 1) for _ in slopes]
        y = sum(w * v for w, v in zip(slopes, x, strict=True)) + dice.gauss(0, 0.5) + (3 * x[0] * x[1] if curved else 0.0)
        lines.append(",".join(f"{v:.6g}" for v in (*x, y)))
    path.write_text("\n".join(lines) + "\n")
    return lines


def n4(bench: Bench) -> Cases:
    """A linear model on linear data with noise: the null edit, not one parameter more."""
    for case in range(bench.cases or 20):

        def nothing(case: int = case) -> str:
            place = bench.fresh()
            place.mkdir()
            make_table(place / "table.csv", case, curved=False)
            (place / "spec.yaml").write_text(TABLE.format(path="table.csv", first=25))
            folder = place / "run"
            bench.must(bench.launch(["-m", "dagrow", "search", str(place / "spec.yaml"), "-o", "{run}", "--quiet"], folder).wait(), "the run")
            with Run.open(folder) as run:
                steps = [e.payload for e in run.events() if e.kind == "step"]
                sizes = {e.payload["params"] for e in run.events()}
            if len(sizes) != 1 or any(step["edit"] != "null" for step in steps) or not steps:
                made = [f"{s['edit']} {s['where']} z {s.get('z', 0):.2f} held {s.get('held', 0):.2g}" for s in steps]
                raise Failed(f"it added something: sizes {sorted(sizes)}, {made}")
            shutil.rmtree(place)
            return "nothing added"

        yield f"nothing {case}", nothing


LOOPS = {"D1": d1, "D2": d2, "D3": d3, "N4": n4}
