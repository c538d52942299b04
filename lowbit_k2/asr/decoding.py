"""What every decode.py does once its corpus is known: load a model, run it once, search, score, write the files.

Results go to `<exp-dir>/<method>/{recogs,errs,wer-summary}-<test set>-...txt`, as in icefall, and a line per result
    [test, 1best, lm_scale_1, epoch-30-avg-5-precision-1] %WER 5.43% [42 / 773, 9 ins, 10 del, 23 sub ]
is printed with its 95% confidence interval.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from lowbit_k2.asr.recognizer import DecodeConfig, Recognizer, make_recognizers
from lowbit_k2.core.config import ConfigError
from lowbit_k2.core.features import FeatureConfig
from lowbit_k2.data.batch import Batch, collate
from lowbit_k2.data.datamodule import AsrDataModule, DataConfig
from lowbit_k2.data.features import extract_wav, make_extractor, read_feature_config
from lowbit_k2.decode.hypothesis import Nbest
from lowbit_k2.errors import UserError
from lowbit_k2.plugins import load_plugins
from lowbit_k2.processes import check_num_jobs, in_fresh_processes
from lowbit_k2.scoring.wer import Result, WerStats, bootstrap_interval, write_errs, write_recogs, write_summary

if TYPE_CHECKING:
    from lhotse import CutSet

Search = tuple[str, str]  # method, setting of the method
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


@dataclass
class SetOutcome:
    """What a recognizer made of a test set, or of a part of it.

    Attributes:
      found: (utterance, reference words, hypothesis words) of each search, in the order of decoding.
      without_path: utterances of each search whose lattice stayed empty.
    """

    found: dict[Search, list[Result]]
    timing: Timing
    without_path: dict[Search, int]

    def add(self, other: SetOutcome) -> None:
        """Take in another part of the same set."""
        for key, results in other.found.items():
            self.found[key] += results
            self.without_path[key] += other.without_path[key]
            self.timing.search[key] += other.timing.search[key]
        self.timing.audio += other.timing.audio
        self.timing.network += other.timing.network


def run_decode(config: DecodeConfig, load_test_sets: Callable[[], Mapping[str, CutSet]]) -> dict[Key, Decoded]:
    """Decode test sets, write what came out, and print a line per result.

    Args:
      load_test_sets: gives the cuts by the name of the test set.

    Returns:
      Hypotheses and errors by (test set, method, setting, model).
    """
    check_num_jobs(config.num_jobs)
    if config.num_jobs == 1:
        outcomes = decode_sets(config, load_test_sets)
    else:
        outcomes = decode_in_parallel(config, load_test_sets())
    results: dict[Key, Decoded] = {}
    for (label, name), outcome in outcomes.items():
        results.update(report(config.choice.exp_dir, name, label, outcome))
    return results


def decode_sets(
    config: DecodeConfig, load_test_sets: Callable[[], Mapping[str, CutSet]], part: int = 0
) -> dict[tuple[str, str], SetOutcome]:
    """Decode every test set with every recognizer that the settings name.

    Args:
      part: which of `num_jobs` processes this is; each has a GPU of its own where there are several.

    Returns:
      Outcomes by (model, test set).
    """
    recognizers = make_recognizers(config, part)
    test_sets = load_test_sets()
    data = make_data(config, FeatureConfig.from_dict(recognizers[0].loaded.features))
    outcomes = {}
    silent = True if config.quiet else None  # None: silent where there is no terminal
    for recognizer in recognizers:
        for name, cuts in test_sets.items():
            frame_shift = data.features.frame_shift
            total = None if cuts.is_lazy else len(cuts)
            with tqdm(total=total, desc=name, unit="utt", disable=silent, leave=False, position=part) as bar:
                outcomes[recognizer.label, name] = decode_set(
                    recognizer, data.test_batches(cuts), frame_shift, bar.update
                )
    return outcomes


def decode_in_parallel(config: DecodeConfig, test_sets: Mapping[str, CutSet]) -> dict[tuple[str, str], SetOutcome]:
    """`decode_sets` by `num_jobs` processes, each of which takes every n-th cut.

    Raises:
      UserError: what one of them raised, or one was killed.
    """
    jobs = config.num_jobs
    if config.num_threads == 0:
        config = replace(config, num_threads=max(1, torch.get_num_threads() // jobs))
    parts = [(part, shard(test_sets, part, jobs)) for part in range(jobs)]
    outcomes = in_fresh_processes(partial(decode_part, config), parts, jobs)
    merged = outcomes[0]
    for outcome in outcomes[1:]:
        for key, others in outcome.items():
            merged[key].add(others)
    return merged


def shard(test_sets: Mapping[str, CutSet], part: int, parts: int) -> dict[str, CutSet]:
    """Every `parts`-th cut of each set by falling duration, from number `part` on: all parts take about as long."""
    from lhotse import CutSet

    ranked = {name: sorted(cuts, key=lambda cut: (-cut.duration, cut.id)) for name, cuts in test_sets.items()}
    return {name: CutSet.from_cuts(cuts[part::parts]) for name, cuts in ranked.items()}


def decode_part(config: DecodeConfig, part: tuple[int, Mapping[str, CutSet]]) -> dict[tuple[str, str], SetOutcome]:
    """What a process of `decode_in_parallel` does with the part of that number."""
    load_plugins(config.plugins)
    number, test_sets = part
    return decode_sets(config, lambda: test_sets, number)


def make_data(config: DecodeConfig, features: FeatureConfig) -> AsrDataModule:
    """The datamodule with the model's features.

    Raises:
      UserError: the stored features were made with other settings.
    """
    if not config.on_the_fly_feats and read_feature_config(config.manifest_dir).stored() != features.stored():
        problem = f"{config.manifest_dir} holds other features than those that the model was trained on"
        raise ConfigError("manifest_dir", f"{problem}: set on_the_fly_feats, or compute them again")
    data = DataConfig(
        manifest_dir=config.manifest_dir,
        max_duration=config.max_duration,
        num_workers=config.num_workers,
        on_the_fly_feats=config.on_the_fly_feats,
        allow_commands=config.allow_commands,
        feature_normalize=features.normalize,
    )
    return AsrDataModule(data, features)


def decode_set(
    recognizer: Recognizer,
    batches: Iterable[Batch],
    frame_shift: float,
    advance: Callable[[int], object] = lambda n: None,
) -> SetOutcome:
    """Run the network once over the batches and every search on its output.

    Args:
      frame_shift: seconds per feature frame, for the real-time factor.
      advance: called with the number of utterances done.
    """
    found: dict[Search, list[Result]] = {key: [] for key in recognizer.searches}
    timing = Timing(search=dict.fromkeys(recognizer.searches, 0.0))
    without_path = dict.fromkeys(recognizer.searches, 0)
    with recognizer.precision():
        for batch in batches:
            start = time.perf_counter()
            output = recognizer.run(batch.inputs, batch.input_lens)
            timing.network += time.perf_counter() - start
            timing.audio += float(batch.input_lens.sum()) * frame_shift
            refs = [text.split() for text in batch.texts]
            for key, method in recognizer.searches.items():
                start = time.perf_counter()
                hyps = method.nbest(output, 1, refs)
                timing.search[key] += time.perf_counter() - start
                found[key] += zip(batch.ids, refs, map(best_words, hyps), strict=True)
                without_path[key] += sum(not nbest for nbest in hyps)
            advance(len(batch.ids))
    return SetOutcome(found, timing, without_path)


def best_words(nbest: Nbest) -> list[str]:
    """Words of the best hypothesis; none where no path survived."""
    return list(nbest[0].words) if nbest else []


def report(exp_dir: Path, test_set: str, label: str, outcome: SetOutcome) -> dict[Key, Decoded]:
    """Write icefall's files of one test set and print a line per result."""
    decoded: dict[Key, Decoded] = {}
    for method in dict.fromkeys(method for method, _ in outcome.found):
        folder, summary = exp_dir / method, {}
        for (_, setting), results in ((key, value) for key, value in outcome.found.items() if key[0] == method):
            name = "-".join(part for part in (test_set, setting, label) if part)
            results = sorted(results, key=lambda result: result[0])
            recogs = folder / f"recogs-{name}.txt"
            write_recogs(recogs, results)
            stats = write_errs(folder / f"errs-{name}.txt", results)
            summary[setting or method] = stats
            interval = bootstrap_interval(results) if stats.ref_words else None
            decoded[test_set, method, setting, label] = Decoded(results, stats, interval, recogs)
            what = ", ".join(part for part in (test_set, method, setting, label) if part)
            print(f"[{what}] {stats}")
            print_details(decoded[test_set, method, setting, label], outcome, (method, setting))
        write_summary(folder / f"wer-summary-{test_set}-{label}.txt", summary)
    return decoded


