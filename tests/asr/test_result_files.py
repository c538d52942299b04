"""Result files: evaluations are added, and what was recognised is found by `lowbit-k2 report` and by name."""

from __future__ import annotations

from pathlib import Path

from lowbit_k2.asr.evaluation import Evaluation
from lowbit_k2.asr.result_files import keep, kept_recogs, sets_left
from lowbit_k2.report.experiments import read_experiment
from lowbit_k2.scoring.recogs import read_recogs, write_recogs

GREEDY = "ctc-greedy-search"


def evaluation(test_set: str, exp_dir: Path, word: str) -> Evaluation:
    recogs = f"{GREEDY}/recogs-{test_set}.txt"
    write_recogs(exp_dir / recogs, [("a", ["GO"], [word])])
    errors = {GREEDY: {"ins": 0, "dels": 0, "sub": int(word != "GO"), "ref_words": 1}}
    return Evaluation("1", test_set, errors, {GREEDY: (0.0, 1.0)}, 10, 100, {GREEDY: recogs})


def test_sets_are_added_one_after_the_other(tmp_path: Path) -> None:
    result, sets = tmp_path / "results/naive-s1.json", ["test", "test-snr10"]
    assert sets_left(result, sets) == sets
    keep(result, {"label": "naive"}, [evaluation("test", tmp_path / "exp", "GO")], tmp_path / "exp", several=True)
    assert sets_left(result, sets) == ["test-snr10"]
    keep(result, {"label": "other"}, [evaluation("test-snr10", tmp_path / "exp", "NO")], tmp_path / "exp", several=True)
    assert sets_left(result, sets) == []
    assert read_recogs(kept_recogs(result, "1", GREEDY, "test-snr10")) == [("a", ["GO"], ["NO"])]
    [found] = read_experiment(result.parent)
    assert found.name == "naive" and [(s.test_set, s.results[0][2]) for s in found.scores] == [
        ("test", ["GO"]),
        ("test-snr10", ["NO"]),
    ]


def test_a_result_of_one_set_has_no_name_of_it(tmp_path: Path) -> None:
    result = tmp_path / "naive.json"
    keep(result, {}, [evaluation("test", tmp_path, "GO")], tmp_path)
    before = kept_recogs(result, "1", GREEDY).read_bytes()
    assert kept_recogs(result, "1", GREEDY).name == f"naive-1-{GREEDY}.txt.gz"
    result.unlink()
    keep(result, {}, [evaluation("test", tmp_path, "GO")], tmp_path)
    assert kept_recogs(result, "1", GREEDY).read_bytes() == before  # no time of writing in it
