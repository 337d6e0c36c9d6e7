"""A run of a second or less that the fault loops practise on: `tiny_run.py start RUN`, `tiny_run.py resume RUN`.

It stands for a search: deterministic, an event per epoch and per edit, weights and moments, pruned as it goes.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from dagrow.errors import DagrowError
from dagrow.rng import stream
from dagrow.store import Run, Stopping, graceful

UNITS, EDIT_EVERY, SECONDS = 9, 3, 0.01
SPEC = {"name": "tiny", "seed": 0, "units": UNITS}


def go_on(run: Run, stopping: Stopping) -> None:
    """From the last committed event to the end."""
    done = run.events()
    if not done:
        state = {"weights": {"w": torch.zeros(4, 3), "b": torch.zeros(4)}, "moments": {"w": torch.zeros(4, 3)}}
        done = [run.commit("start", {"unit": 0}, state)]
    run.prune()  # a kill may have come between the last commit and its pruning
    last = done[-1]
    weights, moments = run.tensors(last, "weights"), run.tensors(last, "moments")
    for unit in range(last.payload["unit"] + 1, UNITS + 1):
        stopping.check()
        began = time.perf_counter()
        time.sleep(SECONDS)
        pull = torch.randn(weights["w"].shape, generator=stream(SPEC["seed"], unit, "pull"))
        moments = {"w": 0.9 * moments["w"] + pull}
        weights = {"w": weights["w"] + 0.1 * moments["w"], "b": weights["b"] + pull.sum(1)}
        kind = "epoch"
        if unit % EDIT_EVERY == 0:
            kind = "edit"
            weights = {name: torch.cat([value, value[:1]]) for name, value in weights.items()}
            moments = {"w": torch.cat([moments["w"], torch.zeros(1, 3)])}
        loss = float(weights["w"].square().mean())
        run.commit(kind, {"unit": unit, "loss": loss}, {"weights": weights, "moments": moments}, {"seconds": time.perf_counter() - began})
        run.prune()


def main(verb: str, folder: str) -> int:
    try:
        with graceful() as stopping:
            run = Run.create(folder, SPEC, {"format": 1}) if verb == "start" else Run.open(folder, write=True)
            with run:
                go_on(run, stopping)
    except DagrowError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
