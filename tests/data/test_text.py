from __future__ import annotations

import pytest

from lowbit_k2.data.text import marks, normalizer
from lowbit_k2.errors import UserError


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("  don't  stop\n", "DON'T STOP"),
        ("Twenty-four, \"rock 'n' roll\"!", "TWENTY FOUR ROCK N ROLL"),
        ("it’s naïve; größe 42", "IT'S NAÏVE GRÖSSE 42"),
        ("हिन्दी", "हिन्दी"),
        ("-- ? '", ""),
        ("so <unk> we [noise] went [laughter] home {BREATH} (cough)", "SO WE WENT HOME"),
        ("[door slam][hum] a [nested [mark] too] b", "A B"),
        ("he (who came late) said it", "HE WHO CAME LATE SAID IT"),
        ("1 < 2 and [ not closed", "1 2 AND NOT CLOSED"),
        ("\ufeffe\u0301te\u0301", "ÉTÉ"),
    ],
)
def test_upper(text: str, wanted: str) -> None:
    assert normalizer("upper")(text) == wanted


def test_the_others() -> None:
    assert normalizer("lower")("It's ME.") == "it's me"
    assert normalizer("none")(" It's  ME. [noise] ") == "It's ME. [noise]"
    with pytest.raises(UserError, match="choose one of none, upper, lower"):
        normalizer("upside-down")


def test_marks_are_named() -> None:
    assert marks("so <unk> we [door  slam] (cough) (not this) {x}") == ["<unk>", "[door slam]", "(cough)", "{x}"]


@pytest.mark.parametrize("name", ["none", "upper", "lower"])
def test_normalising_twice_changes_nothing(name: str) -> None:
    once = normalizer(name)("O'Neil's 'quoted' -- “words” … x²")
    assert normalizer(name)(once) == once
