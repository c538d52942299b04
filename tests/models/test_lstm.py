"""The LSTM encoder: sizes, against torch's own layers written out, padding, streams of any chunks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from lowbit_k2.core.config import ConfigError
from lowbit_k2.core.encoders import LstmConfig, encoder_from_dict
from lowbit_k2.core.models import CtcConfig, check_shapes
from lowbit_k2.errors import UserError
from lowbit_k2.models import make_model
from lowbit_k2.models.lstm import LstmEncoder, both_ways, joined
from lowbit_k2.quant import QuantConfig, quantize_model, use_precision
from lowbit_k2.quant.rnn import LSTM

SMALL = {"num_features": 6, "d_model": 8, "num_layers": 3}
CONFIGS = [
    LstmConfig(**SMALL),
    LstmConfig(**SMALL, stack_frames=2, reduce_after=1, cell_dim=11),
    LstmConfig(**SMALL, stack_frames=1, layer_norm=False, reduce_after=2),
    LstmConfig(**SMALL, stack_frames=2, reduce_after=2, bidirectional=True, cell_dim=5),
]
ONE_WAY = CONFIGS[:3]


def encoder(config: LstmConfig) -> LstmEncoder:
    torch.manual_seed(0)
    module = LstmEncoder(config)
    module.input_norm.running_mean.normal_()
    module.input_norm.running_var.uniform_(0.5, 1.5)
    return module.eval()


@pytest.mark.parametrize(
    ("preset", "millions", "frames"), [("lstm-rnnt", 38.9, 3), ("lstm-small", 9.9, 3), ("lstm-tiny", 1.65, 4)]
)
def test_presets_are_found_by_their_names(preset: str, millions: float, frames: int) -> None:
    config = CtcConfig.preset(preset, vocab_size=30)
    assert config.encoder.kind == "lstm" and config.encoder.frames_per_output == frames
    model = make_model(config).to("meta")
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.02)


@pytest.mark.parametrize("config", CONFIGS)
def test_the_settings_know_every_shape_and_survive_json(config: LstmConfig) -> None:
    whole = CtcConfig(config, vocab_size=7)
    state = make_model(whole).state_dict()
    assert list(dict(config.shapes())) == [
        n for n, t in LstmEncoder(config).state_dict().items() if t.is_floating_point()
    ]
    check_shapes(whole, {n: tuple(t.shape) for n, t in state.items() if t.is_floating_point()})
    assert encoder_from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"bidirectional": True, "d_model": 7}, "d_model 7 must be even"),
        ({"cell_dim": 8}, "cell_dim 8 must be more than the 8 projected to"),
        ({"reduce_after": 3}, "reduce_after 3 must be less than num_layers 3"),
        ({"stack_frames": 0}, "stack_frames must be at least 1"),
    ],
)
def test_impossible_settings(wrong: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        LstmConfig(**{**SMALL, **wrong})


def written_out(module: LstmEncoder, utterance: Tensor) -> Tensor:
    """One utterance (T, F), by torch's own modules and loops over frames."""
    config, norm = module.config, module.input_norm
    x = (utterance - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
    x = torch.stack([torch.cat(list(g)) for g in x.split(config.stack_frames) if len(g) == config.stack_frames])
    for i, layer in enumerate(module.layers, 1):
        own = layer.lstm
        torchs = nn.LSTM(own.input_size, own.hidden_size, proj_size=own.proj_size, bidirectional=own.bidirectional)
        torchs.load_state_dict(own.state_dict())
        x = torchs(x[:, None])[0][:, 0]
        if config.layer_norm:
            x = F.layer_norm(x, x.shape[1:], layer.norm.weight, layer.norm.bias)
        if i == config.reduce_after:
            x = torch.stack([torch.cat([a, b]) for a, b in x[: len(x) // 2 * 2].split(2)])
    return x


@pytest.mark.parametrize("config", CONFIGS)
@torch.no_grad()
def test_a_batch_gives_what_torchs_modules_give_for_its_utterances(config: LstmConfig) -> None:
    module, lens = encoder(config), torch.tensor([40, 31, config.min_frames, 25])
    inputs = torch.randn(4, 41, 6)
    out, out_lens = module(inputs, lens)
    assert out.size(1) == config.output_lens(41) and torch.equal(out_lens, config.output_lens(lens))
    for frames, length, found, found_length in zip(inputs, lens, out, out_lens, strict=True):
        torch.testing.assert_close(found[:found_length], written_out(module, frames[:length]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("config", CONFIGS)
def test_training_ignores_padding(config: LstmConfig) -> None:
    gradients, generator = [], torch.Generator().manual_seed(2)
    inputs = torch.randn(2, 24, 6, generator=generator)
    for padding in (0, 12):
        module = encoder(replace(config, dropout=0.0)).train()
        out, lens = module(F.pad(inputs, (0, 0, 0, padding), value=9.0), torch.tensor([24, 15]))
        sum(out[n, :length].square().sum() + out[n, :length, 0].sum() for n, length in enumerate(lens)).backward()
        gradients.append([p.grad for p in module.parameters()])
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("proj_size", [0, 3])
def test_both_ways_is_torchs_pass_over_packed_sequences(proj_size: int) -> None:
    """Values, gradients, and zeros on padding; one frame, and none."""
    torch.manual_seed(0)
    lstm = LSTM(4, 5, batch_first=True, bidirectional=True, proj_size=proj_size).double()
    x, lens = torch.randn(4, 9, 4, dtype=torch.double, requires_grad=True), torch.tensor([6, 9, 1, 4])
    packed = pack_padded_sequence(x, lens, batch_first=True, enforce_sorted=False)
    expected = pad_packed_sequence(nn.LSTM.forward(lstm, packed)[0], batch_first=True)[0].float()
    found = both_ways(lstm, x, lens)
    torch.testing.assert_close(found, expected)
    factor = torch.randn(expected.shape)
    for one, two in zip(
        *(torch.autograd.grad((y * factor).sum(), (x, *lstm.parameters())) for y in (found, expected)), strict=True
    ):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)
    assert not both_ways(lstm, x, torch.tensor([6, 9, 0, 4]))[2].any()


@pytest.mark.parametrize("config", ONE_WAY)
@pytest.mark.parametrize("chunks", [[43], [1] * 43, [5, 0, 2, 7, 1, 1, 1, 20, 6], [0, 40, 3]])
@torch.no_grad()
def test_streams_give_chunk_by_chunk_what_the_whole_gives(config: LstmConfig, chunks: list[int]) -> None:
    module, inputs = encoder(config), torch.randn(2, 43, 6)
    whole, _ = module(inputs, torch.tensor([43, 43]))
    state, parts, seen = None, [], 0
    for chunk in inputs.split(chunks, dim=1):
        out, state = module.stream(chunk, state)
        seen += chunk.size(1)
        parts.append(out)
        assert sum(part.size(1) for part in parts) == config.output_lens(seen), "a frame comes out as soon as it can"
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-5, atol=1e-5)


def test_both_directions_cannot_stream() -> None:
    with pytest.raises(UserError, match="cannot stream: train one with --bidirectional false"):
        encoder(CONFIGS[-1]).stream(torch.randn(1, 8, 6))


def test_joined_frames_and_what_is_left_over() -> None:
    groups, left = joined(torch.arange(14.0).view(1, 7, 2), 3)
    assert groups[0].tolist() == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]] and left[0].tolist() == [[12, 13]]


@pytest.mark.parametrize("config", CONFIGS)
def test_under_autocast_and_quantized(config: LstmConfig) -> None:
    module, inputs, lens = encoder(config), torch.randn(2, 30, 6), torch.tensor([30, 22])
    expected, _ = module(inputs, lens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, _ = module(inputs, lens)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found[:, :2], expected[:, :2], rtol=0.1, atol=0.1)
    quantize_model(module, QuantConfig.preset("paper", layer_prefix="layers"))
    for bits in (2, 1):
        with use_precision(module, bits), torch.autocast("cpu", dtype=torch.bfloat16):
            module.train()(inputs, lens)[0].square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
