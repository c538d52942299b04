"""Language models: against torch's own layers, causality, steps, and what quantization makes of them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lowbit_k2.core.config import ConfigError
from lowbit_k2.core.lm import LanguageModelConfig, LstmLmConfig, TransformerLmConfig
from lowbit_k2.core.models import check_shapes, model_config_from_dict
from lowbit_k2.errors import UserError
from lowbit_k2.export import load_packed, save_packed
from lowbit_k2.models import make_model
from lowbit_k2.models.lm import LanguageModel
from lowbit_k2.models.transformer_lm import sinusoids
from lowbit_k2.quant import DEFAULT_RULES, Allocation, QuantConfig, quantize_model, use_precision

TRANSFORMER = TransformerLmConfig(vocab_size=11, d_model=8, num_layers=2, num_heads=2, ffn_dim=12)
LSTM = LstmLmConfig(vocab_size=11, d_model=8, num_layers=2)
UNTIED = [
    TransformerLmConfig(11, 8, 2, 2, 12, tie_embeddings=False),
    LstmLmConfig(11, 8, 2, tie_embeddings=False),
]
CONFIGS = [TRANSFORMER, LSTM, *UNTIED]
TOKENS = torch.tensor([[1, 3, 1, 4, 1, 5], [1, 2, 2, 7, 8, 1], [1, 10, 9, 8, 7, 6]])


def model_of(config: LanguageModelConfig, seed: int = 0) -> LanguageModel:
    torch.manual_seed(seed)
    model = make_model(config)
    nn.init.normal_(model.output.bias)
    return model.eval()


def quantized(config: LanguageModelConfig, preset: str = "lossless16", precisions: tuple[int, ...] = (2, 1)):
    model = model_of(config)
    options = {"rules": (*config.rules, *DEFAULT_RULES), "layer_prefix": config.layer_prefix}
    return model, quantize_model(model, QuantConfig.preset(preset, precisions=precisions, **options))


@pytest.mark.parametrize(
    ("preset", "kind", "millions"),
    [("paper", "transformer-lm", 18.91), ("small", "transformer-lm", 3.16), ("tiny", "transformer-lm", 0.397)]
    + [("lstm-paper", "lstm-lm", 16.8), ("lstm-small", "lstm-lm", 3.22), ("lstm-tiny", "lstm-lm", 0.132)],
)
def test_presets_have_their_sizes_beside_the_embedding(preset: str, kind: str, millions: float) -> None:
    config = LanguageModelConfig.preset(preset, vocab_size=1000)
    sizes = Counter({name: torch.Size(shape).numel() for name, shape in config.shapes()})
    assert config.kind == kind and sizes["embedding.weight"] == 1000 * config.d_model
    beside = sizes.total() - sizes["embedding.weight"] - sizes["output.bias"]
    assert beside / 1e6 == pytest.approx(millions, rel=0.01)


@pytest.mark.parametrize("config", CONFIGS)
def test_the_settings_know_every_shape_and_survive_json(config: LanguageModelConfig) -> None:
    check_shapes(config, {name: tuple(tensor.shape) for name, tensor in model_of(config).state_dict().items()})
    assert model_config_from_dict(config.to_dict()) == config
    by_vocabulary = {"embedding.weight", "output.bias"} | (set() if config.tie_embeddings else {"output.weight"})
    assert config.vocabulary_tensors() == by_vocabulary


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="d_model 8 must be even and a multiple of num_heads 3"):
        TransformerLmConfig(11, 8, num_heads=3)
    with pytest.raises(UserError, match="unknown size 'huge'.*paper.*lstm-small"):
        LanguageModelConfig.preset("huge")
    with pytest.raises(UserError, match="ffn_dim: not all of these are settings of a lstm-lm"):
        LanguageModelConfig.preset("lstm-tiny", ffn_dim=3)


def reference(model: LanguageModel) -> nn.Module:
    """The layers as torch has them."""
    config = model.config
    if config.kind == "lstm-lm":
        return nn.ModuleList(nn.LSTM(config.d_model, config.d_model, batch_first=True) for _ in model.layers)
    options = {"dropout": 0.0, "activation": "gelu", "norm_first": True, "batch_first": True}
    layers = [nn.TransformerEncoderLayer(config.d_model, config.num_heads, config.ffn_dim, **options) for _ in "ab"]
    return nn.ModuleList(layers)


@torch.no_grad()
def by_torch(model: LanguageModel, tokens: Tensor) -> Tensor:
    """Logits of the same model by torch's own layers, in float64."""
    layers, state = reference(model).double().eval(), {n: t.double() for n, t in model.state_dict().items()}
    x = state["embedding.weight"][tokens] * model.config.d_model**0.5
    for i, layer in enumerate(layers):
        own = {n.removeprefix(f"layers.{i}."): t for n, t in state.items() if n.startswith(f"layers.{i}.")}
        if isinstance(layer, nn.LSTM):
            layer.load_state_dict({n.removeprefix("lstm."): t for n, t in own.items() if n.startswith("lstm.")})
            x = nn.functional.layer_norm(layer(x)[0], x.shape[-1:], own["norm.weight"], own["norm.bias"])
            continue
        stacked = {
            f"self_attn.in_proj_{kind}": torch.cat([own[f"attention.{n}.{kind}"] for n in ("query", "key", "value")])
            for kind in ("weight", "bias")
        }
        names = {"self_attn.out_proj": "attention.out", "linear1": "feed_forward.inner"}
        names |= {"linear2": "feed_forward.outer", "norm1": "norm_attention", "norm2": "norm_feed_forward"}
        named = {f"{n}.{kind}": own[f"{mine}.{kind}"] for n, mine in names.items() for kind in ("weight", "bias")}
        layer.load_state_dict({**stacked, **named})
        if i == 0:
            x = x + sinusoids(torch.arange(x.size(1)), x.size(2)).double()
        x = layer(x, src_mask=torch.full((x.size(1), x.size(1)), float("-inf")).triu(1).double())
    if "norm.weight" in state:
        x = nn.functional.layer_norm(x, x.shape[-1:], state["norm.weight"], state["norm.bias"])
    return x @ state.get("output.weight", state["embedding.weight"]).T + state["output.bias"]


