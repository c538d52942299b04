"""What every decode.py does once its corpus is known: load a model, run it once, search, score, write the files.

Results go to `<exp-dir>/<method>/{recogs,errs,wer-summary}-<test set>-...txt`, as in icefall, and a line per result
    [test, 1best, lm_scale_1, epoch-30-avg-5-precision-1] %WER 5.43% [42 / 773, 9 ins, 10 del, 23 sub ]
is printed with its 95% confidence interval, both as soon as a test set is done at one precision. What is finished is
not decoded again (`finished.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from lowbit_k2.asr.finished import Origin, origins, recall
from lowbit_k2.asr.long_audio import decode_long
from lowbit_k2.asr.recognizer import DecodeConfig, Models, Recognizer, Search, load_models, make_recognizers
from lowbit_k2.asr.results import Decoded, Key, SetOutcome, best_words, print_lost, recogs_path, report
from lowbit_k2.core.config import ConfigError
from lowbit_k2.core.features import FeatureConfig
from lowbit_k2.data.batch import Batch
from lowbit_k2.data.checked import cuts_digest
from lowbit_k2.data.datamodule import AsrDataModule, DataConfig
from lowbit_k2.data.features import read_feature_config
from lowbit_k2.data.manifests import speakers_of
from lowbit_k2.decode.hypothesis import Nbest
from lowbit_k2.errors import ReportedError, is_out_of_memory
from lowbit_k2.plugins import load_plugins
from lowbit_k2.processes import check_num_jobs, in_fresh_processes
from lowbit_k2.progress import progress_bar

if TYPE_CHECKING:
    from lhotse import CutSet


@dataclass
class Task:
    """One test set at one precision.

    Attributes:
      label: of the model.
      origins: what each search's result is made from.
      left: searches that are to be made; of the others `done` has the results.
    """

    label: str
    test_set: str
    origins: dict[Search, Origin]
    left: list[Search]
    done: SetOutcome


def run_decode(config: DecodeConfig, load_test_sets: Callable[[], Mapping[str, CutSet]]) -> dict[Key, Decoded]:
    """Decode test sets; write what comes out and print a line per result, as soon as it is there.

    Results of an earlier call that were made from the same model, settings and cuts are taken over.

    Args:
      load_test_sets: gives the cuts by the name of the test set.

    Returns:
      Hypotheses and errors by (test set, method, setting, model).

    Raises:
      ReportedError: at the end, where utterances could not be read; they have been named and are in no error rate.
      UserError: no such model, or settings that make no sense.
    """
    check_num_jobs(config.num_jobs)
    models = load_models(config)
    check_features(config, FeatureConfig.from_dict(models.loaded.features))
    made_from = origins(config, models)
    test_sets = load_test_sets()
    tasks = plan(config, made_from, test_sets)
    results: dict[int, dict[Key, Decoded]] = {}
    lost: dict[str, set[str]] = {}  # by test set, for they are lost at every precision

    def finish(number: int, new: SetOutcome | None = None) -> None:
        task, outcome = tasks[number], tasks[number].done
        if new is not None:
            print_lost(task.test_set, new.lost, lost.setdefault(task.test_set, set()))
            outcome = in_order(task, new)
        results[number] = {}
        if any(outcome.found.values()) or not outcome.lost:
            speakers = speakers_of(test_sets[task.test_set])
            where = (config.choice.exp_dir, task.test_set, task.label)
            results[number] = report(*where, outcome, task.origins, speakers, config.cer)

    left = [number for number, task in enumerate(tasks) if task.left]
    for number in sorted(set(range(len(tasks))) - set(left)):
        finish(number)
    run = decode_sets if config.num_jobs == 1 else in_parallel
    run(config, [tasks[number] for number in left], test_sets, models, lambda n, outcome: finish(left[n], outcome))
    if any(lost.values()):
        raise ReportedError(f"{sum(map(len, lost.values()))} utterances could not be decoded")
    return {key: decoded for number in sorted(results) for key, decoded in results[number].items()}


def plan(
    config: DecodeConfig, made_from: Mapping[str, Mapping[Search, Origin]], test_sets: Mapping[str, CutSet]
) -> list[Task]:
    """All that is to be done, and what of it earlier calls have done."""
    digests = {name: cuts_digest(cuts, config.on_the_fly_feats) for name, cuts in test_sets.items()}
    tasks = []
    for label, searches in made_from.items():
        for name, cuts in test_sets.items():
            own = {key: {**origin, "cuts": digests[name]} for key, origin in searches.items()}
            task = Task(label, name, own, [], SetOutcome())
            for key, origin in own.items():
                known = recall(recogs_path(config.choice.exp_dir, name, label, key), origin, cuts)
                if known is None:
                    task.left.append(key)
                    continue
                results, notes = known
                task.done.found[key], task.done.earlier[key] = results, notes["real_time_factor"]
                task.done.without_path[key] = notes["without_path"]
            tasks.append(task)
    return tasks


def in_order(task: Task, new: SetOutcome) -> SetOutcome:
    """New results and those of earlier calls, in the order of the searches."""
    known = task.done
    found = {key: new.found[key] if key in new.found else known.found[key] for key in task.origins}
    return replace(
        new, found=found, without_path={**known.without_path, **new.without_path}, earlier=dict(known.earlier)
    )


def decode_sets(
    config: DecodeConfig,
    tasks: Sequence[Task],
    test_sets: Mapping[str, CutSet],
    models: Models,
    finish: Callable[[int, SetOutcome], object],
) -> None:
    """Decode what is left of each task, in turn; `finish` gets its number and the outcome."""
    for number, outcome in enumerate(outcomes_of(config, tasks, test_sets, models)):
        finish(number, outcome)


def outcomes_of(
    config: DecodeConfig,
    tasks: Sequence[Task],
    test_sets: Mapping[str, CutSet],
    models: Models | None = None,
    part: int = 0,
) -> Iterator[SetOutcome]:
    """Decode what is left of each task.

    Args:
      models: what `load_models` gave, to spare another reading.
      part: which of `num_jobs` processes this is; each has a GPU of its own where there are several.
    """
    if not tasks:
        return
    wanted = {key for task in tasks for key in task.left}
    recognizers = {r.label: r for r in make_recognizers(config, part, models, wanted)}
    features = next(iter(recognizers.values())).features
    data = make_data(config, features)
    for task in tasks:
        whole, cuts = recognizers[task.label], test_sets[task.test_set]
        recognizer = replace(whole, searches={key: whole.searches[key] for key in task.left})
        options = {"total": None if cuts.is_lazy else len(cuts), "unit": "utt", "leave": False, "position": part}
        lost: dict[str, str] = {}
        with progress_bar(desc=task.test_set, quiet=config.quiet, **options) as bar:
            outcome = decode_set(recognizer, data.test_batches(cuts, lost), features.frame_shift, bar.update)
        outcome.lost |= lost
        yield outcome


def in_parallel(
    config: DecodeConfig,
    tasks: Sequence[Task],
    test_sets: Mapping[str, CutSet],
    models: Models,
    finish: Callable[[int, SetOutcome], object],
) -> None:
    """`decode_sets` by `num_jobs` processes, each of which takes every n-th cut and reads the model by itself.

    Raises:
      UserError: what one of them raised, or one was killed.
    """
    if not tasks:
        return
    jobs = config.num_jobs
    if config.num_threads == 0:
        config = replace(config, num_threads=max(1, torch.get_num_threads() // jobs))
    arrived: list[dict[int, SetOutcome]] = [{} for _ in tasks]  # of each task, by part

    def collect(part: int, value: tuple[int, SetOutcome]) -> None:
        number, outcome = value
        arrived[number][part] = outcome
        if len(arrived[number]) == jobs:
            merged, *others = (arrived[number].pop(part) for part in range(jobs))
            for other in others:
                merged.add(other)
            finish(number, merged)

    parts = [(part, shard(test_sets, part, jobs), tasks) for part in range(jobs)]
    in_fresh_processes(partial(decode_part, config), parts, jobs, on_yield=collect)


def shard(test_sets: Mapping[str, CutSet], part: int, parts: int) -> dict[str, CutSet]:
    """Every `parts`-th cut of each set by falling duration, from number `part` on: all parts take about as long."""
    from lhotse import CutSet

    ranked = {name: sorted(cuts, key=lambda cut: (-cut.duration, cut.id)) for name, cuts in test_sets.items()}
    return {name: CutSet.from_cuts(cuts[part::parts]) for name, cuts in ranked.items()}


def decode_part(
    config: DecodeConfig, part: tuple[int, Mapping[str, CutSet], Sequence[Task]]
) -> Generator[tuple[int, SetOutcome], None, None]:
    """What a process of `in_parallel` does with the part of that number: outcomes by the number of the task."""
    load_plugins(config.plugins)
    number, test_sets, tasks = part
    yield from enumerate(outcomes_of(config, tasks, test_sets, part=number))


def check_features(config: DecodeConfig, features: FeatureConfig) -> None:
    """Stored features must be the model's.

    Raises:
      UserError: they were made with other settings.
    """
    if not config.on_the_fly_feats and read_feature_config(config.manifest_dir).stored() != features.stored():
        problem = f"{config.manifest_dir} holds other features than those that the model was trained on"
        raise ConfigError("manifest_dir", f"{problem}: set on_the_fly_feats, or compute them again")


def make_data(config: DecodeConfig, features: FeatureConfig) -> AsrDataModule:
    """The datamodule with the model's features."""
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
    outcome = SetOutcome.empty(recognizer.searches)
    with recognizer.precision():
        for batch in batches:
            try:
                decode_batch(recognizer, batch, outcome)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                longest = float(batch.input_lens.max()) * frame_shift
                reason = f"too little memory for {longest:.0f} seconds: lower max_duration, chunk_seconds or the beams"
                outcome.lost |= {name: f"{name}: {reason}" for name in batch.ids}
            else:
                outcome.timing.audio += float(batch.input_lens.sum()) * frame_shift
            advance(len(batch.ids))
    return outcome


