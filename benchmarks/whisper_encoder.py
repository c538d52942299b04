#!/usr/bin/env python3
"""What does a model of others lose at few bits? The encoder of Whisper tiny.en, with its real weights.

Its encoder is quantized as it stands (`quantize_model`, preset `mixed`: every matrix and convolution), decoded at each
precision, then trained for a while to give what the float encoder gives (mean squared error of the output, over its
variance, on pieces of ten seconds) and decoded again. A training has one or more precisions on one set of latent
weights; each update takes one of them by chance, so that all trainings cost the same. The decoder stays float. Each
precision is packed and unpacked, and must give the same output.

pip install openai-whisper                                # the model's code; no weights are downloaded
python benchmarks/whisper_encoder.py --weights FOLDER --librispeech LibriSpeech --bits 8 4 2 1 --train 1 2 8,4,2,1
python benchmarks/whisper_encoder.py ... --bits 8 4 --scale running-absmax --results whisper    # call again to go on

FOLDER holds model.bin, Whisper in CTranslate2's format (faster-whisper's), which some packages on PyPI bring.
Greedy decoding without timestamps; words are normalised by Whisper's own normaliser, on both sides. --results keeps
what was recognised, for `lowbit-k2 compare` and for further calls, which take it from there.
"""

from __future__ import annotations

import copy
import random
import struct
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from lowbit_k2.launch import use_project_interpreter

use_project_interpreter()

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lowbit_k2.data.features import read_audio
from lowbit_k2.errors import UserError, run_main
from lowbit_k2.export import load_packed, save_packed
from lowbit_k2.progress import progress_bar
from lowbit_k2.quant import QuantConfig, clamp_alphas, parameter_groups, quantize_model, use_precision
from lowbit_k2.recipe.flags import make_parser
from lowbit_k2.scoring.recogs import read_recogs, write_recogs
from lowbit_k2.scoring.significance import matched_pairs
from lowbit_k2.scoring.wer import Result, score
from lowbit_k2.tables import text_table
from lowbit_k2.textfile import read_lines

RATE, FRAME = 16000, 160
TYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}  # of CTranslate2
PIECE = 1000  # frames of a training piece; the encoder makes half as many of them
MAX_HEADER = 1 << 16


def read_ctranslate2(path: Path) -> dict[str, np.ndarray]:
    """The variables of a model.bin.

    Raises:
      UserError: it is missing, cut short, or in another format.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist: give --weights a folder with a model.bin of faster-whisper")
    data, place = path.read_bytes(), 0

    def take(code: str) -> int:
        nonlocal place
        [value] = struct.unpack_from(f"<{code}", data, place)
        place += struct.calcsize(f"<{code}")
        return value

    def text() -> str:
        nonlocal place
        size = take("H")
        place += size
        return data[place - size : place].rstrip(b"\0").decode()

    try:
        version, found = take("I"), {}
        if version != 6 or text() != "WhisperSpec":
            raise UserError(f"{path} holds no Whisper model of CTranslate2's format 6: convert it again")
        take("I")  # revision
        for _ in range(take("I")):
            name, shape = text(), [take("I") for _ in range(take("B"))]
            dtype, size = np.dtype(TYPES[take("B")]), take("I")
            found[name] = np.frombuffer(data, dtype, size // dtype.itemsize, place).reshape(shape)
            place += size
        return found
    except (struct.error, KeyError, ValueError, UnicodeDecodeError):
        raise UserError(f"{path} is damaged: copy it again") from None


def of_attention(
    found: Mapping[str, np.ndarray], name: str, ours: str, across: bool
) -> Iterator[tuple[str, np.ndarray]]:
    """CTranslate2 joins query, key and value, or key and value of cross-attention, in one matrix."""
    groups = ((0, ("query",)), (1, ("key", "value"))) if across else ((0, ("query", "key", "value")),)
    for index, parts in groups:
        for kind in ("weight", "bias"):
            joined = found[f"{name}/linear_{index}/{kind}"]
            for part, value in zip(parts, np.split(joined, len(parts)), strict=True):
                if (part, kind) != ("key", "bias"):  # which Whisper has not
                    yield f"{ours}.{part}.{kind}", value
    for kind in ("weight", "bias"):
        yield f"{ours}.out.{kind}", found[f"{name}/linear_{2 if across else 1}/{kind}"]


def as_whisper(found: Mapping[str, np.ndarray], layers: int) -> dict[str, Tensor]:
    """A state_dict by the names of openai-whisper."""
    state: dict[str, np.ndarray] = {}

    def norm(theirs: str, ours: str) -> None:
        for kind, mine in (("gamma", "weight"), ("beta", "bias")):
            state[f"{ours}.{mine}"] = found[f"{theirs}/layer_norm/{kind}"]

    for side in ("encoder", "decoder"):
        for i in range(layers):
            name, ours = f"{side}/layer_{i}", f"{side}.blocks.{i}"
            attentions = [("self_attention", "attn", False)] + [("attention", "cross_attn", True)] * (side == "decoder")
            for theirs, mine, across in attentions:
                state |= of_attention(found, f"{name}/{theirs}", f"{ours}.{mine}", across)
                norm(f"{name}/{theirs}", f"{ours}.{mine}_ln")
            norm(f"{name}/ffn", f"{ours}.mlp_ln")
            for index, mine in ((0, 0), (1, 2)):
                for kind in ("weight", "bias"):
                    state[f"{ours}.mlp.{mine}.{kind}"] = found[f"{name}/ffn/linear_{index}/{kind}"]
        state[f"{side}.positional_embedding"] = found[f"{side}/position_encodings/encodings"]
        norm(side, "encoder.ln_post" if side == "encoder" else "decoder.ln")
    for name in ("conv1", "conv2"):
        for kind in ("weight", "bias"):
            state[f"encoder.{name}.{kind}"] = found[f"encoder/{name}/{kind}"]
    state["decoder.token_embedding.weight"] = found["decoder/embeddings/weight"]
    return {name: torch.from_numpy(value.astype(np.float32)) for name, value in state.items()}


def load_whisper(folder: Path) -> nn.Module:
    """Whisper of the weights' own size, in float32."""
    from whisper.model import ModelDimensions, Whisper

    found = read_ctranslate2(folder / "model.bin")
    vocabulary, width = found["decoder/embeddings/weight"].shape
    layers = sum(name.endswith("/ffn/linear_0/weight") for name in found) // 2
    heads = int(found["encoder/num_heads"])
    bands = found["encoder/conv1/weight"].shape[1]
    frames, texts = (len(found[f"{side}/position_encodings/encodings"]) for side in ("encoder", "decoder"))
    sizes = ModelDimensions(bands, frames, width, heads, layers, vocabulary, texts, width, heads, layers)
    model = Whisper(sizes)
    model.load_state_dict(as_whisper(found, layers))
    return model.eval()


