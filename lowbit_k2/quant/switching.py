"""use_precision: which precision is active where, for the length of one pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from lowbit_k2.core.grids import FLOAT_BITS
from lowbit_k2.errors import UserError
from lowbit_k2.quant.allocation import Allocation
from lowbit_k2.quant.inputs import ProductSwitch, product_switches
from lowbit_k2.quant.quantizer import PassCache, WeightQuantizer

Assignment = int | Allocation | Mapping[str, int]
Switchable = WeightQuantizer | ProductSwitch


@contextmanager
def use_precision(model: nn.Module, assignment: Assignment) -> Iterator[None]:
    """Run the body with the given precisions; one context per pass, its backward included.

        with use_precision(model, 1):
            loss(model(batch)).backward()

    Inside, each weight is quantized once however often its module is used. The value is computed anew when the weight,
    its alpha, the train/eval or the gradient mode changes, and after a backward; so an optimizer step or several
    backwards inside one context are safe, only slower.

    Args:
      assignment: a precision for all switched tensors, or an Allocation (or its {pattern: precision}); what no
        pattern covers stays as it is ({} changes nothing and only lends the cache). 32 bypasses every quantizer that
        it covers, fixed ones and fp16 too; with any other precision, tensors of one precision keep theirs. Whether
        the latents were ever trained as a float model is not known here: decoding asks the training config before it
        offers 32.
    Raises:
      UserError: a precision that a covered tensor does not have, or a pattern without quantized tensors.

    On exit the previous assignment is restored. Outside any context each tensor is at the first of its precisions.
    """
    owners = quantizer_owners(model)
    quantizers = [*owners, *product_switches(model)]
    wanted = _resolve(quantizers, assignment)
    before = [(q, q.active_bits, q.pass_cache) for q in quantizers]
    cache = PassCache(owners)
    try:
        for quantizer in quantizers:
            quantizer.activate(wanted.get(quantizer, quantizer.active_bits), cache)
        yield
    finally:
        cache.values.clear()
        for quantizer, bits, outer_cache in before:
            quantizer.activate(bits, outer_cache)


def current_assignment(model: nn.Module) -> dict[str, int]:
    """Active precision of every quantized tensor, by plain parameter name, and of products of activations, by module:
    the `bits` of an Allocation."""
    switchable = (*find_quantizers(model), *product_switches(model))
    return {quantizer.name: quantizer.active_bits for quantizer in switchable}


def quantizer_owners(model: nn.Module) -> dict[WeightQuantizer, ParametrizationList]:
    """{quantizer: what holds its latent weight, as `original`}, in the order of the modules."""
    lists = [module for module in model.modules() if isinstance(module, ParametrizationList)]
    return {q: owner for owner in lists for q in owner if isinstance(q, WeightQuantizer)}


def find_quantizers(model: nn.Module) -> list[WeightQuantizer]:
    """All quantizers of a model, each once, in the order of its modules."""
    return list(quantizer_owners(model))


def latent_weights(model: nn.Module) -> dict[WeightQuantizer, nn.Parameter]:
    """{quantizer: its latent float weight}."""
    return {quantizer: owner.original for quantizer, owner in quantizer_owners(model).items()}


def _resolve(quantizers: list[Switchable], assignment: Assignment) -> dict[Switchable, int]:
    """Precision of every quantizer that the assignment covers."""
    if isinstance(assignment, int):
        return _cover(quantizers, assignment, "the model")
    allocation = assignment if isinstance(assignment, Allocation) else Allocation(assignment)
    if not quantizers and "" in allocation.bits:
        return _cover(quantizers, allocation.bits[""], "the model")
    winners = allocation.winners(q.name for q in quantizers)
    covered: dict[str, list[Switchable]] = {}
    for quantizer in quantizers:
        if quantizer.name in winners:
            covered.setdefault(winners[quantizer.name], []).append(quantizer)
    wanted: dict[Switchable, int] = {}
    for pattern, members in covered.items():
        wanted.update(_cover(members, allocation.bits[pattern], pattern or "the model"))
    return wanted


def _cover(quantizers: list[Switchable], bits: int, where: str) -> dict[Switchable, int]:
    if bits == FLOAT_BITS:
        return dict.fromkeys(quantizers, FLOAT_BITS)
    if not _is_available(quantizers, bits):
        every = dict.fromkeys(b for q in quantizers for b in q.bits)
        available = [b for b in every if b != FLOAT_BITS and _is_available(quantizers, b)]
        hint = (
            "" if quantizers else ", for none of its weights is quantized: look at the rules and schemes of the config"
        )
        choice = ", ".join(str(b) for b in [*available, FLOAT_BITS])
        raise UserError(f"precision {bits} is not available in {where}: choose one of {choice}{hint}")
    return {q: bits if bits in q.bits else q.bits[0] for q in quantizers}


def _is_available(quantizers: list[Switchable], bits: int) -> bool:
    """Tensors of one precision keep it, all others must have `bits`; and one must have it, a switched one if any is."""
    deciding = [q for q in quantizers if q.switched] or quantizers
    return any(bits in q.bits for q in deciding) and all(bits in q.bits or len(q.bits) == 1 for q in deciding)
