"""SpecAugment (arXiv 1904.08779) on padded batches, as a pure function of a generator.

The training loop seeds one generator per update, so that a resumed run draws the same masks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit_k2.core.config import Config, option

Augment = Callable[[Tensor, Tensor, torch.Generator], Tensor]  # inputs, lengths, generator -> inputs


@dataclass(frozen=True)
class SpecAugmentConfig(Config):
    """Sizes in frames and mel bins. Warp 5, two masks each, F=27, T=40: Conformer recipes' usual policy, with the
    time masks held back in short utterances (commands of a second would lose all their words)."""

    time_warp_factor: int = option(5, "frames that a point is moved by, at most; 0: no time warping", low=0)
    num_freq_masks: int = option(2, "masks over mel bins", low=0, high=1000)
    max_freq_width: int = option(27, "their largest width in bins", low=0)
    num_time_masks: int = option(2, "masks over frames", low=0, high=1000)
    max_time_width: int = option(40, "their largest width in frames", low=0)
    max_time_fraction: float = option(0.25, "of an utterance, all its time masks together", low=0, high=1)
    # "zero", for features with mean 0, or "mean": each utterance's mean by bin
    fill: str = option("zero", flag="", choices=("zero", "mean"))
    own_masks: bool = option(False, "each branch of an update draws masks of its own; the warp is shared")


def spec_augment(features: Tensor, lens: Tensor, config: SpecAugmentConfig, generator: torch.Generator) -> Tensor:
    """Warp and mask a padded batch.

    Args:
      features: (N, T, F), padded behind each utterance.
      lens: (N,) frames of each utterance.
      generator: a CPU generator; the same state gives the same result.

    Returns:
      (N, T, F), padding as it is.
    """
    return mask(warp(features, lens, config, generator), lens, config, generator)


def warp(features: Tensor, lens: Tensor, config: SpecAugmentConfig, generator: torch.Generator) -> Tensor:
    """The first half of `spec_augment`; same arguments."""
    assert features.dim() == 3 and lens.shape == features.shape[:1], (features.shape, lens.shape)
    # Drawn on the CPU, and also where they are not needed: how many depends on the shape alone.
    draws = torch.rand((len(features), 2), generator=generator).to(features.device)
    if config.time_warp_factor <= 0:
        return features
    return time_warp(features, lens.to(features.device), config.time_warp_factor, draws)


def mask(features: Tensor, lens: Tensor, config: SpecAugmentConfig, generator: torch.Generator) -> Tensor:
    """The second half of `spec_augment`; same arguments."""
    assert features.dim() == 3 and lens.shape == features.shape[:1], (features.shape, lens.shape)
    (batch, num_frames, num_bins), device = features.shape, features.device
    freq_draws = torch.rand((2, batch, config.num_freq_masks), generator=generator).to(device)
    time_draws = torch.rand((2, batch, config.num_time_masks), generator=generator).to(device)
    lens = lens.to(device)
    fraction = config.max_time_fraction / max(1, config.num_time_masks)
    time_limit = (lens * fraction).long().clamp(max=config.max_time_width)
    freq_limit = torch.full_like(lens, min(config.max_freq_width, num_bins))
    in_freq = draw_masks(freq_draws, freq_limit, torch.full_like(lens, num_bins), num_bins)  # (N, F)
    in_time = draw_masks(time_draws, time_limit, lens, num_frames)  # (N, T)
    speech = torch.arange(num_frames, device=device) < lens.unsqueeze(1)  # (N, T)
    masked = (in_freq.unsqueeze(1) | in_time.unsqueeze(2)) & speech.unsqueeze(2)  # (N, T, F)
    if config.fill == "zero":
        return features.masked_fill(masked, 0.0)
    total = (features * speech.unsqueeze(2)).sum(dim=1, keepdim=True)  # (N, 1, F)
    return torch.where(masked, total / lens.clamp(min=1).view(-1, 1, 1), features)


def draw_masks(draws: Tensor, max_width: Tensor, length: Tensor, size: int) -> Tensor:
    """Union of random intervals: widths uniform in 0..max_width, starts uniform where the interval fits.

    Args:
      draws: (2, N, K) uniform in [0, 1): for widths and for starts of K intervals.
      max_width, length: (N,) largest width, and the length that intervals lie in, at most `size`.

    Returns:
      (N, size) bool.
    """
    assert draws.shape[:2] == (2, len(length)) and length.shape == max_width.shape, (draws.shape, length.shape)
    widths = (draws[0] * (max_width.unsqueeze(1) + 1)).long()  # (N, K)
    starts = (draws[1] * (length.unsqueeze(1) - widths + 1)).long()  # (N, K)
    position = torch.arange(size, device=draws.device).view(1, 1, -1)
    inside = (position >= starts.unsqueeze(2)) & (position < (starts + widths).unsqueeze(2))  # (N, K, size)
    return inside.any(dim=1)


def time_warp(features: Tensor, lens: Tensor, factor: int, draws: Tensor) -> Tensor:
    """Move one random point of each utterance by at most `factor` frames; linear interpolation on both sides of it.

    Utterances too short for it (at most 2 * factor + 2 frames) and padding stay as they are.

    Args:
      features: (N, T, F); lens: (N,).
      draws: (N, 2) uniform in [0, 1): for the point and for its way.

    Returns:
      (N, T, F)
    """
    last = (lens - 1).clamp(min=1).to(draws.dtype).unsqueeze(1)  # (N, 1)
    room = (last - 2 * factor - 1).clamp(min=0)
    target = factor + 0.5 + draws[:, :1] * room  # point in the warped utterance, > factor away from its ends
    source = target + (2 * draws[:, 1:] - 1) * factor * (room > 0)
    time = torch.arange(features.size(1), device=features.device, dtype=draws.dtype).unsqueeze(0)  # (1, T)
    before = time * source / target
    behind = source + (time - target) * (last - source) / (last - target).clamp(min=1e-3)
    moved = torch.where(time < target, before, behind)
    moved = torch.where((time <= last) & (room > 0), moved.clamp(min=0).minimum(last), time)  # (N, T)
    left = moved.floor().long()
    right = (left + 1).clamp(max=features.size(1) - 1)
    weight = (moved - left).unsqueeze(2)  # (N, T, 1)
    rows = torch.arange(features.size(0), device=features.device).unsqueeze(1)
    return torch.lerp(features[rows, left], features[rows, right], weight)


def make_spec_augment(config: SpecAugmentConfig | None) -> Augment | None:
    """What all branches of an update see, as the training loop takes it; None without settings."""
    if config is None:
        return None
    return _bound(warp if config.own_masks else spec_augment, config)


def make_branch_masks(config: SpecAugmentConfig | None) -> Augment | None:
    """What each branch sees by itself on top of that; None where all see the same."""
    if config is None or not config.own_masks:
        return None
    return _bound(mask, config)


def _bound(function: Callable[..., Tensor], config: SpecAugmentConfig) -> Augment:
    def augment(features: Tensor, lens: Tensor, generator: torch.Generator) -> Tensor:
        return function(features, lens, config, generator)

    return augment