def read_librispeech(root: Path, split: str) -> list[tuple[str, Path, str]]:
    """(id, audio, text) of a split.

    Raises:
      UserError: there is nothing.
    """
    found = []
    for path in sorted((root / split).rglob("*.trans.txt")):
        for line in read_lines(path):
            name, _, text = line.partition(" ")
            found.append((name, path.with_name(f"{name}.flac"), text))
    if not found:
        raise UserError(f"{root / split} holds no LibriSpeech transcripts: give --librispeech its folder")
    return found


def spectrum(path: Path, bands: int, frames: int | None = None) -> Tensor:
    """Whisper's log-Mel spectrum, (bands, T); cut or filled up to `frames`."""
    from whisper.audio import log_mel_spectrogram, pad_or_trim

    samples = read_audio(path, RATE)
    return log_mel_spectrogram(samples if frames is None else pad_or_trim(samples, frames * FRAME), bands)


@torch.no_grad()
def recognise(model: nn.Module, utterances: Sequence[tuple[str, Path, str]], batch: int, what: str) -> list[Result]:
    """Greedy decoding without timestamps, at the precision in use."""
    from whisper.decoding import DecodingOptions
    from whisper.normalizers import EnglishTextNormalizer

    options = DecodingOptions(language="en", without_timestamps=True, fp16=False)
    normalize, results = EnglishTextNormalizer(), []
    frames = 2 * model.dims.n_audio_ctx
    with parametrize.cached():
        for start in progress_bar(range(0, len(utterances), batch), what, leave=False):
            part = utterances[start : start + batch]
            mels = torch.stack([spectrum(path, model.dims.n_mels, frames) for _, path, _ in part])
            for (name, _, text), heard in zip(part, model.decode(mels, options), strict=True):
                results.append((name, normalize(text).split(), normalize(heard.text).split()))
    return results


