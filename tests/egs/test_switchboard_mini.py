"""The embedded telephone corpus: its plan, its layout, and that its sound and its transcripts belong together."""

from __future__ import annotations

import csv
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile

from lowbit_k2.data.sphere import read_header
from lowbit_k2.scoring.glm import filter_reference, read_glm
from lowbit_k2.scoring.stm import read_stm, read_stm_header
from lowbit_k2.synthesis.audio import rms
from lowbit_k2.synthesis.grammar import vocabulary
from tests.egs import scripts
from tests.egs.scripts import ROOT, Run, spawn

LOCAL = ROOT / "egs" / "switchboard" / "local"
RATE = 8000
TINY = "0.02"
FIRST_TURN = ("hi", "my", "name", "is", "tom", "i'm", "um", "from", "chicago")
Line = tuple[float, float, list[str]]  # start, end, words


def local_module(name: str) -> ModuleType:
    return scripts.local_module(LOCAL, name)


def make_corpus(output_dir: Path, *flags: str) -> Run:
    return spawn(sys.executable, LOCAL / "make_mini_corpus.py", "--output-dir", output_dir, *flags)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four training calls and two test calls of some 20 seconds."""
    path = tmp_path_factory.mktemp("swbd-mini") / "mini"
    make_corpus(path, "--hours", TINY).good()
    return path


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def audio_files(corpus: Path) -> dict[str, Path]:
    return {p.stem: p for p in sorted(corpus.rglob("*.sph"))}


def read_trans(corpus: Path, number: int, side: str) -> list[Line]:
    name = f"sw{number}{side}-ms98-a"
    path = corpus / f"swb_ms98_transcriptions/{number // 100}/{number}/{name}-trans.text"
    fields = [line.split() for line in path.read_text().splitlines()]
    assert [f[0] for f in fields] == [f"{name}-{i:04d}" for i in range(1, len(fields) + 1)]
    return [(float(f[1]), float(f[2]), f[3:]) for f in fields]


def test_full_plan_has_disjoint_voices_and_callers_who_recur():
    plan = local_module("mini_calls").make_plan()
    train = {c.id for call in plan.part("train") for c in call.callers}
    test = {c.id for call in plan.part("swbd", "callhm") for c in call.callers}
    assert len(train) == 28 and len(test) == 12 and not train & test
    variants = [c.voice.partition("+")[2] for c in plan.callers]
    assert len(set(variants)) == len(variants) == 40
    calls = Counter(c.id for call in plan.part("train") for c in call.callers)
    assert min(calls.values()) >= 2
    assert all(a.id != b.id for a, b in (call.callers for call in plan.calls))
    assert len({call.number for call in plan.calls}) == len({call.name for call in plan.calls}) == len(plan.calls)


def test_full_plan_says_few_words_often():
    plan = local_module("mini_calls").make_plan()
    dialogue = local_module("mini_dialogue")
    words = defaultdict(Counter)
    for call in plan.calls:
        words[call.part].update(w for turn in call.turns for w in turn.words)
    plain = {w for part in ("swbd", "callhm") for w in words[part] if "[" not in w}
    assert len(plain) > 150 and min(words["train"][w] for w in plain) >= 4
    assert set(vocabulary(dialogue.RULES)) <= set(words["train"]) and len(words["train"]) < 400
    marks = {w for w in words["train"] if "[" in w}
    assert marks >= set(dialogue.EVENTS) | {"th[at]-", "wh[at]-", "[laughter-yeah]"}
    assert set(words["train"]) - set(dialogue.EVENTS) <= set(dialogue.spoken_words())
    turns = [turn for call in plan.calls for turn in call.turns]
    assert sum(t.is_over for t in turns) > 50  # back-channels while the other side speaks


def test_test_calls_hold_no_statement_of_the_training():
    """But for the short ones, which everybody says: of eight words and more."""
    calls = local_module("mini_calls")
    plan = calls.make_plan()

    def statements(*parts: str) -> set[tuple[str, ...]]:
        sentences = [s for call in plan.part(*parts) for turn in call.turns for s in turn.sentences]
        return {s.words for s in sentences if len(s.words) >= 8 and not s.is_question and s.words[0] != "okay"}

    assert len(statements("swbd", "callhm")) > 60
    shared = statements("train") & statements("swbd", "callhm")
    assert {s for s in shared if not set(s) & {"talk", "talking", "about"}} == set()


def test_plan_is_a_function_of_hours_and_seed():
    calls = local_module("mini_calls")
    assert calls.make_plan(0.05) == calls.make_plan(0.05)
    assert calls.make_plan(0.05, seed=1) != calls.make_plan(0.05, seed=2)
    # The very words are promised: a change here changes every user's corpus.
    assert calls.make_plan().calls[0].turns[0].words == FIRST_TURN


def test_layout_is_the_discs(corpus: Path):
    names = set(audio_files(corpus))
    assert names == {"sw02001", "sw02002", "sw02003", "sw02004", "sw_4501", "en_4101"}
    assert {p.parent.name for p in corpus.glob("LDC97S62/swb1_d*/data/*.sph")} == {"data"}
    files = set(files_of(corpus))
    assert {
        "README.TXT",
        "LDC97S62/caller_tab.csv",
        "LDC97S62/conv_tab.csv",
        "swb_ms98_transcriptions/sw-ms98-dict.text",
        "LDC2002S09/hub5e_00/english/hub5e_00.pem",
        "LDC2002S09/hub5e_00/english/sw_4501.sph",
        "LDC2002T43/reference/hub5e00.english.000405.stm",
        "LDC2002T43/reference/en20000405_hub5.glm",
    } <= files
    assert len(files) == 7 + len(names) + 2 * 4
    assert [p.name for p in corpus.parent.iterdir()] == [corpus.name]  # nothing half-made beside it


def test_audio_is_two_channel_mu_law(corpus: Path):
    for path in audio_files(corpus).values():
        header = read_header(path)
        assert (header.sampling_rate, header.num_channels, header.coding, header.shorten) == (RATE, 2, "ulaw", False)
        samples, rate = soundfile.read(path)
        assert rate == RATE and samples.shape == (header.num_samples, 2)
        assert path.stat().st_size == 1024 + samples.size
        assert 10 < len(samples) / RATE < 60
        assert 0.1 < np.abs(samples).max() < 0.97  # neither faint nor clipped


def test_transcripts_tile_the_audio(corpus: Path):
    for number in range(2001, 2005):
        seconds = soundfile.info(audio_files(corpus)[f"sw0{number}"]).duration
        for side in "AB":
            lines = read_trans(corpus, number, side)
            assert lines[0][0] == 0 and lines[-1][1] == pytest.approx(seconds, abs=1e-6)
            assert all(one[1] == two[0] for one, two in zip(lines, lines[1:], strict=False))
            assert all(start < end and words for start, end, words in lines)
            assert all("[silence]" not in words or words == ["[silence]"] for _, _, words in lines)
            assert sum(words != ["[silence]"] for _, _, words in lines) >= 3


def test_channels_carry_their_own_side(corpus: Path):
    """Each channel is loud where its own transcript has words, and quiet where only the other one's has."""
    for number in range(2001, 2005):
        samples, _ = soundfile.read(audio_files(corpus)[f"sw0{number}"])
        speaks = {}
        for side in "AB":
            speaks[side] = np.zeros(len(samples), bool)
            for start, end, words in read_trans(corpus, number, side):
                speaks[side][round(start * RATE) : round(end * RATE)] = words != ["[silence]"]
        for channel, (own, other) in enumerate((("A", "B"), ("B", "A"))):
            loud = rms(samples[speaks[own], channel])
            quiet = rms(samples[speaks[other] & ~speaks[own], channel])
            assert loud > 5 * quiet > 0, (number, own)


