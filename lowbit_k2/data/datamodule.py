"""Batches of cuts for training, validation and decoding.

lhotse's DynamicBucketingSampler composes the training batches. A fresh sampler is made for every epoch from a seed
derived from (seed, epoch), so the order needs no state: a resumed run asks for the same epoch and skips what it has
consumed, without loading it.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lowbit_k2.core.config import Config, ConfigError, option
from lowbit_k2.core.features import NORMALIZATIONS, FeatureConfig
from lowbit_k2.data.augment import SpecAugmentConfig
from lowbit_k2.data.batch import Batch, collate
from lowbit_k2.data.dealing import deal
from lowbit_k2.data.features import load_features, make_extractor, read_feature_config
from lowbit_k2.data.filter import cut_text
from lowbit_k2.data.manifests import load_noise
from lowbit_k2.data.noise import NoiseConfig, add_noise
from lowbit_k2.data.sources import ALLOW_COMMANDS
from lowbit_k2.errors import UserError

if TYPE_CHECKING:
    from lhotse import CutSet
    from lhotse.cut import Cut
    from lhotse.dataset.sampling.base import CutSampler


SAMPLE = 10_000  # cuts by which the buckets are chosen


@dataclass(frozen=True)
class DataConfig(Config):
    """How batches are made."""

    manifest_dir: Path = option(Path("data/fbank"), "cut manifests and features")
    max_duration: float = option(200.0, "seconds of speech in a batch, padding included", above=0)
    max_cut_duration: float = option(0.0, "leave longer training utterances out, in seconds; 0: none", low=0)
    min_cut_duration: float = option(0.0, "leave shorter training utterances out, in seconds", low=0)
    num_buckets: int = option(30, "buckets of similar duration", low=1, high=10000)
    drop_last: bool = option(False, "leave out batches that a bucket cannot fill")
    num_workers: int = option(0, "processes that load batches; 0: the main process", low=0, high=256)
    cache_features: bool = option(False, "keep features in memory (115 MB per hour)")
    on_the_fly_feats: bool = option(False, "compute features from the audio")
    allow_commands: bool = option(False, ALLOW_COMMANDS)
    feature_normalize: str = option(
        "utterance",
        "per utterance: subtract each bin's mean, or also divide by its deviation",
        choices=NORMALIZATIONS,
    )
    enable_musan: bool = option(False, "mix noise into training utterances")
    noise: NoiseConfig = option(NoiseConfig, flag="")
    spec_augment: SpecAugmentConfig | None = option(SpecAugmentConfig, flag="")  # applied by the training loop
    seed: int = option(42, flag="")

    def check(self) -> None:
        if 0 < self.max_cut_duration <= self.min_cut_duration:
            raise ConfigError("max_cut_duration", "must be above min_cut_duration")
        if self.cache_features and self.num_workers:
            raise ConfigError("cache_features", "needs 0 num_workers: the cache lives in the main process")
        if self.cache_features and self.enable_musan:
            raise ConfigError(
                "cache_features", "and enable_musan exclude each other: noisy features differ every epoch"
            )


class AsrDataModule:
    """Makes batches from cuts. One object serves training, validation and decoding, and holds the feature cache."""

    def __init__(
        self,
        config: DataConfig,
        features: FeatureConfig | None = None,
        world_size: int = 1,
        rank: int = 0,
    ) -> None:
        """
        Args:
          features: settings of the features; default: those stored in the manifest folder.
          world_size, rank: in distributed training, the rank gets every world_size-th batch, see `deal`.
        """
        self.config = config
        self.features = features or read_feature_config(config.manifest_dir, config.feature_normalize)
        self.world_size, self.rank = world_size, rank
        self._extractor = make_extractor(self.features) if config.on_the_fly_feats else None
        self._noises: list[Cut] = list(load_noise(config.manifest_dir)) if config.enable_musan else []
        self._cache: dict[tuple[str, str, float, float], Tensor] = {}

    # --- what the scripts call --------------------------------------------------------------------------------

    def train_batches(self, cuts: CutSet, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """Shuffled batches of one epoch, their order a pure function of (seed, epoch).

        Args:
          epoch: counts from 1.
          skip: batches of this epoch that all ranks together consumed before; they are passed over without loading
            features. Since their order does not depend on the number of ranks, that may have changed.
        """
        batches = self.deal(islice(iter(self.train_sampler(cuts, epoch)), skip, None))
        return self._load(batches, epoch if self.config.enable_musan else None)

    def deal(self, batches: Iterator[CutSet]) -> Iterator[CutSet]:
        """This rank's share, see `dealing.deal`."""
        from lhotse import CutSet

        for cuts in deal(batches, self.rank, self.world_size, self.config.drop_last):
            yield CutSet.from_cuts(cuts) if isinstance(cuts, list) else cuts

    def num_train_batches(self, cuts: CutSet, epoch: int) -> int | None:
        """How many batches the epoch has for all ranks together, by a pass over the manifest; None for a lazy one,
        which this would read.

        Raises:
          UserError: none at all.
        """
        if cuts.is_lazy:
            return None
        number = sum(1 for _ in self.train_sampler(cuts, epoch))
        if number == 0:
            raise UserError("the training set gives no batch: switch drop_last off, or use fewer buckets")
        return number

    def largest_batches(self, cuts: CutSet, epoch: int = 1) -> dict[str, Batch]:
        """The batches of an epoch that take most memory, by what makes them large; a pass over the manifest."""
        from lhotse.dataset import find_pessimistic_batches

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Empty sampler")
            found, _ = find_pessimistic_batches(self.train_sampler(cuts, epoch))
        different = {tuple(sorted(chosen.ids)): reason for reason, chosen in reversed(found.items())}
        return {reason.replace("_", " "): self.make_batch(found[reason]) for reason in reversed(different.values())}

    def valid_batches(self, cuts: CutSet) -> Iterator[Batch]:
        """All cuts once, long ones first, the same batches at every call, no noise."""
        return self._load(iter(self.test_sampler(cuts)), None)

    def test_batches(self, cuts: CutSet, lost: dict[str, str] | None = None) -> Iterator[Batch]:
        """As `valid_batches`: for decoding.

        Args:
          lost: takes the cuts that cannot be read, with the reason; without it the first one is an error.
        """
        return self.load_batches(iter(self.test_sampler(cuts)), lost)

    def load_batches(self, batches: Iterable[CutSet], lost: dict[str, str] | None = None) -> Iterator[Batch]:
        """Batches that are put together already, in their order, no noise; `lost` as in `test_batches`."""
        return self._load(batches, None, lost)

    def load(self, cut: Cut) -> Tensor:
        """Normalised features of one cut, from the cache where it is on. (T, F)"""
        if not self.config.cache_features:
            return load_features(cut, self.features, self._extractor, self.config.allow_commands)
        # The id alone could stand for other features in another manifest.
        stored = cut.features.storage_path if cut.has_features and hasattr(cut, "features") else ""
        key = (cut.id, stored, cut.start, cut.duration)
        if key not in self._cache:
            self._cache[key] = load_features(cut, self.features, self._extractor, self.config.allow_commands)
        return self._cache[key]

    # --- samplers ---------------------------------------------------------------------------------------------

    def train_sampler(self, cuts: CutSet, epoch: int) -> CutSampler:
        """A fresh bucketing sampler for one epoch, of the batches of all ranks; corpora with fewer cuts than buckets
        get fewer buckets."""
        from lhotse.dataset import DynamicBucketingSampler, SimpleCutSampler

        from lowbit_k2.data.buckets import PaddedDuration, bucket_ends

        limit = self.config.max_duration
        seed = epoch_seed(self.config.seed, epoch)
        options = {"shuffle": True, "drop_last": self.config.drop_last, "seed": seed, "world_size": 1, "rank": 0}
        num_buckets = sum(1 for _ in islice(cuts, self.config.num_buckets))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*eagerly read CutSet.*")
            ends = bucket_ends(islice(cuts, SAMPLE), num_buckets, limit) if num_buckets > 1 else []
            if not ends:
                return SimpleCutSampler(cuts, max_duration=limit, **options)
            # Without sync_buckets lhotse (1.31 to 1.33 at least) ends the epoch at the first bucket that is empty.
            constraint = PaddedDuration(limit, ends)
            return DynamicBucketingSampler(
                cuts, constraint=constraint, duration_bins=ends, sync_buckets=True, **options
            )

    def test_sampler(self, cuts: CutSet) -> CutSampler:
        """Cuts by falling duration, so that batches hold little padding; a lazy set stays in its own order."""
        from lhotse.dataset import SimpleCutSampler

        if not cuts.is_lazy:
            cuts = cuts.sort_by_duration(ascending=False)
        return SimpleCutSampler(cuts, max_duration=self.config.max_duration, shuffle=False, world_size=1, rank=0)

    # --- loading ----------------------------------------------------------------------------------------------

    def _load(
        self, cut_batches: Iterable[CutSet], noise_epoch: int | None, lost: dict[str, str] | None = None
    ) -> Iterator[Batch]:
        dataset = _CutBatches(self, noise_epoch)
        if self.config.num_workers == 0:
            items = (dataset[cuts] for cuts in cut_batches)
        else:
            items = _workers_watched(
                torch.utils.data.DataLoader(
                    dataset,
                    batch_size=None,
                    sampler=_Once(cut_batches),
                    num_workers=self.config.num_workers,
                    generator=torch.Generator().manual_seed(0),  # or it would draw from the training's generator
                )
            )
        for batch, unread in items:
            if unread and lost is None:
                raise UserError(next(iter(unread.values())))
            if unread:
                lost.update(unread)
            if batch is not None:
                yield batch

    def make_batch(self, cuts: CutSet, noise_epoch: int | None = None) -> Batch:
        """Load the features of some cuts, noise mixed in when an epoch is given.

        Raises:
          UserError: those of one cannot be read.
        """
        batch, unread = self.read_batch(cuts, noise_epoch)
        if unread:
            raise UserError(next(iter(unread.values())))
        return batch

    def read_batch(self, cuts: CutSet, noise_epoch: int | None = None) -> tuple[Batch | None, dict[str, str]]:
        """As `make_batch`, of the cuts that can be read (None: of no cut), and what is wrong with the others."""
        chosen: list[Cut] = list(cuts)
        if noise_epoch is not None:
            seed = self.config.seed
            noisy = [add_noise(cut, self._noises, self.config.noise, seed, noise_epoch) for cut in chosen]
        else:
            noisy = chosen
        features: list[Tensor] = []
        unread: dict[str, str] = {}
        for cut, heard in zip(chosen, noisy, strict=True):
            try:
                features.append(self.load(heard))
            except UserError as error:
                unread[cut.id] = str(error)
        read = [cut for cut in chosen if cut.id not in unread]
        if not read:
            return None, unread
        return collate(features, [cut_text(cut) for cut in read], [cut.id for cut in read]), unread


