"""`train.py --dry-run`: what a training would be - parameters, sizes of the packed files, memory - without data.

Sizes are measured in packed files of the untrained model, whose weights take as many bytes as trained ones. Memory is
measured, too, as what autograd keeps of one pass over a few seconds of noise, and scaled to the batch.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lowbit_k2.asr.model_io import LoadedModel, build_model
from lowbit_k2.asr.training import TrainingConfig
from lowbit_k2.core.features import FeatureConfig
from lowbit_k2.core.grids import FLOAT_BITS
from lowbit_k2.data.batch import Batch
from lowbit_k2.data.tokenizer import load_tokenizer
from lowbit_k2.export import pack_model
from lowbit_k2.losses.objectives import make_criterion
from lowbit_k2.losses.output import GraphCriterion
from lowbit_k2.models import ModelConfig
from lowbit_k2.quant import PRESETS, Allocation, QuantConfig, use_precision
from lowbit_k2.tables import text_table
from lowbit_k2.train.update import arithmetic

UTTERANCE = 15.0  # seconds: a long one of LibriSpeech; attention takes memory by the square of it
TOKENS_PER_SECOND = 3
FEATURES = FeatureConfig()
GPU_SIZES = (16, 24, 40, 80)  # GB
USABLE = 0.85  # of a GPU's memory: the rest is workspace, fragments and padding


class NoTokens:
    """Stands for a tokenizer, which there may not be yet."""

    kind = "none"

    def to_bytes(self) -> bytes:
        return b""


@dataclass(frozen=True)
class Memory:
    """Bytes that training takes, one branch at a time.

    Attributes:
      state: weights, gradients, Adam's moments, the running average.
      per_pass: quantized weights and whatever else a pass keeps whatever the batch.
      per_second: of audio in the batch.
    """

    state: int
    per_pass: int
    per_second: float

    def total(self, seconds: float) -> float:
        return self.state + self.per_pass + self.per_second * seconds

    def seconds_in(self, available: float) -> int:
        """The largest batch that fits, 0 if none does."""
        return max(0, int((available - self.state - self.per_pass) / self.per_second))


def dry_run(config: TrainingConfig) -> None:
    """Print what the settings would train: parameters, sizes on disk, memory. Neither data nor exp_dir is touched.

    Raises:
      UserError: settings that contradict each other.
    """
    tokens, co_training = config.run.tokens, config.co_training
    vocab_size = load_tokenizer(tokens).vocab_size if tokens.exists() else config.run.vocab_size
    criterion = make_criterion(config.objective, config.criterion)
    if isinstance(criterion, GraphCriterion):  # its graphs are made of data, and small beside the network
        criterion = make_criterion("ctc")
    model_config = config.model_config(vocab_size, FEATURES.num_mel_bins)
    model, report = build_model(model_config, config.quant_config())
    size = f"{report.num_weights / 1e6:.2f} M parameters"
    print(f"{config.preset}, {config.objective}, {vocab_size} tokens: {size}\n{report}\n")

    low = co_training.trained_precisions if co_training.bits != (FLOAT_BITS,) else (2, 1)
    named = {name: config.quant_config(name, low) for name in PRESETS if name not in ("float", "mixed")}
    presets = {"float": QuantConfig.preset("float"), **named}
    print("\n".join(describe_sizes(measure_sizes(model_config, presets))) + "\n")

    def one_pass(batch: Batch) -> Tensor:
        amp = "float32" if config.loop.amp == "float32" else "bfloat16"
        with use_precision(model, co_training.trained[Path(co_training.first).stem]), arithmetic("cpu", amp):
            return criterion(model, batch, update=1).loss

    model.train()
    memory = measure_memory(model, one_pass, vocab_size)
    print("\n".join(describe_memory(memory, config.data.max_duration, co_training.num_passes)))


def measure_sizes(config: ModelConfig, presets: dict[str, QuantConfig]) -> list[tuple[str, str, int]]:
    """Bytes of packed files: (preset, precision, bytes), of float32 first.

    Args:
      presets: configurations by name, with the precisions that are to be measured.
    """
    found: list[tuple[str, str, int]] = []
    with tempfile.TemporaryDirectory(prefix="lowbit_k2-") as folder:
        for name, quant in presets.items():
            model, _ = build_model(config, quant)
            loaded = LoadedModel(model.eval(), config, quant, NoTokens(), FEATURES.to_dict())
            for precision in precisions_of(quant):
                path = Path(folder) / "packed"
                with use_precision(model, Allocation.parse(precision, config.num_layers, quant.layer_prefix)):
                    pack_model(loaded, path)
                found.append((name, precision, path.stat().st_size))
    return found


def precisions_of(quant: QuantConfig) -> list[str]:
    """The trained precisions, and 1.5 where 2 and 1 are among them."""
    trained = [str(bits) for bits in quant.switched_precisions]
    if {"2", "1"} <= set(trained):
        trained.insert(trained.index("1"), "1.5")
    return trained or ["32"]


def kept_bytes(run: Callable[[], Tensor], model: nn.Module) -> int:
    """Bytes that autograd keeps for the backward pass of `run`, parameters aside."""
    known = {p.data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in known:
            # all of what a view looks at stays in memory, once for all views; torch 1.13 has no untyped_storage
            storage = tensor.untyped_storage() if hasattr(tensor, "untyped_storage") else tensor.storage()
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = run()  # alive until all is counted: addresses are not used twice
    del loss
    return sum(kept.values())


def measure_memory(model: nn.Module, run: Callable[[Batch], Tensor], vocab_size: int) -> Memory:
    """What training takes, from passes over one and over two utterances.

    Args:
      model: in train mode.
      run: a whole pass, to the loss.
    """
    counts = []
    for num in (1, 2):
        generator = torch.Generator().manual_seed(0)
        frames = int(UTTERANCE / FEATURES.frame_shift)
        inputs = torch.randn(num, frames, FEATURES.num_mel_bins, generator=generator)
        tokens = torch.randint(1, vocab_size, (num, int(TOKENS_PER_SECOND * UTTERANCE)), generator=generator).tolist()
        batch = Batch(inputs, torch.full((num,), frames), [""] * num, [""] * num, tokens)
        counts.append(kept_bytes(lambda batch=batch: run(batch), model))
    each = counts[1] - counts[0]
    weights = sum(p.numel() for p in model.parameters())
    averaged = sum(t.numel() for t in model.state_dict().values())
    state = weights * (4 + 4 + 8) + averaged * 8  # weight, gradient, Adam's two moments; the average is in float64
    return Memory(state, counts[0] - each, each / UTTERANCE)


def describe_sizes(sizes: list[tuple[str, str, int]]) -> list[str]:
    """Lines of a table; the first size is float32's."""
    reference = sizes[0][2]
    rows = [(name, bits, f"{size / 1e6:.3f}", f"{reference / size:.1f}x") for name, bits, size in sizes]
    note = "MB and ratio: packed files of the untrained model, measured on disk, without the tokens' bytes"
    return [text_table(("quantization", "bits", "MB", "ratio"), rows), note]


def describe_memory(memory: Memory, max_duration: float, passes: int) -> list[str]:
    """Lines on training's memory, with the batches that common GPUs hold."""
    gigabytes = memory.total(max_duration) / 1e9
    fits = [(size, memory.seconds_in(size * 1e9 * USABLE)) for size in GPU_SIZES]
    return [
        f"training: {memory.state / 1e9:.2f} GB of weights, gradients, moments and the running average; a pass keeps",
        f"  {memory.per_pass / 1e9:.2f} GB and {memory.per_second / 1e6:.1f} MB for each second of audio "
        f"(utterances of {UTTERANCE:g} s); {passes} passes go one by one",
        f"  --max-duration {max_duration:g}: about {gigabytes:.1f} GB a process, and workspace",
        "  largest --max-duration: " + ", ".join(f"{seconds} in {size} GB" for size, seconds in fits),
    ]