@pytest.mark.parametrize("config", CONFIGS)
@torch.no_grad()
def test_the_layers_are_torchs(config: LanguageModelConfig) -> None:
    model = model_of(config)
    torch.testing.assert_close(model(TOKENS).double(), by_torch(model, TOKENS), atol=2e-6, rtol=1e-5)
    own = model.target_log_probs(TOKENS[:, :-1], TOKENS[:, 1:])
    whole = by_torch(model, TOKENS)[:, :-1].log_softmax(-1).gather(-1, TOKENS[:, 1:, None])[..., 0]
    torch.testing.assert_close(own.double(), whole, atol=2e-6, rtol=1e-5)


def test_sinusoids_by_hand() -> None:
    found = sinusoids(torch.tensor([0, 3]), 4)
    expected = [[0, 0, 1, 1], [torch.tensor(3.0).sin(), torch.tensor(0.03).sin(), torch.tensor(3.0).cos(), 0.99955]]
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-5, rtol=0)


@pytest.mark.parametrize("config", CONFIGS)
def test_nothing_is_told_from_what_comes_later(config: LanguageModelConfig) -> None:
    """By gradients: the logits at t move with the units up to t, with each of them, and with no other."""
    model = model_of(config)
    seen: dict[str, Tensor] = {}
    model.embedding.register_forward_hook(lambda module, args, out: seen.setdefault("x", out))
    logits = model(TOKENS[:1])
    for t in range(TOKENS.size(1)):
        (gradient,) = torch.autograd.grad(logits[0, t].square().sum(), seen["x"], retain_graph=True)
        assert gradient[0].abs().sum(-1).gt(0).tolist() == [place <= t for place in range(TOKENS.size(1))]


