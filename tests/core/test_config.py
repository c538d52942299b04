"""Settings check themselves, travel as JSON and between processes, and become flags whose errors name the flag."""

from __future__ import annotations

import argparse
import json
import pickle
from dataclasses import dataclass
from pathlib import Path

import pytest

from lowbit_k2.core.config import Config, ConfigError, option
from lowbit_k2.errors import UserError
from lowbit_k2.recipe.flags import add_flags, read_flags


@dataclass(frozen=True)
class Inner(Config):
    size: int = option(3, "of it", low=1, high=9)


@dataclass(frozen=True)
class Outer(Config):
    rate: float = option(0.5, "per update", above=0)
    kind: str = option("a", choices=("a", "b"))
    folder: Path = option(Path("x"), "where")
    on: bool = option(False, "whether")
    most: int | None = option(None, "at most", low=0)
    names: tuple[str, ...] = option(("p", "q"), "several", parse=lambda text: tuple(text.split(",")))
    inner: Inner = option(Inner, flag="")
    weight_of_it: float = option(1.0, flag="weight")

    def check(self) -> None:
        if self.on and self.weight_of_it > 5:
            raise ConfigError("on", "goes with a weight_of_it of at most 5")


def parse(text: str, **others: object) -> Outer:
    parser = argparse.ArgumentParser()
    add_flags(parser, Outer, prefix="my-")
    return read_flags(Outer, parser.parse_args(text.split()), "my-", **others)


def test_flags_have_the_defaults_of_the_fields() -> None:
    assert parse("") == Outer()
    text = "--my-rate 2 --my-kind b --my-folder y --my-on true --my-most 4 --my-names r,s,t --my-weight 2"
    assert parse(text, inner=Inner(5)) == Outer(2.0, "b", Path("y"), True, 4, ("r", "s", "t"), Inner(5), 2.0)


def test_json_and_pickle() -> None:
    config = Outer(0.1, "b", Path("/tmp/z"), True, None, ("u",), Inner(7))
    assert Outer.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    error = pickle.loads(pickle.dumps(ConfigError("rate", "is wrong")))
    assert (error.name, str(error)) == ("rate", "rate is wrong")


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"rate": 0.0}, "rate must be positive, it is 0.0"),
        ({"rate": float("nan")}, "rate must be a finite number"),
        ({"rate": "fast"}, "rate takes a number, not 'fast'"),
        ({"rate": True}, "rate takes a number"),
        ({"kind": "c"}, "kind 'c' is unknown: choose one of a, b"),
        ({"most": -1}, "most must not be negative"),
        ({"on": 1}, "on takes true or false"),
        ({"folder": 3}, "folder takes a path"),
        ({"on": True, "weight_of_it": 6.0}, "on goes with a weight_of_it of at most 5"),
    ],
)
def test_wrong_values(wrong: dict, line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        Outer(**wrong)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"speed": 1}, "unknown settings speed"),
        ({"inner": {"size": 0}}, "size must be at least 1"),
        ({"inner": {"size": 2.0}}, "size takes a whole number"),
        ({"inner": 4}, "is no object"),
        ([], "is no object"),
    ],
)
def test_wrong_files(values: object, line: str) -> None:
    with pytest.raises(UserError, match=line):
        Outer.from_dict(values)


def test_errors_name_the_flag() -> None:
    with pytest.raises(UserError, match=r"^--my-rate must be positive, it is -1.0$"):
        parse("--my-rate -1")
    with pytest.raises(UserError, match=r"^--my-on goes with a --my-weight of at most 5$"):
        parse("--my-on true --my-weight 6")
