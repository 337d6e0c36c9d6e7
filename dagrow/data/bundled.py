"""The small real data sets that scikit-learn carries: nothing is downloaded."""

from __future__ import annotations

from typing import Literal

from dagrow.data import REGISTRY, Raw, Source
from dagrow.registry import Options


class Plain(Options):
    """No options."""


@REGISTRY.register("digits")
class Digits(Source):
    """1,797 handwritten digits of 8 × 8 pixels, 10 classes. `shape`: image [1, 8, 8] or flat [64]."""

    class Options(Options):
        shape: Literal["image", "flat"] = "image"

    @staticmethod
    def load(options, folder):
        import numpy as np
        from sklearn.datasets import load_digits

        held = load_digits()
        x = held.data.astype(np.float32)  # whole numbers from 0 to 16
        x = x.reshape(-1, 1, 8, 8) if options.shape == "image" else x
        return Raw(x, held.target, "classification", tuple(held.feature_names), tuple(map(str, held.target_names)), where="digits")


@REGISTRY.register("breast_cancer")
class BreastCancer(Source):
    """569 tumours by 30 measurements, malignant or benign; a linear model already does well."""

    Options = Plain

    @staticmethod
    def load(options, folder):
        from sklearn.datasets import load_breast_cancer

        held = load_breast_cancer()
        return Raw(held.data, held.target, "classification", tuple(map(str, held.feature_names)), tuple(map(str, held.target_names)))


@REGISTRY.register("wine")
class Wine(Source):
    """178 wines by 13 measurements, 3 cultivars."""

    Options = Plain

    @staticmethod
    def load(options, folder):
        from sklearn.datasets import load_wine

        held = load_wine()
        return Raw(held.data, held.target, "classification", tuple(map(str, held.feature_names)), tuple(map(str, held.target_names)))


@REGISTRY.register("diabetes")
class Diabetes(Source):
    """442 patients by 10 measurements; the target is how far the disease is a year later (regression)."""

    Options = Plain

    @staticmethod
    def load(options, folder):
        from sklearn.datasets import load_diabetes

        held = load_diabetes()
        return Raw(held.data, held.target, "regression", tuple(map(str, held.feature_names)))
