"""Others' weights of HuBERT: torchaudio's hidden states come out of them, and what does not fit is one line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lowbit_k2.core.hubert import HubertConfig
from lowbit_k2.errors import UserError
from lowbit_k2.models.hubert_weights import load_hubert
from tests.models.hubert_samples import BASE, BOTH, LENS, random_model, waveforms


def torchaudio_model(config: HubertConfig) -> nn.Module:
    """Its own network with random weights."""
    torchaudio = pytest.importorskip("torchaudio", reason="torchaudio is not installed here: the full lane has it")
    torch.manual_seed(2)
    layers = list(zip(config.layer_conv_dims, config.conv_kernels, config.conv_strides, strict=True))
    model = torchaudio.models.wav2vec2_model(
        f"{config.conv_norm}_norm", layers, config.conv_bias, config.d_model, 0.0, config.positions_kernel,
        config.positions_groups, config.num_layers, config.num_heads, 0.0, config.ffn_dim, 0.0, 0.0, config.norm_first,
        0.0, None,
    )  # fmt: skip
    for name, p in model.named_parameters():
        is_gain = name.endswith("norm.weight")
        nn.init.normal_(p, mean=1.0 if is_gain or name.endswith("_g") else 0.0, std=0.3 if p.dim() < 2 else 0.1)
    return model.eval()


@BOTH
@torch.no_grad()
def test_hidden_states_are_torchaudios(config: HubertConfig, tmp_path: Path) -> None:
    reference = torchaudio_model(config)
    torch.save(reference.state_dict(), tmp_path / "theirs.pt")
    model = load_hubert(tmp_path / "theirs.pt", replace(config, norm_over_padding=True))
    x = waveforms()
    for lens in (None, LENS):
        found = model(x, lens)
        layers, frames = reference.extract_features(x, lens)
        out, _ = reference(x, lens)
        assert lens is None or torch.equal(frames, found.lens)
        for state, right in zip((*found.hidden_states[1:], found.out), (*layers, out), strict=True):
            for i in range(len(x)):
                valid = int(found.lens[i])
                torch.testing.assert_close(state[i, :valid], right[i, :valid], rtol=1e-4, atol=1e-4)


def hugging_face(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """torchaudio's names as Hugging Face's, with tensors that only pre-training needs."""
    renamed = {
        "hubert."
        + name.replace("encoder.transformer.", "encoder.").replace(
            "encoder.feature_projection.", "feature_projection."
        ): v
        for name, v in state.items()
    }
    return {**renamed, "hubert.masked_spec_embed": torch.zeros(32), "lm_head.weight": torch.zeros(4, 32)}


HF_CONFIG = {
    "model_type": "hubert", "conv_dim": [16] * 7, "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_stride": [5, 2, 2, 2, 2, 2, 2], "feat_extract_norm": "group", "conv_bias": False, "hidden_size": 32,
    "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48, "do_stable_layer_norm": False,
    "num_conv_pos_embeddings": 6, "num_conv_pos_embedding_groups": 4, "hidden_act": "gelu", "layer_norm_eps": 1e-5,
    "vocab_size": 4,
}  # fmt: skip


def others_state(config: HubertConfig) -> dict[str, Tensor]:
    """A random model under torchaudio's names, its positional convolution under weight norm."""
    state = {}
    for name, value in random_model(config).state_dict().items():
        for ours, theirs in (
            ("extractor.", "feature_extractor.conv_layers."), (".attention.query", ".attention.q_proj"),
            (".attention.key", ".attention.k_proj"), (".attention.value", ".attention.v_proj"),
            (".attention.out", ".attention.out_proj"), (".norm_attention", ".layer_norm"),
            (".ff.w1", ".feed_forward.intermediate_dense"), (".ff.w2", ".feed_forward.output_dense"),
            (".norm_ff", ".final_layer_norm"), ("projection.linear", "encoder.feature_projection.projection"),
            ("projection.norm", "encoder.feature_projection.layer_norm"), (".norm.", ".layer_norm."),
            ("encoder.layers", "encoder.transformer.layers"), ("encoder.layer_norm", "encoder.transformer.layer_norm"),
            ("positions.conv", "encoder.transformer.pos_conv_embed.conv"),
        ):  # fmt: skip
            name = name.replace(ours, theirs)
        state[name] = value
    weight = state.pop("encoder.transformer.pos_conv_embed.conv.weight")
    state["encoder.transformer.pos_conv_embed.conv.weight_g"] = weight.pow(2).sum((0, 1), keepdim=True).sqrt()
    state["encoder.transformer.pos_conv_embed.conv.weight_v"] = 3.0 * weight
    return state


