from __future__ import annotations

import pytest

from lowbit_k2.data.text import normalizer
from lowbit_k2.errors import UserError


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("  don't  stop\n", "DON'T STOP"),
        ("Twenty-four, \"rock 'n' roll\"!", "TWENTY FOUR ROCK N ROLL"),
        ("it’s naïve; größe 42", "IT'S NAÏVE GRÖSSE 42"),
        ("हिन्दी", "हिन्दी"),
        ("-- ? '", ""),
    ],
)
def test_upper(text: str, wanted: str) -> None:
    assert normalizer("upper")(text) == wanted


def test_the_others() -> None:
    assert normalizer("lower")("It's ME.") == "it's me"
    assert normalizer("none")(" It's  ME. ") == "It's ME."
    with pytest.raises(UserError, match="choose one of none, upper, lower"):
        normalizer("upside-down")


@pytest.mark.parametrize("name", ["none", "upper", "lower"])
def test_normalising_twice_changes_nothing(name: str) -> None:
    once = normalizer(name)("O'Neil's 'quoted' -- “words” … x²")
    assert normalizer(name)(once) == once
