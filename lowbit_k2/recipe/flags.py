"""Command-line helpers that every script shares."""

from __future__ import annotations

import argparse


class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, and keeps the line breaks of a script's docstring."""


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser whose help is the script's docstring; flags cannot be abbreviated, so that typing errors are caught."""
    return argparse.ArgumentParser(description=description, formatter_class=Formatter, allow_abbrev=False)