def print_details(decoded: Decoded, outcome: SetOutcome, search: Search) -> None:
    """Confidence interval, real-time factor, and what the search could not decode."""
    line = f"  RTF {outcome.timing.real_time_factor(search):.4f}"
    if decoded.interval:
        low, high = decoded.interval
        line = f"  95% interval {low:.2%} - {high:.2%} (bootstrap over {len(decoded.results)} utterances)," + line[1:]
    if outcome.without_path[search]:
        line += f"; {outcome.without_path[search]} utterances without any path were left empty: widen the search beam"
    print(line, flush=True)


def run_transcription(config: DecodeConfig, files: Sequence[Path]) -> None:
    """`transcribe_files` with the model that the settings name."""
    transcribe_files(files, make_recognizers(config))


def transcribe_files(files: Sequence[Path], recognizers: Sequence[Recognizer]) -> None:
    """Print `FILE<tab>words` for each audio file, one by one, so that a file never depends on its neighbours.

    Raises:
      UserError: unreadable audio, or several methods, scales or precisions.
    """
    if len(recognizers) != 1 or len(recognizers[0].searches) != 1:
        raise UserError("audio files are transcribed at one precision, by one method, with one lm_scale")
    [recognizer] = recognizers
    [method] = recognizer.searches.values()
    config = FeatureConfig.from_dict(recognizer.loaded.features)
    extractor = make_extractor(config)
    with recognizer.precision():
        for file in files:
            batch = collate([extract_wav(file, config, extractor)], [""], [str(file)])
            [nbest] = method.nbest(recognizer.run(batch.inputs, batch.input_lens))
            print(f"{file}\t{' '.join(best_words(nbest))}", flush=True)
