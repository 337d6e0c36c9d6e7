"""The command line: parses, calls, prints. No logic of its own; torch is imported by the commands that compute."""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from dagrow.errors import DagrowError, Interrupted, UsageError

if TYPE_CHECKING:
    from dagrow.api import Grown

app = typer.Typer(
    help="Grow a small neural network to fit your data: it trains, finds where expressive power is lacking, rewrites the graph there, trains on.",
    no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 a bug in dagrow, 2 spec or usage, 3 no edit fits the budget, 4 run folder, 5 an export that differs, 128 + signal interrupted.",
)
SpecFile = Annotated[Path, typer.Argument(metavar="SPEC", help="A YAML spec.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")]
Either = Annotated[Path, typer.Argument(metavar="SPEC|RUN", help="A YAML spec, or the folder of a run.")]
Sets = Annotated[Optional[list[str]], typer.Option("--set", metavar="A.B=C", help="Change one value of the spec; may be given again.")]  # noqa: UP045
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object per line on stdout, and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print no progress.")]
AllowCode = Annotated[bool, typer.Option("--allow-code", help="Let code that the spec names (model: {py: package.module:function}) run.")]
Device = Annotated[str, typer.Option("--device", help="Where to train: cpu, cuda, cuda:1.")]


def say(text: str) -> None:
    print(text, file=sys.stderr)


def put(row: dict[str, Any]) -> None:
    from dagrow.progress import finite

    print(json.dumps(finite(row), allow_nan=False, default=str), flush=True)


def load(folder: Path, allow_code: bool) -> Grown:
    """The run of a folder; says so where it is not finished."""
    from dagrow import api

    run = api.load(folder, allow_code=allow_code)
    if not run.finished:
        say(f"{folder} is not finished: this is its present network (go on with: {api.resuming(folder, run.plan.spec)})")
    return run


@app.command()
def check(spec: SpecFile, sets: Sets = None, as_json: AsJson = False, allow_code: AllowCode = False) -> None:
    """Validate a spec; show every node with its shape, parameters and MACs, the axes, and how many edits are legal. Trains nothing."""
    from dagrow import report, showing

    facts = showing.examine(spec, sets or (), allow_code)
    for warning in facts.warnings():
        say(warning)
    if as_json:
        put(facts.row())
    else:
        print(report.text(facts.architecture, title=facts.title))
        print(facts.axes_text())


@app.command()
def search(
    spec: SpecFile,
    out: Annotated[Optional[Path], typer.Option("--out", "-o", metavar="RUN", help="The run's folder; left out: a free one under runs/.")] = None,  # noqa: UP045
    sets: Sets = None,
    seed: Annotated[Optional[int], typer.Option("--seed", min=0, help="Instead of the spec's.")] = None,  # noqa: UP045
    device: Device = "cpu",
    as_json: AsJson = False,
    quiet: Quiet = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the run that RUN holds.")] = False,
    allow_code: AllowCode = False,
) -> None:
    """Grow a network as the spec says; leaves a run folder and the exported network."""
    from dagrow import api
    from dagrow.progress import Progress

    with Progress.of(as_json, quiet) as progress:
        api.search(spec, out, sets=sets or (), seed=seed, device=device, force=force, allow_code=allow_code, listen=progress)


@app.command()
def resume(
    run: RunFolder,
    sets: Sets = None,
    accept_different: Annotated[bool, typer.Option("--accept-different", help="Go on though machine, versions or data differ; recorded.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    allow_code: AllowCode = False,
) -> None:
    """Go on with an interrupted run, to the same bits; or extend a run: --set budget.steps=40."""
    from dagrow import api
    from dagrow.progress import Progress

    with Progress.of(as_json, quiet) as progress:
        api.resume(run, sets=sets or (), accept_different=accept_different, allow_code=allow_code, listen=progress)


@app.command()
def score(
    source: Either,
    sets: Sets = None,
    top: Annotated[Optional[int], typer.Option("--top", min=1, metavar="N", help="Only the best N; left out: 15, with --json all.")] = None,  # noqa: UP045
    verify: Annotated[Optional[int], typer.Option("--verify", min=0, metavar="N", help="Try the best N by real forwards; left out: as the spec says, 12 with --plot.")] = None,  # noqa: UP045
    plot: Annotated[Optional[Path], typer.Option("--plot", metavar="FILE", help="Draw predicted and checked gains: .png, .svg or .pdf.")] = None,  # noqa: UP045
    as_json: AsJson = False,
    allow_code: AllowCode = False,
) -> None:
    """Where the network lacks capacity: candidate edits, gain in nats per sample ± error, what they cost, and the verdict."""
    from dagrow import api
    from dagrow.scoretable import SHOWN, score_table

    scores = api.score(source, sets=sets or (), top=top if as_json else top or SHOWN, verify=verify, plot=plot, allow_code=allow_code)
    if as_json:
        for row in scores.objects():
            put(row)
    else:
        score_table(scores, top or SHOWN)
    if plot is not None:
        say(f"drawn in {plot}")


@app.command("eval")
def evaluate(
    run: RunFolder,
    step: Annotated[Optional[str], typer.Option("--step", metavar="K|best", help="The network at decision K, or the best seen; left out: the reported one.")] = None,  # noqa: UP045
    as_json: AsJson = False,
    allow_code: AllowCode = False,
) -> None:
    """Loss, accuracy or R2, parameters and MACs of a run's network."""
    from dagrow.progress import eval_table

    if step is not None and step != "best" and not step.isdigit():
        raise UsageError(f"--step {step}: not a step", fix="give the number of a decision, or best")
    grown = load(run, allow_code)
    facts = grown.evaluate(int(step) if step and step.isdigit() else step)
    put(facts) if as_json else eval_table(facts)
    if step is None and grown.finished and grown.plan.spec.train.final_on == "train+val":
        say("the final training was on train and val rows (train.final_on): what it says of val is no longer held out")


@app.command()
def predict(
    run: RunFolder,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="New rows: csv with the training columns, or npz with x.")],
    out: Annotated[Optional[Path], typer.Option("--out", "-o", metavar="FILE", help="Write csv there instead of stdout.")] = None,  # noqa: UP045
    allow_code: AllowCode = False,
) -> None:
    """Predictions for new rows, as csv: the class and its probabilities, or the predicted numbers."""
    from dagrow.showing import predictions_csv

    text = predictions_csv(load(run, allow_code), file)
    if out is None:
        print(text, end="", flush=True)
    else:
        from dagrow.export.files import placing

        with placing(out) as temporary:
            temporary.write_text(text)
        say(f"{text.count(chr(10)) - 1} predictions in {out}")


