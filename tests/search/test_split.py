"""The two parts of the training utterances: disjoint, whole, the same at every call."""

from __future__ import annotations

from pathlib import Path

import pytest
from lhotse import CutSet
from lhotse.testing.dummies import dummy_cut

from lowbit_k2.core.config import ConfigError
from lowbit_k2.search.split import is_held_out, split_cuts, utterance_of


def cuts_of(number: int) -> CutSet:
    names = [f"an{i}-spk-b{mark}" for i in range(number) for mark in ("", "_sp0.9", "_sp1.1")]
    return CutSet.from_cuts(dummy_cut(i).with_id(name) for i, name in enumerate(names))


def test_parts_are_disjoint_and_whole() -> None:
    cuts = cuts_of(2000)
    most, rest = split_cuts(cuts, 0.05)
    ids = [{cut.id for cut in part} for part in (most, rest)]
    assert not ids[0] & ids[1] and ids[0] | ids[1] == {cut.id for cut in cuts}
    assert 0.04 < len(ids[1]) / 6000 < 0.06
    utterances = [{utterance_of(name) for name in part} for part in ids]
    assert not utterances[0] & utterances[1], "copies at other speeds are on one side"
    assert [c.id for c in split_cuts(cuts, 0.05)[1]] == [c.id for c in rest], "in the order of the cuts"
    assert not most.is_lazy and not rest.is_lazy


def test_an_utterance_is_on_the_same_side_whatever_else_there_is() -> None:
    few, many = (split_cuts(cuts_of(number), 0.2)[1] for number in (50, 100))
    assert {cut.id for cut in few} <= {cut.id for cut in many}
    grown = split_cuts(cuts_of(100), 0.3)[1]
    assert {cut.id for cut in many} <= {cut.id for cut in grown}


def test_lazy_cuts_stay_lazy(tmp_path: Path) -> None:
    cuts = cuts_of(100)
    cuts.to_file(tmp_path / "cuts.jsonl.gz")
    most, rest = split_cuts(CutSet.from_jsonl_lazy(tmp_path / "cuts.jsonl.gz"), 0.1)
    assert most.is_lazy and not rest.is_lazy
    assert [[c.id for c in part] for part in (most, rest)] == [[c.id for c in part] for part in split_cuts(cuts, 0.1)]


def test_marks_of_copies_are_no_part_of_the_name() -> None:
    names = {"a_sp0.9": "a", "a_sp1.1_vp0.75": "a", "a_tp1.05": "a", "sp0.9_a": "sp0.9_a", "a_sp": "a_sp", "a-0": "a-0"}
    assert {name: utterance_of(name) for name in names} == names
    assert is_held_out("a_sp0.9", 0.5) == is_held_out("a", 0.5)


def test_a_part_without_cuts() -> None:
    with pytest.raises(ConfigError, match="logits_share 1e-09 of the training utterances leaves one part empty"):
        split_cuts(cuts_of(3), 1e-9)