def train(
    encoder: nn.Module, teacher: nn.Module, bits: Sequence[int], mels: Sequence[Tensor], updates: int, rate: float
) -> None:
    """Bring the encoder's output near the teacher's, one of the precisions by chance at each update."""
    groups = parameter_groups(encoder, weight_decay=0.0)
    for group in groups:
        group["lr"] = rate * (0.1 if group["name"] == "alphas" else 1.0)
    optimizer = torch.optim.Adam(groups)
    falling = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: min(1.0, (n + 1) / 50) * (1 - n / updates))
    draw = random.Random(0)
    positions = encoder.positional_embedding
    bar = progress_bar(range(updates), f"training at {','.join(map(str, bits))}", leave=False)
    for _ in bar:
        mel = draw.choice(mels)
        start = draw.randrange(max(1, mel.size(1) - PIECE))
        piece = mel[None, :, start : start + PIECE]
        for module in (encoder, teacher):
            module.positional_embedding = positions[: (piece.size(2) + 1) // 2]
        with torch.no_grad():
            target = teacher(piece)
        with use_precision(encoder, draw.choice(bits)):
            loss = (encoder(piece) - target).square().mean() / target.var()
            optimizer.zero_grad()
            loss.backward()
        optimizer.step()
        falling.step()
        clamp_alphas(encoder)
        bar.set_postfix_str(f"loss {loss.item():.4f}")
    for module in (encoder, teacher):
        module.positional_embedding = positions


@torch.no_grad()
def packed_size(encoder: nn.Module, plain: nn.Module, mel: Tensor) -> int:
    """Bytes of the file of the precision in use, which has to give what the encoder gives."""
    with tempfile.TemporaryDirectory(prefix="lowbit_k2-") as folder:
        path = Path(folder) / "encoder.safetensors"
        save_packed(encoder, path)
        unpacked = load_packed(path, copy.deepcopy(plain))
        if not torch.equal(unpacked(mel[None]), encoder(mel[None])):
            raise AssertionError("the packed encoder computes something else")
        return path.stat().st_size


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--weights", type=Path, required=True, help="folder with model.bin")
    parser.add_argument("--librispeech", type=Path, required=True)
    parser.add_argument("--test-split", default="test-other")
    parser.add_argument("--train-split", default="train-clean-100")
    parser.add_argument("--bits", type=int, nargs="*", default=[8, 4, 2, 1], help="decoded without training")
    parser.add_argument("--scale", default="", help="statistic of the steps, e.g. running-absmax (the preset's)")
    parser.add_argument("--granularity", choices=("tensor", "channel"), default="channel", help="of scales")
    parser.add_argument("--train", nargs="*", default=[], help="trainings, each by its precisions: 1 2 8,4,2,1")
    parser.add_argument("--updates", type=int, default=600, help="of each training")
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--results", type=Path, help="folder to keep what was recognised in")
    parser.add_argument("--max-utterances", type=int, help="of the test split")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--num-threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.num_threads)
    torch.manual_seed(0)
    try:
        import whisper  # noqa: F401
    except ImportError:
        raise UserError("openai-whisper is not installed: pip install openai-whisper") from None
    model = load_whisper(args.weights)
    test = read_librispeech(args.librispeech, args.test_split)[: args.max_utterances]
    plain = model.encoder
    float_bytes = sum(4 * p.numel() for p in plain.parameters())
    example = spectrum(test[0][1], model.dims.n_mels, 2 * model.dims.n_audio_ctx)

    def hear(what: str) -> list[Result]:
        if args.results is None:
            return recognise(model, test, args.batch, what)
        kept = args.results / f"recogs-{args.test_split}-{len(test)}-{what.replace(' ', '-')}.txt"
        if not kept.is_file():
            write_recogs(kept, recognise(model, test, args.batch, what))
        return read_recogs(kept)

    reference = hear("float")
    head = ["encoder", "training", "MB", "ratio", "words", "p against float"]
    rows = [["float", "", f"{float_bytes / 1e6:.2f}", "1.0", str(score(reference)), ""]]
    print(text_table(head, rows, left=(0, 1, 4)), flush=True)

    def add(encoder: nn.Module, bits: int, how: str) -> None:
        model.encoder = encoder
        with use_precision(encoder, bits):
            size = packed_size(encoder, plain, example)
            results = hear(" ".join([str(bits), "bits", how, args.granularity, args.scale]).strip())
        p = matched_pairs(reference, results).p
        rows.append(
            [f"{bits} bits", how, f"{size / 1e6:.2f}", f"{float_bytes / size:.1f}", str(score(results)), f"{p:.3f}"]
        )
        print(text_table(head, rows[-1:], left=(0, 1, 4)), flush=True)

    trainings = [[int(part) for part in text.split(",")] for text in args.train]
    every = tuple(sorted({*args.bits, *(bits for training in trainings for bits in training)}, reverse=True))
    options = {"granularity": args.granularity, **({"scale": args.scale} if args.scale else {})}

    def quantized() -> nn.Module:
        encoder = copy.deepcopy(plain)
        report = quantize_model(encoder, QuantConfig.preset("mixed", every, **options), strict=True)
        if not rows[1:]:
            print(report, flush=True)
        return encoder.eval()

    encoder = quantized()
    for bits in args.bits:
        add(encoder, bits, "none")
    if args.train:
        paths = [path for _, path, _ in read_librispeech(args.librispeech, args.train_split)]
        mels = [spectrum(path, model.dims.n_mels) for path in progress_bar(paths, "training speech", leave=False)]
    for text, precisions in zip(args.train, trainings, strict=True):
        encoder = quantized()
        train(encoder, plain, precisions, mels, args.updates, args.learning_rate)
        for bits in precisions:
            add(encoder, bits, f"{args.updates} updates at {text}")
    print(text_table(head, rows, left=(0, 1, 4)))


if __name__ == "__main__":
    run_main(main)