def test_band_is_a_telephones(corpus: Path):
    for path in audio_files(corpus).values():
        samples, _ = soundfile.read(path)
        power = (np.abs(np.fft.rfft(samples, axis=0)) ** 2).mean(axis=1)
        frequencies = np.fft.rfftfreq(len(samples), 1 / RATE)
        inside, above = (power[(frequencies > a) & (frequencies < b)].mean() for a, b in ((400, 3000), (3750, 4000)))
        assert 10 * np.log10(inside / above) > 20, path  # mu-law's own noise lies above the band


def test_callhome_is_noisier(corpus: Path):
    """The quietest tenth of 20 ms frames against the loudest, which is about the speech."""

    def snr(name: str) -> float:
        samples, _ = soundfile.read(audio_files(corpus)[name])
        frames = samples[: len(samples) // 160 * 160].reshape(-1, 160, 2)
        levels = np.quantile(10 * np.log10((frames**2).mean(axis=1)), [0.1, 0.9], axis=0)
        return float((levels[1] - levels[0]).mean())

    assert snr("en_4101") < snr("sw_4501")


def test_dictionary_covers_all_words(corpus: Path):
    lines = (corpus / "swb_ms98_transcriptions/sw-ms98-dict.text").read_text().splitlines()
    assert lines[0].startswith("#")
    entries = [line.split() for line in lines if not line.startswith("#")]
    assert all(len(e) > 1 for e in entries) and len({e[0] for e in entries}) == len(entries)
    phones = {phone for entry in entries for phone in entry[1:]}
    assert all(re.fullmatch("[a-z]{1,3}", phone) for phone in phones) and 35 <= len(phones) <= 43
    pronunciations = {e[0]: " ".join(e[1:]) for e in entries}
    assert pronunciations["yeah"] == pronunciations["[laughter-yeah]"] == "y eh hh"
    assert pronunciations["because_1"] == "k ah z"
    words = {w for n in range(2001, 2005) for s in "AB" for _, _, ws in read_trans(corpus, n, s) for w in ws}
    assert words - set(pronunciations) <= set(local_module("mini_dialogue").EVENTS)


def test_tables_name_the_callers(corpus: Path):
    def rows(name: str) -> list[list[str]]:
        with (corpus / "LDC97S62" / name).open(newline="") as file:
            return list(csv.reader(file, skipinitialspace=True))

    callers = {row[0]: row for row in rows("caller_tab.csv")}
    assert all(len(row) == 14 and row[3] in ("MALE", "FEMALE") for row in callers.values())
    conversations = {row[0]: row[2:4] for row in rows("conv_tab.csv")}
    assert set(conversations) == {"2001", "2002", "2003", "2004"}
    assert {c for pair in conversations.values() for c in pair} == set(callers)


def test_stm_is_read_and_agrees_with_the_pem(corpus: Path):
    path = corpus / "LDC2002T43/reference/hub5e00.english.000405.stm"
    segments = read_stm(path)
    pem = (corpus / "LDC2002S09/hub5e_00/english/hub5e_00.pem").read_text().splitlines()
    assert [f"{s.recording} {s.channel} unknown_speaker {s.start:.2f} {s.end:.2f}" for s in segments] == pem[1:]
    for segment in segments:
        assert segment.end <= soundfile.info(audio_files(corpus)[segment.recording]).duration + 0.005
        corpus_label, sex = segment.labels[1:3]
        assert segment.recording.startswith(corpus_label)
        assert segment.labels == ("O", corpus_label, sex, f"{corpus_label}-{sex}")
        assert segment.text == segment.text.upper() and "[" not in segment.text
    assert {s.labels[1] for s in segments} == {"sw", "en"} and {s.labels[2] for s in segments} == {"F", "M"}
    ignored = [s for s in segments if s.is_ignored]
    assert {(s.recording, s.channel) for s in ignored} == {(r, c) for r in ("en_4101", "sw_4501") for c in "AB"}
    labels = [line.split('"')[1] for line in read_stm_header(path) if " LABEL " in line]
    assert {"O", "EN", "SW", "F", "M", "EN-F", "SW-M"} <= set(labels)
    glm = read_glm(corpus / "LDC2002T43/reference/en20000405_hub5.glm", "ref")
    assert len(filter_reference(segments, glm, path)) == len(segments)


def test_words_of_a_reference():
    stm_text = local_module("mini_discs").stm_text
    words = ("uh", "th[at]-", "that's", "[laughter-right]", "because_1", "[noise]", "bye-bye")
    expected = "(%HESITATION) (TH-) THAT'S RIGHT { BECAUSE / 'CAUSE } { BYE-BYE / BYE BYE }"
    assert stm_text(words) == expected
    assert stm_text(("[laughter]",)) == "IGNORE_TIME_SEGMENT_IN_SCORING"


def test_same_bytes_again_with_other_jobs(corpus: Path, tmp_path: Path):
    again = tmp_path / "mini"
    make_corpus(again, "--hours", TINY, "--num-jobs", "1").good()
    assert files_of(again) == files_of(corpus)


def test_other_corpus_and_bad_flags_are_refused(corpus: Path, tmp_path: Path):
    before = files_of(corpus)
    assert "is there already" in make_corpus(corpus, "--hours", TINY).good().out
    assert "another corpus" in make_corpus(corpus, "--hours", "0.03").error()
    assert "--hours" in make_corpus(tmp_path / "a", "--hours", "0").error()
    assert "--num-jobs" in make_corpus(tmp_path / "b", "--num-jobs", "0").error()
    assert files_of(corpus) == before and not list(tmp_path.iterdir())


def test_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plan, script = local_module("mini_calls").make_plan(0.02), local_module("make_mini_corpus")

    def fail(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "synthesize_all", fail)
    with pytest.raises(KeyboardInterrupt):
        script.make_corpus(plan, tmp_path / "mini", 1)
    assert not list(tmp_path.iterdir())
