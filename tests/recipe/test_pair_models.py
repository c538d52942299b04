"""The table of recognisers by language models: its command and its file."""

from __future__ import annotations

from pathlib import Path

import pytest

from lowbit_k2.asr.pairs import NONE, Pair
from lowbit_k2.fileio import write_json
from lowbit_k2.recipe import pair_models
from tests.egs.scripts import call

MODULE = "lowbit_k2.recipe.pair_models"


def pair(lm: str, sub: int, size: int, **against: object) -> Pair:
    return Pair(
        "4", lm, "rescore_0.5_ngram_1", 3, 50, {"ins": 1, "dels": 0, "sub": sub, "ref_words": 200}, size, 0, **against
    )


def test_a_table_that_was_kept(tmp_path: Path) -> None:
    other = pair(NONE, 3, 500_000, relative=-0.2, interval=(-0.5, 0.1), p=0.25, verdict="cannot tell")
    write_json(tmp_path / "pairs.json", [found.to_dict() for found in (pair("32", 4, 2_000_000), other)])
    *_, first, second = call(MODULE, "--show", tmp_path / "pairs.json").good().out.splitlines()
    assert first == "| 4 | 32 | rescore 0.5 ngram 1 | 6.00 | 2.50 (1/0/4) | 2.000 | 1.0 | - | - | - | - |"
    assert second.endswith("| 2.00 (1/0/3) | 0.500 | 4.0 | -20.0% | -50.0% to +10.0% | 0.250 | cannot tell |")


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--recogniser", "a"], "argument --recogniser: 'a' is no NAME=FILE"),
        (["--recogniser", "none=a"], "argument --recogniser: 'none=a' is no NAME=FILE"),
        (["--lm", "a=b", "--corpus", "c"], "--recogniser is missing"),
        (["--recogniser", "a=b", "a=c", "--lm", "a=b", "--corpus", "c"], "--recogniser has two files of one name"),
        (
            ["--recogniser", "a=/gone", "--lm", "a=b", "--corpus", "c"],
            "/gone is no file: give packed files of export.py",
        ),
    ],
)
def test_bad_input(flags: list[str], line: str) -> None:
    run = call(MODULE, *flags)
    assert line in run.error(2 if "argument" in line else 1)


def test_flags_are_those_of_decoding() -> None:
    args = pair_models.get_parser().parse_args(["--rescore-lm-scale", "0,0.5", "--lm-scale", "0.6"])
    assert args.rescore_lm_scale == (0, 0.5) and args.lm_scale == (0.6,)
