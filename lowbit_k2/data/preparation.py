"""Cuts of a corpus made ready for feature extraction: read, normalised, one per utterance, resampled, shuffled."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lowbit_k2.core.features import FeatureConfig
from lowbit_k2.data.filter import cut_text
from lowbit_k2.data.manifests import cuts_path, read_cuts
from lowbit_k2.data.resampling import check_recording, resample_in_lhotse
from lowbit_k2.data.sources import parts_of
from lowbit_k2.data.text import marks, normalizer
from lowbit_k2.errors import UserError
from lowbit_k2.fileio import atomic_write

if TYPE_CHECKING:
    from lhotse import CutSet

SPEEDS = (0.9, 1.1)
MOST_SHOWN = 10  # kinds of marks


def manifest_files(manifest_dir: Path, corpus: str, split: str) -> list[Path]:
    """Where cuts, recordings and supervisions of a split are looked for."""
    names = (f"{corpus}_{kind}_{split}.jsonl.gz" for kind in ("cuts", "recordings", "supervisions"))
    return [manifest_dir / name for name in names]


def read_manifests(manifest_dir: Path, corpus: str, split: str) -> CutSet:
    """Cuts of a split: from its cut manifest if there is one, else one per supervision of its recordings.

    Recordings without a supervision manifest (noise) give one cut each.

    Raises:
      UserError: no manifests, or damaged ones.
    """
    from lhotse import CutSet, RecordingSet, SupervisionSet

    if cuts_path(manifest_dir, corpus, split).is_file():
        return read_cuts(cuts_path(manifest_dir, corpus, split))
    _, recordings, supervisions = manifest_files(manifest_dir, corpus, split)
    if not recordings.is_file():
        raise UserError(f"{recordings} does not exist: run the stage that makes manifests first")
    try:
        audio = RecordingSet.from_file(recordings)
        if not supervisions.is_file():
            return CutSet.from_manifests(recordings=audio)
        return CutSet.from_manifests(recordings=audio, supervisions=SupervisionSet.from_file(supervisions))
    except Exception as error:  # lhotse has no class of its own for damaged manifests
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{recordings} cannot be read ({reason}): remove it and make it again") from None


def speech_cuts(manifest_dir: Path, corpus: str, splits: Sequence[str], sampling_rate: int) -> CutSet:
    """Utterances of splits as one set, from their cut manifests or else their recordings, for who reads audio alone.

    Raises:
      UserError: a manifest is missing or damaged, no split is named, or one utterance is named twice.
    """
    from lhotse import CutSet

    if not splits:
        raise UserError("no split was named")
    found = []
    for split in splits:
        cuts = read_manifests(manifest_dir, corpus, split)
        found += cuts if cuts_path(manifest_dir, corpus, split).is_file() else utterances(cuts)
    every = CutSet.from_cuts(found)
    check_ids(every, f"{corpus} {' '.join(splits)}")
    return to_sampling_rate(every, sampling_rate)


def check_ids(cuts: CutSet, name: str) -> None:
    """Cuts are named once each.

    Raises:
      UserError: some are not.
    """
    twice = [cut_id for cut_id, times in Counter(cuts.ids).items() if times > 1]
    if twice:
        raise UserError(f"{name}: {len(twice)} ids stand for several cuts, first {twice[0]}: give each its own")


def with_normalized_texts(cuts: CutSet, name: str) -> CutSet:
    """The same cuts, their transcripts normalised; logs which marks were left out."""
    normalize = normalizer(name)
    if name != "none":
        found = Counter(mark for cut in cuts for s in cut.supervisions for mark in marks(s.text or ""))
        if found:
            shown = ", ".join(f"{mark} {times}" for mark, times in found.most_common(MOST_SHOWN))
            more = f" and {len(found) - MOST_SHOWN} more" if len(found) > MOST_SHOWN else ""
            logging.info("marks left out of the transcripts: %s%s", shown, more)
    return cuts.map_supervisions(lambda supervision: supervision.transform_text(normalize)).to_eager()


def write_transcript(cuts: CutSet, path: Path) -> None:
    """Texts that are not empty, one utterance a line: for train_bpe, prepare_lang and make_lm."""
    texts = [text for text in map(cut_text, cuts) if text]
    with atomic_write(path) as temporary:
        temporary.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")


def utterances(cuts: CutSet) -> CutSet:
    """One cut per supervision, named after it; cuts without any (noise) stay as they are."""
    from lhotse import CutSet

    bare = [cut.id for cut in cuts if not cut.supervisions]
    if len(bare) == len(cuts):
        return cuts
    if bare:
        logging.warning("%d of %d cuts without a transcript are left out, first %s", len(bare), len(cuts), bare[0])
    cuts = cuts.trim_to_supervisions(keep_overlapping=False).to_eager()
    names = [cut.supervisions[0].id for cut in cuts]
    if len(set(names)) < len(names):  # then lhotse's names: recordings with a counter
        return cuts
    return CutSet.from_cuts(cut.with_id(name) for cut, name in zip(cuts, names, strict=True))


def prepare_cuts(cuts: CutSet, split: str, config: FeatureConfig, perturb_speed: bool, window: float) -> CutSet:
    """Cut windows, leave out what is shorter than a frame, bring to one sampling rate, add speeds, shuffle training."""
    from lhotse import CutSet

    if window > 0:
        cuts = cuts.cut_into_windows(window).to_eager()
    short = [cut.id for cut in cuts if cut.duration < config.frame_length]  # no features can be computed of these
    if short:
        logging.warning("%s: %d cuts shorter than a frame are left out, first %s", split, len(short), short[0])
        cuts = cuts.filter(lambda cut: cut.duration >= config.frame_length).to_eager()
    cuts = to_sampling_rate(cuts, config.sampling_rate)
    if not split.startswith("train"):
        return cuts
    if perturb_speed:
        cuts = CutSet.from_cuts([*cuts, *(cut.perturb_speed(speed) for speed in SPEEDS for cut in cuts)])
    order = sorted(cuts, key=lambda cut: cut.id)
    random.Random(0).shuffle(order)  # a lazily read manifest is shuffled in a window only
    return CutSet.from_cuts(order)


def to_sampling_rate(cuts: CutSet, sampling_rate: int) -> CutSet:
    """Cuts whose audio is resampled on reading.

    Raises:
      UserError: a recording with a rate that none has.
    """
    from lhotse import CutSet

    rates = {cut.sampling_rate for cut in cuts}
    if rates <= {sampling_rate}:
        return cuts
    for cut in cuts:
        for part in parts_of(cut):
            if part.has_recording:
                check_recording(part.recording)
    resample_in_lhotse()
    return CutSet.from_cuts(cut if cut.sampling_rate == sampling_rate else cut.resample(sampling_rate) for cut in cuts)
