"""What one pass of a model hands to an update."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from lowbit_k2.losses.distillation import Term


class TrainingBatch(Protocol):
    """What a criterion reads of a batch; `lowbit_k2.data.batch.Batch` is one.

    inputs: what the model takes: features (N, T, F), waveforms (N, T) or tokens (N, T).
    input_lens: (N,), int64, valid positions of each.
    targets: what it is to learn, as the criterion wants it: N token sequences for speech recognition.
    """

    inputs: Tensor
    input_lens: Tensor
    targets: Any


@dataclass(frozen=True)
class PassOutput:
    """Losses of one pass, and what it is compared with other passes on.

    Attributes:
      loss: scalar, summed over the batch.
      num_frames: what the batch counts in validation: valid encoder frames.
      terms: what is compared between branches, by name, the same names in every branch.
      parts: summed losses that `loss` is made of, where there are several, and other sums; they are logged.
      shared: what the other branches take over from the teacher's pass (prune ranges); nothing in it has a graph.
      from_teacher: what is learned is the distance to the teacher alone, `loss` at most a penalty.
    """

    loss: Tensor
    num_frames: int
    terms: Mapping[str, Term] = field(default_factory=dict)
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    shared: Any = None
    from_teacher: bool = False


class Criterion(Protocol):
    """One pass of a model over a batch, under the precision that is in force."""

    def __call__(self, model: nn.Module, batch: TrainingBatch, update: int, shared: Any = None) -> PassOutput:
        """`update` is the number of the update (for warm-ups), `shared` what the teacher's pass left, None in it."""
        ...


@runtime_checkable
class GraphCriterion(Criterion, Protocol):
    """A criterion that makes its targets of the transcripts themselves, and needs the units for that."""

    encode: Callable[[str], Any] | None  # transcript -> target, once the units are there

    def load_units(self, units: Any, lang_dir: Path | None) -> None:
        """Read what it needs of a lang directory and its tokenizer."""
        ...
