"""Small corpora, prepared by the recipes' own scripts, and a small model; made once for all tests of the recipes."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from lowbit_k2.asr.model_io import CheckpointChoice, load_trained, parse_allocation
from lowbit_k2.data.features import FeatureConfig, extract_wav
from lowbit_k2.quant import use_precision
from lowbit_k2.train.checkpoint import load_checkpoint, numbered, save_checkpoint
from tests.egs.scripts import AN4, LIBRISPEECH, TINY, Flag, call, spawn

# --- AN4 ------------------------------------------------------------------------------------------------------


def take_part(source: Path, target: Path, part: str, num_speakers: int, num_utterances: int) -> None:
    """The first utterances of the first speakers of `train` or `test`: links to the audio, and lists to match."""
    fileids = (source / "etc" / f"an4_{part}.fileids").read_text().split()
    speakers = sorted({Path(f).parent for f in fileids})[:num_speakers]
    chosen = [f for speaker in speakers for f in [f for f in fileids if Path(f).parent == speaker][:num_utterances]]
    names = {Path(f).name for f in chosen}
    lines = (source / "etc" / f"an4_{part}.transcription").read_text().splitlines()
    texts = [line for line in lines if line.rstrip(") ").rsplit("(", 1)[-1] in names]
    (target / "etc").mkdir(parents=True, exist_ok=True)
    (target / "etc" / f"an4_{part}.fileids").write_text("\n".join(chosen) + "\n")
    (target / "etc" / f"an4_{part}.transcription").write_text("\n".join(texts) + "\n")
    for f in chosen:
        audio = target / "wav" / f"{f}.wav"
        audio.parent.mkdir(parents=True, exist_ok=True)
        audio.symlink_to(source / "wav" / f"{f}.wav")


@pytest.fixture(scope="session")
def an4_corpus(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """28 training utterances of 7 speakers, the last of whom becomes dev, and 6 test utterances of 3 speakers."""
    corpus = tmp_path_factory.mktemp("an4") / "an4"
    take_part(data_dir / "an4", corpus, "train", num_speakers=7, num_utterances=4)
    take_part(data_dir / "an4", corpus, "test", num_speakers=3, num_utterances=2)
    shutil.copy(data_dir / "an4/etc/an4.dic", corpus / "etc")
    return corpus


@pytest.fixture(scope="session")
def an4_flags(an4_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Flag]:
    """How prepare.sh is called."""
    data = tmp_path_factory.mktemp("an4-data") / "data"
    return ["--an4-dir", an4_corpus, "--data-dir", data, "--vocab-size", 60]


@pytest.fixture(scope="session")
def an4_data(an4_flags: list[Flag]) -> Path:
    """What prepare.sh makes of the small corpus."""
    spawn(AN4 / "prepare.sh", *an4_flags).good()
    return Path(str(an4_flags[3]))


@pytest.fixture(scope="session")
def an4_training(an4_data: Path) -> list[Flag]:
    """Flags of a training of seconds; --exp-dir and --num-epochs are left to the test."""
    where = ["--manifest-dir", an4_data / "fbank", "--lang-dir", an4_data / "lang_char"]
    sizes = "--max-duration 20 --num-buckets 4 --warm-step 20 --average-period 2 --save-every-n 3 --keep-last-k 99"
    return [*where, *TINY.split(), *sizes.split(), "--num-threads", 1, "--precisions", "2,1,sp"]


@pytest.fixture(scope="session")
def an4_exp(an4_training: list[Flag], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model after two epochs."""
    exp = tmp_path_factory.mktemp("an4-exp") / "exp"
    call(AN4 / "train.py", *an4_training, "--exp-dir", exp, "--num-epochs", 2).good()
    return exp


@pytest.fixture(scope="session")
def talkative_exp(an4_exp: Path, an4_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that says something: after an epoch or two, a CTC model puts out blanks only.

    The third update's, its last layer replaced by a random one that does not see what all frames have in common and
    never takes blank. There are two epochs, which differ a little.
    """
    exp = tmp_path_factory.mktemp("an4-talkative") / "exp"
    loaded, _ = load_trained(CheckpointChoice(an4_exp, iter=3))
    seen: list[torch.Tensor] = []
    loaded.model.ctc_head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0].mean(0)))
    features = extract_wav(next(an4_corpus.rglob("an406-fcaw-b.wav")), FeatureConfig())  # (T, F)
    for precision in ("2", "1", "1.5", "1.5r"):
        with torch.no_grad(), use_precision(loaded.model, parse_allocation(precision, loaded)):
            loaded.model(features[None], torch.tensor([len(features)]))
    silent = [i for i, piece in enumerate(loaded.tokenizer.pieces()) if piece.startswith("<")]
    common, _ = torch.linalg.qr(torch.stack(seen, dim=1))  # (d_model, 4)
    for epoch in numbered(an4_exp, "epoch"):
        meta = load_checkpoint(an4_exp / f"epoch-{epoch}.pt").meta
        checkpoint = load_checkpoint(an4_exp / "checkpoint-3.pt")
        head = torch.randn(loaded.model.ctc_head.weight.shape, generator=torch.Generator().manual_seed(0))
        head += 0.01 * epoch * torch.randn(head.shape, generator=torch.Generator().manual_seed(epoch))
        for state in (checkpoint.model, checkpoint.model_avg):
            state["ctc_head.parametrizations.weight.original"] = head - head @ common @ common.T
            state["ctc_head.parametrizations.bias.original"].zero_()[silent] = -6
        save_checkpoint(exp / f"epoch-{epoch}.pt", replace(checkpoint, meta=meta))
    return exp


# --- LibriSpeech ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def musan_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MUSAN's layout with one short file of noise in each part."""
    root = tmp_path_factory.mktemp("musan") / "musan"
    rng = np.random.default_rng(0)
    for part in ("music", "speech", "noise"):
        folder = root / part / "made-here"
        folder.mkdir(parents=True)
        samples = 0.1 * rng.standard_normal(16000 * 25)
        soundfile.write(folder / f"{part}-made-here-0000.wav", samples, 16000)
    (root / "music" / "made-here" / "ANNOTATIONS").write_text("music-made-here-0000 none N nobody\n")
    return root


@pytest.fixture(scope="session")
def prepared(
    data_dir: Path, musan_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[str | Path]]:
    """All stages that need no download, on real speech: the data folder and the flags that made it."""
    path = tmp_path_factory.mktemp("real") / "data"
    flags = ["--librispeech-dir", data_dir / "LibriSpeech", "--musan-dir", musan_dir, "--data-dir", path]
    flags += ["--full-libri", "false", "--lm-source", "transcripts", "--vocab-size", "80", "--perturb-speed", "false"]
    flags += ["--nj", "1"]
    result = spawn(LIBRISPEECH / "prepare.sh", *flags).good()
    assert "does not hold dev-other test-clean: left out" in result.err
    return path, flags
