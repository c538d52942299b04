"""Others' architectures: every matrix takes its bits and is trained, the report names all, packed files are bitwise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import remove_weight_norm

from lowbit_k2.errors import UserError
from lowbit_k2.export import load_packed, save_packed
from lowbit_k2.packed import read_packed
from lowbit_k2.quant import QuantConfig, parameter_groups, quantize_model, use_precision

BITS = (8, 4, 2, 1)


def torchaudio_models():
    return pytest.importorskip("torchaudio.models", reason="torchaudio is not installed")


def transformer() -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2)


def conformer() -> nn.Module:
    return torchaudio_models().Conformer(16, 2, 32, 2, 7)


def emformer() -> nn.Module:
    sizes = {"right_context_length": 2, "left_context_length": 4, "max_memory_size": 2}
    return torchaudio_models().Emformer(16, 2, 32, 2, 4, **sizes)


def wav2vec2(weight_norm: bool = False) -> nn.Module:
    extractor, encoder = ("layer_norm", [(16, 10, 5), (16, 3, 2)], True), (16, 0.0, 8, 4, 2, 2, 0.0, 32, 0.0, 0.0)
    model = torchaudio_models().wav2vec2_model(*extractor, *encoder, True, 0.0, aux_num_out=10)
    if not weight_norm:
        remove_weight_norm(model.encoder.transformer.pos_conv_embed.conv)
    return model


MAKERS = {make.__name__: make for make in (transformer, conformer, emformer, wav2vec2)}
FRAMES, LENGTHS, SAMPLES = torch.randn(2, 18, 16), torch.tensor([16, 12]), torch.randn(2, 800)
INPUTS = {
    "transformer": (FRAMES,),
    "conformer": (FRAMES, LENGTHS + 2),
    "emformer": (FRAMES, LENGTHS),  # the last two frames are context on the right
    "wav2vec2": (SAMPLES, torch.tensor([800, 600])),
}


def output(model: nn.Module, name: str) -> Tensor:
    found = model(*INPUTS[name])
    return found[0] if isinstance(found, tuple) else found


def quantized(make: Callable[[], nn.Module], preset: str = "mixed") -> nn.Module:
    torch.manual_seed(0)
    model = make()
    report = quantize_model(model, QuantConfig.preset(preset, BITS), strict=True)
    plain = {name: p for name, p in make().named_parameters()}
    rows = {row.name: row for row in report.rows}
    assert rows.keys() == plain.keys() and len(rows) == len(report.rows)
    assert sum(row.num_weights for row in report.rows) == sum(p.numel() for p in plain.values())
    assert {name for name, row in rows.items() if row.bits == BITS} == {n for n, p in plain.items() if p.ndim > 1}
    assert {row.bits for row in report.rows} == {BITS, (16,)}
    return model


@pytest.mark.parametrize("name", MAKERS)
def test_trained_at_every_precision(name: str) -> None:
    """All that learns gets a gradient, and precisions differ: no weight goes past its quantizer."""
    model = quantized(MAKERS[name]).train()
    [alphas] = [group["params"] for group in parameter_groups(model, weight_decay=0.0) if group["name"] == "alphas"]
    latents = [p for p in model.parameters() if p.ndim > 1]
    assert len(alphas) == len(BITS) * len(latents)
    unused = set(range(len(alphas)))
    for bits in BITS:
        model.zero_grad(set_to_none=True)
        with use_precision(model, bits):
            output(model, name).square().mean().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in latents)
        unused -= {number for number, alpha in enumerate(alphas) if alpha.grad is not None and alpha.grad.any()}
    assert not unused


@pytest.mark.parametrize("name", MAKERS)
@torch.no_grad()
def test_packed_files(name: str, tmp_path: Path) -> None:
    model, path, heard = quantized(MAKERS[name]).eval(), tmp_path / "packed", []
    for bits in BITS:
        with use_precision(model, bits):
            save_packed(model, path)
            heard.append(output(model, name))
        torch.manual_seed(99)
        unpacked = load_packed(path, MAKERS[name]())
        assert torch.equal(output(unpacked, name), heard[-1])
        packed = {tensor.name: tensor for tensor in read_packed(path).tensors}
        for parameter, weight in unpacked.named_parameters():
            if weight.ndim > 1:
                assert packed[parameter].shape == tuple(weight.shape)
                assert len(set(packed[parameter].codes.ravel().tolist())) <= (3 if bits == 2 else 2**bits)
    assert all(not torch.equal(a, b) for a, b in zip(heard, heard[1:], strict=False))


def test_a_convolution_under_weight_norm_is_named() -> None:
    with pytest.raises(UserError, match=r"pos_conv_embed\.conv\.weight"):
        quantize_model(wav2vec2(weight_norm=True), QuantConfig.preset("mixed", BITS), strict=True)


@torch.no_grad()
def test_emformer_streams() -> None:
    """Segment by segment it computes what the packed model computes."""
    model = quantized(emformer).eval()
    with use_precision(model, 1):
        whole = model(FRAMES[:1], LENGTHS[:1])[0]
        state, parts = None, []
        for start in range(0, 16, 4):
            out, _, state = model.infer(FRAMES[:1, start : start + 6], torch.tensor([6]), state)
            parts.append(out)
    assert torch.allclose(torch.cat(parts, dim=1), whole, atol=1e-5)
