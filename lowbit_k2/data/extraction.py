"""Features of cuts computed and stored, by several processes and in parts that an interruption leaves whole."""

from __future__ import annotations

import logging
import shutil
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from lowbit_k2.core.features import FeatureConfig
from lowbit_k2.data.features import make_extractor, unreadable
from lowbit_k2.data.manifests import cuts_path, read_cuts
from lowbit_k2.data.preparation import check_ids
from lowbit_k2.data.sources import check_audio_file, check_sources, parts_of
from lowbit_k2.data.sphere import choose_backend
from lowbit_k2.errors import UserError
from lowbit_k2.fileio import atomic_write
from lowbit_k2.processes import in_fresh_processes
from lowbit_k2.progress import progress_bar

if TYPE_CHECKING:
    from lhotse import CutSet
    from lhotse.cut import Cut


def parts_folder(target: Path) -> Path:
    """Where the manifests of finished parts lie until the split is whole."""
    return target.with_name(target.name.replace(".jsonl.gz", ".parts"))


def compute_in_parts(
    cuts: CutSet,
    corpus: str,
    split: str,
    output_dir: Path,
    config: FeatureConfig,
    num_splits: int = 1,
    num_jobs: int = 1,
    device: str = "cpu",
    allow_commands: bool = False,
) -> CutSet:
    """`compute_split` part by part, `num_splits` of them; those that an interrupted run finished are kept.

    Raises:
      UserError: cuts whose names are not their own, audio that cannot be read, or a process was killed.
    """
    from lhotse import CutSet

    name = f"{corpus}_{split}"
    parts = min(num_splits, len(cuts))
    if parts <= 1:
        return compute_split(cuts, name, output_dir, config, num_jobs, device, allow_commands)
    check_ids(cuts, name)
    done = []
    for number, part in enumerate(cuts.split(parts), start=1):
        label = f"{number:0{len(str(parts))}}-of-{parts}"
        manifest = parts_folder(cuts_path(output_dir, corpus, split)) / f"{label}.jsonl.gz"
        if manifest.is_file() and list(read_cuts(manifest).ids) == list(part.ids):
            logging.info("%s: part %s is there already", name, label)
        else:
            work = (output_dir, config, num_jobs, device, allow_commands)
            part = compute_split(part, f"{name}_{label}", *work)
            with atomic_write(manifest) as temporary:
                part.to_file(temporary)
        done += read_cuts(manifest)
    return CutSet.from_cuts(done)


def compute_split(
    cuts: CutSet,
    name: str,
    output_dir: Path,
    config: FeatureConfig,
    num_jobs: int,
    device: str = "cpu",
    allow_commands: bool = False,
) -> CutSet:
    """Compute and store the features of `cuts` in `<output_dir>/feats_<name>`; shows a progress bar.

    Raises:
      UserError: audio that cannot be read, or a process was killed.
    """
    from lhotse import CutSet

    check_ids(cuts, name)
    storage = output_dir / f"feats_{name}"
    remove_features(storage)  # left by an interrupted run
    check_audio(cuts, allow_commands)
    storage.parent.mkdir(parents=True, exist_ok=True)
    extract = partial(extract_part, config, device, storage)
    try:
        jobs = min(num_jobs, len(cuts))
        if jobs <= 1:
            done = [extract((None, cuts))]
        else:
            storage.mkdir()
            parts = [(part, CutSet.from_cuts(islice(cuts, part, None, jobs))) for part in range(jobs)]
            done = in_fresh_processes(extract, parts, jobs)
        unread = [problem for _, problems in done for problem in problems]
        if unread:
            raise UserError(f"features of {name} cannot be computed for {len(unread)} cuts, first {unread[0]}")
    except BaseException:
        remove_features(storage)
        raise
    found = {cut.id: cut for part, _ in done for cut in part}
    return CutSet.from_cuts(found[cut.id] for cut in cuts)  # in their order, however many jobs there were


def extract_part(
    config: FeatureConfig, device: str, storage: Path, part: tuple[int | None, CutSet]
) -> tuple[list[Cut], list[str]]:
    """Features of one of several parts, by number, or of all cuts (None); the first part's progress is shown.

    Returns:
      The cuts, and what is wrong with those that cannot be done.
    """
    from lhotse import LilcomChunkyWriter

    number, cuts = part
    if number is not None:  # a process among several
        torch.set_num_threads(1)
    extractor, done, unread = make_extractor(config, device), [], []
    with LilcomChunkyWriter(storage if number is None else storage / f"feats-{number}") as writer:
        for cut in progress_bar(cuts, "features", quiet=bool(number)):
            try:
                done.append(cut.compute_and_store_features(extractor=extractor, storage=writer))
            except Exception as error:  # the audio libraries have no common class
                unread.append(what_is_wrong(cut, error))
    return done, unread


def what_is_wrong(cut: Cut, error: Exception) -> str:
    """The audio's fault where it has one; lilcom's words on numbers that are not finite help nobody."""
    try:
        if not np.isfinite(cut.load_audio()).all():
            error = ValueError("samples that are not finite numbers")
    except Exception as reading:  # the audio libraries have no common class
        error = reading
    return unreadable(cut, "recording", error)


def remove_features(storage: Path) -> None:
    """One job writes a file, several jobs write a folder."""
    shutil.rmtree(storage, ignore_errors=True)
    storage.with_suffix(".lca").unlink(missing_ok=True)


def check_audio(cuts: CutSet, allow_commands: bool = False) -> None:
    """All audio files are there and whole: a minute of work before a missing one is found would be lost.

    Raises:
      UserError: one is missing, cut short, or comes from a command.
    """
    seen: set[str] = set()
    for cut in cuts:
        choose_backend(cut)
        check_sources(cut, "recording", allow_commands)
        for part in parts_of(cut):
            for source in part.recording.sources if part.has_recording else ():
                if source.type == "file" and source.source not in seen:
                    seen.add(source.source)
                    check_audio_file(Path(source.source))
