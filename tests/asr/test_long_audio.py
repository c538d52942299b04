"""Audio longer than a chunk: frames and labels of the pieces are those of the whole, and memory stays bounded."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from lowbit_k2.asr.decoding import decode_set
from lowbit_k2.asr.long_audio import cut_at_pauses, decode_long, joined, network_pieces, segments
from lowbit_k2.asr.model_io import LoadedModel
from lowbit_k2.asr.recognizer import Recognizer
from lowbit_k2.core.chunks import ChunkConfig
from lowbit_k2.core.features import FeatureConfig
from lowbit_k2.data.batch import collate
from lowbit_k2.data.tokenizer import SentencePieceTokenizer
from lowbit_k2.decode.hypothesis import Hypothesis
from lowbit_k2.decode.method import Method, NetworkOutput, Setup
from lowbit_k2.decode.methods import CtcDecoding, CtcGreedySearch, GreedySearch, ModifiedBeamSearch
from lowbit_k2.models import ConformerConfig, CtcConfig, TransducerConfig, make_model
from lowbit_k2.recipe.train_bpe import train_sentencepiece

TOKENIZER = SentencePieceTokenizer(train_sentencepiece(["YES NO", "GO"], "char", 0))
V = TOKENIZER.vocab_size
ENCODER = ConformerConfig(
    num_features=V, d_model=16, num_layers=1, num_heads=2, ffn_dim=16, conv_kernel=3, subsampling_channels=4
)
RAW = FeatureConfig(num_mel_bins=V, normalize="none").to_dict()
CHUNKS = ChunkConfig(chunk_seconds=2.0, chunk_overlap=0.4)  # 200 input, 49 output frames


class EveryFourth(torch.nn.Module):
    """As many frames as a Conformer gives; output frame t is the middle one of those that a Conformer sees for it."""

    def network_output(self, inputs: torch.Tensor, lens: torch.Tensor) -> dict[str, torch.Tensor]:
        log_probs = inputs[:, 3::4][:, : ENCODER.output_lens(inputs.size(1))].log_softmax(-1)
        return {"log_probs": log_probs, "lens": ENCODER.output_lens(lens), "inputs_seen": log_probs[..., :1]}


class Transcript(Method):
    """Puts out what it is told: a method that needs references, and sees all at once."""

    network, needs_references, name = "ctc", True, "transcript"

    def search(self, output, n, references):
        assert len(references) == 1 and int(output.lens) > 49
        return [[Hypothesis(tuple(TOKENIZER.encode(" ".join(references[0]))), 0.0)]]


def spelled(text: str, pauses: bool = True) -> torch.Tensor:
    """Features that `EveryFourth` turns into `text`: 24 input frames a letter, and pauses of a second behind words."""
    ids = [[i] * 6 + [0] * 2 + [0] * (25 if pauses and piece == "▁" else 0) for i, piece in _pieces(text)]
    ids = torch.tensor([0, *(i for part in ids for i in part), 0, 0]).repeat_interleave(4)
    return 9.0 * torch.nn.functional.one_hot(ids, V).float()


def _pieces(text: str) -> list[tuple[int, str]]:
    ids = TOKENIZER.encode(text)
    return [(i, TOKENIZER.pieces()[i]) for i in ids]


def recognizer(*methods: type[Method], model: torch.nn.Module | None = None, config=None, **features) -> Recognizer:
    config = config or CtcConfig(ENCODER, V)
    model = model or EveryFourth()
    loaded = LoadedModel(model, config, None, TOKENIZER, {**RAW, **features})
    searches = {(method.name, ""): method(Setup(TOKENIZER, model)) for method in methods}
    return Recognizer(loaded, "toy", None, torch.device("cpu"), searches, CHUNKS)


WORDS = ("YES NO GO " * 20).split()


@pytest.mark.parametrize("cut", range(8))
def test_pieces_make_up_the_output_of_the_whole(cut: int) -> None:
    features = torch.randn(1003 + cut, V)
    own = recognizer(CtcGreedySearch)
    whole = own.run(features[None], torch.tensor([len(features)]))
    for pieces in (list(network_pieces(own, features)), list(segments(own, features))):
        together = joined(pieces)
        assert len(pieces) > 3 and int(together.lens) == int(whole.lens) == ENCODER.output_lens(len(features))
        assert torch.equal(together.log_probs, whole.log_probs)
        assert torch.equal(together.more["inputs_seen"], whole.more["inputs_seen"])
    assert all(1 <= int(piece.lens) <= 49 for piece in segments(own, features))


@pytest.mark.parametrize("pauses", [True, False])
def test_words_of_long_audio(pauses: bool) -> None:
    methods = [CtcGreedySearch, Transcript]
    features = spelled(" ".join(WORDS), pauses)
    words, without_path = decode_long(recognizer(*methods), features, WORDS)
    assert words == {(method.name, ""): WORDS for method in methods} and not without_path


@pytest.mark.k2
def test_lattices_of_long_audio() -> None:
    features = spelled(" ".join(WORDS))
    words, without_path = decode_long(recognizer(CtcDecoding), features)
    assert words == {("ctc-decoding", ""): WORDS} and not without_path


def test_chunks_are_normalised_as_utterances_are() -> None:
    own = recognizer(CtcGreedySearch, normalize="utterance")
    features = torch.randn(900, V) + torch.linspace(0, 50, 900)[:, None]  # a level that rises
    for piece in network_pieces(own, features):
        assert piece.log_probs.abs().max() < 20
    one = replace(own, chunking=ChunkConfig(chunk_seconds=0))
    assert not one.is_long(10**6) and own.is_long(201) and not own.is_long(200)


def test_no_method_sees_more_than_a_chunk() -> None:
    seen: list[int] = []

    class Spy(CtcGreedySearch):
        def search(self, output, n, references):
            seen.append(int(output.lens.max()))
            return super().search(output, n, references)

    Spy.name = "spy"
    decode_long(recognizer(Spy), torch.randn(4000, V))
    assert len(seen) > 20 and max(seen) <= 49


def test_without_scores_all_comes_in_one_piece() -> None:
    pieces = [NetworkOutput(torch.tensor([30]), torch.randn(1, 30, V)) for _ in range(4)]
    [whole] = cut_at_pauses(pieces, 49, lambda output: None)
    assert int(whole.lens) == 120
    assert list(cut_at_pauses([], 49, lambda output: None)) == []


def test_short_utterances_of_a_batch_stay_as_they_are() -> None:
    """Bitwise, beside a long one or not; the long one is the same by itself."""
    torch.manual_seed(0)
    config = CtcConfig(ENCODER, V)
    own = recognizer(CtcGreedySearch, model=make_model(config).eval(), config=config)
    short, other, long = torch.randn(150, V), torch.randn(200, V), torch.randn(1000, V)
    ran: list[tuple[int, ...]] = []
    run = own.run
    own.run = lambda inputs, lens: ran.append(tuple(inputs.shape[:2])) or run(inputs, lens)

    def found(*features: torch.Tensor) -> dict[str, list[str]]:
        names = {150: "short", 200: "other", 1000: "long"}
        batch = collate(features, [""] * len(features), [names[len(f)] for f in features])
        [results] = decode_set(own, [batch], 0.01).found.values()
        return {name: words for name, _, words in results}

    together = found(short, other)
    assert ran == [(2, 200)]
    assert found(long) | together == found(short, long, other) and "long" in found(long)
    assert ran[-1] != (3, 1000) and max(length for _, length in ran) < 204


@pytest.mark.parametrize("method", [GreedySearch, ModifiedBeamSearch])
def test_transducers(method: type[Method]) -> None:
    """Pauses are found by the joiner; the labels of the segments are put behind each other."""
    torch.manual_seed(1)
    config = TransducerConfig(ENCODER, V, decoder_dim=8, joiner_dim=8)
    model = make_model(config, for_training=False).eval()
    own = recognizer(method, model=model, config=config)
    features = torch.randn(1500, V)
    parts = list(segments(own, features))
    assert len(parts) > 5 and sum(int(part.lens) for part in parts) == ENCODER.output_lens(1500)
    [search] = own.searches.values()
    labels = [label for part in parts for label in search.nbest(part)[0][0].labels]
    words, _ = decode_long(own, features)
    assert words == {(method.name, ""): search.words_of(labels)} and labels


@pytest.mark.parametrize("engine", ["native", "torch"])
def test_ten_minutes_in_bounded_memory(tmp_path: Path, repo_root: Path, engine: str) -> None:
    """As a whole, attention alone would take 2 x 4 heads x 15000^2 floats: 7 GB."""
    from lowbit_k2.export import pack_model
    from tests.export.toy import toy_model

    toy = toy_model()
    toy.features = FeatureConfig(num_mel_bins=23).to_dict()
    pack_model(toy, tmp_path / "toy.safetensors")
    noise = (3000 * np.random.default_rng(0).standard_normal(600 * 16000)).astype(np.int16)
    soundfile.write(tmp_path / "long.wav", noise, 16000)
    code = (
        "import sys; from lowbit_k2.cli import run; from lowbit_k2.processes import peak_memory; run(sys.argv[1:]);"
        "print(peak_memory(), file=sys.stderr)"
    )
    flags = [
        "transcribe",
        "--engine",
        engine,
        "--packed",
        str(tmp_path / "toy.safetensors"),
        str(tmp_path / "long.wav"),
    ]
    command = [sys.executable, "-c", code, *flags]
    done = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.startswith(f"{tmp_path / 'long.wav'}\t"), done.stderr
    assert int(done.stderr.split()[-1]) < 1_000_000_000
