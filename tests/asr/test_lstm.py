"""LSTM models through the scripts' own functions: train at two precisions, decode, pack, decode and stream the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from lowbit_k2.asr.evaluation import evaluate
from lowbit_k2.asr.model_io import CheckpointChoice, load_packed, load_trained
from lowbit_k2.asr.recognizer import DecodeConfig
from lowbit_k2.cli import run as run_command
from lowbit_k2.decode.lattice import SearchConfig
from lowbit_k2.decode.streaming import GreedyStreams
from lowbit_k2.decode.transducer import greedy_search
from lowbit_k2.errors import UserError
from lowbit_k2.packed import read_packed
from lowbit_k2.quant import use_precision
from lowbit_k2.recipe.training_flags import read_training_flags, training_parser
from tests.asr import running
from tests.asr.running import run_training
from tests.recipe.corpus import Corpus, make_corpus

SMALL = ["--model", "lstm-tiny", "--d-model", "12", "--num-layers", "2", "--stack-frames", "3"]
FIXED = ["--max-duration", "4", "--num-buckets", "2", "--warm-step", "5", "--tensorboard", "false"]
PENALTY = 8.0  # of the blank, or a model that has learned for a second puts out nothing
TRANSDUCER = ["--decoder-dim", "8", "--joiner-dim", "8", "--rnnt-warm-step", "2", "--prune-range", "3"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("corpus"), number=9)


def train(corpus: Corpus, exp_dir: Path, *more: str) -> None:
    flags = [*corpus.where, *SMALL, *FIXED, "--num-epochs", "2", "--precisions", "2,1", "--exp-dir", str(exp_dir)]
    run_training(training_parser(None).parse_args([*flags, *more]), corpus.cuts, corpus.cuts.subset(first=3))


def compare(corpus: Corpus, exp_dir: Path, methods: str) -> None:
    """Decode at both precisions and their mix, pack, and decode the files to the same words."""
    config = DecodeConfig(
        CheckpointChoice(exp_dir),
        decoding_method=methods,
        search=SearchConfig(blank_penalty=PENALTY),
        manifest_dir=corpus.manifest_dir,
        quiet=True,
    )
    found = evaluate(config, ("2", "1.5", "1"), "test", lambda: corpus.cuts)
    assert [set(e.errors) for e in found] == [set(methods.split(","))] * 3


def test_ctc_from_training_to_the_packed_file(corpus: Corpus, tmp_path: Path) -> None:
    train(corpus, tmp_path, "--objective", "ctc", "--reduce-after", "1", "--bidirectional", "true", "--cell-dim", "9")
    compare(corpus, tmp_path, "ctc-greedy-search")
    inputs, lens = torch.randn(2, 50, 20), torch.tensor([50, 33])
    loaded, packed = load_trained(CheckpointChoice(tmp_path))[0], load_packed(tmp_path / "packed/1bit.safetensors")
    with use_precision(loaded.model, 1), torch.no_grad():
        assert torch.equal(loaded.model(inputs, lens)[0], packed.model(inputs, lens)[0])


@pytest.mark.k2
def test_a_transducer_from_training_to_the_packed_file(
    corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(corpus, tmp_path, *TRANSDUCER, "--objective", "ctc-rnnt")
    compare(corpus, tmp_path, "greedy_search,modified_beam_search,ctc-greedy-search")
    file = tmp_path / "packed/1bit.safetensors"
    roles = {tensor.name: (tensor.role, tensor.encoding) for tensor in read_packed(file).tensors}
    assert roles["encoder.layers.1.lstm.weight_hh_l0"] == ("encoder_linear", "binary")
    assert roles["decoder.lstm.weight_ih_l0"] == ("decoder", "int8")

    loaded, packed = load_trained(CheckpointChoice(tmp_path))[0].model, load_packed(file).model
    inputs, lens = torch.randn(2, 90, 20), torch.tensor([90, 33])
    tokens = torch.tensor([[0, 2, 1, 3]])
    with use_precision(loaded, 1), torch.no_grad():
        whole, whole_lens = loaded.encoder(inputs, lens)
        assert torch.equal(packed.encoder(inputs, lens)[0], whole)
        assert torch.equal(packed.decoder(tokens), loaded.decoder(tokens))
    expected = greedy_search(packed, whole[:1], whole_lens[:1], blank_penalty=PENALTY)[0].labels
    streams, state = GreedyStreams(packed, 1, blank_penalty=PENALTY), None
    for chunk in inputs[:1].split(8, dim=1):
        with torch.no_grad():
            encoder_out, state = packed.encoder.stream(chunk, state)
        streams.accept(encoder_out)
    assert tuple(streams.tokens[0]) == expected != ()

    soundfile.write(str(tmp_path / "a.wav"), 0.1 * np.random.default_rng(0).normal(size=16000), 16000)
    capsys.readouterr()
    run_command(["transcribe", "--packed", str(file), str(tmp_path / "a.wav")])
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'a.wav'}\t")
    for name in ("fast_beam_search", "fast_beam_search_nbest_LG"):
        where = ["--exp-dir", str(tmp_path), "--manifest-dir", str(corpus.manifest_dir), "--quiet"]
        with pytest.raises(UserError, match=f"--decoding-method {name} needs a transducer of --decoder-kind stateless"):
            running.decode(lambda: {"test": corpus.cuts}, *where, "--decoding-method", name)


@pytest.mark.k2
def test_an_lstm_encoder_with_a_stateless_prediction_network(corpus: Corpus, tmp_path: Path) -> None:
    train(corpus, tmp_path, *TRANSDUCER, "--objective", "rnnt", "--decoder-kind", "stateless")
    compare(corpus, tmp_path, "fast_beam_search")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--objective", "ctc", "--cell-dim", "5"], "--cell-dim 5 must be more than the 12 projected to"),
        (["--objective", "ctc", "--reduce-after", "2"], "--reduce-after 2 must be less than --num-layers 2"),
        (["--objective", "ctc", "--ffn-dim", "8"], "not all of these are settings of a lstm"),
        (
            ["--objective", "ctc-rnnt", "--decoder-kind", "gru"],
            "--decoder-kind 'gru' is unknown: choose one of stateless",
        ),
    ],
)
def test_flags_that_do_not_fit(flags: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        read_training_flags(training_parser(None).parse_args([*SMALL, *flags]))
