"""Damaged and foreign graphs: what is taken is sound, what is not costs one line, and k2 never stumbles."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from lowbit_k2.decode.method import NetworkOutput
from lowbit_k2.errors import UserError
from lowbit_k2.graphs.fsa_io import load_fsa
from lowbit_k2.recipe.prepare_lang import prepare_lang
from lowbit_k2.tensorfile import load_tensors, save_tensors
from tests.attacks.trials import trials
from tests.decode import toy
from tests.decode.toy import make_method

pytestmark = [pytest.mark.k2, pytest.mark.attack]


@pytest.fixture
def lang(tmp_path: Path) -> Path:
    toy.make_lang(tmp_path / "lang")
    return tmp_path / "lang"


def decode(lang: Path) -> list:
    method = make_method("1best", lang_dir=lang)
    return method.nbest(NetworkOutput(torch.tensor([6, 5]), toy.random_log_probs(0, 2, 6)))


def test_graphs_for_other_symbols_are_refused(lang: Path) -> None:
    decode(lang)
    before = (lang / "words.txt").read_text()
    (lang / "dict.txt").write_text(toy.LEXICON + "AB x\n")
    prepare_lang(lang, lang / "dict.txt", None, None)
    with pytest.raises(UserError, match="HLG.pt was made for other symbols than words.txt has now: compile it again"):
        decode(lang)
    (lang / "words.txt").write_text(before)
    decode(lang)
    units = toy.ToyUnits(spells_words=False)
    units.pieces = lambda: ["<blk>", "y", "x"]
    from lowbit_k2.decode.method import METHODS, Setup

    with pytest.raises(UserError, match="HLG.pt was made for other symbols than the model's units has now"):
        METHODS["1best"](Setup(units, lang_dir=lang))


def test_graphs_without_a_record_are_taken_with_a_warning(lang: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = decode(lang)
    content = load_tensors(lang / "HLG.pt")
    del content["made_for"]  # as icefall's, and our own of before
    save_tensors(lang / "HLG.pt", content)
    assert decode(lang) == expected
    assert "HLG.pt does not say which words.txt it was made for" in caplog.text


def test_numbers_that_are_no_graph(lang: Path) -> None:
    """Random changes under a right checksum: refused in a line, or a graph that k2 decodes with."""
    content, generator = load_tensors(lang / "HLG.pt"), random.Random(0)
    values = [-(2**31), -7, -2, -1, 0, 1, 2, 3, 50, 10**6, 2**31 - 1]
    refused = 0
    for _ in trials(150):
        name = generator.choice(["arcs", "arcs", "aux_labels"])
        changed = {key: value.clone() if key != "made_for" else value for key, value in content.items()}
        flat = changed[name].view(-1)
        for _ in range(generator.choice([1, 1, 5])):
            flat[generator.randrange(len(flat))] = generator.choice(values)
        save_tensors(lang / "HLG.pt", changed)
        try:
            decode(lang)
        except UserError as error:
            assert "\n" not in str(error) and "HLG.pt" in str(error)
            refused += 1
    assert refused > 50


@pytest.mark.parametrize(
    "change",
    [
        {"arcs": torch.zeros(0, 4, dtype=torch.int32)},
        {"arcs": torch.zeros(3, 3, dtype=torch.int32)},
        {"arcs": torch.zeros(3, 4)},
        {"arcs": torch.zeros(12, dtype=torch.int32)},
        {"aux_labels": torch.zeros(1, dtype=torch.int32)},
        {"aux_labels": "words"},
        {"aux_row_splits": torch.tensor([0, 5, 3])},
        {"arcs": "arcs"},
    ],
)
def test_tensors_that_are_no_graph(lang: Path, change: dict) -> None:
    save_tensors(lang / "HLG.pt", {**load_tensors(lang / "HLG.pt"), **change})
    with pytest.raises(UserError, match="HLG.pt holds no graph"):
        load_fsa(lang / "HLG.pt")
