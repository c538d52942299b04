"""Model files whose checksums are right and whose contents are not: one line each, and no memory that they do not hold.

Every field of the configuration of model, features and quantization gets values of other types and sizes, tensors get
numbers that are not finite, tokenizers other sizes. A file is either taken, or refused in one line.
"""

from __future__ import annotations

import json
import math
import random
import resource
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lowbit_k2.asr.model_io import CheckpointChoice, build_model, describe_tokenizer, load_packed, load_trained
from lowbit_k2.asr.recognizer import DecodeConfig, make_recognizers
from lowbit_k2.data.features import FeatureConfig
from lowbit_k2.data.tokenizer import SentencePieceTokenizer, tokenizer_from_bytes
from lowbit_k2.errors import UserError, is_one_line_error
from lowbit_k2.export import pack_model
from lowbit_k2.fileio import read_json
from lowbit_k2.models import CtcConfig, TransducerConfig
from lowbit_k2.packed import PackedFileError, PackedTensor, read_packed, write_packed
from lowbit_k2.quant import QuantConfig
from lowbit_k2.recipe.train_bpe import train_sentencepiece
from lowbit_k2.runtime import Recogniser
from lowbit_k2.train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from lowbit_k2.train.initialise import InitialState
from tests.attacks.trials import count_trial, factor, trials
from tests.packed.samples import forge
from tests.runtime.packages import needs_fbank

pytestmark = pytest.mark.attack

TOKENIZER = SentencePieceTokenizer(train_sentencepiece(["YES NO GO"], "char", 0))
OTHER_TOKENS = SentencePieceTokenizer(train_sentencepiece(["YES NO GO ABC"], "char", 0))
SIZES = {"d_model": 8, "num_layers": 2, "num_heads": 2, "ffn_dim": 16, "subsampling_channels": 2, "conv_kernel": 3}
MODELS = {
    "ctc": CtcConfig.preset("tiny", vocab_size=TOKENIZER.vocab_size, **SIZES),
    "rnnt": TransducerConfig.preset("tiny", vocab_size=TOKENIZER.vocab_size, decoder_dim=8, joiner_dim=8, **SIZES),
}
VALUES: list[Any] = [0, -1, 1, 2, 3, 7, 10**5, 10**9, 2**31, 2**63, 10**30, 1.0, 32.0, 0.5, 1e-9, -1e308, 1e308]
VALUES += ["80", "", "conformer", True, False, None, [], [8], {}, {"a": 1}]
MAX_BYTES = 200 * 2**20  # of Python's own and numpy's allocations while a file of 30 kB is refused


NOISE = np.random.default_rng(0).normal(0, 0.1, 8000).astype(np.float32)


def by_torch(path: Path) -> None:
    make_recognizers(DecodeConfig(packed=path))


def by_runtime(path: Path) -> None:
    """Heard, too: not all is unpacked when a file is loaded."""
    Recogniser.load(path).transcribe(NOISE)


READERS = [by_torch, pytest.param(by_runtime, marks=needs_fbank)]


