"""The one place that drops training utterances, and counts what it drops.

An utterance that CTC cannot align, that has no text, or whose features are not numbers would stop or spoil an update.
A few of these are normal in a corpus; many of them mean that something is set up wrongly, which is an error here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from lowbit_k2.data.features import FeatureConfig, num_frames
from lowbit_k2.data.text import squeeze
from lowbit_k2.errors import UserError

if TYPE_CHECKING:
    from lhotse import CutSet
    from lhotse.cut import Cut

MOST_SHOWN = 20  # characters
Encode = Callable[[str], list[int]]
CHOSEN = ("over-max-cut-duration", "under-min-cut-duration")  # the user's wish, no fault of the data
FAULTS = ("empty-text", "not-in-lexicon", "unknown-characters", "sampling-rate", "too-short", "non-finite")


@dataclass(frozen=True)
class FilterConfig:
    """What is dropped, and how much of it is too much.

    output_lens: frames of input -> frames of the network's output, `output_lens` of the model's settings.
    max_dropped: share of the cuts; more faulty ones are an error, but one among several never is.
    unknown: text -> its characters that the units cannot spell, which would become `<unk>`.
    input_frames: input frames of a cut; default: those of its features.
    needs_text: whether a cut must have a transcript.
    """

    output_lens: Callable[[int], int]
    features: FeatureConfig = field(default_factory=FeatureConfig)
    min_seconds: float = 0.0  # shorter and longer utterances are dropped, and are not counted against `max_dropped`
    max_seconds: float = float("inf")
    max_dropped: float = 0.05
    unknown: Callable[[str], str] = lambda text: ""
    input_frames: Callable[[Cut], int] | None = None
    needs_text: bool = True
    # Whether the features of a cut are finite numbers; see `checked.FiniteCheck`.
    is_finite: Callable[[Cut], bool] = lambda cut: True


@dataclass(frozen=True)
class FilterReport:
    """How many cuts were looked at, how many were dropped and why."""

    total: int
    dropped: dict[str, int]  # by reason, those that occur
    examples: dict[str, str]  # reason -> id of the first cut dropped for it
    characters: str = ""  # that the units cannot spell, the commonest first

    @property
    def num_dropped(self) -> int:
        return sum(self.dropped.values())

    @property
    def kept(self) -> int:
        return self.total - self.num_dropped

    @property
    def num_faults(self) -> int:
        return sum(self.dropped.get(reason, 0) for reason in FAULTS)

    def __str__(self) -> str:
        if not self.dropped:
            return f"all {self.total} cuts kept"
        reasons = ", ".join(f"{n} {reason} (as {self.examples[reason]})" for reason, n in self.dropped.items())
        shown = " ".join(self.characters[:MOST_SHOWN]) + (" ..." if len(self.characters) > MOST_SHOWN else "")
        spelled = f"; the units lack: {shown}" if self.characters else ""
        return f"{self.kept} of {self.total} cuts kept, dropped: {reasons}{spelled}"


def cut_text(cut: Cut) -> str:
    """The transcript of a cut: the texts of its supervisions, words separated by single spaces."""
    return squeeze(" ".join(s.text or "" for s in cut.supervisions))


def required_frames(ids: list[int]) -> int:
    """Output frames that CTC needs: one per label, and a blank between two equal ones."""
    return len(ids) + sum(left == right for left, right in zip(ids, ids[1:], strict=False))


def reason_to_drop(cut: Cut, encode: Encode, config: FilterConfig, text: str | None = None) -> str | None:
    """The first reason that speaks against a cut, of `CHOSEN` and `FAULTS`, or None.

    Args:
      text: what it is to be trained on; default: its transcript.
    """
    if cut.duration > config.max_seconds:
        return CHOSEN[0]
    if cut.duration < config.min_seconds:
        return CHOSEN[1]
    required = 1
    if config.needs_text:
        text = cut_text(cut) if text is None else text
        if not text:
            return "empty-text"
        try:
            ids = encode(text)
        except UserError:
            return "not-in-lexicon"
        if not ids:
            return "empty-text"
        if config.unknown(text):
            return "unknown-characters"
        required = required_frames(ids)
    if cut.sampling_rate != config.features.sampling_rate:
        return "sampling-rate"
    frames = config.input_frames(cut) if config.input_frames else num_frames(cut, config.features)
    if config.output_lens(frames) < required:
        return "too-short"
    if not config.is_finite(cut):
        return "non-finite"
    return None


def _is_kept(cut: Cut, dropped: set[str]) -> bool:
    return cut.id not in dropped


def filter_cuts(
    cuts: CutSet, encode: Encode, config: FilterConfig, name: str = "the set"
) -> tuple[CutSet, FilterReport]:
    """Drop the cuts that training cannot use.

    Args:
      cuts: cuts with transcripts; one that was opened lazily stays lazy (and is read once here, to count).
      encode: text -> token ids; a UserError of it (a word that is not in the lexicon) drops the cut.
      config: what to look at.
      name: of the set, for the error.

    Returns:
      The other cuts in the same order, and the counts.

    Raises:
      UserError: no cuts at all, or more than `max_dropped` of them are bad.
    """
    total, dropped, examples, kept, ids, characters = 0, Counter(), {}, [], set(), Counter()
    for cut in cuts:
        total += 1
        reason = reason_to_drop(cut, encode, config)
        if reason is not None:
            dropped[reason] += 1
            examples.setdefault(reason, cut.id)
            characters.update(config.unknown(cut_text(cut)) if reason == "unknown-characters" else "")
            ids.add(cut.id)
        elif not cuts.is_lazy:
            kept.append(cut)
    by_reason = {reason: dropped[reason] for reason in (*FAULTS, *CHOSEN) if dropped[reason]}
    report = FilterReport(total, by_reason, examples, "".join(c for c, _ in characters.most_common()))
    if total == 0:
        raise UserError(f"{name} holds no cuts: run the earlier stages of prepare.sh again")
    nothing_left = report.kept == 0 and report.num_faults == 0
    if nothing_left or report.num_faults > max(config.max_dropped * total, min(1, total - 1)):
        raise UserError(
            f"too many cuts of {name} cannot be used: {report}; check the transcripts, the units and the features"
        )
    if cuts.is_lazy:
        # By their ids: every later pass would load all features again to look at them.
        return cuts.filter(partial(_is_kept, dropped=ids)), report
    from lhotse import CutSet

    return CutSet.from_cuts(kept), report
