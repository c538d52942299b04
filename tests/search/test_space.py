"""Candidates: the paper's by default, refused where they cannot be; widths of a choice."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lowbit_k2.core.config import ConfigError
from lowbit_k2.core.encoders import ConformerConfig, EncoderConfig, TdnnfConfig
from lowbit_k2.errors import UserError
from lowbit_k2.search.config import SearchConfig
from lowbit_k2.search.space import SEARCHABLE, Searchable, SearchSpace, register_searchable
from tests.search.toy import CONFORMER, TDNNF, space_of


def test_default_candidates_are_the_papers_in_proportion() -> None:
    assert SearchSpace.of(TdnnfConfig.presets["tdnnf-7q"]).candidates == (25, 50, 80, 100, 120, 160, 200, 240)
    assert SearchSpace.of(ConformerConfig.presets["tiny"]).candidates == (90, 180, 288, 360, 432, 576, 720, 864)
    narrow = replace(TDNNF.encoder, bottlenecks=(2,))
    assert SearchSpace.of(narrow).candidates == (1, 2, 3)


def test_a_choice_is_a_width_for_each_layer() -> None:
    space = space_of(TDNNF)
    assert space.largest == (2, 2, 2, 2)
    assert space.apply(TDNNF, [0, 2, 1, 1]).encoder.bottlenecks == (2, 6, 3, 3)
    assert space_of(CONFORMER).apply(CONFORMER, [1, 0, 2]).encoder.ffn_dim == (16, 5, 24)


@pytest.mark.parametrize("candidates", [(), (4,), (4, 4), (8, 4), (0, 4), (1.5, 4), (True, 4)])
def test_candidates_that_are_none(candidates: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="candidates .*: give two or more different widths, from small to large"):
        SearchSpace.of(TDNNF.encoder, candidates)
    with pytest.raises(ConfigError, match="give two or more different widths"):
        SearchConfig(candidates=candidates)


def test_candidates_that_are_too_large() -> None:
    with pytest.raises(ConfigError, match="candidates 13 is too large: bottlenecks 13: give one, or 4, from 1 to 12"):
        SearchSpace.of(TDNNF.encoder, (2, 13))
    with pytest.raises(ConfigError, match="candidates 200000 is too large: ffn_dim"):
        SearchSpace.of(CONFORMER.encoder, (2, 200_000))


def test_an_encoder_without_widths(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(EncoderConfig):
        kind = "other"

    with pytest.raises(UserError, match="a other has no widths to search: choose one of tdnnf, conformer"):
        SearchSpace.of(Other(), (1, 2))
    monkeypatch.setattr("lowbit_k2.search.space.SEARCHABLE", dict(SEARCHABLE))
    register_searchable("other", Searchable("sizes", outputs=("middle",)))
    assert SearchSpace("other", (1, 2), 3).field == "sizes"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"eta": -0.1}, "eta must not be negative, it is -0.1"),
        ({"eta": float("nan")}, "eta must be a finite number"),
        ({"start_temperature": 0.0}, "start_temperature must be at least 0.001"),
        ({"start_temperature": 1e9}, "start_temperature must be at most 100"),
        ({"final_temperature": -1.0}, "final_temperature must be at least 0.001"),
        ({"final_temperature": 1.5}, "final_temperature 1.5 must not be above start_temperature"),
        ({"cost": "seconds"}, "cost 'seconds' is unknown: choose one of parameters, bytes"),
        ({"bits": 16}, "bits must be at most 8"),
        ({"logits_share": 0.0}, "logits_share must be positive"),
        ({"logits_share": 0.9}, "logits_share must be at most 0.5"),
    ],
)
def test_settings_out_of_range(wrong: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        SearchConfig(**wrong)


def test_settings_survive_json() -> None:
    config = SearchConfig(candidates=(3, 9), eta=0.5, cost="bytes")
    assert SearchConfig.from_dict(config.to_dict()) == config