@pytest.fixture(scope="module", params=MODELS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config, quant = MODELS[request.param], QuantConfig.preset("lossless16", precisions=(2, 1))
    model, _ = build_model(config, quant)
    meta = {"model": config.to_dict(), "quant": quant.to_dict(), "tokenizer": describe_tokenizer(TOKENIZER)}
    meta |= {"features": FeatureConfig().to_dict(), "update": 1, "average_period": 1, "settings": {}}
    path = tmp_path_factory.mktemp(request.param) / "epoch-1.pt"
    save_checkpoint(path, Checkpoint(model.state_dict(), meta))
    return path


@pytest.fixture(scope="module")
def packed(checkpoint: Path) -> Path:
    path = checkpoint.with_name("model.safetensors")
    pack_model(load_trained(CheckpointChoice(checkpoint=checkpoint))[0], path)
    return path


def leaves(value: Any, way: tuple = ()) -> Iterator[tuple]:
    """Ways to all fields of nested data."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (*way, key)
            yield from leaves(inner, (*way, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value[:3]):
            yield from leaves(inner, (*way, index))


def changed(value: Any, way: tuple, new: Any) -> Any:
    copy = json.loads(json.dumps(value))
    place = copy
    for key in way[:-1]:
        place = place[key]
    place[way[-1]] = new
    return copy


def refused_or_taken(load: Callable[[], object], what: object) -> bool:
    """True where it was refused, in one line; anything but that and success fails."""
    tracemalloc.start()
    try:
        load()
        return False
    except Exception as error:
        assert isinstance(error, UserError) or is_one_line_error(error), (what, repr(error))
        assert "\n" not in str(error) and str(error), (what, str(error))
        return True
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < MAX_BYTES, (what, peak)


@pytest.mark.parametrize("read", READERS)
def test_fields_of_packed_files(packed: Path, tmp_path: Path, read: Callable[[Path], None]) -> None:
    whole, path, draw = read_packed(packed), tmp_path / "crafted.safetensors", random.Random(0)
    sections = {"model_config": dict(whole.model_config), "features": dict(whole.features)}
    ways = [(name, way) for name, section in sections.items() for way in leaves(section)]
    tried = [(name, way, value) for name, way in ways for value in VALUES]
    refused = 0
    for name, way, value in draw.sample(tried, min(len(tried), 150 * factor())):
        count_trial()
        try:
            write_packed(path, replace(whole, **{name: changed(sections[name], way, value)}))
        except (UserError, ValueError):  # the writer has rules of its own
            continue
        refused += refused_or_taken(lambda: read(path), (name, way, value))
    assert refused > 20


@pytest.mark.parametrize("read", READERS)
def test_bits_flipped_under_a_right_checksum(packed: Path, tmp_path: Path, read: Callable[[Path], None]) -> None:
    whole, draw = read_packed(packed), random.Random(3)
    parts = {"codes": b"", "float32": b"", "float16": b""}
    for tensor in whole.tensors:
        parts[tensor.encoding if tensor.is_float else "codes"] += tensor.data.tobytes()
        parts["float32"] += b"".join(a.tobytes() for a in (tensor.step, tensor.table) if a is not None)
    refused = 0
    for _ in trials(60):
        name = draw.choice([name for name, data in parts.items() if data])
        data = bytearray(parts[name])
        for _ in range(draw.choice((1, 1, 30))):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path = forge(packed, tmp_path / "flipped.safetensors", **{name: bytes(data)})
        with np.errstate(all="ignore"):  # floats that are large, but finite
            refused += refused_or_taken(lambda path=path: read(path), name)
    assert refused > 3


@needs_fbank
@pytest.mark.parametrize("encoding, table", [("ternary", None), ("index4", np.ones(3))])
def test_rows_that_are_unpacked_late(packed: Path, tmp_path: Path, encoding: str, table) -> None:
    """A transducer's embedding is read row by row while it searches; its bytes are checked before."""
    whole = read_packed(packed)
    if not any(tensor.name.startswith("decoder.") for tensor in whole.tensors):
        pytest.skip("a CTC model has no embedding")
    tensors = {tensor.name: tensor for tensor in whole.tensors}
    old = tensors["decoder.embedding.weight"]
    codes = np.zeros(old.shape, np.int8 if table is None else np.uint8)
    new = PackedTensor.from_codes(old.name, old.role, encoding, codes, np.float32(1), table=table)
    for data in (new.data, np.where(np.arange(len(new.data))[:, None] == old.shape[0] - 1, 255, new.data)):
        tensors[old.name] = replace(new, data=data.astype(np.uint8))
        write_packed(tmp_path / "m.safetensors", replace(whole, tensors=[*tensors.values()]))
        assert refused_or_taken(lambda: Recogniser.load(tmp_path / "m.safetensors"), encoding) == (data.max() == 255)


def test_fields_of_checkpoints(checkpoint: Path, tmp_path: Path) -> None:
    whole, path, draw = load_checkpoint(checkpoint), tmp_path / "epoch-1.pt", random.Random(1)
    ways = [(name, way) for name in ("model", "features", "quant", "tokenizer") for way in leaves(whole.meta[name])]
    tried = [(name, way, value) for name, way in ways for value in VALUES]
    refused = 0
    for name, way, value in draw.sample(tried, min(len(tried), 150 * factor())):
        count_trial()
        meta = {**whole.meta, name: changed(whole.meta[name], way, value)}
        save_checkpoint(path, Checkpoint(whole.model, meta))
        decode = DecodeConfig(CheckpointChoice(checkpoint=path), precision=("1",))
        refused += refused_or_taken(lambda decode=decode: make_recognizers(decode), (name, way, value))
    assert refused > 20


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite(checkpoint: Path, packed: Path, tmp_path: Path, number: float) -> None:
    whole = load_checkpoint(checkpoint)
    floats = [name for name, tensor in whole.model.items() if tensor.is_floating_point()]
    for index in {factor() - 1, 0, 3, len(floats) // 2, len(floats) - 1}:
        name = floats[index % len(floats)]
        model = {key: tensor.clone() for key, tensor in whole.model.items()}
        model[name].view(-1)[0] = number
        save_checkpoint(tmp_path / "epoch-1.pt", Checkpoint(model, whole.meta))
        choice = CheckpointChoice(checkpoint=tmp_path / "epoch-1.pt")
        for load in (lambda choice=choice: load_trained(choice), lambda: InitialState(tmp_path / "epoch-1.pt")):
            with pytest.raises(UserError, match=r"epoch-1.pt: .* holds numbers that are not finite"):
                load()
    file = read_packed(packed)
    for index, tensor in enumerate(file.tensors):
        for field in ("data", "step", "table"):
            array = getattr(tensor, field, None)
            if not isinstance(array, np.ndarray) or array.dtype.kind != "f" or not array.size:
                continue
            spoilt = array.copy()
            spoilt.reshape(-1)[0] = number
            with pytest.raises((UserError, PackedFileError), match="finite|positive"):
                tensors = [*file.tensors[:index], replace(tensor, **{field: spoilt}), *file.tensors[index + 1 :]]
                write_packed(tmp_path / "m.safetensors", replace(file, tensors=tensors))
                load_packed(tmp_path / "m.safetensors")
                pytest.fail(f"{tensor.name}.{field}")


def test_tokens_of_another_model(checkpoint: Path, packed: Path, tmp_path: Path) -> None:
    whole = load_checkpoint(checkpoint)
    save_checkpoint(
        tmp_path / "epoch-1.pt",
        Checkpoint(whole.model, {**whole.meta, "tokenizer": describe_tokenizer(OTHER_TOKENS)}),
    )
    message = f"{OTHER_TOKENS.vocab_size} tokens, but {TOKENIZER.vocab_size} classes"
    with pytest.raises(UserError, match=message):
        load_trained(CheckpointChoice(checkpoint=tmp_path / "epoch-1.pt"))
    write_packed(tmp_path / "m.safetensors", replace(read_packed(packed), tokens=OTHER_TOKENS.to_bytes()))
    with pytest.raises(UserError, match=message):
        load_packed(tmp_path / "m.safetensors")


def test_damaged_sentencepiece_models(packed: Path, tmp_path: Path) -> None:
    whole, draw, good = read_packed(packed), random.Random(2), TOKENIZER.to_bytes()
    for _ in trials(200):
        data = bytearray(good)
        for _ in range(draw.choice((1, 1, 4))):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        data = bytes(data[: draw.choice((len(data), draw.randrange(len(data))))])
        write_packed(tmp_path / "m.safetensors", replace(whole, tokens=data))
        for load in (load_packed, Recogniser.load):
            refused_or_taken(lambda load=load: load(tmp_path / "m.safetensors"), data[:20])


def test_memory_is_asked_for_only_where_tensors_confirm_it(packed: Path, tmp_path: Path) -> None:
    """In a process that may have 3 GB, sizes that would take more."""
    whole = read_packed(packed)
    encoder = whole.model_config["encoder"]
    paths = []
    for number, (name, value) in enumerate(
        [("subsampling_channels", 8192), ("d_model", 2**15), ("ffn_dim", 2**24), ("num_layers", 10**6)]
    ):
        paths.append(tmp_path / f"{number}.safetensors")
        config = {**whole.model_config, "encoder": {**encoder, name: value}}
        write_packed(paths[-1], replace(whole, model_config=config))
    program = "import sys\nfrom lowbit_k2.asr.model_io import load_packed\nfrom lowbit_k2.errors import UserError\n"
    program += "for path in sys.argv[1:]:\n    try:\n        load_packed(path)\n        print('taken')\n"
    program += "    except UserError as error:\n        print(error)\n"
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, paths)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (6 * 2**30, 6 * 2**30)),
    )
    assert done.returncode == 0, done.stderr
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == list(map(str, paths))


def test_json_that_is_nested_too_deeply(tmp_path: Path) -> None:
    """Python's reader gives up with an error of its own."""
    deep = "[" * 200_000
    (tmp_path / "deep.json").write_text(deep)
    for read in (
        lambda: read_json(tmp_path / "deep.json"),
        lambda: tokenizer_from_bytes("lexicon", deep.encode()),
        lambda: QuantConfig.from_json(deep),
    ):
        assert refused_or_taken(read, "deep JSON")
