"""The recogniser of the C interface beside Python's, and a program in C that uses it."""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import subprocess
import zlib
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from lowbit_k2.core.features import NORMALIZATIONS, FeatureConfig
from lowbit_k2.errors import UserError
from lowbit_k2.models import CtcConfig, TransducerConfig
from lowbit_k2.packed import PackedTensor, read_packed, write_packed
from lowbit_k2.runtime import PackedCtc, Recogniser, build
from lowbit_k2.runtime.features import FeatureStream, normalize, num_frames
from lowbit_k2.runtime.native import MODES
from tests.runtime.embedded import SOURCES, Embedded, recogniser_library
from tests.runtime.forged import forged, joined, parts
from tests.runtime.models import export, random_model, schemes, with_rare_codes
from tests.runtime.packages import needs_fbank
from tests.runtime.test_encoder import CONFIGS, utterance
from tests.runtime.test_features import CONFIGS as FEATURES
from tests.runtime.test_features import sound
from tests.runtime.test_recogniser import TOKENIZERS, packed_file, write_sound

pytestmark = pytest.mark.one_lane
EXAMPLE = SOURCES / "example.c"
MODELS = {
    "ctc, pieces": (CtcConfig, "bpe", {}),
    "ctc, characters": (CtcConfig, "char", {"conv_norm": "layer"}),
    "ctc, phones": (CtcConfig, "phones", {}),
    "transducer": (TransducerConfig, "bpe", {}),
    "transducer, one token": (TransducerConfig, "char", {"context_size": 1}),
    "transducer, CTC head": (TransducerConfig, "char", {"ctc_head": True, "context_size": 3}),
}


@pytest.fixture(scope="module")
def library(native) -> ctypes.CDLL:
    return ctypes.CDLL(str(recogniser_library()))


def samples_of(path: Path) -> np.ndarray:
    return soundfile.read(path, dtype="float32")[0]


@needs_fbank
@pytest.mark.parametrize("name", MODELS)
def test_words_are_those_of_python(library, name: str, tmp_path: Path) -> None:
    """In all modes, and of what is too short for a frame of the network."""
    kind, units, sizes = MODELS[name]
    packed = packed_file(tmp_path, units, kind, **sizes)
    audio = [samples_of(write_sound(tmp_path / "a.wav", seconds)) for seconds in (2.3, 0.05)]
    for mode in MODES:
        embedded, recogniser = Embedded(library, packed, mode), Recogniser.load(packed, mode)
        texts = [embedded.transcribe(samples) for samples in audio]
        assert texts == [recogniser.transcribe(samples).text for samples in audio]
        assert texts[0] and not texts[1]


