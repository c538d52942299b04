"""The factorised TDNN: sizes, splicing against a loop over frames, padding, context, semi-orthogonal factors."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from lowbit_k2.core.config import ConfigError
from lowbit_k2.core.encoders import TdnnfConfig, encoder_from_dict
from lowbit_k2.core.models import CtcConfig, check_shapes
from lowbit_k2.models import make_model
from lowbit_k2.models.tdnnf import TdnnfEncoder, TdnnfLayer, time_mask
from lowbit_k2.quant import QuantConfig, quantize_model
from lowbit_k2.train.optim import dropout_schedule
from lowbit_k2.train.orthogonal import factors_of, semi_orthogonal, step_towards_orthogonal

SMALL = {"num_features": 6, "d_model": 5, "num_layers": 5, "hidden_dim": 12, "bottlenecks": (4,)}
CONFIG = TdnnfConfig(**SMALL, strides=(1, 0, 3))


def encoder(config: TdnnfConfig = CONFIG) -> TdnnfEncoder:
    torch.manual_seed(0)
    module = TdnnfEncoder(config)
    for name, buffer in module.named_buffers():  # as after some training
        if "running" in name:
            buffer.uniform_(0.5, 1.5)
    return module.eval()


@pytest.mark.parametrize(("preset", "millions"), [("tdnnf-7q", 14.85), ("tdnnf-small", 4.04), ("tdnnf-tiny", 1.08)])
def test_presets_are_found_by_their_names(preset: str, millions: float) -> None:
    config = CtcConfig.preset(preset, vocab_size=40)
    assert config.encoder.kind == "tdnnf" and config.encoder.frames_per_output == 3
    model = make_model(config).to("meta")
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.06)


def test_the_settings_know_every_shape_and_survive_json() -> None:
    for config in (CONFIG, TdnnfConfig(**SMALL), TdnnfConfig(**{**SMALL, "bottlenecks": (1, 2, 3, 4, 5)})):
        whole = CtcConfig(config, vocab_size=7)
        state = make_model(whole).state_dict()
        check_shapes(whole, {n: tuple(t.shape) for n, t in state.items() if t.is_floating_point()})
        assert encoder_from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"bottlenecks": (4, 5)}, "bottlenecks 4,5: give one, or 5"),
        ({"bottlenecks": (0,)}, "bottlenecks 0: give one"),
        ({"bottlenecks": (13,)}, "bottlenecks 13: give one, or 5, from 1 to 12"),
        ({"strides": (2,)}, "strides 2: give up to 5, 0 or 1 and then multiples of 3"),
        ({"strides": (3, 1)}, "strides 3,1"),
        ({"strides": (1, -1)}, "strides 1,-1"),
        ({"strides": (0,) * 6}, "give up to 5"),
        ({"bypass": 1.5}, "bypass must be at most 1"),
    ],
)
def test_impossible_settings(wrong: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        TdnnfConfig(**{**SMALL, **wrong})


@pytest.mark.parametrize("stride", [0, 1, 2])
def test_a_layer_against_a_loop_over_frames(stride: int) -> None:
    torch.manual_seed(1)
    layer = TdnnfLayer(6, 3, stride, bypass=0.66).eval()
    layer.norm.running_mean.uniform_(-1, 1)
    layer.norm.running_var.uniform_(0.5, 2)
    x = torch.randn(1, 9, 6)
    found = layer(x, torch.ones(1, 9, dtype=torch.bool))

    def at(values: list[torch.Tensor], t: int) -> torch.Tensor:
        return values[t] if 0 <= t < len(values) else torch.zeros_like(values[0])

    frames = list(x[0])
    if stride:
        narrow = [layer.factor.weight @ torch.cat([at(frames, t - stride), frames[t]]) for t in range(9)]
        wide = [layer.affine.weight @ torch.cat([narrow[t], at(narrow, t + stride)]) for t in range(9)]
    else:
        narrow = [layer.factor.weight @ frame for frame in frames]
        wide = [layer.affine.weight @ frame for frame in narrow]
    norm = (layer.norm.running_mean, (layer.norm.running_var + layer.norm.eps).sqrt())
    for t in range(9):
        expected = (F.relu(wide[t] + layer.affine.bias) - norm[0]) / norm[1] + 0.66 * frames[t]
        torch.testing.assert_close(found[0, t], expected)


def test_a_batch_gives_what_its_utterances_give_alone() -> None:
    module, lens = encoder(), torch.tensor([40, 31, 3, 1])
    inputs = torch.randn(4, 40, 6)
    out, out_lens = module(inputs, lens)
    assert out_lens.tolist() == [14, 11, 1, 1]
    for n, length in enumerate(lens):
        alone, _ = module(inputs[n : n + 1, :length], lens[n : n + 1])
        torch.testing.assert_close(out[n : n + 1, : out_lens[n]], alone, rtol=1e-5, atol=1e-6)


def test_an_output_frame_sees_its_context_and_no_more() -> None:
    module, context = encoder(), CONFIG.context
    assert context == 1 + 1 + 0 + 3 * 3
    inputs = torch.randn(1, 80, 6)
    before, _ = module(inputs, torch.tensor([80]))
    middle = 13  # output frame, at input frame 39
    for offset, seen in ((context, True), (context + 1, False), (-context, True), (-context - 1, False)):
        changed = inputs.clone()
        changed[0, 3 * middle + offset] += 10.0
        after, _ = module(changed, torch.tensor([80]))
        assert torch.equal(before[0, middle], after[0, middle]) != seen, offset


def test_all_frames_are_looked_at_where_no_stride_is_three() -> None:
    module = encoder(TdnnfConfig(**SMALL, strides=(1,)))
    out, lens = module(torch.randn(1, 10, 6), torch.tensor([10]))
    assert out.shape == (1, 4, 5) and lens.tolist() == [4]


def test_training_ignores_padding_and_dropout_has_one_mask_for_all_frames() -> None:
    gradients = []
    for padding in (0, 12):
        module = encoder().train()
        inputs = F.pad(torch.randn(2, 24, 6, generator=torch.Generator().manual_seed(2)), (0, 0, 0, padding), value=9.0)
        out, lens = module(inputs, torch.tensor([24, 15]))
        sum(out[n, :length].square().sum() for n, length in enumerate(lens)).backward()
        gradients.append([p.grad for p in module.parameters()])
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)
    mask = time_mask(torch.ones(3, 50, 4000), 0.25)
    assert mask.shape == (3, 1, 4000) and float(mask.min()) >= 0.5 and float(mask.max()) <= 1.5
    assert float(mask.mean()) == pytest.approx(1.0, abs=0.01)


def test_steps_lead_to_a_multiple_of_a_semi_orthogonal_matrix() -> None:
    torch.manual_seed(3)
    matrix = torch.randn(20, 90) * 0.37
    ratios = [step_towards_orthogonal(matrix) for _ in range(60)]
    assert all(b < a + 1e-6 for a, b in itertools.pairwise(ratios)) and ratios[0] > 1.1 and ratios[-1] < 1.0 + 1e-6
    product = matrix @ matrix.t()
    scale = product.diagonal().mean()
    assert 0.3 < float(scale.sqrt()) / (0.37 * 90**0.5) < 1.2, "the scale floats, it is not lost"
    torch.testing.assert_close(product, scale * torch.eye(20), atol=1e-3 * float(scale), rtol=0)


def test_the_hook_finds_factors_of_plain_and_quantized_models() -> None:
    model = make_model(CtcConfig(CONFIG, vocab_size=7))
    assert len(factors_of(model)) == 6  # five layers and the prefinal one
    quantize_model(model, QuantConfig.preset("lossless16", precisions=(4,)))
    assert len(factors_of(model)) == 6
    hook = semi_orthogonal(model)
    values = [hook(model, update) for update in range(1, 201)]
    assert [bool(v) for v in values[:8]] == [False, False, False, True] * 2
    ratios = [v["orthogonality"] for v in values if v]
    assert ratios[-1] < 1.001 < ratios[0]
    conformer = make_model(CtcConfig.preset("demo", vocab_size=7))
    assert semi_orthogonal(conformer)(conformer, 4) == {}


def test_quantizers_reach_every_matrix() -> None:
    model = make_model(CtcConfig(CONFIG, vocab_size=7))
    report = quantize_model(model, QuantConfig.preset("lossless16", precisions=(2, 1)))
    low = {row.name for row in report.rows if 1 in row.bits}
    assert {f"encoder.layers.{i}.{name}.weight" for i in range(5) for name in ("factor", "affine")} <= low
    assert all(row.reason is None for row in report.rows if len(row.shape) > 1), report


def test_dropout_rises_and_falls_with_the_training() -> None:
    config = TdnnfConfig(**SMALL, dropout=0.4)
    model = make_model(CtcConfig(config, vocab_size=7)).train()
    hook = dropout_schedule(model)
    rates = [hook(model, done)["dropout"] for done in (0.0, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)]
    assert rates == pytest.approx([0.0, 0.0, 0.0, 0.2, 0.4, 0.2, 0.0])
    inputs, lens = torch.randn(1, 30, 6), torch.tensor([30])
    hook(model, 0.5)
    assert not torch.equal(model(inputs, lens)[0], model(inputs, lens)[0])
    hook(model, 0.1)
    model.eval()
    assert torch.equal(model(inputs, lens)[0], model(inputs, lens)[0])
    assert dropout_schedule(make_model(CtcConfig.preset("demo", vocab_size=7)))(model, 0.5) == {}
