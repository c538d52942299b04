"""AN4's local/ scripts on the whole corpus, and prepare.sh's download stage without a network."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import soundfile

from lowbit_k2.data.manifests import read_cuts
from tests.egs.scripts import AN4, call, local_module, spawn

PREPARE, MANIFESTS, DICT = AN4 / "prepare.sh", AN4 / "local/prepare_manifests.py", AN4 / "local/prepare_dict.py"


@pytest.fixture(scope="module")
def module() -> ModuleType:
    return local_module(AN4 / "local", "prepare_manifests")


@pytest.fixture(scope="module")
def manifests(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("an4-whole") / "manifests"
    run = call(MANIFESTS, "--corpus-dir", data_dir / "an4", "--manifest-dir", folder).good()
    assert "dev: 128 utterances of 10 speakers, 0.10 hours" in run.out
    return folder


def test_splits(manifests: Path, data_dir: Path) -> None:
    from lhotse import load_manifest

    supervisions = {s: load_manifest(manifests / f"an4_supervisions_{s}.jsonl.gz") for s in ("train", "dev", "test")}
    assert {split: len(found) for split, found in supervisions.items()} == {"train": 820, "dev": 128, "test": 130}
    speakers = {split: {s.speaker for s in found} for split, found in supervisions.items()}
    assert [len(speakers[split]) for split in ("train", "dev", "test")] == [64, 10, 10]
    # The rule, from the corpus's own list: every 7th of the training speakers in alphabetical order.
    fileids = (data_dir / "an4/etc/an4_train.fileids").read_text().split()
    in_order = sorted({fileid.split("/")[1] for fileid in fileids})
    assert speakers["dev"] == {in_order[number - 1] for number in range(7, 75, 7)}
    assert speakers["train"] == set(in_order) - speakers["dev"]
    assert not speakers["test"] & set(in_order)


def test_texts(manifests: Path) -> None:
    from lhotse import load_manifest

    texts = {s.id: s.text for s in load_manifest(manifests / "an4_supervisions_test.jsonl.gz")}
    assert texts["an406-fcaw-b"] == "RUBOUT G M E F THREE NINE"
    assert sum(len(text.split()) for text in texts.values()) == 773
    for split in ("train", "dev", "test"):
        lines = (manifests / f"transcript_{split}.txt").read_text().splitlines()
        assert lines and not any(sign in line for line in lines for sign in "<>()")
    assert len((manifests / "transcript_train.txt").read_text().splitlines()) == 820


def test_manifests_are_the_same_every_time(manifests: Path, data_dir: Path, tmp_path: Path) -> None:
    from lhotse import load_manifest

    call(MANIFESTS, "--corpus-dir", data_dir / "an4", "--manifest-dir", tmp_path).good()
    for name in ("an4_recordings_dev.jsonl.gz", "an4_supervisions_train.jsonl.gz"):
        assert list(load_manifest(tmp_path / name)) == list(load_manifest(manifests / name))


@pytest.mark.parametrize(
    ("line", "text", "name"),
    [
        ("<s> YES </s> (an251-fash-b)", "YES", "an251-fash-b"),
        ("RUBOUT G  M (an406-fcaw-b)", "RUBOUT G M", "an406-fcaw-b"),
        ("<s> </s> (x)", "", "x"),
        ("(x)", "", "x"),
    ],
)
def test_lines(module: ModuleType, line: str, text: str, name: str) -> None:
    found = module.LINE.match(line)
    assert " ".join(found["text"].split()) == text and found["id"] == name


@pytest.mark.parametrize("line", ["YES", "YES (a) (b)", "YES ()", "<s> YES </s> a", "<sil> YES (a)"])
def test_lines_that_are_none(module: ModuleType, line: str) -> None:
    assert module.LINE.match(line) is None


def test_dictionary(manifests: Path, data_dir: Path, tmp_path: Path) -> None:
    flags = ("--corpus-dir", data_dir / "an4", "--transcript", manifests / "transcript_train.txt", "--dict-dir")
    call(DICT, *flags, tmp_path / "dict").good()
    lexicon = (tmp_path / "dict/lexicon.txt").read_text().splitlines()
    assert [line for line in lexicon if line.startswith("A ")] == ["A AH", "A EY"]
    assert len(lexicon) == 130 and not any("(" in line for line in lexicon)
    words = (tmp_path / "dict/words.txt").read_text().split()
    assert len(words) == len(set(words)) == 101 and words == sorted(words)
    used = set((manifests / "transcript_train.txt").read_text().split())
    assert used <= set(words)


def test_a_word_without_pronunciation(data_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("YES ZEBRA\n")
    flags = ("--corpus-dir", data_dir / "an4", "--transcript", tmp_path / "text", "--dict-dir", tmp_path / "dict")
    assert "no pronunciation of 1 words (ZEBRA)" in call(DICT, *flags).error()
    assert not (tmp_path / "dict").exists()


@pytest.fixture
def away_from_the_network(tmp_path: Path) -> dict[str, str]:
    """git takes a folder of ours for the public repository."""
    settings = {
        f"url.{tmp_path}/origin.insteadOf": "https://github.com/cmusphinx/an4.git",
        "protocol.file.allow": "always",
    }
    environment = {"GIT_CONFIG_COUNT": str(len(settings))}
    for i, (key, value) in enumerate(settings.items()):
        environment |= {f"GIT_CONFIG_KEY_{i}": key, f"GIT_CONFIG_VALUE_{i}": value}
    return environment


def prepare(tmp_path: Path, environment: dict[str, str]):
    where = ("--download-dir", tmp_path / "download", "--data-dir", tmp_path / "data")
    return spawn(PREPARE, *where, "--stage", 0, "--stop-stage", 0, **environment)


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_download(tmp_path: Path, away_from_the_network: dict[str, str]) -> None:
    origin = tmp_path / "origin"
    for folder in ("etc", "wav"):
        (origin / folder).mkdir(parents=True)
        (origin / folder / "x").write_text("x")
    for command in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "x"]):
        subprocess.run(["git", *command], cwd=origin, check=True)
    prepare(tmp_path, away_from_the_network).good()
    assert (tmp_path / "download/an4/etc/x").is_file()
    assert "downloaded before" in prepare(tmp_path, away_from_the_network).good().out


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_a_download_that_fails(tmp_path: Path, away_from_the_network: dict[str, str]) -> None:
    run = prepare(tmp_path, away_from_the_network)
    assert run.status == 1 and "cannot be downloaded" in run.err.splitlines()[-1] and "--an4-dir" in run.err
    assert not (tmp_path / "download").exists()


def test_a_folder_that_is_not_the_corpus(tmp_path: Path) -> None:
    run = spawn(PREPARE, "--an4-dir", tmp_path, "--data-dir", tmp_path / "data")
    assert "give --an4-dir the folder that holds etc/ and wav/" in run.error()
    assert not (tmp_path / "data").exists()


def test_cmus_own_sphere_files(an4_corpus: Path, tmp_path: Path) -> None:
    """The same manifests and features as of the WAV files, but for the names of the audio."""
    sphere = tmp_path / "an4"
    shutil.copytree(an4_corpus / "etc", sphere / "etc")
    for path in an4_corpus.rglob("*.wav"):
        samples, rate = soundfile.read(path, dtype="int16")
        target = sphere / path.relative_to(an4_corpus).with_suffix(".sph")
        target.parent.mkdir(parents=True, exist_ok=True)
        head = f"NIST_1A\n   1024\nchannel_count -i 1\nsample_count -i {len(samples)}\nsample_rate -i {rate}\n"
        head += "sample_n_bytes -i 2\nsample_byte_format -s2 10\nsample_coding -s3 pcm\nend_head\n"
        target.write_bytes(head.encode().ljust(1024) + samples.astype(">i2").tobytes())
    cuts = {}
    for name, corpus in (("wav", an4_corpus), ("sph", sphere)):
        flags = ["--an4-dir", corpus, "--data-dir", tmp_path / name, "--stop-stage", "2", "--perturb-speed", "false"]
        spawn(PREPARE, *flags).good()
        cuts[name] = {cut.id: cut for cut in read_cuts(tmp_path / name / "fbank/an4_cuts_train.jsonl.gz")}
    assert cuts["wav"].keys() == cuts["sph"].keys() and cuts["wav"]
    for name, cut in cuts["wav"].items():
        assert (cuts["sph"][name].load_features() == cut.load_features()).all()
        assert cuts["sph"][name].supervisions[0].text == cut.supervisions[0].text


def test_an_interpreter_in_a_folder_with_a_blank(an4_corpus: Path, tmp_path: Path) -> None:
    program = tmp_path / "my work/python 3"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    program.chmod(0o755)
    flags = ["--an4-dir", an4_corpus, "--data-dir", tmp_path / "my data", "--stop-stage", "1"]
    spawn(PREPARE, *flags, PYTHON=str(program)).good()
    assert (tmp_path / "my data/manifests/an4_recordings_train.jsonl.gz").is_file()


@pytest.mark.parametrize(
    "script", sorted(AN4.parent.glob("*/*.sh")), ids=lambda path: f"{path.parent.name}/{path.name}"
)
def test_scripts_quote_the_interpreter(script: Path) -> None:
    assert re.findall(r'.*(?<!")\$python\b.*', script.read_text()) == []


def test_folds_test_every_speaker_once(module: ModuleType, data_dir: Path) -> None:
    utterances = [u for part in ("train", "test") for u in module.read_part(data_dir / "an4", part)]
    everyone = sorted({u.speaker for u in utterances})
    tested: list[str] = []
    for fold in range(1, 6):
        splits = module.make_fold(utterances, fold)
        speakers = {name: {u.speaker for u in own} for name, own in splits.items()}
        assert sum(map(len, splits.values())) == len(utterances)
        assert sum(map(len, speakers.values())) == len(everyone) == 84, "no speaker is in two splits"
        assert len(speakers["dev"]) in (9, 10) and len(speakers["test"]) in (16, 17)
        tested += sorted(speakers["test"])
    assert sorted(tested) == everyone
