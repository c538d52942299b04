"""Audio to words without torch, beside the torch path on the same packed files."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from lowbit_k2.asr.model_io import load_packed
from lowbit_k2.asr.recognizer import packed_recognizer
from lowbit_k2.asr.transcription import hear, spelling, with_times
from lowbit_k2.core.chunks import ChunkConfig
from lowbit_k2.core.config import ConfigError
from lowbit_k2.core.features import FeatureConfig
from lowbit_k2.data.audio import AudioFile
from lowbit_k2.data.features import extract_wav
from lowbit_k2.data.tokenizer import SentencePieceTokenizer
from lowbit_k2.errors import UserError
from lowbit_k2.models import CtcConfig, TransducerConfig
from lowbit_k2.packed import read_packed, write_packed
from lowbit_k2.quant import QuantConfig
from lowbit_k2.recipe.train_bpe import train_sentencepiece
from lowbit_k2.runtime import Recogniser, SearchConfig, Transcript, UnsupportedError
from tests.export.toy import toy_tokenizer
from tests.runtime.models import export, random_model
from tests.runtime.packages import needs_fbank

pytestmark = needs_fbank
SENTENCES = ["DIE KATZE LIEGT AUF DER MATTE", "EINE GANS IM GRAS", "ÄPFEL UND ÖL IM EIMER"] * 3
FEATURES = FeatureConfig(num_mel_bins=20).to_dict()
TOKENIZERS = {
    "char": SentencePieceTokenizer(train_sentencepiece(SENTENCES, "char", 0)),
    "bpe": SentencePieceTokenizer(train_sentencepiece(SENTENCES, "bpe", 40)),
    "phones": toy_tokenizer(),
}
QUANT = QuantConfig.preset("all-low")


def packed_file(folder: Path, units: str = "char", kind: type = CtcConfig, **sizes) -> Path:
    tokenizer = TOKENIZERS[units]
    model = random_model(QUANT, kind, tokenizer.vocab_size, **sizes)
    with torch.no_grad():  # so that many things are heard
        model.encoder.norm.weight.mul_(6)
        for name, value in model.named_parameters():
            if name.startswith(("encoder.norm.bias", "ctc_head.bias", "joiner")) and value.dim() == 1:
                value.zero_()
    return export(model, folder / f"{units}.safetensors", tokenizer=tokenizer, features=FEATURES)


def write_sound(path: Path, seconds: float, rate: int = 16000, channels: int = 1) -> Path:
    """Noise and tones that come and go."""
    time = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(round(1000 * seconds)).normal(size=len(time))
    wave = noise * np.sin(2 * time) ** 6 + np.sin(2000 * time * (1 + 0.3 * np.sin(5 * time))) * np.cos(1.3 * time) ** 8
    soundfile.write(path, 0.1 * np.stack([wave] + [noise] * (channels - 1), axis=1), rate)
    return path


def sounds(folder: Path) -> list[Path]:
    """Each format that the documentation names, at several rates; the last is shorter than a frame of the network."""
    return [
        write_sound(folder / "a.wav", 2.3),
        write_sound(folder / "b.flac", 3.1, 22050, 2),
        write_sound(folder / "c.ogg", 4.0, 44100),
        write_sound(folder / "d.wav", 1.7, 8000),
        write_sound(folder / "e.wav", 0.05),
    ]


def by_torch(packed: Path, audio: Path, search: SearchConfig | None = None, chunking=None) -> Transcript:
    recognizer = packed_recognizer(load_packed(packed), chunking, search)
    heard = hear(recognizer, extract_wav(audio, recognizer.features))
    seconds = AudioFile(audio, recognizer.features.sampling_rate).num_samples / recognizer.features.sampling_rate
    return with_times(recognizer, heard, spelling(recognizer), seconds)


def check_times(found: Transcript) -> None:
    """In order, and within the audio."""
    places = [0.0, *(token.start for token in found.tokens), found.seconds]
    assert places == sorted(places)
    assert all(0 <= word.start < word.end <= found.seconds for word in found.words)
    assert all(a.start <= b.start and a.end <= b.end for a, b in zip(found.words, found.words[1:], strict=False))


@pytest.mark.parametrize("units", TOKENIZERS)
@pytest.mark.parametrize("kind, methods", [(CtcConfig, [""]), (TransducerConfig, ["", "modified_beam_search"])])
def test_words_are_those_of_torch(units: str, kind: type, methods: list[str], tmp_path: Path) -> None:
    packed, said = packed_file(tmp_path, units, kind), set()
    for method in methods:
        search = SearchConfig(decoding_method=method, blank_penalty=2.0 if kind is TransducerConfig else 0.0)
        recogniser = Recogniser.load(packed, "exact", search=search)
        for audio in sounds(tmp_path):
            found = recogniser.transcribe(audio)
            assert found == by_torch(packed, audio, search)
            check_times(found)
            assert found.seconds == pytest.approx(soundfile.info(audio).duration, abs=1e-4)
            said.update(found.labels)
    assert len(said) > 1, "a random model that says nothing tests nothing"


def test_the_ctc_head_of_a_transducer(tmp_path: Path) -> None:
    packed, search = packed_file(tmp_path, "char", TransducerConfig, ctc_head=True), SearchConfig("ctc-greedy-search")
    [audio, *_] = sounds(tmp_path)
    found = Recogniser.load(packed, "exact", search=search).transcribe(audio)
    assert found.words and found == by_torch(packed, audio, search)


@pytest.mark.parametrize(
    "kind, sizes", [(CtcConfig, {}), (TransducerConfig, {}), (TransducerConfig, {"ctc_head": True})]
)
def test_long_audio(kind: type, sizes: dict, tmp_path: Path) -> None:
    packed, audio = packed_file(tmp_path, "bpe", kind, **sizes), write_sound(tmp_path / "long.wav", 41.7, 11025)
    chunking, search = ChunkConfig(chunk_seconds=5.0, chunk_overlap=1.0), SearchConfig(blank_penalty=1.0)
    recogniser = Recogniser.load(packed, "exact", search=search, chunking=chunking)
    found = recogniser.transcribe(audio)
    assert found.words and found == by_torch(packed, audio, search, chunking)
    check_times(found)
    parts = list(recogniser.labels(audio))
    assert len(parts) > 5 and sum(parts, ()) == found.labels
    whole = Recogniser.load(packed, "exact", search=search, chunking=ChunkConfig(chunk_seconds=0.0)).transcribe(audio)
    assert whole.labels != found.labels and by_torch(packed, audio, search, ChunkConfig(chunk_seconds=0.0)) == whole


def test_samples_in_memory_and_threads(tmp_path: Path) -> None:
    """Modes agree on what threads do not change; several threads of Python share a recogniser."""
    packed, audio = packed_file(tmp_path, "bpe"), write_sound(tmp_path / "a.wav", 3.0)
    samples = soundfile.read(audio, dtype="float32")[0]
    for mode in ("exact", "a16", "a8"):
        recogniser = Recogniser.load(packed, mode, threads=2)
        expected = recogniser.transcribe(audio)
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(recogniser.transcribe, [samples] * 4)) == [expected] * 4


def test_what_it_refuses(tmp_path: Path) -> None:
    packed = packed_file(tmp_path, "bpe")
    recogniser = Recogniser.load(packed)
    (tmp_path / "no.wav").write_text("no audio")
    soundfile.write(tmp_path / "short.wav", np.zeros(100), 16000)
    for name, reason in (
        ("missing.wav", "missing.wav does not exist"),
        ("no.wav", "no.wav cannot be read as audio"),
        ("short.wav", "short.wav is too short: 100 samples"),
    ):
        with pytest.raises(UserError, match=reason):
            recogniser.transcribe(tmp_path / name)
    with pytest.raises(ConfigError, match="greedy_search does not fit this ctc model: choose of ctc-greedy-search"):
        Recogniser.load(packed, search=SearchConfig("greedy_search"))
    content, changed = read_packed(packed), tmp_path / "changed"
    for changes, reason in (
        ({"features": FeatureConfig(num_mel_bins=23).to_dict()}, "features of 23 bins, but a network for 20"),
        ({"tokens": TOKENIZERS["phones"].to_bytes(), "tokens_kind": "lexicon"}, "it has 7 tokens, but 40 classes"),
        ({"tokens_kind": "words"}, "unknown kind of tokenizer"),
    ):
        write_packed(changed, replace(content, **changes))
        with pytest.raises(UserError, match=f"changed: .*{reason}"):
            Recogniser.load(changed)
    chain = random_model(QUANT, topology="chain")
    with pytest.raises(UnsupportedError, match="no search of the topology chain"):
        Recogniser.load(export(chain, changed, tokenizer=TOKENIZERS["bpe"], features=FEATURES))


PROGRAM = """
import sys
before = set(sys.modules)
import json
from lowbit_k2.cli import run
from lowbit_k2.processes import peak_memory
run(sys.argv[1:])
loaded = {name.split(".")[0] for name in set(sys.modules) - before} - sys.stdlib_module_names - {"__mp_main__"}
print(json.dumps([sorted(loaded), peak_memory()]), file=sys.stderr)
"""
# What a bare environment has behind `pip install` of the wheel
RUNTIME = {"lowbit_k2", "numpy", "safetensors", "soundfile", "kaldi_native_fbank", "cffi"}
RUNTIME |= {"_soundfile", "_soundfile_data", "_kaldi_native_fbank", "_cffi_backend", "packaging", "typing_extensions"}


def in_a_process(repo_root: Path, *arguments: object) -> tuple[list[str], set[str], float]:
    """Lines of `lowbit-k2 transcribe`, the packages that it loaded, and its peak of memory in MB."""
    command = [sys.executable, "-c", PROGRAM, "transcribe", *map(str, arguments)]
    done = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded, memory = json.loads(done.stderr.splitlines()[-1])
    return done.stdout.splitlines(), set(loaded), memory / 1e6


@pytest.mark.parametrize(
    "kind, method", [(CtcConfig, ""), (TransducerConfig, ""), (TransducerConfig, "modified_beam_search")]
)
def test_the_command_needs_no_torch(kind: type, method: str, tmp_path: Path, repo_root: Path) -> None:
    packed, audio = packed_file(tmp_path, "bpe", kind), sounds(tmp_path)
    flags = ["--mode", "exact", "--threads", 1, "--decoding-method", method, "--blank-penalty", 2.0]
    lines, loaded, _ = in_a_process(repo_root, "--packed", packed, *audio, *flags)
    loaded = {name for name in loaded if "cython" not in name}  # numpy's, of numpy 1
    assert loaded <= RUNTIME and "kaldi_native_fbank" in loaded
    search = SearchConfig(method, blank_penalty=2.0)
    assert lines == [f"{path}\t{by_torch(packed, path, search).text}" for path in audio]


def test_memory_does_not_grow_with_the_audio(tmp_path: Path, repo_root: Path) -> None:
    """Samples of 20 minutes alone are 77 MB in float32."""
    packed = packed_file(tmp_path, "bpe", num_layers=1, ffn_dim=(40,))
    minute = (3000 * np.random.default_rng(0).standard_normal(60 * 16000)).astype(np.int16)
    with soundfile.SoundFile(tmp_path / "long.wav", "w", 16000, 1) as file:
        for _ in range(20):
            file.write(minute)
    soundfile.write(tmp_path / "short.wav", minute, 16000)
    found = []
    for name in ("short.wav", "long.wav"):
        [line], _, memory = in_a_process(repo_root, "--packed", packed, tmp_path / name, "--mode", "a8")
        assert line.startswith(f"{tmp_path / name}\t")
        found.append(memory)
    assert found[1] < found[0] + 10 and found[0] < 150
