"""The LibriSpeech recipe behind its preparation: a few real utterances, a tiny model, every script."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from lowbit_k2.asr.recognizer import METHODS as METHODS_BY_NAME
from lowbit_k2.data.manifests import cuts_path, load_cuts
from lowbit_k2.k2_compat import has_k2
from lowbit_k2.train.checkpoint import load_checkpoint
from tests.egs.scripts import LIBRISPEECH, TINY, Flag, call, files_of

TORCH_ONLY = ("ctc-greedy-search", "greedy_search", "modified_beam_search")
RUNNABLE = {name: kind.network for name, kind in METHODS_BY_NAME.items() if has_k2() or name in TORCH_ONLY}
FEW_PATHS: tuple[Flag, ...] = ("--num-paths", 20)  # the lattices of such a model are large
METHODS = [name for name, network in RUNNABLE.items() if network == "ctc"]


@pytest.fixture(scope="module")
def where(prepared: tuple[Path, list[str | Path]], tmp_path_factory: pytest.TempPathFactory) -> list[Flag]:
    """--manifest-dir with the shortest cuts of each part, beside the noise, and --lang-dir."""
    data, small = prepared[0], tmp_path_factory.mktemp("libri") / "fbank"
    small.mkdir()
    for path in (data / "fbank").glob("musan_cuts_*.jsonl.gz"):
        shutil.copy(path, small)
    shutil.copy(data / "fbank/features.json", small)
    for part, count in (("train-clean-100", 12), ("dev-clean", 3), ("test-other", 4)):
        cuts = load_cuts(data / "fbank", "librispeech", part).sort_by_duration(ascending=True)
        cuts.subset(first=count).to_file(cuts_path(small, "librispeech", part))
    return ["--manifest-dir", small, "--lang-dir", data / "lang_bpe_80"]


@pytest.fixture(scope="module")
def exp(where: list[Flag], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model after two updates with noise."""
    return two_updates(where, tmp_path_factory.mktemp("libri-exp") / "exp")


def two_updates(where: list[Flag], folder: Path, *more: Flag) -> Path:
    """An experiment folder after two updates with noise."""
    seconds = sum(cut.duration for cut in load_cuts(Path(str(where[1])), "librispeech", "train-clean-100"))
    flags = [*where, *TINY.split(), "--full-libri", "false", "--enable-musan", "true", "--exp-dir", folder]
    flags += ["--max-duration", 0.8 * seconds, "--num-buckets", 1, "--warm-step", 2, "--average-period", 1]
    call(LIBRISPEECH / "train.py", *flags, *more, "--num-epochs", 1).good()
    return folder


def test_two_updates_on_real_speech(exp: Path) -> None:
    meta = load_checkpoint(exp / "epoch-1.pt").meta
    assert meta["update"] == 2 and meta["model"]["vocab_size"] == 80
    [log] = (exp / "log").iterdir()
    text = log.read_text()
    assert "training: all 12 cuts kept" in text and "validation: all 3 cuts kept" in text
    losses = dict(re.findall(r"\b(loss_\w+|kl_\w+)=(\S+)", text))
    assert set(losses) == {"loss_2", "loss_1", "loss_sp", "kl_1", "kl_sp"}
    assert all(0 < float(loss) < 100 for loss in losses.values())


def test_other_is_decoded_packed_and_decoded_again(exp: Path, where: list[Flag], tmp_path: Path) -> None:
    """evaluate.py calls decode.py's and export.py's functions and compares the hypotheses itself."""
    methods = [name for name in METHODS if "nbest" not in name]  # which are tried below, with fewer paths
    flags = [*where, "--exp-dir", exp, "--test-set", "test-other", "--decoding-method", ",".join(methods)]
    run = call(LIBRISPEECH / "evaluate.py", *flags, "--precisions", 2, 1).good()
    head, _, *rows = run.out.splitlines()[-4:]
    assert [head.count(f"%WER {method} (") for method in methods] == [1] * len(methods)
    assert [row.split(" | ")[0] for row in rows] == ["| 2", "| 1"]
    for method in methods:
        assert len(list((exp / method).glob("recogs-test-other-*"))) == 4
        assert len(next((exp / method).glob("recogs-*")).read_text().splitlines()) == 8  # ref and hyp of each
    sizes = [(exp / f"packed/{p}bit.safetensors").stat().st_size for p in (2, 1)]
    assert sizes[1] < sizes[0]


@pytest.mark.k2
def test_other_by_every_method(where: list[Flag], tmp_path: Path) -> None:
    """A transducer with a CTC head, from the checkpoint and from the packed file."""
    bpe = ("--bpe-model", Path(str(where[3])) / "bpe.model")
    folder = two_updates(
        where, tmp_path / "exp", "--objective", "ctc-rnnt", "--decoder-dim", 8, "--joiner-dim", 8, *bpe
    )
    assert load_checkpoint(folder / "epoch-1.pt").meta["update"] == 2
    flags = [*where, "--exp-dir", folder, "--test-set", "test-other", "--decoding-method", ",".join(RUNNABLE)]
    run = call(LIBRISPEECH / "evaluate.py", *flags, *FEW_PATHS, "--precisions", 1).good()
    for method in METHODS_BY_NAME:
        assert run.out.count(f"[test-other, {method}, ") == 2
        [packed] = (folder / method).glob("recogs-test-other-*packed*.txt")
        [model] = (folder / method).glob("recogs-test-other-*precision-1.txt")
        assert packed.read_text() == model.read_text()


def test_evaluate_knows_decodes_flags_and_no_others(exp: Path, tmp_path: Path) -> None:
    run = call(LIBRISPEECH / "evaluate.py", "--exp-dir", exp, "--output-beem", 3)
    assert "unrecognized arguments: --output-beem 3" in run.error(status=2)


def test_the_scripts_one_by_one(exp: Path, where: list[Flag], tmp_path: Path) -> None:
    """export.py with BatchNorm's statistics taken anew, decode.py on two sets from the file."""
    file = tmp_path / "model.safetensors"
    flags = ["--exp-dir", exp, "--precision", 1.5, "--output", file, *where[:2]]
    screen = call(LIBRISPEECH / "export.py", *flags, "--recalibrate-bn", 1, "--max-duration", 20).good().out
    assert f"{file}: 1.5 bit, from epoch-1" in screen
    flags = [*where, "--exp-dir", tmp_path / "out", "--packed", file, "--test-sets", "dev-clean,test-other", *FEW_PATHS]
    screen = call(LIBRISPEECH / "decode.py", *flags, "--quiet", "--decoding-method", ",".join(METHODS)).good().out
    assert screen.count("%WER") == 2 * len(METHODS)
    names = {Path(path).name for path in files_of(tmp_path / "out")}
    assert {"recogs-dev-clean-packed-model.txt", "wer-summary-test-other-packed-model.txt"} <= names


def test_parts_by_flags(where: list[Flag], tmp_path: Path) -> None:
    """--full-libri and --mini-libri choose the parts whose manifests are asked for."""
    for flags, part in (([], "train-clean-360"), (["--mini-libri", "true"], "train-clean-5")):
        run = call(LIBRISPEECH / "train.py", *where, *flags, "--exp-dir", tmp_path / "exp")
        assert f"librispeech_cuts_{part}.jsonl.gz does not exist" in run.error()
    assert not list(tmp_path.iterdir())
