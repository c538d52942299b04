"""What becomes an ONNX file each: modules with the inputs, outputs and metadata that sherpa-onnx expects.

    CTC         model     x (N, T, F), x_lens (N,)           -> log_probs (N, T', V), log_probs_len (N,)
    transducer  encoder   x (N, T, F), x_lens (N,)           -> encoder_out (N, T', J), encoder_out_lens (N,)
                decoder   y (N, context_size)                -> decoder_out (N, J)
                joiner    encoder_out (N, J), decoder_out (N, J) -> logit (N, V)

These are the files of icefall's export-onnx.py and export-onnx-ctc.py, which sherpa-onnx reads as its kinds "zipformer
ctc" and "transducer" (its sources: offline-zipformer-ctc-model.cc, offline-transducer-model.cc). `x` are log-Mel
features as they are computed: normalisation by utterance is part of the network, because sherpa-onnx has none that is
like ours. T' may have a frame or two more than the longest utterance, so that the shortest audio has one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowbit_k2.core.config import ConfigError
from lowbit_k2.core.encoders import ConformerConfig
from lowbit_k2.core.features import FeatureConfig
from lowbit_k2.core.models import CTC, STATELESS, TRANSDUCER, ModelConfig
from lowbit_k2.core.topology import CTC as CTC_TOPOLOGY
from lowbit_k2.models.masking import valid_frames

BATCH, FRAMES = "N", "T"  # names of the axes that may have any length
EXAMPLE_FRAMES = 100  # of the input that is traced; any number would do


@dataclass(frozen=True)
class Network:
    """One file.

    name: of the file, without its ending.
    module: what is traced, on `example`.
    inputs, outputs: their names, each with the names of its axes of any length.
    metadata: what sherpa-onnx reads.
    """

    name: str
    module: nn.Module
    example: tuple[Tensor, ...]
    inputs: Mapping[str, Mapping[int, str]]
    outputs: Mapping[str, Mapping[int, str]]
    metadata: Mapping[str, str]


def check_model(config: ModelConfig) -> None:
    """Whether sherpa-onnx has a search for such a model.

    Raises:
      ConfigError: it has none.
    """
    encoder = getattr(config, "encoder", None)
    if config.kind not in (CTC, TRANSDUCER) or not isinstance(encoder, ConformerConfig):
        named = f"{config.kind} model with encoder {getattr(encoder, 'kind', 'of its own')}"
        raise ConfigError("format", f"onnx takes Conformers with CTC or a transducer, not a {named}: use packed")
    if config.topology != CTC_TOPOLOGY:
        raise ConfigError("format", f"onnx: sherpa-onnx has no search for the topology {config.topology}: use packed")
    if config.kind == TRANSDUCER and config.decoder_kind != STATELESS:
        raise ConfigError(
            "format",
            f"onnx: sherpa-onnx takes a stateless prediction network, not --decoder-kind {config.decoder_kind}: "
            "use packed, or train with --decoder-kind stateless",
        )


def networks_of(model: nn.Module, config: ModelConfig, features: Mapping[str, Any]) -> Iterator[Network]:
    """All files of a plain model in eval mode; a transducer with a CTC head has that of CTC as well.

    Args:
      features: `FeatureConfig.to_dict()`.
    """
    settings = FeatureConfig.from_dict(features)
    frontend = Frontend(settings.normalize, config.min_frames)
    about = {"version": "1", "model_author": "lowbit_k2", **feature_notes(settings)}
    about |= {"subsampling_factor": str(config.encoder.frames_per_output), "vocab_size": str(config.vocab_size)}
    frames = torch.zeros(1, EXAMPLE_FRAMES, settings.num_mel_bins), torch.tensor([EXAMPLE_FRAMES])
    inputs = {"x": {0: BATCH, 1: FRAMES}, "x_lens": {0: BATCH}}
    if CTC in config.networks:
        outputs = {"log_probs": {0: BATCH, 1: FRAMES}, "log_probs_len": {0: BATCH}}
        metadata = {"model_type": "zipformer2_ctc", "comment": "Conformer with CTC", **about}
        yield Network("model", CtcNetwork(model, frontend), frames, inputs, outputs, metadata)
    if TRANSDUCER in config.networks:
        outputs = {"encoder_out": {0: BATCH, 1: FRAMES}, "encoder_out_lens": {0: BATCH}}
        metadata = {"model_type": "conformer", "comment": "Conformer transducer", **about}
        yield Network("encoder", EncoderNetwork(model, frontend), frames, inputs, outputs, metadata)
        yield from _search_networks(model, config)


def _search_networks(model: nn.Module, config: ModelConfig) -> Iterator[Network]:
    """Prediction network and joiner."""
    context, vocab, width = config.context_size, config.vocab_size, config.joiner_dim
    rows = {0: BATCH}
    metadata = {"context_size": str(context), "vocab_size": str(vocab)}
    tokens = (torch.zeros(1, context, dtype=torch.int64),)
    yield Network("decoder", DecoderNetwork(model), tokens, {"y": rows}, {"decoder_out": rows}, metadata)
    vectors = torch.zeros(1, width), torch.zeros(1, width)
    inputs, outputs = {"encoder_out": rows, "decoder_out": rows}, {"logit": rows}
    yield Network("joiner", JoinerNetwork(model), vectors, inputs, outputs, {"joiner_dim": str(width)})


def feature_notes(settings: FeatureConfig) -> dict[str, str]:
    """What has to be computed from audio, and what the network does with it itself. sherpa-onnx reads none of these."""
    computed = ("sampling_rate", "num_mel_bins", "frame_length", "frame_shift", "low_freq", "high_freq")
    return {f"feature_{name}": f"{getattr(settings, name):g}" for name in computed} | {
        "normalize_type": settings.normalize
    }


class Frontend(nn.Module):
    """Features as they are computed to those that the encoder was trained on."""

    def __init__(self, normalize: str, min_frames: int) -> None:
        super().__init__()
        self.normalize, self.min_frames = normalize, min_frames

    def forward(self, x: Tensor, lens: Tensor) -> Tensor:
        """x (N, T, F), padded with anything; lens (N,) -> (N, T + min_frames - 1, F), padded with zeros.

        Each utterance is normalised as `data.features.normalize_features` does it alone. The frames behind give the
        convolutions enough to stand on, however short the audio.
        """
        valid = valid_frames(lens, x.size(1))[..., None]  # (N, T, 1)
        x = x.masked_fill(~valid, 0.0)
        if self.normalize != "none":
            count = lens.clamp(min=1).to(x.dtype)[:, None, None]  # (N, 1, 1)
            x = (x - x.sum(dim=1, keepdim=True) / count).masked_fill(~valid, 0.0)
            if self.normalize == "utterance-std":
                x = x / (x.pow(2).sum(dim=1, keepdim=True) / count).sqrt().clamp(min=0.1)
        return F.pad(x, (0, 0, 0, self.min_frames - 1))


class CtcNetwork(nn.Module):
    """Features to log posteriors, of any model that has them."""

    def __init__(self, model: nn.Module, frontend: Frontend) -> None:
        super().__init__()
        self.model, self.frontend = model, frontend

    def forward(self, x: Tensor, x_lens: Tensor) -> tuple[Tensor, Tensor]:
        output = self.model.network_output(self.frontend(x, x_lens), x_lens)
        return output["log_probs"], output["lens"].clamp(min=0)


class EncoderNetwork(nn.Module):
    """Features to encoder frames as the joiner adds them."""

    def __init__(self, model: nn.Module, frontend: Frontend) -> None:
        super().__init__()
        self.encoder, self.encoder_proj, self.frontend = model.encoder, model.joiner.encoder_proj, frontend

    def forward(self, x: Tensor, x_lens: Tensor) -> tuple[Tensor, Tensor]:
        encoder_out, lens = self.encoder(self.frontend(x, x_lens), x_lens)
        return self.encoder_proj(encoder_out), lens.clamp(min=0)


class DecoderNetwork(nn.Module):
    """The last tokens to the vector that the joiner adds."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.decoder, self.decoder_proj = model.decoder, model.joiner.decoder_proj

    def forward(self, y: Tensor) -> Tensor:
        # Linear layers of three dimensions become MatMul, which can be quantized; of two they would become Gemm.
        return self.decoder_proj(self.decoder(y, pad=False))[:, 0]  # (N, J)


class JoinerNetwork(nn.Module):
    """One frame and one vector to logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.joiner = model.joiner

    def forward(self, encoder_out: Tensor, decoder_out: Tensor) -> Tensor:
        return self.joiner(encoder_out[:, None], decoder_out[:, None], project=False)[:, 0]  # (N, V)
