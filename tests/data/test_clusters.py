"""Frames and clusters against other implementations: lhotse's MFCC, sums written out, distances by brute force."""

from __future__ import annotations

import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lowbit_k2.core.hubert import HubertConfig
from lowbit_k2.data.clusters import ClusterConfig, Clusters, MfccFrames, slopes
from lowbit_k2.errors import UserError

TINY = HubertConfig.preset("tiny")


def test_mfcc_begin_where_the_windows_of_the_network_do() -> None:
    from lhotse import Mfcc, MfccConfig

    torch.manual_seed(0)
    samples = torch.randn(16123) * 0.1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on snip_edges
        other = Mfcc(MfccConfig(snip_edges=True, high_freq=0.0))
    found = MfccFrames(TINY)(samples)
    expected = np.asarray(other.extract(samples[None].numpy(), 16000))
    assert found.shape == (TINY.output_lens(16123), 39) and found.dtype == np.float32
    np.testing.assert_allclose(found[:, :13], expected[::2][: len(found)], atol=2e-3)
    np.testing.assert_allclose(found[:, 13:26], slopes(expected)[::2][: len(found)], atol=2e-3)
    np.testing.assert_allclose(found[:, 26:], slopes(slopes(expected))[::2][: len(found)], atol=2e-3)


def test_every_length_has_the_frames_of_the_network() -> None:
    for config in (TINY, HubertConfig.preset("base-fast")):
        frames = MfccFrames(config)
        for length in (config.min_frames, 2000, 2079, 2080, 5555):
            assert len(frames(torch.randn(length))) == config.output_lens(length)
    with pytest.raises(UserError, match="frames of 240 samples are no multiple of 160"):
        MfccFrames(replace(TINY, conv_strides=(5, 3, 2, 2, 2, 2, 1)))


def test_slopes_written_out() -> None:
    x = np.random.default_rng(0).standard_normal((6, 2)).astype(np.float32)
    for t in range(6):
        expected = sum(n * (x[min(t + n, 5)] - x[max(t - n, 0)]) for n in (1, 2)) / 10.0
        np.testing.assert_allclose(slopes(x)[t], expected, rtol=1e-5, atol=1e-6)


def test_the_nearest_centroid(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    clusters = Clusters(generator.standard_normal((7, 3)).astype(np.float32))
    frames = generator.standard_normal((50, 3)).astype(np.float32)
    distances = ((frames[:, None].astype(np.float64) - clusters.centroids) ** 2).sum(-1)
    assert clusters.assign(frames).tolist() == distances.argmin(1).tolist()
    clusters.save(tmp_path / "clusters")
    assert np.array_equal(Clusters.load(tmp_path / "clusters").centroids, clusters.centroids)
    with pytest.raises(UserError, match="frames of 2 numbers, but clusters of 3"):
        clusters.assign(frames[:, :2])
    (tmp_path / "clusters").write_bytes(b"nothing")
    with pytest.raises(UserError, match="clusters holds no clusters"):
        Clusters.load(tmp_path / "clusters")


def test_clusters_are_found() -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed: pip install -r requirements-hubert.txt")
    generator = np.random.default_rng(1)
    centres = np.array([[0.0, 0.0], [8.0, 0.0], [0.0, 8.0]])
    frames = (np.repeat(centres, 100, axis=0) + 0.1 * generator.standard_normal((300, 2))).astype(np.float32)
    config = ClusterConfig(num_clusters=3)
    found = Clusters.fit(frames, config)
    assert np.abs(np.sort(found.centroids, 0) - np.sort(centres, 0)).max() < 0.1
    assert len({tuple(found.assign(frames)[i : i + 100]) for i in (0, 100, 200)}) == 3
    assert np.array_equal(Clusters.fit(frames, config).centroids, found.centroids)
    with pytest.raises(UserError, match="2 frames give no 3 clusters"):
        Clusters.fit(frames[:2], config)


def test_without_scikit_learn_the_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(UserError, match="scikit-learn is not installed: pip install -r requirements-hubert.txt"):
        Clusters.fit(np.zeros((5, 2), np.float32), ClusterConfig(num_clusters=2))