def decode_batch(recognizer: Recognizer, batch: Batch, outcome: SetOutcome) -> None:
    """Add what all searches find: in the utterances that are no longer than a chunk together, in others by chunks."""
    lens = batch.input_lens.tolist()
    long = [n for n, length in enumerate(lens) if recognizer.is_long(length)]
    for n in long:
        words, without_path = decode_long(
            recognizer, batch.inputs[n, : lens[n]], batch.texts[n].split(), outcome.timing
        )
        for key, found in words.items():
            outcome.found[key].append((batch.ids[n], batch.texts[n].split(), found))
            outcome.without_path[key] += key in without_path
    if not long:
        decode_together(recognizer, batch, outcome)
    elif len(long) < len(lens):
        rows = [n for n in range(len(lens)) if n not in long]
        decode_together(recognizer, batch.of(rows), outcome)


def decode_together(recognizer: Recognizer, batch: Batch, outcome: SetOutcome) -> None:
    """Add what all searches find in a batch."""
    start = time.perf_counter()
    output = recognizer.run(batch.inputs, batch.input_lens)
    outcome.timing.network += time.perf_counter() - start
    refs = [text.split() for text in batch.texts]
    hypotheses: dict[Search, list[Nbest]] = {}
    for key, method in recognizer.searches.items():
        start = time.perf_counter()
        hypotheses[key] = method.nbest(output, 1, refs)
        outcome.timing.search[key] += time.perf_counter() - start
    for key, hyps in hypotheses.items():
        outcome.found[key] += zip(batch.ids, refs, map(best_words, hyps), strict=True)
        outcome.without_path[key] += sum(not nbest for nbest in hyps)
