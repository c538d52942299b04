"""Settings as frozen dataclasses that check themselves, say what they mean, and travel as JSON.

    @dataclass(frozen=True)
    class LoopConfig(Config):
        num_epochs: int = option(30, "last epoch, counted from 1", low=1)
        amp: str = option("float32", "arithmetic", choices=("float32", "bfloat16"))

A field that cannot have its value raises `ConfigError`, which names the field; scripts turn the name into that of the
flag (`recipe/flags.py`, which also makes flags of the fields: names, help and defaults stand here alone).
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import types
import typing
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from lowbit_k2.errors import UserError

LARGEST_INT, LARGEST_FLOAT = 2**31 - 1, 1e12
SMALLEST_FLOAT = 1e-30  # of numbers over 0: in float32, which kernels compute in, less is nothing
C = typing.TypeVar("C", bound="Config")


class ConfigError(UserError):
    """A field has a value that it cannot take.

    Attributes:
      name: of the field.
      problem: what is wrong with it, to be read after the name.
    """

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"{name} {problem}")
        self.name, self.problem = name, problem

    def as_flag(self) -> str:
        """The line for a script, whose flags are named like fields unless `errors_name_flags` knows better."""
        return f"--{self.name.replace('_', '-')} {self.problem}"

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        """Errors travel between processes."""
        return type(self), (self.name, self.problem)


def option(
    default: Any,
    help: str = "",
    *,
    choices: Collection[str] = (),
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    flag: str | None = None,
    parse: Any = None,
) -> Any:
    """A field of a `Config`.

    Args:
      default: its value; a list, dict or function gives a fresh value for each object.
      help: for the command line.
      choices: the only values allowed; a registry may be given, which grows.
      low, above, high: a number is at least `low`, more than `above`, at most `high`; never NaN or infinite. Without
        `high`, whole numbers fit into 32 bits, and others are at most `LARGEST_FLOAT`. What is above 0 is at least
        `SMALLEST_FLOAT`.
      flag: name of the flag where it is not the field's own; "" for a field that no flag sets.
      parse: function from the flag's text to the value, where the type of the field does not say it.
    """
    metadata = {"help": help, "choices": choices, "low": low, "above": above, "high": high}
    metadata |= {"flag": flag, "parse": parse}
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


class Config:
    """Base of settings: checked when made, plain data for JSON, rebuilt with one clear line."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            check_field(field, field_types(type(self))[field.name], getattr(self, field.name))
        self.check()

    def check(self) -> None:
        """What no single field can tell; subclasses raise ConfigError or UserError."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `from_dict` reads it back."""
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls: type[C], values: Mapping[str, Any]) -> C:
        """Rebuild from `to_dict`'s output.

        Raises:
          UserError: a field that this version does not know, or one with a value that it cannot take.
        """
        if not isinstance(values, Mapping):
            raise UserError(f"{cls.__name__}: {values!r} is no object of settings")
        kinds = field_types(cls)
        unknown = sorted(set(values) - set(kinds))
        if unknown:
            raise UserError(f"unknown settings {', '.join(map(str, unknown))}: made by another version of lowbit_k2")
        try:
            return cls(**{name: _restored(kinds[name], value) for name, value in values.items()})
        except TypeError as error:
            raise UserError(f"{cls.__name__}: {error}") from None


def field_types(cls: type) -> dict[str, Any]:
    """The fields of a dataclass with their types, resolved."""
    if "_field_types" not in cls.__dict__:
        hints = typing.get_type_hints(cls)
        cls._field_types = {field.name: hints[field.name] for field in dataclasses.fields(cls)}
    return cls._field_types


def base_type(kind: Any) -> tuple[Any, bool]:
    """(type without None, whether None is allowed) of a field's type."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        parts = [part for part in typing.get_args(kind) if part is not type(None)]
        return (parts[0] if len(parts) == 1 else object), len(parts) < len(typing.get_args(kind))
    return kind, False


def check_field(field: dataclasses.Field, kind: Any, value: Any) -> None:
    """Type, choices and range of one value.

    Raises:
      ConfigError: one of them is wrong.
    """
    kind, may_be_none = base_type(kind)
    if value is None and may_be_none:
        return
    name, rules = field.name, field.metadata
    if kind in (int, float, str, bool, Path):
        fits = {int: int, float: (int, float), str: str, bool: bool, Path: (str, Path)}[kind]
        if not isinstance(value, fits) or (kind in (int, float) and isinstance(value, bool)):
            raise ConfigError(name, f"takes {_KINDS[kind]}, not {value!r}")
    if rules.get("choices") and value not in rules["choices"]:
        raise ConfigError(name, f"{value!r} is unknown: choose one of {', '.join(map(str, rules['choices']))}")
    if kind in (int, float):
        _check_range(name, value, rules)


def _check_range(name: str, value: float, rules: Mapping[str, Any]) -> None:
    low, above, high = rules.get("low"), rules.get("above"), rules.get("high")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(name, f"must be a finite number, not {value}")
    if low is not None and value < low:
        must = "must not be negative" if low == 0 else f"must be at least {low:g}"
        raise ConfigError(name, f"{must}, it is {value}")
    if above is not None and not value > above:
        raise ConfigError(name, f"must be {'positive' if above == 0 else f'more than {above:g}'}, it is {value}")
    if above == 0 and value < SMALLEST_FLOAT:
        raise ConfigError(name, f"must be at least {SMALLEST_FLOAT:g}, it is {value}")
    if high is None:
        high = LARGEST_INT if isinstance(value, int) else LARGEST_FLOAT
        if value < -high:
            raise ConfigError(name, f"must be at least {-high:.10g}, it is {value}")
    if value > high:
        raise ConfigError(name, f"must be at most {high:.10g}, it is {value}")


_KINDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", Path: "a path"}


def _plain(value: Any) -> Any:
    if isinstance(value, Config):
        return value.to_dict()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(inner) for inner in value]
    return value


def _restored(kind: Any, value: Any) -> Any:
    """A value of JSON as its field has it: nested settings, tuples and paths come back."""
    kind, _ = base_type(kind)
    if value is None or isinstance(value, Config):
        return value
    if isinstance(kind, type) and issubclass(kind, Config):
        return kind.from_dict(value)
    if kind is Path and isinstance(value, str):
        return Path(value)
    if (kind is tuple or typing.get_origin(kind) is tuple) and isinstance(value, list):
        return tuple(tuple(inner) if isinstance(inner, list) else inner for inner in value)
    return value


def load_named(target: Any) -> Any:
    """What a "package.module:name" names, imported now; anything else as it is. Keeps torch out of settings."""
    if not isinstance(target, str):
        return target
    module, name = target.split(":")
    return getattr(importlib.import_module(module), name)
