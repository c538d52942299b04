"""export.py --format onnx on real speech: sherpa-onnx and onnxruntime hear the words that torch hears.

sherpa-onnx is the real one, in the environment where it is installed; the other tests need onnx and onnxruntime alone.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lowbit_k2.asr.model_io import CheckpointChoice, LoadedModel, load_trained
from lowbit_k2.asr.recognizer import DecodeConfig, Recognizer, make_searches
from lowbit_k2.asr.transcription import transcribe
from lowbit_k2.core.chunks import ChunkConfig
from lowbit_k2.core.features import FeatureConfig
from lowbit_k2.data.features import make_extractor
from lowbit_k2.quant import use_precision
from tests.asr.running import export
from tests.asr.spoken import BITS, Utterance, learn, read_an4

pytest.importorskip("onnx", reason="onnx is not installed: pip install -r requirements-onnx.txt")
ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install -r requirements-onnx.txt")

TYPES = ("float", "int8", "4bit", "2bit")
METHODS = {"ctc": "ctc-greedy-search", "transducer": "greedy_search"}


@pytest.fixture(scope="module")
def utterances(data_dir: Path) -> list[Utterance]:
    return read_an4(data_dir, 6)


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory, utterances: list[Utterance]) -> SimpleNamespace:
    """A trained transducer with a CTC head: its folder, the model, and all its exports at 2 bits."""
    exp_dir = tmp_path_factory.mktemp("spoken")
    learn(utterances, exp_dir / "epoch-1.pt")
    for kind in TYPES:
        run(exp_dir, "--precision", str(BITS), "--onnx-type", kind)
    loaded = load_trained(CheckpointChoice(exp_dir))[0]
    return SimpleNamespace(exp_dir=exp_dir, loaded=loaded, folder=exp_dir / f"onnx-{BITS}bit")


def run(exp_dir: Path, *flags: str) -> None:
    def no_cuts() -> None:
        raise AssertionError("training cuts are for --recalibrate-bn only")

    assert export(no_cuts, "--format", "onnx", "--exp-dir", str(exp_dir), *flags) is None


def heard_by_torch(loaded: LoadedModel, network: str, utterances: list[Utterance]) -> list[str]:
    """Words of the greedy search at the precision of the exports."""
    searches = make_searches(DecodeConfig(decoding_method=METHODS[network]), loaded, torch.device("cpu"))
    recognizer = Recognizer(loaded, "", None, torch.device("cpu"), searches, ChunkConfig())
    with use_precision(loaded.model, BITS):
        return [" ".join(transcribe(recognizer, u.features)) for u in utterances]


def file_of(spoken: SimpleNamespace, name: str, kind: str) -> str:
    path = spoken.folder / (f"{name}.onnx" if kind == "float" else f"{name}.{kind}.onnx")
    assert path.is_file()
    return str(path)


def heard_by_sherpa(spoken: SimpleNamespace, network: str, kind: str, utterances: list[Utterance]) -> list[str]:
    sherpa_onnx = pytest.importorskip(
        "sherpa_onnx", reason="sherpa-onnx is not installed: pip install -r requirements-onnx.txt"
    )
    import soundfile

    tokens = str(spoken.folder / "tokens.txt")
    if network == "ctc":
        recognizer = sherpa_onnx.OfflineRecognizer.from_zipformer_ctc(file_of(spoken, "model", kind), tokens)
    else:
        files = {name: file_of(spoken, name, kind) for name in ("encoder", "decoder", "joiner")}
        recognizer = sherpa_onnx.OfflineRecognizer.from_transducer(**files, tokens=tokens)
    streams = []
    for utterance in utterances:
        samples, rate = soundfile.read(utterance.audio, dtype="float32")
        streams.append(recognizer.create_stream())
        streams[-1].accept_waveform(rate, samples)
    recognizer.decode_streams(streams)  # one batch of several lengths
    return [stream.result.text.strip() for stream in streams]


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("network", METHODS)
def test_sherpa_onnx_gives_the_words_of_torch(
    spoken: SimpleNamespace, network: str, kind: str, utterances: list[Utterance]
) -> None:
    expected = heard_by_torch(spoken.loaded, network, utterances)
    assert expected == [utterance.text for utterance in utterances], "it has not learned them: the test shows nothing"
    assert heard_by_sherpa(spoken, network, kind, utterances) == expected


def test_sherpa_onnx_survives_audio_that_is_too_short(spoken: SimpleNamespace) -> None:
    """One frame, and six of the seven that an output takes: nothing is heard."""
    sherpa_onnx = pytest.importorskip("sherpa_onnx", reason="sherpa-onnx is not installed")
    name, tokens = file_of(spoken, "model", "float"), str(spoken.folder / "tokens.txt")
    recognizer = sherpa_onnx.OfflineRecognizer.from_zipformer_ctc(name, tokens)
    for count in (400, 1000):
        stream = recognizer.create_stream()
        stream.accept_waveform(16000, np.full(count, 0.1, dtype=np.float32))
        recognizer.decode_streams([stream])
        assert stream.result.text == ""


def session(path: str) -> Any:
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"])


def raw_batch(loaded: LoadedModel, utterances: list[Utterance]) -> tuple[np.ndarray, np.ndarray, list[torch.Tensor]]:
    """Features as they are computed, padded with what sherpa-onnx pads with: (N, T, F), (N,), and N of (T, F)."""
    from lowbit_k2.data.features import read_audio

    extractor = make_extractor(FeatureConfig.from_dict(loaded.features))
    raw = [torch.as_tensor(extractor.extract(read_audio(u.audio, 16000)[None], 16000)) for u in utterances]
    padded = torch.nn.utils.rnn.pad_sequence(raw, batch_first=True, padding_value=-23.025850929940457)
    return padded.numpy(), np.array([len(features) for features in raw]), raw


@pytest.mark.parametrize("kind", ["float", "4bit"])
def test_onnxruntime_gives_the_log_probs_of_torch(
    spoken: SimpleNamespace, kind: str, utterances: list[Utterance]
) -> None:
    x, lens, _ = raw_batch(spoken.loaded, utterances)
    network = session(file_of(spoken, "model", kind))
    log_probs, found_lens = network.run(None, {"x": x, "x_lens": lens})
    for n, utterance in enumerate(utterances):
        with use_precision(spoken.loaded.model, BITS), torch.no_grad():
            output = spoken.loaded.model.network_output(utterance.features[None], torch.tensor([lens[n]]))
        [expected], [length] = output["log_probs"].numpy(), output["lens"].tolist()
        assert found_lens[n] == length
        np.testing.assert_allclose(log_probs[n, :length], expected, rtol=0, atol=1e-4)
        if n == 0:  # a batch gives what an utterance gives alone
            alone, _ = network.run(None, {"x": x[:1, : lens[0]], "x_lens": lens[:1]})
            np.testing.assert_allclose(alone[0, :length], expected, rtol=0, atol=1e-4)


def test_the_precision_is_that_of_the_flag(spoken: SimpleNamespace, utterances: list[Utterance]) -> None:
    run(spoken.exp_dir, "--precision", "1")
    x, lens, _ = raw_batch(spoken.loaded, utterances[:1])
    names = {bits: spoken.exp_dir / f"onnx-{bits}bit/model.onnx" for bits in (1, 2)}
    found = {bits: session(str(name)).run(None, {"x": x, "x_lens": lens})[0] for bits, name in names.items()}
    assert np.abs(found[1] - found[2]).max() > 0.01
    with use_precision(spoken.loaded.model, 1), torch.no_grad():
        output = spoken.loaded.model.network_output(utterances[0].features[None], torch.tensor(lens))
    length = int(output["lens"])
    np.testing.assert_allclose(found[1][:, :length], output["log_probs"].numpy(), rtol=0, atol=1e-4)


def test_files_shrink_with_the_bits(spoken: SimpleNamespace) -> None:
    sizes = [Path(file_of(spoken, "model", kind)).stat().st_size for kind in TYPES]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 4


def test_the_script_says_how_sherpa_onnx_is_called(repo_root: Path, spoken: SimpleNamespace, tmp_path: Path) -> None:
    command = [sys.executable, str(repo_root / "egs/an4/export.py"), "--exp-dir", str(spoken.exp_dir)]
    command += ["--precision", "2", "--format", "onnx", "--output", str(tmp_path / "new/folder")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert f"sherpa-onnx-offline --zipformer-ctc-model={tmp_path}/new/folder/model.onnx" in done.stdout
    assert f"--encoder={tmp_path}/new/folder/encoder.onnx --decoder=" in done.stdout
