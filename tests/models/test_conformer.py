"""The Conformer: sizes, independence of padding, attention against a loop, masked BatchNorm."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import nn

from lowbit_k2.errors import UserError
from lowbit_k2.models import ConformerConfig, CtcConfig, model_config_from_dict
from lowbit_k2.models.attention import RelativeSelfAttention, relative_positions, shift_relative
from lowbit_k2.models.ctc import CtcModel
from lowbit_k2.models.masking import MaskedBatchNorm, valid_frames

SMALL_ENCODER = ConformerConfig(
    num_features=20, d_model=16, num_layers=2, ffn_dim=32, conv_kernel=5, subsampling_channels=4
)
SMALL = CtcConfig(SMALL_ENCODER, vocab_size=11)


def randomised(config: CtcConfig) -> CtcModel:
    """A model whose norms and running statistics are not at their neutral values."""
    torch.manual_seed(0)
    model = CtcModel(config)
    for name, tensor in model.state_dict().items():
        if "running_var" in name:
            tensor.uniform_(0.5, 2.0)
        elif "running_mean" in name or "norm" in name:
            tensor.add_(0.1 * torch.randn_like(tensor)) if tensor.is_floating_point() else None
    return model


def count_by_role(model: CtcModel) -> Counter:
    counts: Counter = Counter()
    for name, p in model.named_parameters():
        if p.dim() == 1 or "pos_bias" in name:
            role = "vectors"
        elif ".ff1." in name or ".ff2." in name:
            role = "ffn"
        else:
            role = next(r for r in ("attention", "conv.", "subsampling", "ctc_head") if r in name)
        counts[role] += p.numel()
    return counts


def test_paper_sizes_by_role():
    """methods.md section 1: FFN 25.17 M, MHSA 3.93 M, convolution 2.46 M (2.454), output 0.512 M; in all 34.03 M."""
    counts = count_by_role(CtcModel(CtcConfig.preset("paper", vocab_size=2000)))
    assert counts["ffn"] == 12 * 2 * 2 * 256 * 2048
    assert counts["attention"] == 12 * 5 * 256 * 256
    assert counts["conv."] == 12 * (256 * 512 + 31 * 256 + 256 * 256)
    assert counts["subsampling"] == 9 * 256 + 9 * 256 * 256 + 19 * 256 * 256
    assert counts["ctc_head"] == 2000 * 256
    assert round(sum(counts.values()) / 1e6, 2) == 34.03


def test_paper_subsampling_with_pitch_features():
    """80 fbank + 3 pitch as in the paper: conv2d 1.90 M."""
    counts = count_by_role(CtcModel(CtcConfig.preset("paper", vocab_size=2000, num_features=83)))
    assert round(counts["subsampling"] / 1e6, 2) == 1.90


PRESET_SIZES = [("demo", 1.0), ("tiny", 2.2), ("small", 8.7), ("medium", 29.2), ("large", 118.0)]


@pytest.mark.parametrize(("name", "millions"), PRESET_SIZES)
def test_preset_sizes(name, millions):
    total = sum(p.numel() for p in CtcModel(CtcConfig.preset(name)).parameters())
    assert total / 1e6 == pytest.approx(millions, rel=0.1)


@pytest.mark.parametrize("conv_norm", ["batch", "layer"])
def test_batch_gives_what_its_utterances_give_alone(conv_norm):
    model = randomised(replace(SMALL, encoder=replace(SMALL_ENCODER, conv_norm=conv_norm))).eval()
    lens = torch.tensor([63, 31, 18, 7])
    features = torch.randn(4, 63, 20)
    for row, length in enumerate(lens):
        features[row, length:] = 1e3  # padding must not be read, whatever it holds
    together, out_lens = model(features, lens)
    for row, length in enumerate(lens):
        alone, alone_lens = model(features[row : row + 1, :length], lens[row : row + 1])
        assert alone_lens[0] == out_lens[row] == SMALL.output_lens(int(length))
        torch.testing.assert_close(together[row, : alone_lens[0]], alone[0], rtol=1e-4, atol=1e-5)


def test_training_statistics_and_gradients_ignore_padding():
    model = randomised(replace(SMALL, encoder=replace(SMALL_ENCODER, dropout=0.0, ffn_dropout=0.0)))
    lens = torch.tensor([41, 23])
    results = []
    for padding in (0.0, 100.0):
        clone = randomised(model.config).train()
        features = torch.randn(2, 41, 20, generator=torch.Generator().manual_seed(1))
        features[1, 23:] = padding
        log_probs, out_lens = clone(features, lens)
        log_probs[valid_frames(out_lens, log_probs.size(1))].sum().backward()
        grads = {n: p.grad for n, p in clone.named_parameters()}
        results.append((grads, dict(clone.named_buffers())))
    for first, second in zip(results[0], results[1], strict=True):
        for name in first:
            torch.testing.assert_close(first[name], second[name], rtol=1e-4, atol=1e-5, msg=name)


def test_masked_batch_norm_equals_batch_norm_of_the_valid_frames():
    torch.manual_seed(0)
    ours, reference = MaskedBatchNorm(6), nn.BatchNorm1d(6)
    x, mask = torch.randn(3, 9, 6), valid_frames(torch.tensor([9, 4, 1]), 9)
    torch.testing.assert_close(ours(x, mask)[mask], reference(x[mask]))
    torch.testing.assert_close(ours.running_var, reference.running_var)
    assert ours.num_batches_tracked == reference.num_batches_tracked == 1
    ours.eval(), reference.eval()
    torch.testing.assert_close(ours(x, mask)[mask], reference(x[mask]))


def test_shift_relative_takes_the_entry_of_each_distance():
    t = 5
    scores = torch.randn(2, 3, t, 2 * t - 1)
    shifted = shift_relative(scores)
    for i in range(t):
        for j in range(t):
            # position k holds distance t-1-k, and query i is i-j frames behind key j
            torch.testing.assert_close(shifted[:, :, i, j], scores[:, :, i, t - 1 - (i - j)])


def test_a_traced_shift_fits_any_length():
    traced = torch.jit.trace(lambda scores: shift_relative(scores), torch.randn(1, 2, 4, 7))
    for n, t in ((1, 4), (2, 1), (3, 9)):
        scores = torch.randn(n, 2, t, 2 * t - 1)
        assert torch.equal(traced(scores), shift_relative(scores))


def test_attention_against_a_loop_over_pairs():
    torch.manual_seed(0)
    t, c, h = 4, 8, 2
    attention = RelativeSelfAttention(c, h, dropout=0.0).double()
    x = torch.randn(1, t, c, dtype=torch.float64)
    positions = relative_positions(t, c, x)
    out = attention(x, positions, torch.ones(1, t, dtype=torch.bool))

    q, k, v = (f(x)[0].view(t, h, c // h) for f in (attention.query, attention.key, attention.value))
    p = attention.pos(positions).view(2 * t - 1, h, c // h)
    expected = torch.zeros(t, h, c // h, dtype=torch.float64)
    for head in range(h):
        for i in range(t):
            scores = torch.stack(
                [
                    (q[i, head] + attention.pos_bias_u[head]) @ k[j, head]
                    + (q[i, head] + attention.pos_bias_v[head]) @ p[t - 1 - (i - j), head]
                    for j in range(t)
                ]
            ) / math.sqrt(c // h)
            expected[i, head] = scores.softmax(0) @ v[:, head]
    torch.testing.assert_close(out[0], attention.out(expected.view(t, c)), rtol=1e-6, atol=1e-8)


def test_subsampled_length_matches_the_convolutions():
    model = CtcModel(SMALL).eval()
    for t in range(7, 30):
        log_probs, lens = model(torch.randn(1, t, 20), torch.tensor([t]))
        assert log_probs.shape == (1, SMALL.output_lens(t), 11) and lens[0] == SMALL.output_lens(t)
        assert log_probs.dtype == torch.float32


def test_config_round_trip_and_refusals():
    assert model_config_from_dict(SMALL.to_dict()) == SMALL
    old = {**SMALL_ENCODER.to_dict(), "vocab_size": 11}  # as before there were kinds
    assert model_config_from_dict({name: value for name, value in old.items() if name != "kind"}) == SMALL
    for wrong in ({"d_model": 10}, {"conv_kernel": 4}, {"conv_norm": "group"}, {"num_layers": 0}, {"num_features": 3}):
        with pytest.raises(UserError):
            replace(SMALL_ENCODER, **wrong)
    with pytest.raises(UserError, match="huge"):
        CtcConfig.preset("huge")
    with pytest.raises(UserError, match="unknown settings width"):
        ConformerConfig.from_dict({"width": 3})


def test_bfloat16_autocast_stays_close():
    model = randomised(SMALL).eval()
    features, lens = torch.randn(2, 40, 20), torch.tensor([40, 30])
    exact, _ = model(features, lens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough, _ = model(features, lens)
    assert rough.dtype == torch.float32
    assert (rough - exact).abs().max() < 0.2
