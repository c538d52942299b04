"""What SUPERB (arXiv 2105.01051) puts on frozen hidden states to classify utterances: keywords, speakers.

    p(class | utterance) = softmax(W2 mean_t(W1 sum_s w_s h_s,t + b1) + b2),    w = softmax of learned weights

All of it but the softmax is linear, so that the mean over the frames may come first: an utterance is one vector per
layer, and the training takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowbit_k2.core.config import Config, ConfigError, option
from lowbit_k2.data.features import FeatureConfig, load_features
from lowbit_k2.data.filter import cut_text
from lowbit_k2.data.manifests import speaker_of
from lowbit_k2.errors import UserError
from lowbit_k2.progress import progress_bar

if TYPE_CHECKING:
    from lhotse import CutSet
    from lhotse.cut import Cut

LABELS: dict[str, Callable[[Cut], str | None]] = {"text": cut_text, "speaker": speaker_of}


@dataclass(frozen=True)
class ProbeConfig(Config):
    """Of the classifier and of its training; 256 and Adam are SUPERB's."""

    num_states: int = option(13, "layers whose hidden states lie side by side", low=1, high=1000)
    label: str = option("text", "what is told from an utterance", choices=tuple(LABELS))
    projection_dim: int = option(256, "width behind the weighted sum", low=1, high=16384)
    num_epochs: int = option(100, "passes over the training utterances", low=1)
    batch_size: int = option(32, "utterances", low=1)
    learning_rate: float = option(1e-3, "of Adam", above=0)
    hold_out: int = option(5, "without test splits: every so manyth utterance of a class is tested", low=2)
    seed: int = option(42, low=0, high=2**31 - 1)


class UtteranceProbe(nn.Module):
    """Means of hidden states (N, S, C) to logits of classes (N, K)."""

    def __init__(self, num_states: int, state_dim: int, projection_dim: int, num_classes: int) -> None:
        super().__init__()
        self.state_weights = nn.Parameter(torch.zeros(num_states))
        self.projection = nn.Linear(state_dim, projection_dim)
        self.output = nn.Linear(projection_dim, num_classes)

    def forward(self, means: Tensor) -> Tensor:
        return self.output(self.projection(torch.einsum("nsc,s->nc", means, self.state_weights.softmax(dim=0))))


@dataclass(frozen=True)
class ProbeResult:
    """How many of the tested utterances were told right.

    Attributes:
      weights: of the layers, which sum to 1.
    """

    right: int
    tested: int
    trained: int
    classes: int
    weights: tuple[float, ...]

    @property
    def accuracy(self) -> float:
        return self.right / self.tested


def state_means(cuts: Sequence[Cut], features: FeatureConfig, num_states: int) -> Tensor:
    """Mean over the frames of each utterance's states, (N, S, C).

    Raises:
      UserError: features cannot be read, or do not hold so many states.
    """
    if features.num_mel_bins % num_states:
        raise ConfigError("num_states", f"{num_states} does not divide the {features.num_mel_bins} features")
    rows = [load_features(cut, features).mean(dim=0) for cut in progress_bar(cuts, "states")]
    return torch.stack(rows).view(len(rows), num_states, -1)


def held_out(cuts: Sequence[Cut], label: str, every: int) -> tuple[list[Cut], list[Cut]]:
    """Training and test utterances: of each class, sorted by id, every so manyth is tested."""
    train, test, seen = [], [], {}
    for cut in sorted(cuts, key=lambda cut: cut.id):
        name = LABELS[label](cut)
        seen[name] = seen.get(name, 0) + 1
        (test if seen[name] % every == 0 else train).append(cut)
    return train, test


def probe(
    train: Sequence[Cut] | CutSet, test: Sequence[Cut] | CutSet, features: FeatureConfig, config: ProbeConfig
) -> ProbeResult:
    """Train on some utterances, and classify others.

    Raises:
      UserError: an utterance has no class, a class is tested that is not trained, or there is none to tell apart.
    """
    train, test = list(train), list(test)
    names = {cut.id: LABELS[config.label](cut) for cut in (*train, *test)}
    bare = [name for name, found in names.items() if not found]
    if bare:
        raise UserError(f"{len(bare)} utterances have no {config.label}, first {bare[0]}: look at their supervisions")
    classes = {name: place for place, name in enumerate(sorted({names[cut.id] for cut in train}))}
    foreign = sorted({names[cut.id] for cut in test} - set(classes))
    if foreign or len(classes) < 2 or not test:
        what = (
            f"{foreign[0]!r} is tested, but not trained" if foreign else f"{len(classes)} classes, {len(test)} to test"
        )
        raise UserError(f"nothing to tell apart: {what}; give splits with the same classes")
    means = [state_means(cuts, features, config.num_states) for cuts in (train, test)]
    targets = [torch.tensor([classes[names[cut.id]] for cut in cuts]) for cuts in (train, test)]
    generator = torch.Generator().manual_seed(config.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = UtteranceProbe(config.num_states, means[0].size(2), config.projection_dim, len(classes))
    optimizer = torch.optim.Adam(model.parameters(), config.learning_rate)
    for _ in progress_bar(range(config.num_epochs), "probe"):
        for rows in torch.randperm(len(train), generator=generator).split(config.batch_size):
            optimizer.zero_grad()
            F.cross_entropy(model(means[0][rows]), targets[0][rows]).backward()
            optimizer.step()
    with torch.no_grad():
        right = int((model(means[1]).argmax(dim=-1) == targets[1]).sum())
        weights = tuple(model.state_weights.softmax(dim=0).tolist())
    return ProbeResult(right, len(test), len(train), len(classes), weights)