def write_folder(folder: Path, state: dict[str, Tensor], suffix: str = "model.safetensors", **changes: object) -> Path:
    folder.mkdir(exist_ok=True)
    if suffix.endswith("safetensors"):
        save_file({name: value.contiguous() for name, value in state.items()}, folder / suffix)
    else:
        torch.save(state, folder / suffix)
    (folder / "config.json").write_text(json.dumps({**HF_CONFIG, **changes}))
    return folder


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
@torch.no_grad()
def test_a_folder_of_hugging_face(tmp_path: Path, file: str) -> None:
    state = hugging_face(others_state(BASE))
    length, direction = (f"hubert.encoder.pos_conv_embed.conv.weight_{end}" for end in "gv")
    state["hubert.encoder.pos_conv_embed.conv.parametrizations.weight.original0"] = state.pop(length)
    state["hubert.encoder.pos_conv_embed.conv.parametrizations.weight.original1"] = state.pop(direction)
    model = load_hubert(write_folder(tmp_path / "model", state, file))
    assert not model.training and model.config == replace(BASE, conv_dims=(16,) * 7)
    for name, value in random_model(BASE).state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-5, atol=1e-6, msg=name)


def test_half_precision_and_no_norm_of_the_projection(tmp_path: Path) -> None:
    config = replace(BASE, projection_norm=False)
    state = {name: value.half() for name, value in others_state(config).items()}
    model = load_hubert(write_folder(tmp_path / "model", state, feat_proj_layer_norm=False))
    assert not model.config.projection_norm and {p.dtype for p in model.parameters()} == {torch.float32}


def refusals(folder: Path) -> dict[str, Path]:
    state = others_state(BASE)
    bias = "encoder.transformer.layers.0.attention.q_proj.bias"
    cases = {
        "holds no weights": folder / "empty",
        "does not exist": folder / "nowhere.pt",
        "model of type 'bert'": write_folder(folder / "kind", state, model_type="bert"),
        "hidden_act is 'relu'": write_folder(folder / "act", state, hidden_act="relu"),
        "of shape (32, 32), its settings say (64, 32)": write_folder(folder / "wide", state, intermediate_size=64),
        "lacks encoder.layers.3.": write_folder(folder / "deep", state, num_hidden_layers=4),
        "which a model of its settings has not": write_folder(folder / "flat", state, num_hidden_layers=2),
        "holds adapter.weight, which neither": write_folder(
            folder / "more", {**state, "adapter.weight": state[bias].clone()}
        ),
        "not finite": write_folder(folder / "nan", {**state, bias: state[bias] * float("nan")}),
        "no whole safetensors file": write_folder(folder / "cut", state),
        "no config.json lies beside it": write_folder(folder / "bare", state),
        "intermediate_size is missing": write_folder(folder / "field", state),
    }
    (folder / "empty").mkdir()
    whole = (folder / "cut" / "model.safetensors").read_bytes()
    (folder / "cut" / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    (folder / "bare" / "config.json").unlink()
    less = {name: value for name, value in HF_CONFIG.items() if name != "intermediate_size"}
    (folder / "field" / "config.json").write_text(json.dumps(less))
    return cases


def test_what_cannot_be_loaded_is_one_line(tmp_path: Path) -> None:
    for text, path in refusals(tmp_path).items():
        wanted = text.replace("(32, 32)", "(48, 32)")
        with pytest.raises(UserError) as error:
            load_hubert(path)
        assert wanted in str(error.value) and str(tmp_path) in str(error.value) and "\n" not in str(error.value)
