"""Running exported files in a clean process: torch is there, dagrow is not."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dagrow.errors import ExportError

if TYPE_CHECKING:
    from torch import Tensor

SECONDS = 600
SCRIPT = """
import json, sys
job = json.loads(sys.stdin.read())
sys.modules["dagrow"] = None  # importing it raises
sys.path.extend(p for p in job["paths"] if p not in sys.path)
import torch
from safetensors.torch import load_file, save_file
torch.set_num_threads(job["threads"])
{loader}
raw, made, texts = load_file(job["inputs"]), {{}}, []
for k, path in enumerate(job["files"]):
    network, found = load(path)
    texts.append({{name: text.decode() if isinstance(text, bytes) else text for name, text in found.items()}})
    with torch.no_grad():
        for part, rows in (("whole", raw[str(k)]), ("single", raw[str(k)][:1].clone())):
            made[f"{{k}}.{{part}}"] = network(rows).contiguous().clone()
save_file(made, job["outputs"])
with open(job["texts"], "w", encoding="utf-8") as file:
    json.dump(texts, file)
"""


def outputs_of(loader: str, jobs: Sequence[tuple[Path, Tensor]]) -> list[tuple[tuple[Tensor, Tensor], dict[str, str]]]:
    """For each (file, raw rows): ((outputs of all rows, outputs of the first alone), the texts in the file).

    loader: source that defines `load(path) -> (callable, texts)`. One process for all jobs, started elsewhere than here,
    without the user's environment. ExportError where it fails, with its last line.
    """
    import torch
    from safetensors.torch import load_file, save_file

    with tempfile.TemporaryDirectory(prefix="dagrow-export-") as folder:
        place = Path(folder)
        save_file({str(k): raw.detach().cpu().contiguous() for k, (_, raw) in enumerate(jobs)}, place / "inputs")
        job = {
            "files": [str(path.absolute()) for path, _ in jobs],
            # Where torch came from, for those who point to it by PYTHONPATH, which -I ignores.
            "paths": [str(Path(torch.__file__).parents[1])],
            "threads": torch.get_num_threads(),
            "inputs": str(place / "inputs"), "outputs": str(place / "outputs"), "texts": str(place / "texts"),
        }
        command = [sys.executable, "-I", "-c", SCRIPT.format(loader=loader)]
        try:
            done = subprocess.run(command, input=json.dumps(job), capture_output=True, text=True, cwd=folder, timeout=SECONDS, check=False)
        except subprocess.TimeoutExpired:
            raise ExportError(f"the export did not load and run within {SECONDS} s") from None
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise ExportError(f"the export does not run in a clean process: {last[:500]}")
        made = load_file(place / "outputs")
        texts = json.loads((place / "texts").read_text(encoding="utf-8"))
        return [((made[f"{k}.whole"].clone(), made[f"{k}.single"].clone()), found) for k, found in enumerate(texts)]
