"""What decoding has found: icefall's files, and a line per result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lowbit_k2.asr.finished import Origin, remember
from lowbit_k2.asr.recognizer import Search
from lowbit_k2.decode.hypothesis import Nbest
from lowbit_k2.errors import print_error
from lowbit_k2.scoring.recogs import write_recogs
from lowbit_k2.scoring.wer import (
    Result,
    WerStats,
    as_characters,
    bootstrap_interval,
    write_errs,
    write_speakers,
    write_summary,
)

MOST_NAMED = 10  # utterances that could not be read
Key = tuple[str, str, str, str]  # test set, method, setting of the method, model (checkpoint and precision)


@dataclass(frozen=True)
class Decoded:
    """What one search made of one test set.

    Attributes:
      results: (utterance, reference words, hypothesis words), sorted by utterance.
      interval: 95% confidence interval of the word error rate, as fractions; None without reference words.
      recogs: the file that holds the results.
    """

    results: list[Result]
    stats: WerStats
    interval: tuple[float, float] | None
    recogs: Path


@dataclass
class Timing:
    """Seconds of audio, of the network, and of the searches by (method, setting)."""

    audio: float = 0.0
    network: float = 0.0
    search: dict[Search, float] = field(default_factory=dict)

    def real_time_factor(self, key: Search) -> float:
        return (self.network + self.search[key]) / max(self.audio, 1e-9)


@dataclass(frozen=True)
class Adaptation:
    """What speakers were adapted on, and what came of it.

    Attributes:
      left_out: numbers of utterances that were not adapted on, by reason.
      before, after: loss of the hypotheses, summed over the utterances (nats).
      frames: of the network's output.
    """

    speakers: int
    utterances: int
    left_out: Mapping[str, int]
    before: float
    after: float
    frames: int

    def __add__(self, other: Adaptation) -> Adaptation:
        """With other speakers of the same set."""
        return Adaptation(
            self.speakers + other.speakers,
            self.utterances + other.utterances,
            Counter(self.left_out) + Counter(other.left_out),
            self.before + other.before,
            self.after + other.after,
            self.frames + other.frames,
        )

    def __str__(self) -> str:
        before, after = (value / max(self.frames, 1) for value in (self.before, self.after))
        missing = ", ".join(f"{number} {reason}" for reason, number in sorted(self.left_out.items()))
        line = f"LHUC: {self.speakers} speakers by {self.utterances} hypotheses"
        line += f" (left out: {missing})" if missing else ""
        return f"{line}, their loss per frame {before:.4f} before, {after:.4f} after"


@dataclass
class SetOutcome:
    """What a recognizer made of a test set, or of a part of it.

    Attributes:
      found: (utterance, reference words, hypothesis words) of each search, in the order of decoding.
      without_path: utterances of each search whose lattice stayed empty.
      lost: utterances that could not be decoded, with the reason.
      earlier: real-time factors of the searches whose results are those of an earlier call.
      adaptations: of each search, where the model was adapted to what it had found before.
    """

    found: dict[Search, list[Result]] = field(default_factory=dict)
    timing: Timing = field(default_factory=Timing)
    without_path: dict[Search, int] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)
    earlier: dict[Search, float] = field(default_factory=dict)
    adaptations: dict[Search, Adaptation] = field(default_factory=dict)

    @classmethod
    def empty(cls, searches: Iterable[Search]) -> SetOutcome:
        keys = list(searches)
        return cls({key: [] for key in keys}, Timing(search=dict.fromkeys(keys, 0.0)), dict.fromkeys(keys, 0))

    def add(self, other: SetOutcome) -> None:
        """Take in another part of the same set."""
        for key, results in other.found.items():
            self.found[key] += results
            self.without_path[key] += other.without_path[key]
            self.timing.search[key] += other.timing.search[key]
        self.timing.audio += other.timing.audio
        self.timing.network += other.timing.network
        self.lost |= other.lost
        for key, adaptation in other.adaptations.items():
            self.adaptations[key] += adaptation

    def take(self, key: Search, other: SetOutcome) -> None:
        """Take one search's part of another pass over the same utterances; its time is the search's alone."""
        self.found[key], self.without_path[key] = other.found[key], other.without_path[key]
        self.timing.audio, self.timing.search[key] = other.timing.audio, other.timing.search[key]
        self.adaptations |= other.adaptations
        self.lost |= other.lost

    def real_time_factor(self, key: Search) -> float:
        return self.earlier[key] if key in self.earlier else self.timing.real_time_factor(key)


def print_lost(test_set: str, reasons: Mapping[str, str], named: set[str]) -> None:
    """Name the utterances that could not be decoded, each once.

    Args:
      named: those that have been; grows.
    """
    new = sorted(set(reasons) - named)
    named.update(new)
    for utterance in new[:MOST_NAMED]:
        print_error(f"{test_set}: {reasons[utterance]}")
    if len(new) > MOST_NAMED:
        print_error(f"{test_set}: {len(new) - MOST_NAMED} more utterances cannot be decoded")


def best_words(nbest: Nbest) -> list[str]:
    """Words of the best hypothesis; none where no path survived."""
    return list(nbest[0].words) if nbest else []


def recogs_path(exp_dir: Path, test_set: str, label: str, search: Search) -> Path:
    """Where the results of a search are."""
    method, setting = search
    return exp_dir / method / f"recogs-{'-'.join(part for part in (test_set, setting, label) if part)}.txt"


def report(
    exp_dir: Path,
    test_set: str,
    label: str,
    outcome: SetOutcome,
    made_from: Mapping[Search, Origin] | None = None,
    speakers: Mapping[str, str] | None = None,
    cer: bool = False,
) -> dict[Key, Decoded]:
    """Write icefall's files of one test set and print a line per result.

    Args:
      speakers: by utterance; of each search a table by speaker is written.
      cer: write and print character errors, too.
      made_from: what the results stand on; without it, and where utterances were lost, they are not taken over later.
    """
    decoded: dict[Key, Decoded] = {}
    for method in dict.fromkeys(method for method, _ in outcome.found):
        summary, by_characters = {}, {}
        for search, results in ((key, value) for key, value in outcome.found.items() if key[0] == method):
            _, setting = search
            results = sorted(results, key=lambda result: result[0])
            recogs = recogs_path(exp_dir, test_set, label, search)
            write_recogs(recogs, results)
            name = recogs.name.removeprefix("recogs-")
            stats = write_errs(recogs.with_name(f"errs-{name}"), results)
            if speakers:
                write_speakers(recogs.with_name(f"speakers-{name}"), results, speakers)
            summary[setting or method] = stats
            interval = bootstrap_interval(results) if stats.ref_words else None
            decoded[test_set, method, setting, label] = Decoded(results, stats, interval, recogs)
            what = ", ".join(part for part in (test_set, method, setting, label) if part)
            print(f"[{what}] {stats}")
            if cer:
                characters = write_errs(recogs.with_name(f"errs-cer-{name}"), as_characters(results), "CER")
                by_characters[setting or method] = characters
                print(f"[{what}] {characters.line('CER')}")
            print_details(decoded[test_set, method, setting, label], outcome, search)
            if made_from is not None and not outcome.lost:
                notes = {
                    "real_time_factor": outcome.real_time_factor(search),
                    "without_path": outcome.without_path[search],
                }
                remember(recogs, made_from[search], notes)
        write_summary(exp_dir / method / f"wer-summary-{test_set}-{label}.txt", summary)
        if cer:
            write_summary(exp_dir / method / f"cer-summary-{test_set}-{label}.txt", by_characters, "CER")
    return decoded


def print_details(decoded: Decoded, outcome: SetOutcome, search: Search) -> None:
    """The adaptation, confidence interval, real-time factor, and what the search could not decode."""
    if search in outcome.adaptations:
        print(f"  {outcome.adaptations[search]}")
    line = f"  RTF {outcome.real_time_factor(search):.4f}"
    if decoded.interval:
        low, high = decoded.interval
        line = f"  95% interval {low:.2%} - {high:.2%} (bootstrap over {len(decoded.results)} utterances)," + line[1:]
    if outcome.without_path[search]:
        line += f"; {outcome.without_path[search]} utterances without any path were left empty: widen the search beam"
    if outcome.lost:
        line += f"; {len(outcome.lost)} utterances could not be decoded and are not counted"
    if search in outcome.earlier:
        line += "; of an earlier call: nothing that it was made from has changed"
    print(line, flush=True)