class _CutBatches(torch.utils.data.Dataset):
    """Maps a batch of cuts to a Batch; hands errors over as values, since workers wrap raised ones."""

    def __init__(self, module: AsrDataModule, noise_epoch: int | None) -> None:
        self.module, self.noise_epoch = module, noise_epoch

    def __getitem__(self, cuts: CutSet) -> tuple[Batch | None, dict[str, str]]:
        return self.module.read_batch(cuts, self.noise_epoch)


def _workers_watched(items: Iterable[Any]) -> Iterator[Any]:
    """What the loader gives.

    Raises:
      UserError: one of its processes was killed.
    """
    iterator = iter(items)
    while True:
        try:
            item = next(iterator)
        except StopIteration:
            return
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise UserError(
                f"a process that loads batches was killed ({str(error).splitlines()[0]}): if memory ran out, lower "
                "num_workers"
            ) from None
        yield item


class _Once(torch.utils.data.Sampler):
    """An iterator in the shape that DataLoader wants its sampler in."""

    def __init__(self, batches: Iterable[CutSet]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[CutSet]:
        return iter(self.batches)


def epoch_seed(seed: int, epoch: int) -> int:
    """A sampler seed in which (seed 1, epoch 2) and (seed 2, epoch 1) have nothing in common."""
    digest = hashlib.blake2b(f"{seed}/{epoch}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1
