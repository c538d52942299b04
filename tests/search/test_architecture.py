"""The file: to JSON and back, refused where it is damaged or of another model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lowbit_k2.errors import UserError
from lowbit_k2.search.architecture import Architecture
from tests.search.toy import CONFORMER, TDNNF

FOUND = Architecture(
    encoder="tdnnf",
    fields={"bottlenecks": (2, 6, 3, 6)},
    candidates=(2, 3, 6),
    probabilities=((0.7, 0.2, 0.1),) * 4,
    cost={"measure": "bytes", "bits": 4, "value": 100, "largest": 120},
    eta=0.1,
    searched_on={"objective": "ctc", "supernet": "abc", "utterances": 7},
)


def test_it_survives_json(tmp_path: Path) -> None:
    FOUND.save(tmp_path / "a.json")
    assert Architecture.load(tmp_path / "a.json") == FOUND
    assert json.loads((tmp_path / "a.json").read_text())["format"] == "lowbit_k2 architecture 1"
    assert FOUND.fields_for(TDNNF.encoder) == {"bottlenecks": (2, 6, 3, 6)}


def test_what_training_reads_is_enough(tmp_path: Path) -> None:
    text = '{"format": "lowbit_k2 architecture 1", "encoder": "conformer", "fields": {"ffn_dim": [3, 4, 5]}}'
    (tmp_path / "by-hand.json").write_text(text)
    assert Architecture.load(tmp_path / "by-hand.json").fields_for(CONFORMER.encoder) == {"ffn_dim": (3, 4, 5)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "lowbit_k2 sensitivity 1"}, "is no architecture: make it with lowbit_k2.recipe.search"),
        ({"fields": None}, "is damaged"),
        ({"fields": {}}, "is damaged"),
        ({"fields": {"bottlenecks": 160}}, "is damaged"),
        ({"fields": {"bottlenecks": [1.5, 2]}}, "is damaged"),
        ({"fields": {"bottlenecks": "12"}}, "is damaged"),
        ({"encoder": 3}, "is damaged"),
        ({"candidates": 3}, "is damaged"),
        ({"more": 1}, "is damaged"),
    ],
)
def test_damaged_files(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    FOUND.save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=words):
        Architecture.load(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "7", '{"format": "lowbit_k2 architecture 1"}', "[" * 100_000])
def test_files_that_are_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=r"a\.json"):
        Architecture.load(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("encoder", "fields", "words"),
    [
        ("conformer", {"ffn_dim": (3, 4, 5, 6)}, "is of a conformer, the model is a tdnnf"),
        ("tdnnf", {"bottlenecks": (2, 6)}, "has bottlenecks of 2 layers, the model has 4"),
        ("tdnnf", {"bottlenecks": (2, 6, 0, 1)}, "does not fit the model: bottlenecks 2,6,0,1"),
        ("tdnnf", {"bottlenecks": (2, 6, 13, 1)}, "does not fit the model: bottlenecks 2,6,13,1"),
        ("tdnnf", {"ffn_dim": (2, 6, 1, 1)}, "has fields that a tdnnf lacks: ffn_dim"),
    ],
)
def test_other_models(encoder: str, fields: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        Architecture(encoder, fields).fields_for(TDNNF.encoder)
