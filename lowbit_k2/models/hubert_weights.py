"""Weights that others have trained: HuBERT, wav2vec 2.0 and distilled ones, as torchaudio and Hugging Face name them.

Read from a local file or a folder, safetensors or a torch archive; nothing in a file is executed, nothing is fetched.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lowbit_k2.core.hubert import HubertConfig
from lowbit_k2.errors import UserError
from lowbit_k2.fileio import read_json
from lowbit_k2.models.hubert import Hubert
from lowbit_k2.tensorfile import DamagedError, load_tensors

CONFIG_FILE = "config.json"
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")  # of a folder, in the order of preference
# Tensors of heads and of pre-training; hidden states need none of them.
HEADS = re.compile(
    r"(masked_spec_embed$|lm_head\.|aux\.|projector\.|classifier\.|project_hid\.|project_q\.|quantizer\.|"
    r"mask_generator\.|logit_generator\.|layer_weights$)"
)
WRAPPERS = re.compile(r"^(hubert|wav2vec2|model)\.")
LAYER_PARTS = {
    "attention.q_proj": "attention.query",
    "attention.k_proj": "attention.key",
    "attention.v_proj": "attention.value",
    "attention.out_proj": "attention.out",
    "layer_norm": "norm_attention",
    "feed_forward.intermediate_dense": "ff.w1",
    "feed_forward.output_dense": "ff.w2",
    "final_layer_norm": "norm_ff",
}
# (pattern of others' names, ours); torchaudio has "transformer." behind "encoder.", and the projection in "encoder."
RENAMES = (
    (r"feature_extractor\.conv_layers\.(\d+)\.conv\.", r"extractor.\1.conv."),
    (r"feature_extractor\.conv_layers\.(\d+)\.layer_norm\.", r"extractor.\1.norm."),
    (r"(?:encoder\.)?feature_projection\.layer_norm\.", r"projection.norm."),
    (r"(?:encoder\.)?feature_projection\.projection\.", r"projection.linear."),
    (r"encoder\.(?:transformer\.)?pos_conv_embed\.conv\.", r"positions.conv."),
    (r"encoder\.(?:transformer\.)?layer_norm\.", r"encoder.norm."),
    *(
        (rf"encoder\.(?:transformer\.)?layers\.(\d+)\.{re.escape(theirs)}\.", rf"encoder.layers.\1.{ours}.")
        for theirs, ours in LAYER_PARTS.items()
    ),
)
# Weight norm makes a weight of a direction and a length; torch has had two pairs of names for them.
LENGTH_AND_DIRECTION = (
    ("weight_g", "weight_v"),
    ("parametrizations.weight.original0", "parametrizations.weight.original1"),
)
# Fields of Hugging Face's config.json; those with a default may be missing there.
FIELDS = {
    "conv_dims": "conv_dim",
    "conv_kernels": "conv_kernel",
    "conv_strides": "conv_stride",
    "conv_norm": "feat_extract_norm",
    "conv_bias": "conv_bias",
    "d_model": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "ffn_dim": "intermediate_size",
    "norm_first": "do_stable_layer_norm",
    "positions_kernel": "num_conv_pos_embeddings",
    "positions_groups": "num_conv_pos_embedding_groups",
}
OPTIONAL_FIELDS = {
    "projection_norm": "feat_proj_layer_norm",
    "dropout": "hidden_dropout",
    "ffn_dropout": "activation_dropout",
    "attention_dropout": "attention_dropout",
}
# What the network here has; another value in config.json is another network.
FIXED = {
    "hidden_act": "gelu",
    "feat_extract_activation": "gelu",
    "layer_norm_eps": 1e-5,
    "conv_pos_batch_norm": False,
    "add_adapter": False,
}
KINDS = ("hubert", "wav2vec2")


def load_hubert(path: str | Path, config: HubertConfig | str | None = None) -> Hubert:
    """A model with others' weights, in eval mode.

    Args:
      path: a `.safetensors`, or a torch archive (`.bin`, `.pt`, `.pth`) of tensors alone, or a folder that holds one
        of the names in WEIGHT_FILES.
      config: settings or the name of a size, where no config.json lies beside the weights.

    Raises:
      UserError: one line on what is missing, damaged, unknown or of another shape.
    """
    path = Path(path)
    file = weights_file(path)
    if isinstance(config, str):
        config = HubertConfig.preset(config)
    config = config or config_beside(file)
    state = own_names(read_tensors(file), file)
    check_state(config, state, file)
    model = Hubert(config)
    model.load_state_dict(state)
    return model.eval()


def weights_file(path: Path) -> Path:
    """The file of a folder, or the file itself; raises UserError where there is none."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(f"{path} does not exist: give a file of weights or a folder that holds one")
    for name in WEIGHT_FILES:
        if (path / name).is_file():
            return path / name
    raise UserError(f"{path} holds no weights: it needs one of {', '.join(WEIGHT_FILES)}")