@needs_fbank
@pytest.mark.parametrize("name", ["ctc, pieces", "transducer", "transducer, CTC head"])
def test_chunks_are_those_of_python(library, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the very same features: in 900 frames of a random network some classes are as good as level."""
    kind, units, sizes = MODELS[name]
    packed = packed_file(tmp_path, units, kind, **sizes)
    samples = samples_of(write_sound(tmp_path / "a.wav", 36.0))
    raw = {**read_packed(packed).features, "normalize": "none"}
    frames = Embedded(library, changed(packed, features=raw)).features(samples)
    stream = SimpleNamespace(take=lambda start, stop: frames[start:stop])
    monkeypatch.setattr("lowbit_k2.runtime.recogniser.FeatureStream", lambda *_: stream)
    text = Embedded(library, packed).transcribe(samples)
    assert len(text) > 50 and text == Recogniser.load(packed, "exact").transcribe(samples).text


@pytest.mark.parametrize(
    "name", ["all-low", "float", "4 bits by channel", "8 bits by block", "3 bits, tables", "inputs"]
)
def test_posteriors_are_bitwise_those_of_python(library, name: str, tmp_path: Path) -> None:
    quant = CONFIGS.get(name) or schemes(bits=(2,), input_bits=8)
    packed = export(random_model(quant, vocab_size=TOKENIZERS["bpe"].vocab_size), tmp_path / "a", **known())
    for mode in MODES:
        embedded, network = Embedded(library, packed, mode, threads=2), PackedCtc.load(packed, mode)
        for frames in (7, 300):
            assert (embedded.run(utterance(frames)) == network(utterance(frames))).all()


def known() -> dict:
    return {"tokenizer": TOKENIZERS["bpe"], "features": FeatureConfig(num_mel_bins=20).to_dict()}


@pytest.mark.parametrize("bits", [3, 4])
def test_coded_files(library, bits: int, tmp_path: Path) -> None:
    """Version 3, where the codes of a coded tensor take whole bytes (4 bits) and where they do not."""
    path = tmp_path / "a"
    model = random_model(schemes(bits=(bits,)), vocab_size=TOKENIZERS["bpe"].vocab_size)
    write_packed(path, with_rare_codes(read_packed(export(model, path, **known()))), compress=True)
    assert any(tensor.coded_bytes for tensor in read_packed(path).tensors)
    found, expected = Embedded(library, path).run(utterance()), PackedCtc.load(path, "exact")(utterance())
    assert (found == expected).all()


def changed(packed: Path, **others) -> Path:
    """A file beside it with other parts."""
    path = packed.with_name("changed")
    write_packed(path, replace(read_packed(packed), **others))
    return path


def in_float64(samples: np.ndarray, config: FeatureConfig) -> np.ndarray:
    """Features by numpy from their definition, before normalisation."""
    rate = config.sampling_rate
    shift, length = int(config.frame_shift * rate), int(config.frame_length * rate)
    count, padded = len(samples), 1 << (length - 1).bit_length()
    starts = np.arange(num_frames(config, count)) * shift + shift // 2 - length // 2
    places = (starts[:, None] + np.arange(length)) % (2 * count)  # mirrored at both ends: (T, length)
    waves = samples.astype(np.float64)[np.where(places < count, places, 2 * count - 1 - places)]
    waves -= waves.mean(axis=1, keepdims=True)
    waves -= 0.97 * np.concatenate([waves[:, :1], waves[:, :-1]], axis=1)
    waves *= (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / (length - 1))) ** 0.85
    power = np.abs(np.fft.rfft(waves, padded)[:, :-1]) ** 2  # (T, padded / 2)
    high = config.high_freq if config.high_freq > 0 else rate / 2 + config.high_freq
    lowest, highest = (1127 * np.log(1 + hertz / 700) for hertz in (config.low_freq, high))
    edges = np.linspace(lowest, highest, config.num_mel_bins + 2)[:, None]
    bins = 1127 * np.log(1 + np.arange(padded // 2) * rate / padded / 700)
    rising, falling = (bins - edges[:-2]) / np.diff(edges, axis=0)[0], (edges[2:] - bins) / np.diff(edges, axis=0)[0]
    filters = np.maximum(np.minimum(rising, falling), 0)  # (F, padded / 2)
    return np.log(np.maximum(power @ filters.T, np.finfo(np.float32).eps))


@needs_fbank
@pytest.mark.parametrize("name", FEATURES)
def test_features(library, name: str, tmp_path: Path) -> None:
    """Those of kaldi-native-fbank, up to its float32 transform where a quiet bin lies beside loud ones."""
    packed = packed_file(tmp_path, "bpe", num_features=FEATURES[name].num_mel_bins)
    for normalization in NORMALIZATIONS:
        config = replace(FEATURES[name], normalize=normalization)
        embedded = Embedded(library, changed(packed, features=config.to_dict()))
        assert embedded.sampling_rate == config.sampling_rate
        for count in (900, 12345):
            samples = sound(count)
            found = embedded.features(samples)
            kaldi = normalize(FeatureStream(config, [samples]).take(0, num_frames(config, count)), config)
            exact = normalize(in_float64(samples, config).astype(np.float32), config)
            assert found.shape == kaldi.shape == exact.shape
            assert np.abs(found - exact).max() < 2e-4
            far = np.abs(found - kaldi)
            assert far.max() < 3e-4 and np.quantile(far, 0.999) < 1e-4


def test_streams_that_explode(library, tmp_path: Path) -> None:
    """Of a few kB: 64 MiB of zeros, brackets and numbers."""
    sections = parts(packed_file(tmp_path, "bpe").read_bytes())
    path = tmp_path / "bomb"
    for name, data in (
        ("index", b"\0" * ((1 << 26) + 1)),
        ("tokens", b"\0" * (1 << 26)),
        ("index", b"[" * (1 << 20)),
        ("index", b'{"extra":[' + b"1," * (1 << 20)),
    ):
        path.write_bytes(joined({**sections, name: zlib.compress(data, 1)}))
        with pytest.raises(UserError, match="bomb: .*(more than 67108864 bytes|first token is not|damaged, at byte)"):
            Embedded(library, path)


def test_what_it_refuses(library, tmp_path: Path) -> None:
    packed = packed_file(tmp_path, "bpe")
    embedded, content = Embedded(library, packed), read_packed(packed)
    with pytest.raises(UserError, match="the audio is too short: 100 samples"):
        embedded.transcribe(np.zeros(100, np.float32))
    with pytest.raises(UserError, match="not finite"):
        embedded.transcribe(np.full(9999, np.nan, np.float32))
    with pytest.raises(UserError, match="6 frames: an utterance has at least 7"):
        embedded.run(utterance(6))
    with pytest.raises(UserError, match="0 threads"):
        Embedded(library, packed, threads=0)
    model = dict(content.model_config)
    negative = [
        PackedTensor.from_values(t.name, t.role, t.encoding, -t.values) if t.name.endswith("running_var") else t
        for t in content.tensors
    ]
    for others, message in (
        ({"features": FeatureConfig(num_mel_bins=23).to_dict()}, "features of 23 bins, but a network for 20"),
        ({"features": {**content.features, "dither": 1}}, "an unknown setting dither"),
        ({"tokens_kind": "none"}, "kind of tokens, none, is unknown"),
        ({"tokens": TOKENIZERS["char"].to_bytes()}, "tokens, but 40 classes|more tokens than classes"),
        ({"extra": {"reference": True}}, "latent weights"),
        ({"model_config": {**model, "topology": "chain"}}, "not a topology chain"),
        ({"model_config": {**model, "kind": "mine"}}, "not a model mine"),
        ({"model_config": {**model, "encoder": {"kind": "lstm"}}}, "not an encoder lstm"),
        ({"model_config": {**model, "vocab_size": 41}}, "tensor ctc_head.weight is 40 x 24, not 41 x 24"),
        ({"tensors": negative}, "running_var is negative"),
        ({"tensors": content.tensors[1:]}, r"tensor encoder\S* is missing"),
    ):
        with pytest.raises(UserError, match=f"changed: .*({message})"):
            Embedded(library, changed(packed, **others))
    old = tmp_path / "old"
    shutil.copy(Path(__file__).parents[1] / "packed/version1.safetensors", old)
    for path, message in (
        (old, "format version 1, this library reads 2 and 3"),
        (tmp_path / "none", "No such file"),
        (tmp_path, "it is not a file"),
        (Path("/dev/null"), "it is not a file"),
        (EXAMPLE, "no packed model"),
    ):
        with pytest.raises(UserError, match=f"{path}: .*{message}"):
            Embedded(library, path)


def test_tokens_of_odd_spaces(library, tmp_path: Path) -> None:
    """Python's split() decides where words end; phones are put out as they are."""
    pieces = ["<blk>", "a", "\u00a0b", "c\u2003", "\u3000", "\u2581d", "<e>", "\U0001f600"]
    packed = packed_file(tmp_path, "phones")
    content = read_packed(packed)
    lexicon = json.dumps(
        {"tokens": (pieces * 9)[: content.model_config["vocab_size"]], "lexicon": []}, ensure_ascii=True
    )
    path, audio = changed(packed, tokens=lexicon.encode()), samples_of(write_sound(tmp_path / "a.wav", 5.0))
    assert Embedded(library, path).transcribe(audio) == Recogniser.load(path, "exact").transcribe(audio).text


def test_damaged_files_under_sanitizers(native, tmp_path: Path) -> None:
    """A line for each, no access out of bounds, and no more memory than what little the file holds warrants."""
    program, files, source = tmp_path / "recogniser_test", [], Path(__file__).with_name("recogniser_test.cpp")
    folders = (f"-I{build.NATIVE}", f"-I{SOURCES}")
    command = [build.compiler(), *build.SANITIZE, *folders, source, build.library_path(), "-o", program]
    subprocess.run(command, check=True)
    small = {"num_layers": 1, "ffn_dim": (24,)}
    ctc, transducer = (
        packed_file(tmp_path, "bpe", kind, **small).read_bytes() for kind in (CtcConfig, TransducerConfig)
    )
    write_packed(
        tmp_path / "coded", with_rare_codes(read_packed(packed_file(tmp_path, "phones", **small))), compress=True
    )
    for content, version in ((ctc, "2"), (transducer, "2"), ((tmp_path / "coded").read_bytes(), "3")):
        for damaged in (content, *forged(content, version, 15)):
            files.append(tmp_path / f"{len(files)}.packed")
            files[-1].write_bytes(damaged)
    done = subprocess.run(
        [program, *files],
        env={**os.environ, "ASAN_OPTIONS": "max_allocation_size_mb=150"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    opened, refused = map(int, re.findall(r"\d+", done.stdout))
    assert opened >= 3 and refused > 0.8 * len(files) and opened + refused == len(files), done.stdout


@needs_fbank
def test_a_program_in_c(library, tmp_path: Path) -> None:
    """As docs/embedding.md has it, without warnings."""
    program, libraries = tmp_path / "transcribe", (recogniser_library(), build.library_path())
    flags = ["-std=c11", "-Wall", "-Wextra", "-pedantic", "-Werror", f"-I{build.NATIVE}"]
    subprocess.run(["cc", *flags, EXAMPLE, *libraries, "-o", program], check=True)
    packed = packed_file(tmp_path, "bpe", TransducerConfig)
    recogniser = Recogniser.load(packed)
    for seconds, channels in ((2.3, 1), (1.7, 2)):
        audio = write_sound(tmp_path / "a.wav", seconds, channels=channels)
        done = subprocess.run([program, packed, audio], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, recogniser.transcribe(audio).text + "\n", "")
    other = write_sound(tmp_path / "b.wav", 1.0, 8000)
    for arguments, line in (
        ([], f"usage: {program} MODEL.safetensors SPEECH.wav"),
        ([packed, tmp_path / "none.wav"], f"error: {tmp_path}/none.wav is no WAV file of 16-bit PCM"),
        ([packed, packed], f"error: {packed} is no WAV file of 16-bit PCM"),
        ([packed, other], f"error: {other} has 8000 Hz, the model wants 16000"),
        ([tmp_path / "none", other], f"error: {tmp_path}/none: No such file or directory"),
    ):
        done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (1, "", line + "\n")


def test_the_makefile_builds_what_python_builds_and_the_recogniser(tmp_path: Path) -> None:
    """On each kind of machine, with a compiler that knows all flags and with one that knows none."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    for machine, compiler in product(("x86_64", "aarch64", "riscv64"), ("true", "false")):
        names = [f"BUILD={tmp_path}/build", f"MACHINE={machine}", f"CXX={compiler}"]
        command = ["make", "-n", "-f", SOURCES / "Makefile", *names]
        lines = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.splitlines()
        compiled = [line.split() for line in lines if line.startswith(compiler) and " -c " in line]
        found = {Path(words[-3]).stem: tuple(words[1:-4]) for words in compiled}
        found = {name: tuple(flag for flag in flags if not flag.startswith("-I")) for name, flags in found.items()}
        expected = {name: own if compiler == "true" else () for name, own in build.units(machine).items()}
        expected |= {source.stem: () for source in SOURCES.glob("*.cpp")}
        assert found == {name: (*build.FLAGS, *own) for name, own in expected.items()}
