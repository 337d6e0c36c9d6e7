"""Registries: a class with its Options joins under a name, and is found by it.

A package that holds a registry autoloads: every module in its folder is imported at the first look-up,
so adding one thing is adding one file.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import pydantic

from dagrow.errors import UnknownName, nearest

T = TypeVar("T", bound=type)


class Options(pydantic.BaseModel):
    """What YAML may say about a registered thing. Frozen and hashable; unknown keys are refused."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Misfit(ValueError):
    """What is wrong at one place of nested options: `at` is its path, `key` says that the key there is at fault, not the value."""

    def __init__(self, message: str, *, at: tuple[str | int, ...] = (), fix: str | None = None, key: bool = False):
        super().__init__(message)
        self.at, self.fix, self.key = at, fix, key


def misfitting(title: str, found: Iterable[Misfit]) -> pydantic.ValidationError:
    """What a validator of Options raises to tell of several places at once."""
    rows = [{"type": "value_error", "loc": m.at, "input": None, "ctx": {"error": m}} for m in found]
    return pydantic.ValidationError.from_exception_data(title, rows)


class Registry:
    """Names -> classes of one kind. `noun` is what messages call them, `verb` the command that lists them."""

    def __init__(self, noun: str, package: str, verb: str | None = None):
        self.noun, self.package = noun, package
        self.listing = f"dagrow {verb}" if verb else None
        self._classes: dict[str, type] = {}
        self._loaded = False

    def register(self, name: str) -> Callable[[T], T]:
        """Class decorator: the class joins under `name`; its docstring's first line is what listings show."""

        def join(cls: T) -> T:
            if name in self._classes and self._classes[name].__qualname__ != cls.__qualname__:
                raise ValueError(f"{self.noun} {name!r} is registered twice")
            if not (isinstance(getattr(cls, "Options", None), type) and issubclass(cls.Options, pydantic.BaseModel)):
                raise TypeError(f"{self.noun} {name!r} has no Options")
            if not inspect.getdoc(cls):
                raise TypeError(f"{self.noun} {name!r} has no docstring")
            cls.name = name
            self._classes[name] = cls
            return cls

        return join

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        for module in pkgutil.iter_modules(sys.modules[self.package].__path__):
            importlib.import_module(f"{self.package}.{module.name}")

    def get(self, name: str) -> type:
        """The class registered under `name`; UnknownName (with a suggestion) where there is none."""
        self._load()
        if name not in self._classes:
            raise UnknownName(self.noun, name, self._classes, self.listing)
        return self._classes[name]

    def names(self) -> list[str]:
        self._load()
        return sorted(self._classes)

    def suggest(self, name: str) -> str | None:
        return nearest(name, self.names())

    def summary(self, name: str) -> str:
        """The first line of the class's docstring."""
        return inspect.getdoc(self.get(name)).splitlines()[0]

    def __contains__(self, name: object) -> bool:
        self._load()
        return name in self._classes

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())
