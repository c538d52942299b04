"""Stage 1 of the Switchboard recipe: from discs to manifests and features, the split, and discs that are broken."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.egs.scripts import Run, call, files_of, refused
from tests.egs.swbd_discs import LOCAL, disc_flags, local_module, write_call, write_discs, write_transcript

SCRIPT = LOCAL / "prepare_manifests.py"
# Caller 1 speaks in calls 2001 and 2002 only.
CALLERS = {2001: (1, 2), 2002: (3, 1), 2003: (2, 3), 2004: (4, 5), 2005: (5, 2)}


def prepare(root: Path, *flags: str | float | Path) -> Run:
    return call(SCRIPT, *disc_flags(root), "--manifest-dir", root / "data/manifests", *flags)


def read(folder: Path, split: str):
    """Recordings and supervisions."""
    from lhotse import load_manifest

    return [load_manifest(folder / f"swbd_{kind}_{split}.jsonl.gz") for kind in ("recordings", "supervisions")]


# --- the simulated calls ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def simulated(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Manifests of swbd_sim."""
    folder = tmp_path_factory.mktemp("swbd-sim") / "data/manifests"
    sim = data_dir / "swbd_sim"
    flags = ["--swbd-dir", sim / "LDC97S62", "--ms98-dir", sim / "swb_ms98_transcriptions"]
    run = call(SCRIPT, *flags, "--manifest-dir", folder).good()
    assert "420 segments in 20 transcripts, 0 of them spoilt" in run.out
    assert "train: 180 segments of 18 speakers in 9 calls, 0.21 hours" in run.out
    assert "dev: 20 segments of 2 speakers in 1 calls" in run.out
    assert "no table of callers: dev is held out by conversation" in run.out
    assert "note: no sw-ms98-dict.text" in run.err and "warning" not in run.err
    return folder


def test_simulated_calls_become_segments(simulated: Path, data_dir: Path) -> None:
    recordings, supervisions = read(simulated, "train")
    assert len(recordings) == 9 and len(supervisions) == 180
    for supervision in supervisions:
        number, side = supervision.recording_id[3:], "AB"[supervision.channel]
        assert supervision.speaker == f"{supervision.recording_id}-{side}"
        assert supervision.id.startswith(f"{supervision.recording_id}-{side}_")
        path = data_dir / f"swbd_sim/swb_ms98_transcriptions/{number[:2]}/{number}/sw{number}{side}-ms98-a-trans.text"
        end = supervision.start + supervision.duration
        lines = [" ".join(line.split()[1:]) for line in path.read_text().splitlines()]
        assert f"{supervision.start:.6f} {end:.6f} {supervision.text}" in lines
    first = next(s for s in supervisions if s.id == "sw03001-A_000030-000536")
    assert (first.start, first.duration) == (0.3, 5.064)
    texts = (simulated / "transcript_train.txt").read_text().splitlines()
    assert texts == [s.text for s in supervisions] and sorted(supervisions.ids) == list(supervisions.ids)


