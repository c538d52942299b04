"""Where the numbers behind RESULTS.md lie: results/*.json and what was recognised, results/recogs."""

from __future__ import annotations

from pathlib import Path

from systems import CONDITIONS, RECIPE, ROOMS, Row

RESULTS, NOISE, TIMING = RECIPE / "results", "noise", RECIPE / "timing.json"


def result_path(r: Row, folder: str = "") -> Path:
    """Of a row on the test set, or, in the folder `NOISE`, on the sets of the tables of noise."""
    return RESULTS / folder / f"{r.key}.json"


def noisy_sets(split: str) -> dict[str, str]:
    """Test sets of the tables of noise by condition: the clean one, and its copies."""
    return {"clean": split, **{condition: f"{split}-{condition}" for condition in (*CONDITIONS, *ROOMS)}}


def speaker_of(utterance: str) -> str:
    """an251-fash-b -> fash."""
    return utterance.split("-")[1]
