"""Made-up data whose truth is known."""

from __future__ import annotations

import math

import pydantic

from dagrow.data import REGISTRY, Raw, Source
from dagrow.registry import Options
from dagrow.rng import stream


class Made(Options):
    random_state: int = pydantic.Field(0, ge=0, lt=2**32)


@REGISTRY.register("friedman1")
class Friedman1(Source):
    """10 sin(π x0 x1) + 20 (x2 - ½)² + 10 x3 + 5 x4 + noise; further features say nothing (regression)."""

    class Options(Made):
        n: int = pydantic.Field(1000, strict=True, ge=8, le=10**6)
        features: int = pydantic.Field(10, strict=True, ge=5, le=1000)
        noise: float = pydantic.Field(1.0, ge=0, le=1e6)

    @staticmethod
    def load(options, folder):
        from sklearn.datasets import make_friedman1

        x, y = make_friedman1(options.n, options.features, noise=options.noise, random_state=options.random_state)
        return Raw(x, y, "regression", where="friedman1")


@REGISTRY.register("two_spirals")
class TwoSpirals(Source):
    """Two spirals wound into one another: two features, two classes, and no line between them.

    A point's angle is 2π · turns · √u with u uniform, so density falls off slowly outwards; its radius is its angle, plus
    Gaussian noise of `noise` radians in both coordinates.
    """

    class Options(Made):
        n: int = pydantic.Field(2000, strict=True, ge=8, le=10**6)
        noise: float = pydantic.Field(0.2, ge=0, le=100)
        turns: float = pydantic.Field(1.85, gt=0, le=20)

    @staticmethod
    def load(options, folder):
        import torch

        key = stream(options.random_state, "two_spirals")
        label = torch.arange(options.n) % 2
        angle = 2 * math.pi * options.turns * torch.rand(options.n, generator=key, dtype=torch.float64).sqrt()
        turned = angle + math.pi * label
        x = angle[:, None] * torch.stack([turned.cos(), turned.sin()], 1)
        x = x + options.noise * torch.randn(options.n, 2, generator=key, dtype=torch.float64)
        return Raw(x.numpy(), label.numpy(), "classification", ("x0", "x1"), ("0", "1"), where="two_spirals")


@REGISTRY.register("teacher_student")
class TeacherStudent(Source):
    """What a random ReLU network without biases says of Gaussian inputs: y = V relu(W x), weights U[-1, 1] (GradMax §4.1).

    `n` rows to train and validate on and `n_test` fresh ones to test on. `standardise`: whether targets are.
    """

    class Options(Made):
        inputs: int = pydantic.Field(20, strict=True, ge=1, le=10_000)
        hidden: int = pydantic.Field(10, strict=True, ge=1, le=10_000)
        outputs: int = pydantic.Field(10, strict=True, ge=1, le=10_000)
        n: int = pydantic.Field(1000, strict=True, ge=8, le=10**6)
        n_test: int = pydantic.Field(1000, strict=True, ge=1, le=10**6)
        standardise: bool = True

    @staticmethod
    def load(options, folder):
        import torch

        key = stream(options.random_state, "teacher_student")
        into = torch.rand(options.hidden, options.inputs, generator=key, dtype=torch.float64) * 2 - 1
        out = torch.rand(options.outputs, options.hidden, generator=key, dtype=torch.float64) * 2 - 1
        x = torch.randn(options.n + options.n_test, options.inputs, generator=key, dtype=torch.float64)
        y = torch.relu(x @ into.T) @ out.T
        return Raw(x.numpy(), y.numpy(), "regression", test=options.n_test, standardise=options.standardise, where="teacher_student")
