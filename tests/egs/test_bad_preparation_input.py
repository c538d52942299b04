"""What users get wrong while preparing a corpus: one line each, nothing left behind."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lowbit_k2.k2_compat import has_k2
from tests.egs.scripts import AN4, Flag, Run, call, refused, spawn


def prepare(tmp_path: Path, *flags: Flag) -> Run:
    return spawn(AN4 / "prepare.sh", "--data-dir", tmp_path / "data", "--download-dir", tmp_path / "download", *flags)


def test_preparation_with_bad_flags(tmp_path: Path) -> None:
    for flags in (["--stages", 1], ["--stage", "one"], ["--perturb-speed", "x"], ["--vocab-size", "many"], ["an4"]):
        assert "--help lists the flags" in prepare(tmp_path, *flags).error(status=2)
    assert not list(tmp_path.iterdir())


def test_preparation_without_a_corpus(tmp_path: Path) -> None:
    remedy = "give --an4-dir the folder that holds etc/ and wav/"
    assert remedy in prepare(tmp_path, "--an4-dir", tmp_path / "nowhere").error()
    for stage, before in ((2, 1), (3, 1)):
        assert f"run stage {before} first" in prepare(tmp_path, "--stage", stage, "--stop-stage", stage).error()
    assert not list(tmp_path.iterdir())


def broken_list(corpus: Path) -> None:
    (corpus / "etc/an4_train.transcription").write_text("<s> YES </s> an251-fash-b\n")


def missing_audio(corpus: Path) -> None:
    next((corpus / "wav").rglob("an251-fash-b.wav")).unlink()


def no_audio(corpus: Path) -> None:
    audio = next((corpus / "wav").rglob("an251-fash-b.wav"))
    audio.unlink()
    audio.write_bytes(b"no audio")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (broken_list, "an4_train.transcription line 1: expected words and an id in parentheses"),
        (missing_audio, "an251-fash-b.wav does not exist"),
        (no_audio, "an251-fash-b.wav cannot be read as audio"),
    ],
)
def test_a_damaged_corpus(an4_corpus: Path, tmp_path: Path, damage: Callable[[Path], None], words: str) -> None:
    corpus = Path(shutil.copytree(an4_corpus, tmp_path / "an4"))
    damage(corpus)
    script = AN4 / "local/prepare_manifests.py"
    assert words in refused(tmp_path, script, "--corpus-dir", corpus, "--manifest-dir", tmp_path / "manifests")


def test_features_of_unreadable_audio(an4_corpus: Path, tmp_path: Path) -> None:
    """Audio that was damaged or moved after the manifests had been made."""
    corpus, manifests = Path(shutil.copytree(an4_corpus, tmp_path / "an4")), tmp_path / "manifests"
    script = AN4 / "local/prepare_manifests.py"
    call(script, "--corpus-dir", corpus, "--manifest-dir", manifests).good()
    flags = ["--corpus", "an4", "--splits", "train", "--manifest-dir", manifests, "--output-dir", tmp_path / "fbank"]
    (tmp_path / "fbank").mkdir()
    no_audio(corpus)
    line = refused(tmp_path, "lowbit_k2.recipe.compute_fbank", *flags)
    assert "features of an4_train cannot be computed" in line
    missing_audio(corpus)
    line = refused(tmp_path, "lowbit_k2.recipe.compute_fbank", *flags)
    assert "an251-fash-b.wav does not exist, or is no file: has the corpus been moved?" in line
    line = refused(tmp_path, "lowbit_k2.recipe.compute_fbank", *flags, "--splits", "nobody")
    assert "run the stage that makes manifests first" in line


def test_units_and_graphs_from_bad_files(tmp_path: Path) -> None:
    text, lang = tmp_path / "text", tmp_path / "lang"
    text.write_text("")
    recipe = "lowbit_k2.recipe."
    assert "no text" in refused(tmp_path, recipe + "train_bpe", "--lang-dir", lang, "--transcript", text)
    assert "nothing" in refused(tmp_path, recipe + "train_bpe", "--lang-dir", lang, "--transcript", "TMP/nothing")
    text.write_text("YES\n")
    flags = ["--lang-dir", lang, "--transcript", text]
    assert "--vocab-size" in refused(tmp_path, recipe + "train_bpe", *flags, "--vocab-size", 5000)
    assert "run train_bpe" in refused(tmp_path, recipe + "prepare_lang", *flags)
    lexicon = ["--lexicon", "TMP/nothing"]
    assert "nothing" in refused(tmp_path, recipe + "prepare_lang", "--lang-dir", lang, *lexicon)
    lm = ["--transcript", text, "--words", "TMP/nothing", "--arpa", "TMP/lm.arpa"]
    assert "nothing" in refused(tmp_path, recipe + "make_lm", *lm)
    assert "k2" in refused(tmp_path, recipe + "compile_hlg", "--lang-dir", lang, "--lm", text) or has_k2()
