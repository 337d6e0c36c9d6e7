"""What a Spec holds once it is read: frozen values with defaults, macros expanded."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path as FilePath
from typing import Annotated, Any, Literal

import pydantic
from pydantic import BeforeValidator, Field

from dagrow.errors import Problem
from dagrow.registry import Options
from dagrow.spec.finding import locate
from dagrow.spec.scalars import count, seconds
from dagrow.spec.tree import Path, Source, Tree

FUNCTION = re.compile(r"(?=.{3,256}\Z)[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*:[A-Za-z_][A-Za-z0-9_]*\Z")
METRICS = ("val.loss", "val.accuracy", "val.r2", "params", "macs")
COUNT_SCHEMA = {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?[kKMG]$"}]}
TIME_SCHEMA = {"anyOf": [{"type": "number", "minimum": 0}, {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(s|sec|min|m|h|d)$"}]}


def _whole(least: int, most: int):
    return Annotated[
        int, BeforeValidator(count), Field(strict=True, ge=least, le=most), pydantic.WithJsonSchema(COUNT_SCHEMA)
    ]


def choice_schema(key: str) -> dict:
    """JSON Schema of a registered choice: its name, or a mapping with the name under `key` and its options beside it."""
    return {"anyOf": [{"type": "string"}, {"type": "object", "properties": {key: {"type": "string"}}, "additionalProperties": True}], "x-key": key}


Seconds = Annotated[float, BeforeValidator(seconds), Field(strict=True, gt=0, le=1e9), pydantic.WithJsonSchema(TIME_SCHEMA)]
Limit = _whole(1, 2**53)
Metric = Literal["val.loss", "val.accuracy", "val.r2", "params", "macs"]
Word = Annotated[str, Field(strict=True, min_length=1, max_length=64)]


class Named(Options):
    """A registered thing by name, with its options as the spec wrote them."""

    name: Word
    options: dict[str, Any] = {}

    def to_plain(self, key: str = "name"):
        if key in self.options:
            return {self.name: dict(self.options)}
        return {key: self.name, **self.options} if self.options else self.name


def _named(key: str):
    return Annotated[Named, pydantic.WithJsonSchema(choice_schema(key))]


class DataSpec(Options):
    """Which data, how it is split and normalised, and the batch it is trained in."""

    source: Annotated[Word, pydantic.WithJsonSchema(choice_schema("name"))]
    options: Annotated[dict[str, Any], pydantic.WithJsonSchema({"type": "object"})] = {}
    split: Annotated[dict[str, Any], pydantic.WithJsonSchema({"type": "object", "additionalProperties": True})] = {}
    normalise: Literal["per_feature", "per_channel", "global", "none"] = "per_feature"
    batch: _whole(1, 2**20) = 64


class NodeSpec(Options):
    """One node: its op, whose outputs it reads, its options; `positional` is the op's main option, as 8 in `linear 8`.

    `tied`: which of its parameters are those of another node: {local name: full name}.
    """

    op: Word
    inputs: tuple[str, ...] = ()
    attrs: dict[str, Any] = {}
    positional: Any = None
    tied: dict[str, str] = {}

    def to_plain(self) -> dict:
        row = {"op": self.op, "in": list(self.inputs) if len(self.inputs) != 1 else self.inputs[0], **self.attrs}
        row |= {"tied": self.tied} if self.tied else {}
        return row if self.positional is None else {**row, "positional": self.positional}


class ModelSpec(Options):
    """The seed network: `input` (None: from the data), nodes by full name, and which is the output (None: the one end).

    Or `py`: a function "package.module:function" of the user's that returns an nn.Module when called with `args`; `opaque`: paths of
    its modules that are kept whole.
    """

    input: dict[str, Any] | None = None
    nodes: dict[str, NodeSpec] = {}
    output: str | None = None
    py: Annotated[str, Field(strict=True)] | None = None
    args: dict[str, Any] = {}
    opaque: tuple[Annotated[str, Field(strict=True, min_length=1, max_length=256)], ...] = ()

    @pydantic.field_validator("py")
    @classmethod
    def _function(cls, value: str | None) -> str | None:
        if value is not None and not FUNCTION.match(value):
            raise ValueError("py names a function as package.module:function")
        return value

    def to_plain(self) -> dict:
        row = {"input": dict(self.input)} if self.input else {}
        if self.py is not None:
            return {**row, "py": self.py, **({"args": dict(self.args)} if self.args else {}), **({"opaque": list(self.opaque)} if self.opaque else {})}
        row |= {"nodes": {name: node.to_plain() for name, node in self.nodes.items()}}
        return {**row, "output": self.output} if self.output else row


class Epochs(Options):
    """Epochs before the first edit, between two edits, and after the last."""

    first: _whole(0, 10**6) = 5
    between: _whole(0, 10**6) = 2
    final: _whole(0, 10**6) = 20


class TrainSpec(Options):
    """How the network is trained."""

    loss: Literal["auto", "cross_entropy", "mse"] = "auto"
    optimizer: _named("name") = Named(name="adamw")
    schedule: _named("name") = Named(name="cosine")
    epochs: Epochs = Epochs()
    final_on: Literal["train", "train+val"] = "train"
    clip: Annotated[float, Field(strict=True, gt=0, le=1e9)] | None = None


class ScoreSpec(Options):
    """How new units are pointed, how many candidates are verified by real forwards, on how many rows, at which level.

    when: the rows get a pass of their own at the decision (own_pass), or are gathered from the last `window` steps of training
    before it (training; None: as few steps as hold them). race: sites are scored on some of the rows first, and dropped where
    that is enough to tell.
    """

    by: _named("name") = Named(name="natural")
    verify: _whole(0, 1000) = 3
    when: Literal["own_pass", "training"] = "own_pass"
    window: _whole(1, 2**24) | None = None
    rows: _whole(2, 2**24) = 1024
    alpha: Annotated[float, Field(strict=True, gt=0, lt=1)] = 0.05
    race: bool = True


class Budget(Options):
    """Where growth ends. `time` in seconds, `params` trainable parameters, `macs` of one forward of one sample; None: no limit."""

    steps: _whole(0, 10**6) = 20
    time: Seconds | None = None
    params: Limit | None = None
    macs: Limit | None = None
    patience: _whole(1, 10**6) = 2


class Objective(Options):
    """One axis of the Pareto front; the first picks the reported model."""

    direction: Literal["maximize", "minimize"]
    metric: Metric


class Spec(Options):
    """A whole spec, resolved. Equal specs have equal digests; the folder and the places are not part of it."""

    dagrow: Literal[1] = 1
    name: Annotated[str, Field(strict=True, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$")] = "spec"
    seed: Annotated[int, Field(strict=True, ge=0, lt=2**63)] = 0
    data: DataSpec
    model: ModelSpec
    train: TrainSpec = TrainSpec()
    edits: tuple[_named("name"), ...] = (Named(name="widen"), Named(name="deepen"), Named(name="prune"))
    score: ScoreSpec = ScoreSpec()
    select: _named("by") = Named(name="greedy")
    budget: Budget = Budget()
    objectives: tuple[Objective, ...] = (Objective(direction="minimize", metric="val.loss"),)
    export: tuple[_named("name"), ...] = (Named(name="torchscript"),)

    _folder: FilePath | None = pydantic.PrivateAttr(None)
    _tree: Tree | None = pydantic.PrivateAttr(None)
    _source: Source = pydantic.PrivateAttr(default_factory=Source)

    @property
    def folder(self) -> FilePath | None:
        """Where the spec's relative paths start: the folder of its file; None for text and dicts."""
        return self._folder

    @property
    def file(self) -> str:
        """What messages call the spec."""
        return self._source.file

    def problem_at(self, path: Path, message: str, hint: str | None = None, *, key: bool = False) -> Problem:
        """A Problem at the place of `path`, such as ("model", "nodes", "head", "width"), or of its nearest ancestor.

        `key` points at the key instead of the value.
        """
        return self._source.problem(locate(self._tree, path, key=key), message, hint)

    def to_dict(self) -> dict:
        """Plain values, from which `load` makes an equal Spec."""
        data = {"source": {"name": self.data.source, **self.data.options} if self.data.options else self.data.source}
        row = self.model_dump(mode="json", exclude={"data", "model"})
        return {
            "dagrow": self.dagrow, "name": self.name, "seed": self.seed,
            "data": {**data, "split": dict(self.data.split), "normalise": self.data.normalise, "batch": self.data.batch},
            "model": self.model.to_plain(),
            "train": {**row["train"], "optimizer": self.train.optimizer.to_plain(), "schedule": self.train.schedule.to_plain()},
            "edits": [edit.to_plain() for edit in self.edits],
            "score": {**row["score"], "by": self.score.by.to_plain()},
            "select": self.select.to_plain("by"),
            "budget": row["budget"],
            "objectives": [{o.direction: o.metric} for o in self.objectives],
            "export": [form.to_plain() for form in self.export],
        }

    @property
    def digest(self) -> str:
        """sha256 of the resolved spec."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True, allow_nan=True).encode()).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Spec) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)
