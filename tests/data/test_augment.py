from __future__ import annotations

import time

import pytest
import torch

from lowbit_k2.data.augment import (
    SpecAugmentConfig,
    draw_masks,
    make_branch_masks,
    make_spec_augment,
    mask,
    spec_augment,
    time_warp,
    warp,
)
from lowbit_k2.errors import UserError

LENS = torch.tensor([120, 300, 40, 7, 1])


def padded(lens: torch.Tensor = LENS, num_bins: int = 80, seed: int = 0) -> torch.Tensor:
    """Positive values, so that every zero within an utterance is a mask."""
    features = torch.rand(len(lens), int(lens.max()), num_bins, generator=torch.Generator().manual_seed(seed)) + 1
    return features * (torch.arange(int(lens.max())) < lens.unsqueeze(1)).unsqueeze(2)


def generator(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_pure_function_of_the_generator() -> None:
    features, config = padded(), SpecAugmentConfig()
    before, state = features.clone(), torch.get_rng_state()
    first = spec_augment(features, LENS, config, generator())
    assert torch.equal(first, make_spec_augment(config)(features, LENS, generator()))
    assert not torch.equal(first, spec_augment(features, LENS, config, generator(4)))
    assert torch.equal(features, before), "the input was changed"
    assert torch.equal(torch.get_rng_state(), state), "the global generator was used"


def test_padding_stays_and_nothing_else_appears() -> None:
    features = padded()
    for seed in range(20):
        result = spec_augment(features, LENS, SpecAugmentConfig(), generator(seed))
        assert bool(torch.isfinite(result).all())
        for matrix, length in zip(result, LENS.tolist(), strict=True):
            assert bool((matrix[length:] == 0).all())


def test_sizes_of_masks() -> None:
    features, config = padded(), SpecAugmentConfig(time_warp_factor=0)
    widest = 0.0
    for seed in range(200):
        zero = spec_augment(features, LENS, config, generator(seed)) == 0
        for matrix, length in zip(zero, LENS.tolist(), strict=True):
            frames, bins = matrix[:length].all(dim=1), matrix[:length].all(dim=0)
            if not frames.all():
                assert int(bins.sum()) <= 2 * 27
            assert int(frames.sum()) <= min(2 * 40, config.max_time_fraction * length)
            widest = max(widest, float(bins.sum()))
            # What is masked is a union of whole rows and whole columns.
            assert torch.equal(matrix[:length], frames.unsqueeze(1) | bins.unsqueeze(0))
    assert widest > 40


def test_masks_are_uniform_in_width_and_place() -> None:
    count = 20000
    masks = draw_masks(torch.rand(2, count, 1), torch.full((count,), 9), torch.full((count,), 30), 30)
    shares = torch.bincount(masks.sum(dim=1), minlength=10) / count
    torch.testing.assert_close(shares, torch.full((10,), 0.1), atol=0.01, rtol=0)
    covered = masks.float().mean(dim=0)  # symmetric, less at the ends
    torch.testing.assert_close(covered, covered.flip(0), atol=0.02, rtol=0)


def test_fill_by_the_mean() -> None:
    features = padded()
    config = SpecAugmentConfig(time_warp_factor=0, fill="mean")
    zero = spec_augment(features, LENS, SpecAugmentConfig(time_warp_factor=0), generator())
    mean = spec_augment(features, LENS, config, generator())
    for row, length in enumerate(LENS.tolist()):
        masked = zero[row, :length] == 0
        wanted = features[row, :length].mean(dim=0).expand(length, -1)
        torch.testing.assert_close(mean[row, :length][masked], wanted[masked])
        assert torch.equal(mean[row, :length][~masked], features[row, :length][~masked])


def reference_warp(matrix: torch.Tensor, factor: int, draws: torch.Tensor) -> torch.Tensor:
    """Piecewise linear in time, frame by frame."""
    last = len(matrix) - 1
    target = factor + 0.5 + float(draws[0]) * (last - 2 * factor - 1)
    source = target + (2 * float(draws[1]) - 1) * factor
    result = []
    for t in range(len(matrix)):
        place = t * source / target if t < target else source + (t - target) * (last - source) / (last - target)
        left = min(int(place), last)
        right = min(left + 1, last)
        result.append(matrix[left] + (place - left) * (matrix[right] - matrix[left]))
    return torch.stack(result)


def test_time_warp_against_a_loop() -> None:
    features, draws = padded(), torch.rand(len(LENS), 2, generator=generator())
    warped = time_warp(features, LENS, 5, draws)
    for row, length in enumerate(LENS.tolist()):
        if length - 1 <= 2 * 5 + 1:
            assert torch.equal(warped[row], features[row]), "too short to be warped"
        else:
            wanted = reference_warp(features[row, :length], 5, draws[row])
            torch.testing.assert_close(warped[row, :length], wanted, atol=1e-4, rtol=0)
        assert torch.equal(warped[row, length:], features[row, length:])


def test_everything_off_is_the_identity() -> None:
    features = padded()
    config = SpecAugmentConfig(time_warp_factor=0, num_freq_masks=0, num_time_masks=0)
    assert torch.equal(spec_augment(features, LENS, config, generator()), features)


def test_a_narrow_input() -> None:
    features = padded(num_bins=4)
    assert spec_augment(features, LENS, SpecAugmentConfig(), generator()).shape == features.shape


@pytest.mark.parametrize("wrong", [{"max_time_fraction": 1.5}, {"num_freq_masks": -1}, {"fill": "noise"}])
def test_wrong_settings(wrong: dict) -> None:
    with pytest.raises(UserError, match="|".join(wrong)):
        SpecAugmentConfig(**wrong)


def test_a_minute_of_speech_takes_milliseconds() -> None:
    lens = torch.full((15,), 400)
    features, config = padded(lens), SpecAugmentConfig()
    seconds = []
    for seed in range(10):
        start = time.perf_counter()
        spec_augment(features, lens, config, generator(seed))
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.02, seconds  # 3 ms as measured


def test_each_branch_has_masks_of_its_own_on_one_warp() -> None:
    config = SpecAugmentConfig(own_masks=True)
    features = torch.randn(len(LENS), int(LENS.max()), 80, generator=generator(1))
    shared = make_spec_augment(config)(features, LENS, generator())
    assert not torch.equal(shared, features) and (shared == 0).sum() == 0, "warped, not masked"
    first, second = (make_branch_masks(config)(shared, LENS, generator(seed)) for seed in (5, 6))
    assert not torch.equal(first == 0, second == 0)
    for view in (first, second):
        assert (view == 0).any() and torch.equal(view[view != 0], shared[view != 0])
    assert make_branch_masks(SpecAugmentConfig()) is None and make_branch_masks(None) is None


def test_both_halves_make_up_the_whole() -> None:
    features, config = torch.randn(len(LENS), int(LENS.max()), 80, generator=generator(1)), SpecAugmentConfig()
    one = generator()
    in_halves = mask(warp(features, LENS, config, one), LENS, config, one)
    assert torch.equal(in_halves, spec_augment(features, LENS, config, generator()))
