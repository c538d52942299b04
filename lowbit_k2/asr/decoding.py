"""What every decode.py does once its corpus is known: load a model, run it once, search, score, write the files.

Results go to `<exp-dir>/<method>/{recogs,errs,wer-summary}-<test set>-...txt`, as in icefall, and a line per result
    [test, 1best, lm_scale_1, epoch-30-avg-5-precision-1] %WER 5.43% [42 / 773, 9 ins, 10 del, 23 sub ]
is printed with its 95% confidence interval, both as soon as a test set is done at one precision. What is finished is
not decoded again (`finished.py`). With `lhuc.epochs` every test set is then decoded again, adapted to its speakers
(`adaptation.py`), into files of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from lowbit_k2.asr.adaptation import check_adaptable, num_passes, second_pass
from lowbit_k2.asr.finished import Origin, origins, recall
from lowbit_k2.asr.one_pass import decode_set
from lowbit_k2.asr.recognizer import DecodeConfig, Models, Recognizer, Search, load_models, make_recognizers
from lowbit_k2.asr.results import Decoded, Key, SetOutcome, print_lost, recogs_path, report
from lowbit_k2.core.config import ConfigError
from lowbit_k2.core.features import FeatureConfig
from lowbit_k2.data.checked import cuts_digest
from lowbit_k2.data.datamodule import AsrDataModule, DataConfig
from lowbit_k2.data.features import read_feature_config
from lowbit_k2.data.manifests import cuts_by_speaker, speakers_of
from lowbit_k2.errors import ReportedError
from lowbit_k2.plugins import load_plugins
from lowbit_k2.processes import check_num_jobs, in_fresh_processes
from lowbit_k2.progress import progress_bar

if TYPE_CHECKING:
    from lhotse import CutSet
    from lhotse.cut import Cut

ADAPTED = "lhuc"


@dataclass
class Task:
    """One test set at one precision.

    Attributes:
      model: label of the model.
      origins: what each search's result is made from.
      left: searches that are to be made; of the others `done` has the results.
      first: whose hypotheses the model is adapted to; None: it is not adapted.
    """

    model: str
    test_set: str
    origins: dict[Search, Origin]
    left: list[Search] = field(default_factory=list)
    done: SetOutcome = field(default_factory=SetOutcome)
    first: Task | None = None

    @property
    def label(self) -> str:
        """Of the results."""
        return f"{self.model}-{ADAPTED}" if self.first else self.model


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
    if config.lhuc.epochs:
        check_adaptable(models.loaded, config.lang_dir)
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
        for name in test_sets:
            first = Task(label, name, {key: {**origin, "cuts": digests[name]} for key, origin in searches.items()})
            tasks.append(first)
            if config.lhuc.epochs:
                own = {key: {**origin, ADAPTED: config.lhuc.to_dict()} for key, origin in first.origins.items()}
                tasks.append(Task(label, name, own, first=first))
    for task in tasks:
        recall_results(config, task, test_sets[task.test_set])
    return tasks


def recall_results(config: DecodeConfig, task: Task, cuts: CutSet) -> None:
    """Sort the searches of a task into those that an earlier call has finished and those that are left."""
    for key, origin in task.origins.items():
        known = recall(recogs_path(config.choice.exp_dir, task.test_set, task.label, key), origin, cuts)
        if known is None:
            task.left.append(key)
            continue
        results, notes = known
        task.done.found[key], task.done.earlier[key] = results, notes["real_time_factor"]
        task.done.without_path[key] = notes["without_path"]


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
    data = make_data(config, next(iter(recognizers.values())).features)
    fresh = SetOutcome()  # of the last first pass; the second one comes right behind it
    for task in tasks:
        whole = recognizers[task.model]
        recognizer = replace(whole, searches={key: whole.searches[key] for key in task.left})
        first = task.first and in_order(task.first, fresh if task.first.left else SetOutcome())
        outcome = run_task(config, task, recognizer, data, test_sets[task.test_set], first, part)
        fresh = fresh if task.first else outcome
        yield outcome


def run_task(
    config: DecodeConfig,
    task: Task,
    recognizer: Recognizer,
    data: AsrDataModule,
    cuts: CutSet,
    first: SetOutcome | None,
    part: int,
) -> SetOutcome:
    """One pass over a test set, or over a part of it; behind a first one it is decoded adapted to its speakers."""
    passes = 1 if first is None else num_passes(config.lhuc) * len(task.left)
    options = {"total": None if cuts.is_lazy else passes * len(cuts), "unit": "utt", "leave": False, "position": part}
    lost: dict[str, str] = {}
    with progress_bar(desc=task.test_set, quiet=config.quiet, **options) as bar:
        if first is None:
            batches = data.test_batches(cuts, lost)
            outcome = decode_set(recognizer, batches, recognizer.features.frame_shift, bar.update)
        else:
            outcome = second_pass(recognizer, data, cuts, first, config.lhuc, lost, bar.update)
    outcome.lost |= lost
    return outcome


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

    parts = [(part, shard(test_sets, part, jobs, bool(config.lhuc.epochs)), tasks) for part in range(jobs)]
    in_fresh_processes(partial(decode_part, config), parts, jobs, on_yield=collect)


def shard(test_sets: Mapping[str, CutSet], part: int, parts: int, whole_speakers: bool = False) -> dict[str, CutSet]:
    """Every `parts`-th cut of each set by falling duration, from number `part` on: all parts take about as long.

    Args:
      whole_speakers: every `parts`-th speaker with all cuts, by falling duration of these.
    """
    from lhotse import CutSet

    def length(cuts: Sequence[Cut]) -> tuple[float, str]:
        return -sum(cut.duration for cut in cuts), cuts[0].id

    groups = {
        name: sorted(cuts_by_speaker(cuts) if whole_speakers else [[cut] for cut in cuts], key=length)
        for name, cuts in test_sets.items()
    }
    return {name: CutSet.from_cuts(cut for own in of[part::parts] for cut in own) for name, of in groups.items()}


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
