"""How much a float model suffers when one group of tensors runs in few bits and all else stays float.

    kl       what the criterion compares branches on: KL(float || quantized) of the output, per frame
    sigmoid  sum of P ln(P / P_q) + (1 - P) ln((1 - P) / (1 - P_q)) over what the group's own layers put out, P being
             their sigmoids, for the float model's inputs: nothing behind the layer is asked. arXiv 2206.11643 has the
             first term alone, which is no distance: over all tensors of AN4's Conformer it adds up to less than 0
    hessian  Tr(H) ||W_q - W||^2 / 2 of the loss, the trace by Hutchinson's probes v^T H v, where H v is the difference
             of two gradients (CTC's loss has no second derivative)
    nas      what learned.py finds

Each is a table of numbers, the larger the worse; groups and bytes are the same in all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowbit_k2.core.grids import FLOAT_BITS
from lowbit_k2.errors import UserError
from lowbit_k2.fileio import read_json, write_json
from lowbit_k2.losses.distillation import as_targets, divergence
from lowbit_k2.losses.output import Criterion, TrainingBatch
from lowbit_k2.quant.allocation import Allocation
from lowbit_k2.quant.report import QuantReport
from lowbit_k2.quant.switching import quantizer_owners, use_precision
from lowbit_k2.tensorfile import tensors_checksum

FORMAT = "lowbit_k2 sensitivity 1"
GROUPINGS = ("tensor", "layer")
PROBES = 20  # of Hutchinson's estimate
STEP = 1e-3  # of the difference of gradients, over the norm of the probe, times that of the weights


@dataclass(frozen=True)
class Sensitivity:
    """What each group of tensors costs at each precision.

    Attributes:
      measure: "kl", "sigmoid", "hessian" or "nas".
      model: checksum of the weights that it was measured on.
      members: tensors of each group, by plain names.
      loss, size: {group: {bits: value}}, the sensitivity and the bytes of the packed tensors.
      fixed_size: bytes of all other tensors.
      float_size: bytes of all tensors in float32.
      weights: of each group.
    """

    measure: str
    model: str
    members: Mapping[str, tuple[str, ...]]
    loss: Mapping[str, Mapping[int, float]]
    size: Mapping[str, Mapping[int, int]]
    fixed_size: int = 0
    float_size: int = 0
    weights: Mapping[str, int] = field(default_factory=dict)
    note: str = ""
    format: str = field(default=FORMAT, init=False)

    @property
    def bits(self) -> tuple[int, ...]:
        """All precisions that occur, highest first."""
        return tuple(sorted({bits for own in self.loss.values() for bits in own}, reverse=True))

    def save(self, path: str | Path) -> None:
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: str | Path) -> Sensitivity:
        """Inverse of `save`.

        Raises:
          UserError: missing, or no table of this version.
        """
        value = read_json(Path(path))
        if not isinstance(value, dict) or value.pop("format", None) != FORMAT:
            raise UserError(f"{path} is no table of sensitivities: make it with lowbit_k2.recipe.allocate")
        try:
            for name in ("loss", "size"):
                value[name] = {group: {int(b): v for b, v in own.items()} for group, own in value[name].items()}
            value["members"] = {group: tuple(names) for group, names in value["members"].items()}
            return cls(**value)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{path} is damaged ({error}): make it again") from None


def model_checksum(model: nn.Module) -> str:
    """Of the latent weights of the tensors that have quantizers."""
    return tensors_checksum((quantizer.name, owner.original) for quantizer, owner in quantizer_owners(model).items())


def groups_of(model: nn.Module, by: str = "tensor", layer_prefix: str = "encoder.layers") -> dict[str, tuple[str, ...]]:
    """Names of the switched tensors by group: each alone, or with those of its layer.

    Raises:
      UserError: no tensor can be switched.
    """
    assert by in GROUPINGS, by
    names = [quantizer.name for quantizer in quantizer_owners(model) if quantizer.switched]
    if not names:
        raise UserError("no tensor of the model can be switched between precisions")
    groups: dict[str, list[str]] = {}
    for name in names:
        rest = name.removeprefix(f"{layer_prefix}.")
        layer = f"{layer_prefix}.{rest.split('.')[0]}" if rest != name else name.split(".")[0]
        groups.setdefault(name if by == "tensor" else layer, []).append(name)
    return {group: tuple(own) for group, own in groups.items()}


def sizes_of(
    report: QuantReport, members: Mapping[str, Sequence[str]], bits: Sequence[int]
) -> tuple[dict[str, dict[int, int]], int]:
    """Bytes of each group at each precision, and of all tensors that are in none."""
    rows = {row.name: row for row in report.rows}
    size = {group: {b: sum(rows[name].bytes_at(b) for name in own) for b in bits} for group, own in members.items()}
    inside = {name for own in members.values() for name in own}
    return size, sum(row.bytes_at(bits[0]) for name, row in rows.items() if name not in inside)


def only(names: Sequence[str], bits: int) -> Allocation:
    """These tensors at some bits, all else float."""
    return Allocation({"": FLOAT_BITS, **dict.fromkeys(names, bits)})


Progress = Callable[[], object]


@torch.no_grad()
def output_divergence(
    model: nn.Module,
    criterion: Criterion,
    batches: Sequence[TrainingBatch],
    members: Mapping[str, Sequence[str]],
    bits: Sequence[int],
    step: Progress = lambda: None,
) -> dict[str, dict[int, float]]:
    """`kl`, per frame; the model in eval mode."""
    found = {group: dict.fromkeys(bits, 0.0) for group in members}
    frames = 0
    for batch in batches:
        with use_precision(model, FLOAT_BITS):
            reference = criterion(model, batch, LAST_UPDATE)
        targets = as_targets(reference.terms)
        frames += reference.num_frames
        for group, names in members.items():
            for b in bits:
                with use_precision(model, only(names, b)):
                    out = criterion(model, batch, LAST_UPDATE, reference.shared)
                found[group][b] += float(divergence(targets, out.terms, {}))
                step()
    return {group: {b: value / frames for b, value in own.items()} for group, own in found.items()}


LAST_UPDATE = 1_000_000  # behind every warm-up


@torch.no_grad()
def layer_divergence(
    model: nn.Module,
    batches: Sequence[TrainingBatch],
    members: Mapping[str, Sequence[str]],
    bits: Sequence[int],
    step: Progress = lambda: None,
) -> dict[str, dict[int, float]]:
    """`sigmoid`: the mean over batches of the sums over what the layers of a group put out."""
    found = {group: dict.fromkeys(bits, 0.0) for group in members}
    owners = {name: model.get_submodule(name.rpartition(".")[0]) for own in members.values() for name in own}
    for batch in batches:
        inputs = _inputs_of(owners, model, batch)
        for group, names in members.items():
            for name in (n for n in names if n in inputs):
                with use_precision(model, FLOAT_BITS):
                    reference = put_out(owners[name], inputs[name])
                for b in bits:
                    with use_precision(model, only([name], b)):
                        quantized = put_out(owners[name], inputs[name])
                    found[group][b] += float(bernoulli_divergence(reference, quantized)) / len(batches)
            step()
    return found


def put_out(module: nn.Module, inputs: tuple[Any, ...]) -> Tensor:
    """What a layer gives the next one; of a recurrent one without the state that it leaves."""
    found = module(*inputs)
    return found if isinstance(found, Tensor) else found[0]


def _inputs_of(owners: Mapping[str, nn.Module], model: nn.Module, batch: TrainingBatch) -> dict[str, tuple[Any, ...]]:
    """What the float model gives each module to work on, the first time that it is called."""
    inputs: dict[str, tuple[Any, ...]] = {}

    def remember(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            inputs.setdefault(name, args)

        return hook

    hooks = [module.register_forward_pre_hook(remember(name)) for name, module in owners.items()]
    try:
        with use_precision(model, FLOAT_BITS):
            model.network_output(batch.inputs, batch.input_lens)
    finally:
        for hook in hooks:
            hook.remove()
    return inputs


def bernoulli_divergence(reference: Tensor, other: Tensor) -> Tensor:
    """Scalar: KL between the Bernoulli distributions whose logits these are, summed, in float64."""
    x, y = reference.double(), other.double()
    yes = x.sigmoid() * (F.logsigmoid(x) - F.logsigmoid(y))
    no = (-x).sigmoid() * (F.logsigmoid(-x) - F.logsigmoid(-y))
    return (yes + no).sum()


def curvature(
    model: nn.Module,
    criterion: Criterion,
    batches: Sequence[TrainingBatch],
    members: Mapping[str, Sequence[str]],
    bits: Sequence[int],
    probes: int = PROBES,
    seed: int = 0,
    step: Progress = lambda: None,
) -> dict[str, dict[int, float]]:
    """`hessian`, of the loss per frame."""
    latents = {q.name: owner.original for q, owner in quantizer_owners(model).items()}
    chosen = [name for own in members.values() for name in own]
    generator = torch.Generator().manual_seed(seed)
    traces = dict.fromkeys(chosen, 0.0)
    for _ in range(probes):
        for name in chosen:  # one tensor at a time: blocks of the Hessian, not what is between them
            weight = latents[name]
            draw = torch.randint(2, weight.shape, generator=generator).to(weight) * 2 - 1
            size = STEP * float(weight.detach().norm()) / weight.numel() ** 0.5
            with moved(weight, size * draw):
                above = _gradient(model, criterion, batches, weight)
            with moved(weight, -size * draw):
                below = _gradient(model, criterion, batches, weight)
            traces[name] += float((draw * (above - below)).sum()) / (2 * size) / probes
        step()
    found: dict[str, dict[int, float]] = {}
    for group, names in members.items():
        found[group] = {}
        for b in bits:
            with torch.no_grad(), use_precision(model, only(names, b)):
                moves = {name: float((read_weight(model, name) - latents[name]).square().sum()) for name in names}
            found[group][b] = sum(0.5 * max(traces[name], 0.0) * moves[name] for name in names)
    return found


@contextmanager
def moved(weight: nn.Parameter, by: Tensor) -> Iterator[None]:
    """The weight with something added, put back exactly afterwards."""
    before = weight.detach().clone()
    with torch.no_grad():
        weight.add_(by)
    try:
        yield
    finally:
        with torch.no_grad():
            weight.copy_(before)


def _gradient(model: nn.Module, criterion: Criterion, batches: Sequence[TrainingBatch], weight: nn.Parameter) -> Tensor:
    total, frames = torch.zeros_like(weight), 0
    for batch in batches:
        with use_precision(model, FLOAT_BITS):
            out = criterion(model, batch, LAST_UPDATE)
            (gradient,) = torch.autograd.grad(out.loss, weight)
        total, frames = total + gradient, frames + out.num_frames
    return total / frames


def read_weight(model: nn.Module, name: str) -> Tensor:
    """The weight as the model uses it now."""
    module, _, attribute = name.rpartition(".")
    return getattr(model.get_submodule(module), attribute)
