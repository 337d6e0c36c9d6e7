"""Running exported files in a clean process: torch is there, dagrow is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dagrow.errors import ExportError

if TYPE_CHECKING:
    from torch import Tensor

    from dagrow.inputs import Inputs

SECONDS = 600
# Everything goes through pipes: a process that is killed leaves no file behind. Frames: length of a JSON text, the text, safetensors.
SCRIPT = """
import json, os, sys
stdin, stdout = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
os.dup2(2, 1)  # what a library prints is not part of the answer
job = json.loads(stdin.read(int.from_bytes(stdin.read(8), "little")))
sys.modules["dagrow"] = None  # importing it raises
sys.path.extend(p for p in job["paths"] if p not in sys.path)
import torch
from safetensors.torch import load, save
tensors_of, frame = load, save
torch.set_num_threads(job["threads"])
{loader}
raw, made, texts = tensors_of(stdin.read()), {{}}, []
for k, path in enumerate(job["files"]):
    network, found = load(path)
    texts.append({{name: text.decode() if isinstance(text, bytes) else text for name, text in found.items()}})
    with torch.no_grad():
        rows = [raw[f"{{k}}.{{i}}"] for i in range(job["inputs"][k])]
        for part, given in (("whole", rows), ("single", [x[:1].clone() for x in rows])):
            out = network(*given)
            for i, y in enumerate(out if isinstance(out, (tuple, list)) else (out,)):
                made[f"{{k}}.{{part}}.{{i}}"] = y.contiguous().clone()
said = json.dumps(texts).encode()
stdout.write(len(said).to_bytes(8, "little") + said + frame(made))
stdout.close()
"""


def outputs_of(loader: str, jobs: Sequence[tuple[Path, Tensor | Inputs]]) -> list[tuple[tuple, dict[str, str]]]:
    """For each (file, raw rows): ((outputs of all rows, outputs of the first alone), the texts in the file).

    An output is a tensor, or a tuple of them where the network has several.

    loader: source that defines `load(path) -> (callable, texts)`. One process for all jobs, started elsewhere than here,
    without the user's environment. ExportError where it fails, with its last line.
    """
    import torch
    from safetensors.torch import load, save

    rows = [getattr(raw, "tensors", (raw,)) for _, raw in jobs]
    job = {
        "inputs": [len(r) for r in rows],
        "files": [str(path.absolute()) for path, _ in jobs],
        # Where torch came from, for those who point to it by PYTHONPATH, which -I ignores.
        "paths": [str(Path(torch.__file__).parents[1])],
        "threads": torch.get_num_threads(),
    }
    asked = json.dumps(job).encode()
    asked = len(asked).to_bytes(8, "little") + asked + save(
        {f"{k}.{i}": x.detach().cpu().contiguous().clone() for k, r in enumerate(rows) for i, x in enumerate(r)}
    )
    command = [sys.executable, "-I", "-c", SCRIPT.format(loader=loader)]
    # A group of its own, so that Ctrl-C reaches dagrow alone, which lets the check end, or ends it at the second one.
    apart = {"process_group": 0} if os.name == "posix" else {}
    try:
        done = subprocess.run(command, input=asked, capture_output=True, cwd=os.path.abspath(os.sep), timeout=SECONDS, check=False, **apart)
    except subprocess.TimeoutExpired:
        raise ExportError(f"the export did not load and run within {SECONDS} s") from None
    if done.returncode:
        last = (done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ExportError(f"the export does not run in a clean process: {last[:500]}")
    size = 8 + int.from_bytes(done.stdout[:8], "little")
    texts, made = json.loads(done.stdout[8:size]), load(done.stdout[size:])
    return [((_made(made, f"{k}.whole"), _made(made, f"{k}.single")), found) for k, found in enumerate(texts)]


def _made(tensors: dict[str, Tensor], name: str) -> Tensor | tuple[Tensor, ...]:
    found = [tensors[f"{name}.{i}"].clone() for i in range(sum(key.startswith(f"{name}.") for key in tensors))]
    return found[0] if len(found) == 1 else tuple(found)
