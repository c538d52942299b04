"""Runs of deletions, groups of utterances, and `lowbit-k2 score`."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from lhotse import CutSet, MonoCut, SupervisionSegment
from lhotse.testing.dummies import dummy_cut

from lowbit_k2.data.manifests import snrs_of
from lowbit_k2.scoring.detail import by_length, by_snr, count_runs, deletion_runs, detail, format_details
from lowbit_k2.scoring.recogs import write_recogs
from lowbit_k2.scoring.wer import Result, score
from tests.egs.scripts import call

MAIN = "lowbit_k2.cli"
WORDS = [f"w{n}" for n in range(30)]


def without(words: list[str], *gaps: tuple[int, int]) -> list[str]:
    return [word for n, word in enumerate(words) if not any(start <= n < end for start, end in gaps)]


def test_runs_of_deletions() -> None:
    hyp = without(WORDS, (0, 2), (5, 8), (12, 17), (18, 30))
    hyp[hyp.index("w9")] = "x"  # a substitution, which ends no run and begins none
    results = [("a", WORDS, hyp), ("b", ["w1", "w2", "w3"], []), ("c", ["w1"], ["w1", "w2"]), ("d", [], ["w1"])]
    assert deletion_runs(results) == [2, 3, 5, 12, 3]
    assert count_runs(deletion_runs(results)) == {3: 4, 5: 2, 11: 1}
    assert sum(deletion_runs(results)) == score(results).dels


def test_runs_add_up_to_the_deletions_of_any_words() -> None:
    rng = random.Random(0)
    for _ in range(200):
        ref, hyp = ([rng.choice("abc") for _ in range(rng.randrange(12))] for _ in range(2))
        assert sum(deletion_runs([("u", ref, hyp)])) == score([("u", ref, hyp)]).dels


def test_groups_by_length() -> None:
    results = [(str(n), WORDS[:n] * (1 + n // 29), []) for n in (0, 1, 5, 6, 10, 11, 20, 21, 30)]
    found = by_length(results)
    assert {label: (n, stats.ref_words) for label, (n, stats) in found.items()} == {
        "0": (1, 0),
        "1-5": (2, 6),
        "6-10": (2, 16),
        "11-20": (2, 31),
        "21-40": (1, 21),
        "41+": (1, 60),
    }
    assert sum(stats.errors for _, stats in found.values()) == score(results).errors


def test_groups_by_snr() -> None:
    results: list[Result] = [(str(n), ["a", "b"], ["a"]) for n in range(12)]
    few = by_snr(results, {"0": -5.0, "1": 20.0, "2": 0.0, "3": 20.0})
    assert [(label, n) for label, (n, _) in few.items()] == [("-5 dB", 1), ("0 dB", 1), ("20 dB", 2), ("clean", 8)]
    many = by_snr(results, {str(n): 2.0 * n - 3.5 for n in range(12)})
    assert [(label, n) for label, (n, _) in many.items()] == [
        ("-5 to 0 dB", 2),
        ("0 to 5 dB", 3),
        ("5 to 10 dB", 2),
        ("10 to 15 dB", 3),
        ("15 to 20 dB", 2),
    ]


def cut(name: str, **fields: object) -> MonoCut:
    return MonoCut(name, 0.0, 1.0, 0, supervisions=[SupervisionSegment(name, name, 0.0, 1.0)], custom=fields or None)


def test_snr_of_cuts() -> None:
    speech, noise = dummy_cut(0, duration=1.0), dummy_cut(1, duration=1.0)
    mixed = speech.mix(noise, snr=12.0, preserve_id="left").mix(noise, snr=7.0, preserve_id="left")
    found = snrs_of(CutSet.from_cuts([cut("a", snr=3), cut("b"), cut("c", snr="loud"), mixed]))
    assert found == {"a": 3, speech.id: 7.0}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """A system with a run of five deletions in every other utterance, and one without errors."""
    names = [f"u{n}" for n in range(10)]
    ref = WORDS[:8]
    write_recogs(tmp_path / "weak.txt", [(u, ref, ref[: 3 if n % 2 else 8]) for n, u in enumerate(names)])
    write_recogs(tmp_path / "good.txt", [(u, ref, ref) for u in names])
    CutSet.from_cuts(cut(u, snr=10 * (n % 2)) for n, u in enumerate(names)).to_file(tmp_path / "cuts.jsonl.gz")
    CutSet.from_cuts(map(cut, names)).to_file(tmp_path / "clean.jsonl.gz")
    CutSet.from_cuts([cut("other", snr=1)]).to_file(tmp_path / "other.jsonl.gz")
    return {path.name.partition(".")[0]: path for path in tmp_path.iterdir()}


def test_the_command_prints_tables(files: dict[str, Path]) -> None:
    text = call(MAIN, "score", files["weak"], files["good"], "--cuts", files["cuts"]).good().out
    first, second, third = text.split("\n\n")
    line = next(line.split() for line in first.splitlines() if line.startswith(str(files["weak"])))
    assert line[1:4] == ["10", "80", "31.25"] and line[5:] == ["0", "25", "0", "5", "5", "0", "5"]
    assert "6-10" in second and "31.25 (80)" in second
    assert third.splitlines()[1].split() == ["system", "0", "dB", "10", "dB"]
    assert "0.00 (40)  62.50 (40)" in third and "0.00 (40)   0.00 (40)" in third


def test_the_command_for_programs(files: dict[str, Path]) -> None:
    weak, good = json.loads(call(MAIN, "score", files["weak"], files["good"], "--json").good().out)
    assert weak["file"] == str(files["weak"]) and weak["deletion_runs"] == {"3": 5, "5": 5, "11": 0}
    assert weak["rate"] == 25 / 80 and weak["by_length"]["6-10"]["dels"] == 25 and weak["by_snr"] == {}
    assert good["longest_deletion_run"] == 0 and good["interval"] == [0, 0]


def test_no_reference_words() -> None:
    found = detail([("u", [], ["a"])])
    assert found.interval is None and found.to_dict()["rate"] is None and "inf" in format_details({"x": found})


def test_cuts_that_do_not_fit(files: dict[str, Path]) -> None:
    weak = files["weak"]
    assert "the cuts carry no SNR" in call(MAIN, "score", weak, "--cuts", files["clean"]).error()
    assert (
        f"{weak}: the cuts have none of its utterances" in call(MAIN, "score", weak, "--cuts", files["other"]).error()
    )
    assert "nowhere.txt does not exist" in call(MAIN, "score", weak.with_name("nowhere.txt")).error()