def test_simulated_calls_become_features(simulated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each segment has the features of its own side: there is speech where the transcript says so."""
    import lhotse.audio.backend as backend

    monkeypatch.setattr(backend, "CURRENT_AUDIO_BACKEND", None)
    monkeypatch.setenv("LHOTSE_AUDIO_BACKEND", "LibsndfileBackend")
    flags = ["--corpus", "swbd", "--splits", "dev", "--manifest-dir", simulated, "--output-dir", tmp_path / "fbank"]
    call("lowbit_k2.recipe.compute_fbank", *flags, "--sampling-rate", 8000, "--num-mel-bins", 64).good()
    from lhotse import load_manifest

    cuts = load_manifest(tmp_path / "fbank/swbd_cuts_dev.jsonl.gz")
    _, supervisions = read(simulated, "dev")
    assert sorted(cuts.ids) == sorted(supervisions.ids)
    wrong = 0
    for cut in cuts:
        assert cut.num_features == 64 and abs(cut.num_frames - 100 * cut.duration) <= 1
        other = cut.recording.load_audio(channels=1 - cut.channel, offset=cut.start, duration=cut.duration)
        wrong += np.square(cut.load_audio()).mean() < np.square(other).mean()
        assert cut.load_features().std() > 1
    assert wrong <= 2  # now and then the other one speaks at the same time


# --- the split ----------------------------------------------------------------------------------------------------


def test_dev_callers_are_in_no_training_call(tmp_path: Path) -> None:
    run = prepare(write_discs(tmp_path, CALLERS), "--dev-share", 0.001).good()
    splits = {split: read(tmp_path / "data/manifests", split)[1] for split in ("train", "dev")}
    callers = {split: {s.speaker for s in found} for split, found in splits.items()}
    calls = {split: {s.recording_id for s in found} for split, found in splits.items()}
    assert len(callers["dev"]) == 1 and not callers["dev"] & callers["train"] and not calls["dev"] & calls["train"]
    dev = int(min(callers["dev"]).removeprefix("caller"))
    expected = {f"sw0{number}" for number, pair in CALLERS.items() if dev in pair}
    assert calls["dev"] == expected and len(splits["dev"]) == 2 * len(expected)
    assert f"{len(expected)} sides of dev calls are another caller's and left out" in run.out
    recordings, _ = read(tmp_path / "data/manifests", "dev")
    assert {r.id for r in recordings} == expected


def test_the_split_depends_on_names_only() -> None:
    """Discs that are missing change nothing for the others; about as much is dev as was asked for."""
    manifests = local_module("prepare_manifests")
    split_sides = manifests.split_sides
    sides = [(f"sw0{number}", side) for number in range(2001, 4001) for side in "AB"]
    callers = {side: str(1000 + int(manifests.hash_share(f"test {side}") * 2**32) % 543) for side in sides}
    whole = split_sides(sides, callers, 0.01)
    fewer = split_sides(sides[:3000], callers, 0.01)
    assert fewer.dev == whole.dev & set(sides[:3000]) and fewer.train == whole.train & set(sides[:3000])
    assert 0.003 < len(whole.dev) / len(sides) < 0.03
    assert whole.train | whole.dev | whole.left_out == set(sides)
    assert not {callers[s] for s in whole.dev} & {callers[s] for s in whole.train}
    assert not {c for c, _ in whole.dev} & {c for c, _ in whole.train}


def test_without_a_table_whole_conversations_are_dev(tmp_path: Path) -> None:
    run = prepare(write_discs(tmp_path, CALLERS, table=False), "--dev-share", 0.3).good()
    assert "no table of callers" in run.out
    _, dev = read(tmp_path / "data/manifests", "dev")
    _, train = read(tmp_path / "data/manifests", "train")
    assert {s.speaker for s in dev} == {f"{c}-{side}" for c in {s.recording_id for s in dev} for side in "AB"}
    assert len(dev) + len(train) == 4 * len(CALLERS)


def test_callers_who_are_not_in_the_table_are_speakers_of_their_own(tmp_path: Path) -> None:
    write_discs(tmp_path, CALLERS)
    table = tmp_path / "LDC97S62/conv_tab.csv"
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:-1]))
    run = prepare(tmp_path).good()
    assert "note: 2 of 10 sides are not in it: each counts as a speaker of its own" in run.out
    speakers = {s.speaker for split in ("train", "dev") for s in read(tmp_path / "data/manifests", split)[1]}
    assert speakers & {"sw02005-A", "sw02005-B"} and "caller4" in speakers


def test_one_caller_in_all_calls(tmp_path: Path) -> None:
    write_discs(tmp_path, {2001: (1, 1), 2002: (1, 1)})
    line = refused(tmp_path, SCRIPT, *disc_flags(tmp_path), "--manifest-dir", "TMP/m")
    assert "nothing is left for training: lower --dev-share" in line


@pytest.mark.parametrize("share", ["0", "0.5", "-1", "some"])
def test_shares_that_are_none(tmp_path: Path, share: str) -> None:
    line = refused(tmp_path, SCRIPT, *disc_flags(tmp_path), "--manifest-dir", "TMP/m", "--dev-share", share, status=2)
    assert "--dev-share" in line


# --- texts --------------------------------------------------------------------------------------------------------


def texts(root: Path) -> set[str]:
    folder = root / "data/manifests"
    return {
        line for split in ("train", "dev") for line in (folder / f"transcript_{split}.txt").read_text().splitlines()
    }


def test_flags_of_the_text(tmp_path: Path) -> None:
    write_discs(tmp_path, CALLERS)
    write_transcript(tmp_path / "ms98", 2001, "A", [(1, 2, "my tv th[at]- [noise]"), (3, 4, "[noise]")])
    (tmp_path / "ms98/sw-ms98-dict.text").write_text("tv t iy v iy\nyeah y ae\n")
    flags = ("--dev-share", 0.3)
    prepare(tmp_path, *flags).good()
    assert "my t v th-" in texts(tmp_path) and "uh-huh yeah" in texts(tmp_path) and "[noise]" not in texts(tmp_path)
    prepare(tmp_path, *flags, "--noises", "true", "--partial-words", "false", "--spell-acronyms", "false").good()
    assert {"my tv [noise]", "[noise]", "um side b [noise]"} <= texts(tmp_path)


# --- bad discs ----------------------------------------------------------------------------------------------------


def test_calls_converted_to_wav(tmp_path: Path) -> None:
    """The same utterances, with the same samples, as of the discs."""
    write_discs(tmp_path, CALLERS)
    prepare(tmp_path).good()
    before = {split: list(read(tmp_path / "data/manifests", split)[1]) for split in ("train", "dev")}
    audio = {r.id: r.load_audio() for r in read(tmp_path / "data/manifests", "train")[0]}
    shutil.rmtree(tmp_path / "data")
    for path in (tmp_path / "LDC97S62").rglob("*.sph"):
        samples, rate = soundfile.read(path, dtype="int16")
        soundfile.write(path.with_suffix(".wav"), samples, rate, subtype="PCM_16")
        path.unlink()
    prepare(tmp_path).good()
    assert {split: list(read(tmp_path / "data/manifests", split)[1]) for split in ("train", "dev")} == before
    for recording in read(tmp_path / "data/manifests", "train")[0]:
        assert recording.num_channels == 2
        assert abs(recording.load_audio() - audio[recording.id]).max() < 1e-4


def test_bad_discs_are_counted(tmp_path: Path) -> None:
    write_discs(tmp_path, {number: (number, number + 1) for number in range(2001, 2012)})
    audio, ms98 = tmp_path / "LDC97S62/swb1_d1/data", tmp_path / "ms98"
    write_call(audio / "sw02002.sph", seconds=6, promised=80000)  # cut
    write_call(audio / "sw02004.sph", channels=1)
    (audio / "sw02006.sph").write_bytes(b"not audio")
    (audio / "sw02008.sph").unlink()
    (ms98 / "20/2010/sw2010B-ms98-a-trans.text").unlink()
    write_transcript(ms98, 2001, "A", [(1, 4, "one"), (3, 5, "too early"), (4, 6, "two"), (6, 10.05, "three")])
    with (ms98 / "20/2001/sw2001B-ms98-a-trans.text").open("a") as file:
        file.write("sw2001B-ms98-a-0009 rubbish\n")
    (ms98 / "20/2003/sw2003A-ms98-a-trans.text").write_text("")
    run = prepare(tmp_path, "--max-bad", 0.5).good()
    for line in (
        "1 calls have not two channels and are left out, first",
        "1 audio files are unreadable and left out, first",
        "1 audio files are cut, first",
        "24 segments have no audio, first sw2004A-ms98-a-0001 from 0.0 to 2.0 s",
        "4 segments lie outside of their audio, first sw2002A-ms98-a-0003 from 5.0 to 9.5 s, which has 6.0 s",
        "1 segments overlap the one before, first sw2001A-ms98-a-0002 from 3.0 to 5.0 s, the one before ends at 4.0 s",
        "1 lines of transcripts are no segments, first",
        "1 transcripts are empty, first",
        "1 sides have audio and no transcript, first sw02010 side B",
    ):
        assert f"warning: {line}" in run.err, run.err
    assert len(run.err.splitlines()) == 10, run.err  # and no dictionary
    assert "81 segments in 21 transcripts, 30 of them spoilt" in run.out
    left = [s for split in ("train", "dev") for s in read(tmp_path / "data/manifests", split)[1]]
    assert {s.recording_id for s in left} <= {f"sw0{n}" for n in (2001, 2002, 2003, 2005, 2007, 2009, 2010, 2011)}
    assert all(s.end <= 10 for s in left) and not [s for s in left if s.text == "too early"]
    assert all(s.end <= 6 for s in left if s.recording_id == "sw02002")


def test_too_much_of_it_stops_before_anything_is_written(tmp_path: Path) -> None:
    write_discs(tmp_path, CALLERS)
    write_call(tmp_path / "LDC97S62/swb1_d1/data/sw02002.sph", seconds=6, promised=80000)
    before = files_of(tmp_path)
    run = prepare(tmp_path)
    assert run.error() == (
        "error: 4 of 40 segments cannot be used, for the reasons above: check the discs, "
        "or accept them with --max-bad 0.10"
    )
    assert "warning: 4 segments lie outside of their audio" in run.err and files_of(tmp_path) == before
    prepare(tmp_path, "--max-bad", "0.10").good()


def test_no_words_at_all(tmp_path: Path) -> None:
    write_discs(tmp_path, {2001: (1, 2)})
    for side in "AB":
        write_transcript(tmp_path / "ms98", 2001, side, [(0, 10, "[silence]")])
    assert "has words: check --ms98-dir" in prepare(tmp_path).error()


def test_empty_folders(tmp_path: Path) -> None:
    write_discs(tmp_path, CALLERS)
    flags = ["--manifest-dir", "TMP/m"]
    empty = refused(tmp_path, SCRIPT, "--swbd-dir", "TMP/ms98", "--ms98-dir", "TMP/ms98", *flags)
    assert "ms98 holds no audio: stage 0 (check_discs.py) says what is expected" in empty
    empty = refused(tmp_path, SCRIPT, "--swbd-dir", "TMP/LDC97S62", "--ms98-dir", "TMP/LDC97S62", *flags)
    assert "LDC97S62 holds no transcripts" in empty


def test_compressed_audio_is_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_discs(tmp_path, CALLERS)
    path = tmp_path / "LDC97S62/swb1_d1/data/sw02002.sph"
    soundfile.write(tmp_path / "x.wav", soundfile.read(path, dtype="int16")[0], 8000, "ULAW")
    write_call(path, seconds=4, promised=80000, coding="ulaw,embedded-shorten-v2.00")
    program = tmp_path / "bin/sph2pipe"  # as it is called: -f wav -u from.sph to.wav
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\ntest "$1 $2 $3 $4" = "-f wav -u {path}" && cp {tmp_path}/x.wav "$5"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    assert "spoilt" in prepare(tmp_path).good().out
    recordings = {r.id: r for split in ("train", "dev") for r in read(tmp_path / "data/manifests", split)[0]}
    found = Path(recordings["sw02002"].sources[0].source)
    assert found.parent == tmp_path / "data/wav" and recordings["sw02002"].num_samples == 80000


def test_compressed_audio_without_sph2pipe_is_no_bad_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import lhotse  # noqa: F401  here, because it adds its own tools to the PATH

    write_discs(tmp_path, CALLERS)
    write_call(tmp_path / "LDC97S62/swb1_d1/data/sw02002.sph", coding="ulaw,embedded-shorten-v2.00")
    monkeypatch.setenv("PATH", str(tmp_path / "bin") + os.pathsep + str(tmp_path))
    assert "sw02002.sph is compressed with shorten: install sph2pipe" in prepare(tmp_path, "--max-bad", 0.9).error()
