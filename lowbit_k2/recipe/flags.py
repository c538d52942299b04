"""Command-line helpers that every script shares."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from lowbit_k2.data.flags import str2bool


class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, and keeps the line breaks of a script's docstring."""


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser whose help is the script's docstring; flags cannot be abbreviated, so that typing errors are caught."""
    return argparse.ArgumentParser(description=description, formatter_class=Formatter, allow_abbrev=False)


def add_mini_argument(parser: argparse.ArgumentParser) -> None:
    """`--mini`, for recipes that can make a synthetic corpus of their own."""
    parser.add_argument("--mini", type=str2bool, default=False, help="the embedded corpus, with defaults to suit it")


def wants_mini(argv: Sequence[str] | None = None) -> bool:
    """Whether the command line says `--mini true`: asked before all flags are read, whose defaults hang on it."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_mini_argument(parser)
    return parser.parse_known_args(argv)[0].mini
