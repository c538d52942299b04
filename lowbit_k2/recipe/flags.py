"""Command-line helpers that every script shares."""

from __future__ import annotations

import argparse


def str2bool(text: str) -> bool:
    """`true/false`, `yes/no`, `1/0`, in any case, as icefall's flags take them."""
    value = text.lower()
    if value in ("true", "yes", "t", "y", "1"):
        return True
    if value in ("false", "no", "f", "n", "0"):
        return False
    raise argparse.ArgumentTypeError(f"'{text}' is neither true nor false")


class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, and keeps the line breaks of a script's docstring."""


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser whose help is the script's docstring; flags cannot be abbreviated, so that typing errors are caught."""
    return argparse.ArgumentParser(description=description, formatter_class=Formatter, allow_abbrev=False)
