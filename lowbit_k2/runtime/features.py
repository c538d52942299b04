"""Log-Mel filter banks by kaldi-native-fbank, frame by frame as samples come in: those that training has by lhotse.

No dither, a frame per shift (`snip_edges` off, the ends mirrored), samples in -1 .. 1, Povey's window, pre-emphasis
0.97, no energy, and the logarithm's argument at least float32's epsilon; the rest is the model's `FeatureConfig`.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from lowbit_k2.core.features import SMALLEST_DEVIATION, FeatureConfig
from lowbit_k2.errors import UserError
from lowbit_k2.runtime.errors import UnsupportedError

AT_ONCE = 1 << 15  # samples that are handed over


def num_frames(config: FeatureConfig, num_samples: int) -> int:
    """Frames of so many samples at the features' rate."""
    return (num_samples + config.shift_samples // 2) // config.shift_samples


class FeatureStream:
    """The frames of one recording; those that are behind are forgotten."""

    def __init__(self, config: FeatureConfig, blocks: Iterable[np.ndarray], name: str = "the audio") -> None:
        """Args:
          blocks: samples (n,), at the features' rate.
          name: of the recording, in errors.
        Raises:
          UnsupportedError: kaldi-native-fbank is not installed.
        """
        self._fbank, self._rate = make_fbank(config), config.sampling_rate
        self._blocks, self._name, self._ended = iter(blocks), name, False
        self._forgotten = 0

    def take(self, start: int, stop: int) -> np.ndarray:
        """Frames start .. stop-1, of which the recording has to have enough: (stop - start, F) float32.

        Frames before `start` cannot be asked for any more.

        Raises:
          UserError: samples that are not finite, or what reading them raises.
        """
        while self._fbank.num_frames_ready < stop and not self._ended:
            self._accept(next(self._blocks, None))
        assert start >= self._forgotten and self._fbank.num_frames_ready >= stop, (start, stop)
        self._fbank.pop(start - self._forgotten)
        self._forgotten = start
        return np.stack([self._fbank.get_frame(i) for i in range(start, stop)])  # (stop - start, F)

    def _accept(self, samples: np.ndarray | None) -> None:
        if samples is None:
            self._fbank.input_finished()
            self._ended = True
            return
        if not np.isfinite(samples).all():
            raise UserError(f"{self._name} holds samples that are not finite numbers")
        for begin in range(0, len(samples), AT_ONCE):
            self._fbank.accept_waveform(self._rate, samples[begin : begin + AT_ONCE])


def make_fbank(config: FeatureConfig):
    """kaldi_native_fbank.OnlineFbank with the settings of training.

    Raises:
      UnsupportedError: it is not installed.
      UserError: settings with no samples in a frame.
    """
    if min(config.frame_shift, config.frame_length) * config.sampling_rate < 2:  # the library would crash
        raise UserError(f"features of frames with less than 2 samples at {config.sampling_rate} Hz: export it again")
    try:
        import kaldi_native_fbank
    except ImportError:
        reason = "kaldi-native-fbank, which computes features, is not installed"
        raise UnsupportedError(f"{reason}: pip install kaldi-native-fbank") from None
    options = kaldi_native_fbank.FbankOptions()
    frames, mel = options.frame_opts, options.mel_opts
    frames.samp_freq, frames.dither, frames.snip_edges = config.sampling_rate, 0.0, False
    frames.frame_length_ms, frames.frame_shift_ms = 1000 * config.frame_length, 1000 * config.frame_shift
    mel.num_bins, mel.low_freq, mel.high_freq = config.num_mel_bins, config.low_freq, config.high_freq
    return kaldi_native_fbank.OnlineFbank(options)


def normalize(features: np.ndarray, config: FeatureConfig) -> np.ndarray:
    """What data/features.py's `normalize_features` makes of an utterance: (T, F) -> (T, F)."""
    if config.normalize == "none":
        return features
    centred = features - features.mean(axis=0, dtype=np.float64).astype(np.float32)
    if config.normalize == "utterance":
        return centred
    deviation = np.sqrt(np.square(centred).mean(axis=0, dtype=np.float64)).astype(np.float32)
    return centred / np.maximum(deviation, np.float32(SMALLEST_DEVIATION))
