"""torch.export: the network as a graph of core operators."""

from __future__ import annotations

import io
from typing import Literal

from dagrow.errors import ExportError
from dagrow.export import REGISTRY, Format, tensors_of
from dagrow.registry import Options


@REGISTRY.register("pt2")
class Pt2(Format):
    """One .pt2 file for torch.export.load; any number of rows, of the dtype of the data (meta.json: input_dtype)."""

    suffix = ".pt2"
    loader = """
def load(path):
    texts = {"spec.yaml": "", "architecture.json": "", "meta.json": ""}
    return torch.export.load(path, extra_files=texts).module(), texts
"""

    class Options(Options):
        output: Literal["logits", "probabilities"] = "logits"

    @classmethod
    def encode(cls, bundle, options):
        import torch

        # An example of one row would fix the batch at 1.
        examples = tuple(torch.cat([x[:2], x[:2]])[:2].cpu() for x in tensors_of(bundle.raw))
        buffer = io.BytesIO()
        try:
            with torch.no_grad():
                rows = torch.export.Dim("rows")
                program = torch.export.export(bundle.deployed(options.output), examples, dynamic_shapes=({0: rows},) * len(examples))
            torch.export.save(program, buffer, extra_files=cls.texts(bundle, options))
        except (RuntimeError, ValueError, TypeError) as error:
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise ExportError(f"torch.export refuses the network: {reason}", fix="export torchscript instead") from None
        return buffer.getvalue()
