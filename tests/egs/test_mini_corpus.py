"""The embedded corpus: its plan, its sound, and that lhotse takes it for LibriSpeech."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile

from lowbit_k2.synthesis.grammar import parse_grammar, vocabulary
from tests.egs import scripts

LOCAL = Path(__file__).resolve().parents[2] / "egs" / "librispeech" / "local"
FIRST_SENTENCE = "WHO IS THE YOUNG STRANGER WITH HELEN"
SPLITS = ("train-clean-100", "dev-clean", "test-clean")


def local_module(name: str) -> ModuleType:
    return scripts.local_module(LOCAL, name)


def make_corpus(output_dir: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(LOCAL / "make_mini_corpus.py"), "--output-dir", str(output_dir), *flags]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 utterances, one of each voice."""
    path = tmp_path_factory.mktemp("mini") / "LibriSpeech"
    result = make_corpus(path, "--hours", "0.02")
    assert result.returncode == 0, result.stderr
    return path


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def words_by_split(plan) -> dict[str, list[str]]:
    return {
        split: [w for s in plan.speakers if s.split == split for u in plan.utterances[s.id] for w in u.text.split()]
        for split in SPLITS
    }


def test_full_plan_has_voices_and_disjoint_speakers():
    plan = local_module("mini_plan").make_plan()
    assert len({s.voice for s in plan.speakers}) == len(plan.speakers) >= 24
    assert len({s.id for s in plan.speakers}) == len({s.variant for s in plan.speakers}) == len(plan.speakers)
    by_split = {split: {s.variant for s in plan.speakers if s.split == split} for split in SPLITS}
    assert {split: len(v) for split, v in by_split.items()} == dict(zip(SPLITS, (28, 6, 6), strict=True))
    assert all({s.sex for s in plan.speakers if s.split == split} == {"F", "M"} for split in SPLITS)


def test_full_plan_repeats_words_but_no_sentence():
    plan = local_module("mini_plan").make_plan()
    texts = [u.text for s in plan.speakers for u in plan.utterances[s.id]]
    assert len(texts) == len(set(texts)) == plan.num_utterances > 1000
    words = words_by_split(plan)
    in_training = Counter(words["train-clean-100"])
    assert 250 <= len(in_training) <= 500  # a few hundred words
    assert min(in_training[w] for w in words["dev-clean"] + words["test-clean"]) >= 3
    rules = parse_grammar(local_module("mini_text").GRAMMAR_TEXT)
    assert set(in_training) == {w.upper() for w in vocabulary(rules)}


def test_plan_is_a_function_of_hours_and_seed():
    mini_plan = local_module("mini_plan")
    assert mini_plan.make_plan(0.05) == mini_plan.make_plan(0.05)
    assert mini_plan.make_plan(0.05, seed=1) != mini_plan.make_plan(0.05, seed=2)
    # The very bytes of the text are promised: a change here changes every user's corpus.
    first = mini_plan.make_plan().utterances[9001][0]
    assert (first.id, first.text) == ("9001-90010-0000", FIRST_SENTENCE)


def test_ids_are_unique_and_carry_speaker_and_chapter():
    plan = local_module("mini_plan").make_plan(3.0)
    utterances = [(s, u) for s in plan.speakers for u in plan.utterances[s.id]]
    assert len({u.id for _, u in utterances}) == len(utterances)
    assert all(u.id.startswith(f"{s.id}-{u.chapter}-") for s, u in utterances)
    readers = {}
    assert all(readers.setdefault(u.chapter, s.id) == s.id for s, u in utterances)  # a chapter has one reader


def test_layout_is_librispeechs(tiny_corpus: Path):
    assert {p.name for p in tiny_corpus.iterdir() if p.is_dir()} == set(SPLITS)
    transcripts = list(tiny_corpus.glob("*/*/*/*.trans.txt"))
    audio = {p.stem: p for p in tiny_corpus.glob("*/*/*/*.flac")}
    lines = [line.split(maxsplit=1) for path in transcripts for line in path.read_text().splitlines()]
    assert {fields[0] for fields in lines} == set(audio) and len(lines) == len(audio) >= 40
    assert all(text == text.upper() and text for _, text in lines)
    for name, path in audio.items():
        assert (path.parts[-3], path.parts[-2]) == tuple(name.split("-")[:2])
    for table in ("SPEAKERS.TXT", "CHAPTERS.TXT"):
        rows = [r for r in (tiny_corpus / table).read_text().splitlines() if not r.startswith(";")]
        folders = tiny_corpus.glob("*/*" if table == "SPEAKERS.TXT" else "*/*/*")
        assert {r.split("|")[0].strip() for r in rows} == {p.name for p in folders if p.is_dir()}
    assert not list(tiny_corpus.parent.glob(".*"))  # nothing half-made beside it


def test_audio_is_speech_like(tiny_corpus: Path):
    for path in tiny_corpus.glob("*/*/*/*.flac"):
        samples, rate = soundfile.read(path)
        assert rate == 16000 and samples.ndim == 1
        assert 1.0 < len(samples) / rate < 8.0, path
        assert 0.01 < np.sqrt(np.mean(samples**2)) < 0.2 and np.abs(samples).max() <= 0.96, path
        assert np.abs(samples[:800]).max() > 0  # the noise is there before the speech


def test_same_bytes_again_with_other_jobs(tiny_corpus: Path, tmp_path: Path):
    again = tmp_path / "LibriSpeech"
    assert make_corpus(again, "--hours", "0.02", "--num-jobs", "1").returncode == 0
    assert files_of(again) == files_of(tiny_corpus)


def test_lhotse_reads_it(tiny_corpus: Path):
    from lhotse.recipes import prepare_librispeech

    manifests = prepare_librispeech(tiny_corpus)
    assert set(manifests) == set(SPLITS)
    recordings = manifests["dev-clean"]["recordings"]
    supervisions = manifests["dev-clean"]["supervisions"]
    assert len(recordings) == len(supervisions) >= 6
    assert {r.sampling_rate for r in recordings} == {16000}
    assert len({s.speaker for s in supervisions}) == 6


def test_other_corpus_and_bad_flags_are_refused(tiny_corpus: Path, tmp_path: Path):
    before = files_of(tiny_corpus)
    assert make_corpus(tiny_corpus, "--hours", "0.02").returncode == 0  # the same one: nothing to do
    results = [
        make_corpus(tiny_corpus, "--hours", "0.03"),
        make_corpus(LOCAL, "--hours", "0.02"),
        make_corpus(tmp_path / "a", "--hours", "0"),
        make_corpus(tmp_path / "b", "--num-jobs", "0"),
    ]
    for result in results:
        assert result.returncode == 1
        assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert files_of(tiny_corpus) == before and not list(tmp_path.iterdir())


def test_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make_mini_corpus = local_module("make_mini_corpus")

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(make_mini_corpus, "write_tables", fail)
    monkeypatch.setattr(make_mini_corpus, "synthesize", lambda *_: {})
    with pytest.raises(KeyboardInterrupt):
        make_mini_corpus.make_corpus(tmp_path / "LibriSpeech", 0.02, 1, 1)
    assert not list(tmp_path.iterdir())