@pytest.mark.parametrize("config", CONFIGS)
@torch.no_grad()
def test_steps_give_what_the_whole_gives_whatever_their_lengths(config: LanguageModelConfig) -> None:
    """Rows start at different times, and change places, as hypotheses of a beam do."""
    model = model_of(config)
    whole = model(TOKENS).log_softmax(-1)
    states, done = [model.first_state() for _ in TOKENS], [0, 0, 0]
    for rows in ([0], [0, 1], [2, 0], [1, 2, 0], [0, 1, 2], [2, 1], [1, 0]):
        out, after = model.step(TOKENS[rows, [done[n] for n in rows]], [states[n] for n in rows])
        for place, n in enumerate(rows):
            torch.testing.assert_close(out[place], whole[n, done[n]], atol=1e-5, rtol=1e-5)
            states[n], done[n] = after[place], done[n] + 1
    assert done == [6, 5, 4]


@pytest.mark.parametrize("config", CONFIGS)
def test_every_matrix_has_its_role(config: LanguageModelConfig) -> None:
    _, report = quantized(config)
    roles = {row.name: row.role for row in report.rows}
    body = {"attention", "feed_forward"} if config.kind == "transformer-lm" else {"lstm"}
    wanted = {"embedding", "norm", "bias"} | body | (set() if config.tie_embeddings else {"output"})
    assert set(roles.values()) == wanted
    for row in report.rows:
        assert row.bits == ((2, 1) if row.role in body else (8,) if row.role in ("embedding", "output") else (16,))
    assert all(role in ("norm", "bias") for name, role in roles.items() if "norm" in name or "bias" in name)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("bits", [2, 1])
def test_a_packed_file_is_the_quantized_model(config: LanguageModelConfig, bits: int, tmp_path: Path) -> None:
    model, _ = quantized(config)
    with torch.no_grad(), use_precision(model, bits):
        save_packed(model, tmp_path / "lm", {})
        own = model(TOKENS)
    with torch.no_grad():
        plain = load_packed(tmp_path / "lm", make_model(config))
        assert torch.equal(plain(TOKENS), own)
        assert not torch.equal(own, model_of(config)(TOKENS))


def test_a_tied_matrix_is_quantized_once_and_learns_from_both_its_uses() -> None:
    model, report = quantized(TRANSFORMER, "mixed", (2,))
    assert sum(row.name.startswith(("embedding", "output")) and len(row.shape) == 2 for row in report.rows) == 1
    with use_precision(model, 2):
        model(TOKENS[:1, :1]).sum().backward()
    latent = model.embedding.parametrizations.weight.original
    assert latent.grad[5].abs().sum() > 0 and not torch.equal(latent.grad[1], latent.grad[5])


def test_layers_have_precisions_of_their_own() -> None:
    model, _ = quantized(TRANSFORMER)
    with torch.no_grad():
        outs = []
        for bits in ((2, 2), (2, 1), (1, 2), (1, 1)):
            with use_precision(model, Allocation.by_layer("layers", bits)):
                outs.append(model(TOKENS))
    assert all(not torch.equal(a, b) for i, a in enumerate(outs) for b in outs[:i])


@pytest.mark.parametrize("config", [TRANSFORMER, LSTM])
def test_bfloat16_runs_forward_and_backward(config: LanguageModelConfig) -> None:
    model, _ = quantized(config)
    with use_precision(model, 1), torch.autocast("cpu", dtype=torch.bfloat16):
        found = model.target_log_probs(TOKENS[:, :-1], TOKENS[:, 1:])
        (-found.sum()).backward()
        step, _ = model.step(TOKENS[:, 0], [model.first_state() for _ in TOKENS])
    assert found.dtype == step.dtype == torch.float32
    learning = [p for name, p in model.named_parameters() if not name.endswith("alphas.2")]
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in learning)
