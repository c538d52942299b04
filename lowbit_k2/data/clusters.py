"""k-means over frames, whose clusters are the classes of masked prediction (arXiv 2106.07447): first of MFCC, then of a
layer's hidden states."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy.signal import savgol_filter
from torch import Tensor

from lowbit_k2.core.config import Config, option
from lowbit_k2.core.hubert import SAMPLING_RATE, HubertConfig
from lowbit_k2.errors import UserError
from lowbit_k2.fileio import atomic_write

MFCC_SHIFT, MFCC_SAMPLES = 160, 400  # 10 and 25 ms
DELTA_FRAMES = 5  # over which a slope is fitted


@dataclass(frozen=True)
class ClusterConfig(Config):
    """Of k-means; the defaults are HuBERT's first iteration."""

    num_clusters: int = option(100, "clusters: 100 of MFCC, 500 of hidden states in the paper", low=2, high=32767)
    max_frames: int = option(
        500_000, "clusters are made of whole utterances drawn until they have so many frames", low=2
    )
    cluster_seed: int = option(0, "of the draw and of k-means", low=0)


class MfccFrames:
    """13 MFCC with their first and second slopes, one vector for each frame of a network's output.

    Frames begin where the network's windows do, which in the published models are just as long.
    """

    def __init__(self, config: HubertConfig) -> None:
        """Raises UserError where the network's frames are not whole steps of 10 ms."""
        from kaldi_native_fbank import MfccOptions

        self.step, rest = divmod(config.samples_per_frame, MFCC_SHIFT)
        if rest:
            raise UserError(f"frames of {config.samples_per_frame} samples are no multiple of {MFCC_SHIFT}")
        self.config = config
        self.options = MfccOptions()  # Kaldi's defaults, as HuBERT's code has them but for these
        self.options.frame_opts.dither, self.options.use_energy = 0.0, False

    def __call__(self, samples: Tensor) -> np.ndarray:
        """(S,) -> (T, 39) float32, T the network's frames."""
        from kaldi_native_fbank import OnlineMfcc

        wanted = self.config.output_lens(len(samples))
        short = max(0, (wanted - 1) * self.config.samples_per_frame + MFCC_SAMPLES - len(samples))
        samples = torch.nn.functional.pad(samples, (0, short))
        extractor = OnlineMfcc(self.options)
        extractor.accept_waveform(SAMPLING_RATE, samples.numpy())
        extractor.input_finished()
        base = np.stack([extractor.get_frame(i) for i in range(extractor.num_frames_ready)])  # (T', 13)
        slope = slopes(base)
        every = np.concatenate([base, slope, slopes(slope)], axis=1)
        return np.ascontiguousarray(every[:: self.step][:wanted])


def slopes(frames: np.ndarray) -> np.ndarray:
    """d_t = sum_n n (c_(t+n) - c_(t-n)) / (2 sum_n n^2), n = 1, 2, the ends repeated; (T, C) -> (T, C)."""
    half = DELTA_FRAMES // 2
    padded = np.pad(frames, ((half, half), (0, 0)), mode="edge")
    return savgol_filter(padded, DELTA_FRAMES, polyorder=1, deriv=1, axis=0)[half:-half].astype(frames.dtype)


class Clusters:
    """Centroids (K, C), float32."""

    def __init__(self, centroids: np.ndarray) -> None:
        self.centroids = centroids
        self._offsets = (centroids.astype(np.float64) ** 2).sum(axis=1)

    def assign(self, frames: np.ndarray) -> np.ndarray:
        """The nearest of each frame, (T, C) -> (T,) int16."""
        if frames.shape[1:] != self.centroids.shape[1:]:
            sizes = frames.shape[1], self.centroids.shape[1]
            raise UserError("frames of {} numbers, but clusters of {}: make the clusters again".format(*sizes))
        return (self._offsets - 2.0 * (frames @ self.centroids.T)).argmin(axis=1).astype(np.int16)

    def save(self, path: Path) -> None:
        with atomic_write(path) as temporary:
            save_file({"centroids": self.centroids}, temporary)

    @classmethod
    def load(cls, path: Path) -> Clusters:
        """Raises UserError where the file is damaged, or something else."""
        try:
            centroids = load_file(path)["centroids"]
            if centroids.ndim != 2 or centroids.dtype != np.float32 or not np.isfinite(centroids).all():
                raise ValueError("no matrix of float32")
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise UserError(f"{path} holds no clusters ({error}): remove it to make it again") from None
        return cls(centroids)

    @classmethod
    def fit(cls, frames: np.ndarray, config: ClusterConfig) -> Clusters:
        """MiniBatchKMeans with the settings of HuBERT's code, of frames (M, C).

        Raises:
          UserError: scikit-learn is not installed, or there are fewer frames than clusters.
        """
        try:
            from sklearn.cluster import MiniBatchKMeans
        except ImportError:
            raise UserError("scikit-learn is not installed: pip install -r requirements-hubert.txt") from None
        if len(frames) < config.num_clusters:
            raise UserError(f"{len(frames)} frames give no {config.num_clusters} clusters: take more speech, or fewer")
        model = MiniBatchKMeans(
            config.num_clusters,
            init="k-means++",
            max_iter=100,
            batch_size=10_000,
            tol=0.0,
            max_no_improvement=100,
            n_init=20,
            reassignment_ratio=0.0,
            random_state=config.cluster_seed,
        )
        return cls(model.fit(frames).cluster_centers_.astype(np.float32))
