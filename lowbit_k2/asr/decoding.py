"""What every decode.py does once its corpus is known: load a model, run it once, search, score, write the files.

Results go to `<exp-dir>/<method>/{recogs,errs,wer-summary}-<test set>-...txt`, as in icefall, and a line per result
    [test, 1best, lm_scale_1, epoch-30-avg-5-precision-1] %WER 5.43% [42 / 773, 9 ins, 10 del, 23 sub ]
is printed with its 95% confidence interval.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from lowbit_k2.asr.model_io import add_checkpoint_arguments
from lowbit_k2.asr.recognizer import Recognizer, make_recognizers
from lowbit_k2.data.batch import Batch, collate
from lowbit_k2.data.datamodule import AsrDataModule, DataConfig
from lowbit_k2.data.features import FeatureConfig, extract_wav, make_extractor, read_feature_config
from lowbit_k2.data.flags import str2bool
from lowbit_k2.decode.lattice import SearchConfig
from lowbit_k2.decode.methods import METHODS, decode_batch
from lowbit_k2.errors import UserError
from lowbit_k2.processes import check_num_jobs, in_fresh_processes
from lowbit_k2.scoring.wer import Result, WerStats, bootstrap_interval, write_errs, write_recogs, write_summary

if TYPE_CHECKING:
    from lhotse import CutSet

Search = tuple[str, str]  # method, setting of the method
Key = tuple[str, str, str, str]  # test set, method, setting of the method, model (checkpoint and precision)


def add_decoding_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of decode.py; names as icefall's where it has them."""
    model = parser.add_argument_group("model")
    add_checkpoint_arguments(model)
    model.add_argument("--packed", type=Path, help="a file of export.py instead of checkpoints")
    model.add_argument(
        "--precision",
        nargs="+",
        help="1, 2, 1.5, 1.5r, 32 or one per layer as 1,1,2,2; several are decoded in turn; default: the first trained",
    )

    search = parser.add_argument_group("search")
    search.add_argument(
        "--decoding-method", help=f"one or several, by commas, of {', '.join(METHODS)}; default: the greedy one"
    )
    search.add_argument("--lang-dir", type=Path, help="HLG.pt, LG.pt and words.txt, for methods with a lexicon")
    search.add_argument("--lm-dir", type=Path, help="G_4_gram.pt, for rescoring; default: --lang-dir")
    search.add_argument("--lm-scale", default="1.0", help="of the graph and of --lm-dir; several by commas, for dev")
    beams = (
        ("search_beam", float, "log-probability below a frame's best state at which states are dropped"),
        ("output_beam", float, "CTC lattices: log-probability below the best path at which arcs are cut"),
        ("min_active_states", int, "CTC lattices: states kept per frame at least"),
        ("max_active_states", int, "CTC lattices: states kept per frame at most"),
        ("max_states", int, "transducer lattices: states kept per frame at most"),
        ("max_contexts", int, "transducer lattices: contexts kept per frame at most"),
        ("max_arcs", int, "arcs of a lattice that is rescored or that paths are drawn from; more are pruned"),
        ("num_paths", int, "paths drawn for an n-best list"),
        ("nbest_scale", float, "factor on scores while they are drawn; smaller: more different ones"),
        ("beam_size", int, "hypotheses of modified_beam_search"),
        ("blank_penalty", float, "off the blank's logit in transducer search"),
    )
    for name, kind, text in beams:
        flag, default = f"--{name.replace('_', '-')}", getattr(SearchConfig, name)
        search.add_argument(flag, type=kind, default=default, help=f"{text}; default: {default}")

    data = parser.add_argument_group("data")
    data.add_argument("--manifest-dir", type=Path, default=Path("data/fbank"), help="cut manifests and features")
    data.add_argument("--max-duration", type=float, default=DataConfig.max_duration, help="seconds in a batch")
    data.add_argument("--num-workers", type=int, default=DataConfig.num_workers)
    data.add_argument("--on-the-fly-feats", type=str2bool, default=False, help="compute features from the audio")
    data.add_argument("--wav", type=Path, nargs="+", metavar="FILE", help="transcribe audio files: FILE<tab>words")
    data.add_argument("-j", "--num-jobs", type=int, default=1, help="processes that share a test set, one GPU each")
    data.add_argument("--quiet", action="store_true", help="no progress bar")
    data.add_argument("--num-threads", type=int, default=0, help="CPU threads; 0 leaves PyTorch's choice")


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


def run_decode(args: argparse.Namespace, load_test_sets: Callable[[], Mapping[str, CutSet]]) -> dict[Key, Decoded]:
    """Decode test sets, or transcribe the files of `--wav`.

    Args:
      args: flags of `add_decoding_arguments`.
      load_test_sets: gives the cuts by the name of the test set; not called with `--wav`.

    Returns:
      Hypotheses and errors by (test set, method, setting, model).
    """
    check_num_jobs(args.num_jobs)
    if args.wav:
        transcribe_files(args.wav, make_recognizers(args))
        return {}
    outcomes = decode_sets(args, load_test_sets) if args.num_jobs == 1 else decode_in_parallel(args, load_test_sets())
    results: dict[Key, Decoded] = {}
    for (label, name), outcome in outcomes.items():
        results.update(report(args.exp_dir, name, label, outcome))
    return results


