"""Log-Mel filter banks: their settings, the extractor behind them, and the one normalisation that all users share.

Training, decoding of cuts and decoding of single files (`--wav`) all go through `normalize_features`, and the
`FeatureConfig` travels inside checkpoints and packed files, so that a model always sees the features it was trained on.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lowbit_k2.core.features import EXTRACTORS, NORMALIZATIONS, SMALLEST_DEVIATION, STATES, FeatureConfig
from lowbit_k2.data.audio import AudioFile
from lowbit_k2.data.resampling import resample_in_lhotse
from lowbit_k2.data.sources import check_sources, parts_of
from lowbit_k2.data.sphere import choose_backend
from lowbit_k2.errors import UserError
from lowbit_k2.fileio import read_json, write_json

if TYPE_CHECKING:
    from lhotse.cut import Cut
    from lhotse.features import FeatureExtractor

__all__ = ["EXTRACTORS", "NORMALIZATIONS", "FeatureConfig"]

FEATURES_FILE = "features.json"  # beside the cut manifests: the settings that the stored features were made with


def read_feature_config(manifest_dir: str | Path, normalize: str | None = None) -> FeatureConfig:
    """The settings that the features beside the manifests were made with; the defaults where nothing says so.

    Args:
      manifest_dir: folder that compute_fbank wrote.
      normalize: replaces the normalisation.
    """
    path = Path(manifest_dir) / FEATURES_FILE
    config = FeatureConfig.from_dict(read_json(path)) if path.is_file() else FeatureConfig()
    return FeatureConfig.from_dict({**config.to_dict(), "normalize": normalize or config.normalize})


def check_feature_config(manifest_dir: str | Path, config: FeatureConfig) -> None:
    """Features of one folder have one set of settings.

    Raises:
      UserError: features with other settings are in that folder.
    """
    path = Path(manifest_dir) / FEATURES_FILE
    if path.is_file() and read_feature_config(manifest_dir).stored() != config.stored():
        raise UserError(f"{path} names other feature settings: remove that folder or choose another one")


def write_feature_config(manifest_dir: str | Path, config: FeatureConfig) -> None:
    """Write `features.json` where it is missing."""
    path = Path(manifest_dir) / FEATURES_FILE
    if not path.is_file():
        write_json(path, config.to_dict())


def make_extractor(config: FeatureConfig, device: str = "cpu") -> FeatureExtractor:
    """The lhotse extractor that computes these features, without dither, `snip_edges` off: one frame per shift.

    Audio that lhotse reads for it is resampled by `resampling.py` from now on.

    Raises:
      UserError: kaldifeat is wanted but not installed, or the features are hidden states of a model.
    """
    if config.type == STATES:
        raise UserError("the model reads hidden states of another one: store them by lowbit_k2.recipe.extract_states")
    resample_in_lhotse()
    if config.extractor == "kaldifeat":
        return _kaldifeat_extractor(config, device)
    from lhotse import FbankConfig

    from lowbit_k2.data.fbank import LongFbank

    return LongFbank(
        FbankConfig(
            sampling_rate=config.sampling_rate,
            frame_length=config.frame_length,
            frame_shift=config.frame_shift,
            num_filters=config.num_mel_bins,
            low_freq=config.low_freq,
            high_freq=config.high_freq,
            device=device,
        )
    )


def _kaldifeat_extractor(config: FeatureConfig, device: str) -> FeatureExtractor:
    from lhotse.features.kaldifeat import (
        KaldifeatFbank,
        KaldifeatFbankConfig,
        KaldifeatFrameOptions,
        KaldifeatMelOptions,
    )

    frames = KaldifeatFrameOptions(
        sampling_rate=config.sampling_rate, frame_shift=config.frame_shift, frame_length=config.frame_length
    )
    mel = KaldifeatMelOptions(num_bins=config.num_mel_bins, low_freq=config.low_freq, high_freq=config.high_freq)
    try:
        return KaldifeatFbank(KaldifeatFbankConfig(frame_opts=frames, mel_opts=mel, device=device))
    except (ImportError, OSError, AssertionError):
        raise UserError("kaldifeat is not installed: run `make kaldifeat`, or choose the lhotse extractor") from None


def normalize_features(features: Tensor, config: FeatureConfig) -> Tensor:
    """Normalise the features of one whole utterance, as `config.normalize` says. (T, F) -> (T, F)"""
    assert features.dim() == 2, features.shape
    if config.normalize == "none":
        return features
    centred = features - features.mean(dim=0, keepdim=True)
    if config.normalize == "utterance":
        return centred
    # The floor keeps a bin without variation (digital silence) from being blown up.
    return centred / centred.pow(2).mean(dim=0, keepdim=True).sqrt().clamp(min=SMALLEST_DEVIATION)


def num_frames(cut: Cut, config: FeatureConfig) -> int:
    """Frames that a cut has, or will have once its features are computed."""
    if cut.has_features:
        return cut.num_frames
    from lhotse.utils import compute_num_frames

    return compute_num_frames(cut.duration, frame_shift=config.frame_shift, sampling_rate=cut.sampling_rate)


def load_features(
    cut: Cut, config: FeatureConfig, extractor: FeatureExtractor | None = None, allow_commands: bool = False
) -> Tensor:
    """Normalised features of a cut: the stored ones, or with `extractor` computed from its audio. -> (T, F)

    Args:
      allow_commands: commands that a manifest names as audio or features are run; see sources.py.

    Raises:
      UserError: the features or the audio cannot be read, or are not finite.
    """
    what = "features" if extractor is None else "recording"
    check_sources(cut, what, allow_commands)
    try:
        matrix = cut.load_features() if extractor is None else extractor.extract(_samples(cut), config.sampling_rate)
    except Exception as error:  # lhotse, lilcom and the audio libraries have no common class
        raise UserError(unreadable(cut, what, error)) from None
    if matrix is None:
        raise UserError(f"cut {cut.id} has no stored features: run compute_fbank, or compute them on the fly")
    return normalize_features(torch.as_tensor(matrix, dtype=torch.float32), config)


def load_samples(cut: Cut, allow_commands: bool = False) -> Tensor:
    """The first channel of a cut's audio, float32 in [-1, 1]. -> (num_samples,)

    Args:
      allow_commands: as in `load_features`.

    Raises:
      UserError: it cannot be read, or is not finite.
    """
    check_sources(cut, "recording", allow_commands)
    try:
        return torch.from_numpy(_samples(cut)[0])
    except Exception as error:  # the audio libraries have no common class
        raise UserError(unreadable(cut, "recording", error)) from None


def _samples(cut: Cut) -> np.ndarray:
    """(1, num_samples)"""
    choose_backend(cut)
    samples = np.atleast_2d(cut.load_audio())[:1]
    if not np.isfinite(samples).all():
        raise ValueError("samples that are not finite numbers")
    return samples


def unreadable(cut: Cut, what: str, error: Exception) -> str:
    """Why a cut's audio or features cannot be read, with the file that it is in."""
    places = [
        source.source if what == "recording" else source.storage_path
        for part in parts_of(cut)
        for source in ((part.recording.sources if what == "recording" else [part.features]) if _has(part, what) else ())
    ]
    place = next((place for place in places if isinstance(place, str)), "its manifest")
    named, remedy = {
        "recording": ("audio", "make the manifests anew"),
        "features": ("features", "put them beside their manifest, or run compute_fbank again"),
    }[what]
    if isinstance(error, FileNotFoundError) or not Path(place).exists():
        return f"the {named} of cut {cut.id} cannot be read: no {place}; has the folder been moved? {remedy}"
    reason = " ".join(str(error).split())[:200]
    return (
        f"the {named} of cut {cut.id} cannot be read ({type(error).__name__}: {reason}) from {place}: "
        "replace the file, or leave it out"
    )


