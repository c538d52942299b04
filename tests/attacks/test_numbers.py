"""Every number of every setting takes a value or refuses it in one line: as a field, and as a flag of the scripts."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import math
import pkgutil
from collections.abc import Callable, Iterator

import pytest

import lowbit_k2
from lowbit_k2.core.config import Config, ConfigError, base_type, field_types
from lowbit_k2.errors import UserError
from lowbit_k2.k2_compat import has_k2
from lowbit_k2.recipe.decoding_flags import (
    add_decoding_flags,
    add_export_flags,
    read_decoding_flags,
    read_export_flags,
)
from lowbit_k2.recipe.training_flags import read_training_flags, training_parser
from tests.attacks.trials import count_trial

pytestmark = pytest.mark.attack

VALUES = [0, 1, -1, 2, 2**31 - 1, 2**31, 2**32, 2**63, -(2**63), 10**20, 10**400]
VALUES += [0.0, 0.5, -0.5, 1e-320, 1e-9, 1e12, 1e30, 1e308, -1e308, math.nan, math.inf, -math.inf]
TEXTS = [str(value) for value in VALUES if value != 10**400] + ["", " ", "1e9", "0x10", "1_000", "١٢", "9" * 30, "nan%"]


def settings() -> list[type[Config]]:
    """All classes of settings of the package."""
    for module in pkgutil.walk_packages(lowbit_k2.__path__, "lowbit_k2."):
        if "k2_" not in module.name and (has_k2() or "graphs" not in module.name):
            importlib.import_module(module.name)

    def below(cls: type) -> Iterator[type]:
        for sub in cls.__subclasses__():
            yield sub
            yield from below(sub)

    found = dict.fromkeys(cls for cls in below(Config) if dataclasses.is_dataclass(cls))
    return [cls for cls in found if cls.__module__.startswith("lowbit_k2.")]


def numeric_fields(cls: type[Config]) -> list[str]:
    return [name for name, kind in field_types(cls).items() if base_type(kind)[0] in (int, float)]


def test_fields() -> None:
    tried = refused = 0
    for cls in settings():
        needed = {
            field.name: {str: "x"}.get(base_type(field_types(cls)[field.name])[0], 1)
            for field in dataclasses.fields(cls)
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        }
        for name in numeric_fields(cls):
            for value in VALUES:
                tried += 1
                count_trial()
                try:
                    made = cls(**{**needed, name: value})
                except UserError as error:
                    assert "\n" not in str(error), (cls, name, value)
                    refused += 1
                else:
                    taken = getattr(made, name)
                    assert math.isfinite(taken) and abs(taken) <= 1e12, (cls, name, value)
    assert tried > 1500 and refused > tried / 4


def test_the_field_is_named() -> None:
    from lowbit_k2.core.encoders import ConformerConfig

    with pytest.raises(ConfigError, match="num_layers must be at most 1000, it is 2147483648"):
        ConformerConfig(num_layers=2**31)


def test_what_float32_takes_for_nothing_is_refused() -> None:
    from lowbit_k2.decode.method import SearchConfig

    with pytest.raises(ConfigError, match="search_beam must be at least 1e-30, it is 1e-320"):
        SearchConfig(search_beam=1e-320)


def make_training() -> tuple[argparse.ArgumentParser, Callable]:
    return training_parser("train"), read_training_flags


def make_decoding() -> tuple[argparse.ArgumentParser, Callable]:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_decoding_flags(parser)
    return parser, read_decoding_flags


def make_export() -> tuple[argparse.ArgumentParser, Callable]:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_export_flags(parser)
    return parser, read_export_flags


@pytest.mark.parametrize("make", [make_training, make_decoding, make_export])
def test_flags(make: Callable, capsys: pytest.CaptureFixture[str]) -> None:
    """All flags that read a number, with any text: argparse's status 2, or one line that names the flag."""
    parser, read = make()
    needed = ["--precision", "1"] if make is make_export else []
    flags = [
        action.option_strings[-1]
        for action in parser._actions
        if action.option_strings and action.nargs is None and action.choices is None and action.type is not None
    ]
    taken = refused = 0
    for flag in flags:
        for text in TEXTS:
            count_trial()
            try:
                read(parser.parse_args([*needed, f"{flag}={text}"]))
                taken += 1
            except SystemExit as stop:
                assert stop.code == 2 and "Traceback" not in capsys.readouterr().err
                refused += 1
            except UserError as error:
                assert "\n" not in str(error), (flag, text)
                refused += 1
    assert len(flags) > 10 and taken and refused


def test_a_wider_search_stays_within_what_is_allowed() -> None:
    from lowbit_k2.decode.lattice import WIDEST_BEAM, SearchConfig

    widest = SearchConfig(search_beam=WIDEST_BEAM, output_beam=WIDEST_BEAM, max_active_states=2**31 - 1)
    wider = widest.widened().widened()
    assert (wider.search_beam, wider.output_beam, wider.max_active_states) == (WIDEST_BEAM, WIDEST_BEAM, 2**31 - 1)
    with pytest.raises(ConfigError, match="lm_scale must be at most 1000, it is 2147483648"):
        SearchConfig(lm_scale=2.0**31)
