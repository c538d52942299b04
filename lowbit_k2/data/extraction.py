"""Features of cuts computed and stored, by several processes and in parts that an interruption leaves whole."""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lowbit_k2.core.features import FeatureConfig
from lowbit_k2.data.features import make_extractor
from lowbit_k2.data.manifests import cuts_path, read_cuts
from lowbit_k2.data.sphere import choose_backend
from lowbit_k2.errors import UserError
from lowbit_k2.fileio import atomic_write
from lowbit_k2.processes import in_fresh_processes

if TYPE_CHECKING:
    from lhotse import CutSet


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
) -> CutSet:
    """`compute_split` part by part, `num_splits` of them; those that an interrupted run finished are kept.

    Raises:
      UserError: cuts whose names are not their own, audio that cannot be read, or a process was killed.
    """
    from lhotse import CutSet

    name = f"{corpus}_{split}"
    parts = min(num_splits, len(cuts))
    if parts <= 1:
        return compute_split(cuts, name, output_dir, config, num_jobs, device)
    check_ids(cuts, name)
    done = []
    for number, part in enumerate(cuts.split(parts), start=1):
        label = f"{number:0{len(str(parts))}}-of-{parts}"
        manifest = parts_folder(cuts_path(output_dir, corpus, split)) / f"{label}.jsonl.gz"
        if manifest.is_file() and list(read_cuts(manifest).ids) == list(part.ids):
            logging.info("%s: part %s is there already", name, label)
        else:
            part = compute_split(part, f"{name}_{label}", output_dir, config, num_jobs, device)
            with atomic_write(manifest) as temporary:
                part.to_file(temporary)
        done += read_cuts(manifest)
    return CutSet.from_cuts(done)


def check_ids(cuts: CutSet, name: str) -> None:
    """Cuts are named once each.

    Raises:
      UserError: some are not.
    """
    twice = [cut_id for cut_id, times in Counter(cuts.ids).items() if times > 1]
    if twice:
        raise UserError(f"{name}: {len(twice)} ids stand for several cuts, first {twice[0]}: give each its own")


def compute_split(
    cuts: CutSet, name: str, output_dir: Path, config: FeatureConfig, num_jobs: int, device: str = "cpu"
) -> CutSet:
    """Compute and store the features of `cuts` in `<output_dir>/feats_<name>`; shows a progress bar.

    Raises:
      UserError: audio that cannot be read, or a process was killed.
    """
    from lhotse import CutSet

    check_ids(cuts, name)
    storage = output_dir / f"feats_{name}"
    remove_features(storage)  # left by an interrupted run
    check_audio(cuts)
    storage.parent.mkdir(parents=True, exist_ok=True)
    extract = partial(extract_part, config, device, storage)
    try:
        jobs = min(num_jobs, len(cuts))
        if jobs <= 1:
            done = extract((None, cuts))
        else:
            storage.mkdir()
            parts = [(part, CutSet.from_cuts(islice(cuts, part, None, jobs))) for part in range(jobs)]
            done = chain.from_iterable(in_fresh_processes(extract, parts, jobs))
        found = {cut.id: cut for cut in done}
    except UserError:
        remove_features(storage)
        raise
    except Exception as error:  # the audio libraries have no common class
        remove_features(storage)
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"features of {name} cannot be computed ({type(error).__name__}: {reason})") from None
    unread = [cut for cut in cuts if cut.id not in found]
    if unread:
        remove_features(storage)
        where = unread[0].recording.sources[0].source
        raise UserError(f"features of {name} cannot be computed: {len(unread)} cuts of unreadable audio, first {where}")
    return CutSet.from_cuts(found[cut.id] for cut in cuts)  # in their order, however many jobs there were


def extract_part(config: FeatureConfig, device: str, storage: Path, part: tuple[int | None, CutSet]) -> CutSet:
    """Features of one of several parts, by number, or of all cuts (None); the first part's progress is shown."""
    from lhotse import LilcomChunkyWriter

    number, cuts = part
    if number is not None:  # a process among several
        torch.set_num_threads(1)
    logging.disable(logging.WARNING)  # lhotse warns of every cut that it leaves out, in ten lines; we count them
    try:
        return cuts.compute_and_store_features(
            extractor=make_extractor(config, device),
            storage_path=storage if number is None else storage / f"feats-{number}",
            storage_type=LilcomChunkyWriter,
            progress_bar=not number,
        )
    finally:
        logging.disable(logging.NOTSET)


def remove_features(storage: Path) -> None:
    """One job writes a file, several jobs write a folder."""
    shutil.rmtree(storage, ignore_errors=True)
    storage.with_suffix(".lca").unlink(missing_ok=True)


def check_audio(cuts: CutSet) -> None:
    """All audio files are there: a minute of work before a missing one is found would be lost."""
    seen: set[str] = set()
    for cut in cuts:
        choose_backend(cut)
        for source in cut.recording.sources if cut.has_recording else ():
            if source.type == "file" and source.source not in seen:
                seen.add(source.source)
                if not Path(source.source).is_file():
                    raise UserError(f"{source.source} (cut {cut.id}) does not exist: has the corpus been moved?")