def _has(part: Cut, what: str) -> bool:
    return part.has_recording if what == "recording" else part.has_features


def read_audio(source: str | Path | AudioFile, sampling_rate: int) -> Tensor:
    """The first channel of an audio file, see `AudioFile`. -> (num_samples,)

    An hour takes 230 MB at 16 kHz, whatever the file's rate and channels.

    Raises:
      UserError: missing, unreadable, damaged or empty file, or an unlikely rate.
    """
    samples = bytearray()  # grows without being copied for every piece
    audio = source if isinstance(source, AudioFile) else AudioFile(source, sampling_rate)
    for block in audio.blocks():
        samples += np.ascontiguousarray(block).data.cast("B")
    return torch.frombuffer(samples, dtype=torch.float32)


def extract_wav(
    source: str | Path | AudioFile | Tensor | np.ndarray,
    config: FeatureConfig,
    extractor: FeatureExtractor | None = None,
) -> Tensor:
    """Normalised features of an audio file or of samples at `config.sampling_rate`. -> (T, F)

    Args:
      source: a path (any sampling rate, the first channel is taken), or samples (num_samples,) in [-1, 1].
      extractor: `make_extractor(config)`, to spare its construction for every file.

    Raises:
      UserError: unreadable or empty audio, or less than one frame of it.
    """
    if isinstance(source, (str, Path, AudioFile)):
        name = str(source.path if isinstance(source, AudioFile) else source)
        samples = read_audio(source, config.sampling_rate)
    else:
        name, samples = "the audio", torch.as_tensor(source, dtype=torch.float32).flatten()
    if len(samples) < config.frame_length * config.sampling_rate:
        raise UserError(f"{name} is too short: {len(samples)} samples are less than one frame")
    if not bool(torch.isfinite(samples).all()):
        raise UserError(f"{name} holds samples that are not finite numbers")
    extractor = extractor or make_extractor(config)
    matrix = extractor.extract(samples.unsqueeze(0), config.sampling_rate)
    return normalize_features(torch.as_tensor(matrix, dtype=torch.float32), config)