@app.command()
def export(
    run: RunFolder,
    form: Annotated[str, typer.Option("--format", "-f", metavar="FORMAT", help="torchscript or pt2.")] = "torchscript",
    out: Annotated[Optional[Path], typer.Option("--out", "-o", metavar="FILE", help="Left out: RUN/exports/NAME.")] = None,  # noqa: UP045
    probabilities: Annotated[bool, typer.Option("--probabilities", help="Give probabilities instead of logits.")] = False,
    allow_code: AllowCode = False,
) -> None:
    """Write the trained network, load it again in a clean process without dagrow, compare, print the largest difference."""
    options = {"output": "probabilities"} if probabilities else {}
    path, difference = load(run, allow_code).export(form, out, **options)
    print(f"{path}: largest difference in a clean process {difference:.3g}")


@app.command()
def show(
    source: Either,
    names: Annotated[Optional[list[str]], typer.Argument(metavar="[AXIS]...", help="With --axes: only these axes, or those that these nodes hold; * and ** as in a spec.")] = None,  # noqa: UP045
    form: Annotated[str, typer.Option("--format", metavar="text|mermaid", help="As a table, or as Mermaid source.")] = "text",
    axes: Annotated[bool, typer.Option("--axes", help="Every axis: where it lives, what comes and goes with it and why; what is fixed, and by what.")] = False,
    sets: Sets = None,
    allow_code: AllowCode = False,
    as_json: AsJson = False,
) -> None:
    """The graph of a spec's seed network or of a run's network; with --axes, the axes along which it can be resized."""
    from dagrow import showing

    if form not in showing.DRAWINGS:
        raise UsageError(f"--format {form}: no such drawing", fix="text or mermaid")
    if names and not axes:
        raise UsageError(f"{names[0]}: what of it?", fix=f"dagrow show {source} --axes {names[0]}")
    arch = showing.architecture_of(source, sets or (), allow_code)
    if as_json:
        for row in showing.shown_rows(arch, axes, names or ()):
            put(row)
    else:
        print(showing.shown(arch, form, axes, names or ()))


def _listing(verb: str, package: str) -> None:
    def command() -> None:
        registry = importlib.import_module(package).REGISTRY
        names = registry.names()
        for name in names:
            print(f"{name:<{max(map(len, names))}}  {registry.summary(name)}")

    command.__doc__ = f"List the {verb} a spec may name, a line each."
    app.command(verb)(command)


for _verb, _package in (("ops", "ops"), ("edits", "edits"), ("scores", "scores"), ("choosers", "select"), ("sources", "data"), ("formats", "export")):
    _listing(_verb, f"dagrow.{_package}")


@app.command()
def schema() -> None:
    """JSON Schema of a spec, for editors."""
    from dagrow.spec import schema as full

    print(json.dumps(full(), indent=2), flush=True)


@contextmanager
def _signals() -> Iterator[None]:
    """A signal ends a command like any error: temporary files are removed, processes it started ended. A search has its own rules."""

    def stop(signum: int, frame: object) -> None:
        raise Interrupted(signum, "interrupted")

    before = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGINT", "SIGTERM", "SIGHUP"):
                signum = getattr(signal, name, None)
                if signum is not None and signal.getsignal(signum) in (signal.SIG_DFL, signal.default_int_handler):
                    before[signum] = signal.signal(signum, stop)
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _flushed() -> bool:
    """Whether what was printed could be written."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


def main(arguments: list[str] | None = None) -> None:
    """Runs a command; exits with its code. `--debug` anywhere shows the traceback of an error."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal without UTF-8 gets escapes, not a crash
    try:
        with _signals():
            app(arguments, prog_name="dagrow", standalone_mode=True)
    except DagrowError as error:
        if debug:
            raise
        say(str(error))
        sys.exit(error.exit_code)
    except SystemExit as end:
        # typer ends quietly where nobody reads on; other commands have only a full buffer by now
        if isinstance(end.__context__, BrokenPipeError) or not _flushed():
            sys.exit(141)
        raise
    except KeyboardInterrupt:
        say("interrupted")
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)
    except Exception as error:
        if debug:
            raise
        say(f"a bug in dagrow: {type(error).__name__}: {error}\n  run it again with --debug for the traceback, and report it")
        sys.exit(1)
