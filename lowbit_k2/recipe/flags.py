"""Flags end here: settings (`core/config.py`) become flags of scripts, and flags become settings.

Names, help texts, choices and defaults of flags are those of the fields; an error about a field names its flag.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from lowbit_k2.core.config import Config, ConfigError, base_type, field_types
from lowbit_k2.errors import UserError
from lowbit_k2.plugins import PLUGIN_HELP, load_plugins

C = TypeVar("C", bound=Config)


class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, and keeps the line breaks of a script's docstring."""


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser whose help is the script's docstring; flags cannot be abbreviated, so that typing errors are caught."""
    return argparse.ArgumentParser(description=description, formatter_class=Formatter, allow_abbrev=False)


def str2bool(text: str) -> bool:
    """`true/false`, `yes/no`, `1/0`, in any case, as icefall's flags take them."""
    value = text.lower()
    if value in ("true", "yes", "t", "y", "1"):
        return True
    if value in ("false", "no", "f", "n", "0"):
        return False
    raise argparse.ArgumentTypeError(f"'{text}' is neither true nor false")


def flag_name(field: dataclasses.Field, prefix: str = "") -> str:
    """`--rnnt-warm-step`; "" for a field that no flag sets."""
    name = field.metadata.get("flag")
    if name == "":
        return ""
    return "--" + prefix + (field.name.replace("_", "-") if name is None else name)


def destination(field: dataclasses.Field, prefix: str = "") -> str:
    """The name of the parsed value."""
    return flag_name(field, prefix).removeprefix("--").replace("-", "_")


def add_flags(
    group: argparse._ActionsContainer,
    *configs: type[Config],
    prefix: str = "",
    only: Collection[str] | None = None,
    optional: bool = False,
) -> None:
    """A flag for every field that may have one.

    Args:
      configs: settings; of fields that several of them share, the first one's flag is made.
      prefix: before each name, as "musan-".
      only: the fields to take.
      optional: without defaults: what is not given is left to someone else, a preset for instance.
    """
    known = {option for action in group._actions for option in action.option_strings}
    for cls in configs:
        for field in dataclasses.fields(cls):
            name = flag_name(field, prefix)
            if not name or name in known or (only is not None and field.name not in only):
                continue
            known.add(name)
            default = argparse.SUPPRESS if optional else _default(field)
            text = field.metadata.get("help", "") or ("replaces the preset's value" if optional else " ")
            text = text.replace("%", "%%")
            # of optional fields the preset's owner checks the value
            choices = None if optional else list(field.metadata.get("choices") or ()) or None
            kind = _parser_of(field, field_types(cls)[field.name])
            group.add_argument(name, type=kind, default=default, choices=choices, help=text)


def _default(field: dataclasses.Field) -> Any:
    """The default value; of several, as a user would write them (argparse reads defaults that are text)."""
    value = field.default if field.default is not dataclasses.MISSING else field.default_factory()
    return ",".join(map(str, value)) if isinstance(value, tuple) else value


def _parser_of(field: dataclasses.Field, kind: Any) -> Any:
    if field.metadata.get("parse"):
        return _as_argument_type(field.metadata["parse"])
    kind, _ = base_type(kind)
    if kind is bool:
        return str2bool
    assert kind in (int, float, str, Path), (field.name, kind)
    return kind


def _as_argument_type(parse: Any) -> Any:
    def convert(text: str) -> Any:
        try:
            return parse(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"'{text}' cannot be read") from None

    return convert


def given(args: argparse.Namespace, cls: type[Config], prefix: str = "") -> dict[str, Any]:
    """The fields of a config that flags have set."""
    values = vars(args)
    named = {field.name: destination(field, prefix) for field in dataclasses.fields(cls) if flag_name(field, prefix)}
    return {name: values[place] for name, place in named.items() if place in values}


def read_flags(cls: type[C], args: argparse.Namespace, prefix: str = "", **others: Any) -> C:
    """The settings that flags describe; `others` are fields that no flag sets.

    Raises:
      UserError: a value that a field cannot take; the line names the flag.
    """
    with errors_name_flags([(cls, prefix)]):
        return cls(**{**given(args, cls, prefix), **others})


@contextmanager
def errors_name_flags(configs: Sequence[tuple[type[Config], str]]) -> Iterator[None]:
    """Turn errors about fields of these (settings, prefix) into errors about their flags."""
    try:
        yield
    except ConfigError as error:
        flags = all_flags(configs)
        name = flags.get(error.name, error.name)
        # within the line only names that can be no plain words
        problem = re.sub(r"[a-z]+(?:_[a-z]+)+", lambda name: flags.get(name[0], name[0]), error.problem)
        raise UserError(f"{name} {problem}") from None


def all_flags(configs: Sequence[tuple[type[Config], str]]) -> dict[str, str]:
    """{field: its flag}."""
    found: dict[str, str] = {}
    for cls, prefix in configs:
        for field in dataclasses.fields(cls):
            if flag_name(field, prefix):
                found.setdefault(field.name, flag_name(field, prefix))
    return found


# --- what scripts ask for before all flags are read -------------------------------------------------------------


def add_mini_argument(parser: argparse.ArgumentParser) -> None:
    """`--mini`, for recipes that can make a synthetic corpus of their own."""
    parser.add_argument("--mini", type=str2bool, default=False, help="the embedded corpus, with defaults to suit it")


def wants_mini(argv: Sequence[str] | None = None) -> bool:
    """Whether the command line says `--mini true`: asked before all flags are read, whose defaults hang on it."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_mini_argument(parser)
    return parser.parse_known_args(argv)[0].mini


def add_plugin_argument(parser: argparse._ActionsContainer) -> None:
    """`--plugin FILE`, and run the files that the command line names: what they register are choices of other flags."""
    parser.add_argument("--plugin", type=Path, action="append", default=[], metavar="FILE", help=PLUGIN_HELP)
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--plugin", type=Path, action="append", default=[])
    load_plugins(early.parse_known_args()[0].plugin)