def config_beside(file: Path) -> HubertConfig:
    """Settings from the config.json in the folder of the weights, as Hugging Face writes it.

    Raises:
      UserError: there is none, or it is of a network of another kind.
    """
    source = file.parent / CONFIG_FILE
    if not source.is_file():
        sizes = ", ".join(HubertConfig.sizes)
        raise UserError(f"{file}: no {CONFIG_FILE} lies beside it: name the size of the model ({sizes})")
    values = read_json(source)
    if not isinstance(values, Mapping):
        raise UserError(f"{source} holds no settings of a model")
    try:
        return config_from_huggingface(values)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None


def config_from_huggingface(values: Mapping[str, Any]) -> HubertConfig:
    """Settings from those of Hugging Face.

    Raises:
      UserError: another kind of model, a part that this network has not, or a field that is missing.
    """
    if values.get("model_type") not in KINDS:
        raise UserError(f"a model of type {values.get('model_type')!r}: it must be one of {', '.join(KINDS)}")
    for name, value in FIXED.items():
        if values.get(name, value) != value:
            raise UserError(f"{name} is {values[name]!r}: only {value!r} is supported")
    missing = [name for name in FIELDS.values() if name not in values]
    if missing:
        raise UserError(f"{missing[0]} is missing: give the config.json that belongs to the weights")
    found = {ours: values[theirs] for ours, theirs in FIELDS.items()}
    found |= {ours: values[theirs] for ours, theirs in OPTIONAL_FIELDS.items() if theirs in values}
    return HubertConfig.from_dict(found)


def read_tensors(file: Path) -> dict[str, Tensor]:
    """All tensors of a file, by its own names.

    Raises:
      UserError: it is damaged, or holds something else.
    """
    try:
        content = load_file(file) if file.suffix == ".safetensors" else load_tensors(file)
    except DamagedError as error:
        raise UserError(f"{file} {error}") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{file} is no whole safetensors file: {error}") from None
    for wrapper in ("state_dict", "model"):  # of training scripts
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{file} is no state of a model: it must map names to tensors")
    return dict(content)


def own_names(tensors: Mapping[str, Tensor], source: Path) -> dict[str, Tensor]:
    """Tensors in float32 under this project's names, weight norm folded, heads left out.

    Raises:
      UserError: a name that no such model has.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        inner = WRAPPERS.sub("", name)
        if HEADS.match(inner):
            continue
        ours = next((new for old, by in RENAMES if (new := re.sub(f"^{old}", by, inner)) != inner), None)
        if ours is None or not tensor.is_floating_point():
            raise UserError(f"{source} holds {name}, which neither HuBERT nor wav2vec 2.0 has: give weights of these")
        found[ours] = tensor.float()
    for length, direction in LENGTH_AND_DIRECTION:
        names = f"positions.conv.{length}", f"positions.conv.{direction}"
        if all(name in found for name in names):
            g, v = (found.pop(name).double() for name in names)
            over = [dim for dim, size in enumerate(g.shape) if size == 1]
            norm = torch.linalg.vector_norm(v, dim=over, keepdim=True)
            found["positions.conv.weight"] = (v * (g / norm)).float()
    return found


def check_state(config: HubertConfig, state: Mapping[str, Tensor], source: Path) -> None:
    """The tensors must be those that the settings promise.

    Raises:
      UserError: the first that is missing, has another shape, belongs to none, or is not finite.
    """
    promised = dict(config.shapes())
    for name, shape in promised.items():
        if name not in state:
            raise UserError(f"{source} lacks {name} of shape {shape}: it is of another model than its settings say")
        if tuple(state[name].shape) != shape:
            has = tuple(state[name].shape)
            raise UserError(f"{source} holds {name} of shape {has}, its settings say {shape}: name the right size")
    for name, tensor in state.items():
        if name not in promised:
            raise UserError(f"{source} holds {name}, which a model of its settings has not: name the right size")
        if not torch.isfinite(tensor).all():
            raise UserError(f"{source}: {name} holds numbers that are not finite")
