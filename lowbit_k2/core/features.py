"""Settings of features, mostly log-Mel filter banks, as checkpoints and packed files carry them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lowbit_k2.core.config import Config, ConfigError, option

FBANK, STATES = "fbank", "states"
MOST_BINS = 512
EXTRACTORS = ("lhotse", "kaldifeat")
NORMALIZATIONS = ("none", "utterance", "utterance-std")
SMALLEST_DEVIATION = 0.1  # of a bin, that "utterance-std" divides by


@dataclass(frozen=True)
class FeatureConfig(Config):
    """All that defines the features of a model. The defaults are Kaldi's and icefall's 80-dimensional filter banks.

    type: "states" are hidden states of another model, `num_mel_bins` numbers a frame; they are there only as stored.
    normalize: "utterance" subtracts each bin's mean over the utterance (channel and level fall out, no statistics to
      store); "utterance-std" also divides by each bin's deviation; "none" leaves the logarithms as they are.
    """

    type: str = option(FBANK, flag="", choices=(FBANK, STATES))
    num_mel_bins: int = option(80, low=1, high=1048576)
    sampling_rate: int = option(16000, "Hz; audio at other rates is resampled", low=1, high=384000)
    extractor: str = option(
        "lhotse",
        "kaldifeat gives the same within rounding, on the GPU where wanted",
        flag="feature-extractor",
        choices=EXTRACTORS,
    )
    frame_length: float = option(0.025, flag="", low=0.001, high=1)  # seconds
    frame_shift: float = option(0.01, flag="", low=0.001, high=1)  # seconds
    low_freq: float = option(20.0, "Hz: where the bins begin", low=0)
    high_freq: float = option(-400.0, "Hz: where they end; zero or less counts from half the sampling rate")
    normalize: str = option("utterance", flag="", choices=NORMALIZATIONS)

    def check(self) -> None:
        if self.type == STATES:
            return
        if self.num_mel_bins > MOST_BINS:
            raise ConfigError("num_mel_bins", f"must be at most {MOST_BINS}, it is {self.num_mel_bins}")
        nyquist = self.sampling_rate / 2
        highest = self.high_freq if self.high_freq > 0 else nyquist + self.high_freq
        if not self.low_freq < highest <= nyquist:
            raise ConfigError(
                "low_freq",
                f"{self.low_freq:g} and high_freq: no mel bins fit between {self.low_freq:g} and {highest:g} Hz at "
                f"{self.sampling_rate} Hz: low_freq must be less than high_freq, and that at most {nyquist:g}",
            )

    @property
    def shift_samples(self) -> int:
        """Whole samples from a frame to the next, as extractors step."""
        return int(self.frame_shift * self.sampling_rate)

    @property
    def shift_seconds(self) -> float:
        """From a frame to the next as it is, where `frame_shift` is no whole number of samples."""
        return self.shift_samples / self.sampling_rate

    def stored(self) -> dict[str, Any]:
        """The settings that stored features depend on: normalisation comes after loading."""
        return {name: value for name, value in self.to_dict().items() if name != "normalize"}