def decode_sets(
    args: argparse.Namespace, load_test_sets: Callable[[], Mapping[str, CutSet]], part: int = 0
) -> dict[tuple[str, str], SetOutcome]:
    """Decode every test set with every recognizer that the flags name.

    Args:
      part: which of `--num-jobs` processes this is; each has a GPU of its own where there are several.

    Returns:
      Outcomes by (model, test set).
    """
    recognizers = make_recognizers(args, part)
    test_sets = load_test_sets()
    data = make_data(args, FeatureConfig.from_dict(recognizers[0].loaded.features))
    outcomes = {}
    for recognizer in recognizers:
        for name, cuts in test_sets.items():
            frame_shift = data.features.frame_shift
            total = None if cuts.is_lazy else len(cuts)
            with tqdm(total=total, desc=name, unit="utt", disable=args.quiet, leave=False, position=part) as bar:
                outcomes[recognizer.label, name] = decode_set(
                    recognizer, data.test_batches(cuts), frame_shift, bar.update
                )
    return outcomes


def decode_in_parallel(args: argparse.Namespace, test_sets: Mapping[str, CutSet]) -> dict[tuple[str, str], SetOutcome]:
    """`decode_sets` by `--num-jobs` processes, each of which takes every n-th cut.

    Raises:
      UserError: what one of them raised, or one was killed.
    """
    jobs = args.num_jobs
    if args.num_threads == 0:
        args = argparse.Namespace(**{**vars(args), "num_threads": max(1, torch.get_num_threads() // jobs)})
    parts = [(part, shard(test_sets, part, jobs)) for part in range(jobs)]
    outcomes = in_fresh_processes(partial(decode_part, args), parts, jobs)
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


def decode_part(args: argparse.Namespace, part: tuple[int, Mapping[str, CutSet]]) -> dict[tuple[str, str], SetOutcome]:
    """What a process of `decode_in_parallel` does with the part of that number."""
    number, test_sets = part
    return decode_sets(args, lambda: test_sets, number)


def make_data(args: argparse.Namespace, features: FeatureConfig) -> AsrDataModule:
    """The datamodule with the model's features.

    Raises:
      UserError: the stored features were made with other settings.
    """
    if not args.on_the_fly_feats and read_feature_config(args.manifest_dir).stored() != features.stored():
        raise UserError(
            f"the features in {args.manifest_dir} are not those that the model was trained on: "
            "use --on-the-fly-feats true, or compute them again"
        )
    config = DataConfig(
        manifest_dir=args.manifest_dir,
        max_duration=args.max_duration,
        num_workers=args.num_workers,
        on_the_fly_feats=args.on_the_fly_feats,
        feature_normalize=features.normalize,
    )
    return AsrDataModule(config, features)


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
    for resources in recognizer.searches.values():
        resources.num_decoded = resources.num_without_path = 0
    with recognizer.precision():
        for batch in batches:
            start = time.perf_counter()
            output = recognizer.run(batch.features, batch.feature_lens)
            timing.network += time.perf_counter() - start
            timing.audio += float(batch.feature_lens.sum()) * frame_shift
            refs = [text.split() for text in batch.texts]
            for key, resources in recognizer.searches.items():
                start = time.perf_counter()
                hyps = decode_batch(output, resources, refs)
                timing.search[key] += time.perf_counter() - start
                found[key] += zip(batch.ids, refs, hyps, strict=True)
            advance(len(batch.ids))
    without_path = {key: resources.num_without_path for key, resources in recognizer.searches.items()}
    return SetOutcome(found, timing, without_path)


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
        line += f"; {outcome.without_path[search]} utterances without any path were left empty: widen --search-beam"
    print(line, flush=True)


def transcribe_files(files: Sequence[Path], recognizers: Sequence[Recognizer]) -> None:
    """Print `FILE<tab>words` for each audio file, one by one, so that a file never depends on its neighbours.

    Raises:
      UserError: unreadable audio, or flags that name several methods, scales or precisions.
    """
    if len(recognizers) != 1 or len(recognizers[0].searches) != 1:
        raise UserError("--wav takes one --precision, one --decoding-method and one --lm-scale")
    [recognizer] = recognizers
    [resources] = recognizer.searches.values()
    config = FeatureConfig.from_dict(recognizer.loaded.features)
    extractor = make_extractor(config)
    with recognizer.precision():
        for file in files:
            batch = collate([extract_wav(file, config, extractor)], [""], [str(file)])
            [words] = decode_batch(recognizer.run(batch.features, batch.feature_lens), resources)
            print(f"{file}\t{' '.join(words)}", flush=True)
