"""Compute filter banks of a corpus's splits: features and cut manifests, the last stage before training.

  python -m lowbit_k2.recipe.compute_fbank --corpus an4 --splits "train dev test" \
    --manifest-dir data/manifests --output-dir data/fbank --perturb-speed true
  python -m lowbit_k2.recipe.compute_fbank --corpus musan --splits "music speech noise" --window 10 \
    --manifest-dir data/manifests --output-dir data/fbank

Your own data, a Kaldi data directory or any lhotse cuts (docs/own-data.md):
  python -m lowbit_k2.recipe.compute_fbank --corpus mine --splits train --kaldi-dir kaldi/train \
    --output-dir data/fbank --normalize-text upper --transcript data/transcript_train.txt

Reads `<corpus>_recordings_<split>.jsonl.gz` and `<corpus>_supervisions_<split>.jsonl.gz` (or
`<corpus>_cuts_<split>.jsonl.gz`) and writes `<corpus>_cuts_<split>.jsonl.gz` with the features beside it. Training
splits (`train*`) are written in a shuffled order, with copies at 0.9 and 1.1 of the speed if wanted. A split whose
manifest is there already is skipped; the manifest is written last, so an interrupted run leaves none.
"""

from __future__ import annotations

import argparse
import logging
import random
import shutil
from collections import Counter
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lowbit_k2.data.features import FeatureConfig, check_feature_config, make_extractor, write_feature_config
from lowbit_k2.data.filter import cut_text
from lowbit_k2.data.kaldi_dir import read_kaldi_dir
from lowbit_k2.data.manifests import cuts_path, read_cuts
from lowbit_k2.data.sphere import choose_backend
from lowbit_k2.data.text import NORMALIZERS, normalizer
from lowbit_k2.errors import UserError, run_main
from lowbit_k2.fileio import atomic_write
from lowbit_k2.processes import check_num_jobs, in_fresh_processes
from lowbit_k2.recipe.flags import add_flags, read_flags, str2bool

if TYPE_CHECKING:
    from lhotse import CutSet

SPEEDS = (0.9, 1.1)


def read_manifests(manifest_dir: Path, corpus: str, split: str) -> CutSet:
    """Cuts of a split: from its cut manifest if there is one, else one per supervision of its recordings.

    Recordings without a supervision manifest (noise) give one cut each.

    Raises:
      UserError: no manifests, or damaged ones.
    """
    from lhotse import CutSet, RecordingSet, SupervisionSet

    if cuts_path(manifest_dir, corpus, split).is_file():
        return read_cuts(cuts_path(manifest_dir, corpus, split))
    recordings = manifest_dir / f"{corpus}_recordings_{split}.jsonl.gz"
    supervisions = manifest_dir / f"{corpus}_supervisions_{split}.jsonl.gz"
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


def read_own(args: argparse.Namespace, split: str) -> CutSet:
    """The cuts that the flags name: a Kaldi data directory, a cut manifest, or the manifest folder's."""
    if args.kaldi_dir is not None:
        return read_kaldi_dir(args.kaldi_dir)
    if args.cuts is not None:
        return read_cuts(args.cuts)
    return read_manifests(args.manifest_dir, args.corpus, split)


def with_normalized_texts(cuts: CutSet, name: str) -> CutSet:
    """The same cuts, their transcripts normalised."""
    normalize = normalizer(name)
    return cuts.map_supervisions(lambda supervision: supervision.transform_text(normalize)).to_eager()


def write_transcript(cuts: CutSet, path: Path) -> None:
    """Texts that are not empty, one utterance a line: for train_bpe, prepare_lang and make_lm."""
    texts = [text for text in map(cut_text, cuts) if text]
    with atomic_write(path) as temporary:
        temporary.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")


def utterances(cuts: CutSet) -> CutSet:
    """One cut per supervision, named after it; cuts without any (noise) stay as they are."""
    from lhotse import CutSet

    if not any(cut.supervisions for cut in cuts):
        return cuts
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
      UserError: lhotse lacks what it resamples with.
    """
    import importlib.util

    from lhotse import CutSet

    rates = {cut.sampling_rate for cut in cuts}
    if rates <= {sampling_rate}:
        return cuts
    if not any(importlib.util.find_spec(name) for name in ("torchaudio", "scipy")):
        odd = min(rates - {sampling_rate})
        raise UserError(f"audio at {odd} Hz has to be resampled, which needs torchaudio or scipy: pip install scipy")
    return CutSet.from_cuts(cut if cut.sampling_rate == sampling_rate else cut.resample(sampling_rate) for cut in cuts)


def parts_folder(target: Path) -> Path:
    """Where the manifests of finished parts lie until the split is whole."""
    return target.with_name(target.name.replace(".jsonl.gz", ".parts"))


def compute_in_parts(
    cuts: CutSet, args: argparse.Namespace, split: str, output_dir: Path, config: FeatureConfig
) -> CutSet:
    """`compute_split` part by part, `--num-splits` of them; those that an interrupted run finished are kept."""
    from lhotse import CutSet

    name = f"{args.corpus}_{split}"
    parts = min(args.num_splits, len(cuts))
    if parts <= 1:
        return compute_split(cuts, name, output_dir, config, args.num_jobs, args.device)
    check_ids(cuts, name)
    done = []
    for number, part in enumerate(cuts.split(parts), start=1):
        label = f"{number:0{len(str(parts))}}-of-{parts}"
        manifest = parts_folder(cuts_path(output_dir, args.corpus, split)) / f"{label}.jsonl.gz"
        if manifest.is_file() and list(read_cuts(manifest).ids) == list(part.ids):
            logging.info("%s: part %s is there already", name, label)
        else:
            part = compute_split(part, f"{name}_{label}", output_dir, config, args.num_jobs, args.device)
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


def compute_fbank(args: argparse.Namespace) -> None:
    """Do all splits that are not done."""
    config = read_flags(FeatureConfig, args)
    splits = args.splits.split()
    if not splits:
        raise UserError("--splits names no split")
    check_num_jobs(args.num_jobs)
    if args.num_splits < 1:
        raise UserError("--num-splits must be at least 1")
    sources = [source for source in (args.manifest_dir, args.kaldi_dir, args.cuts) if source is not None]
    if len(sources) != 1:
        raise UserError("give one of --manifest-dir, --kaldi-dir and --cuts: they say where the speech comes from")
    if len(splits) > 1 and (args.manifest_dir is None or args.transcript is not None):
        raise UserError("--kaldi-dir, --cuts and --transcript go with one split: call the command once for each")
    output_dir = args.output_dir.resolve()  # manifests name features by full paths: usable from any folder
    check_feature_config(output_dir, config)
    for split in splits:
        target = cuts_path(output_dir, args.corpus, split)
        if target.is_file():
            logging.info("%s is there already: skipped", target)
            continue
        cuts = utterances(with_normalized_texts(read_own(args, split), args.normalize_text))
        if args.transcript is not None:
            write_transcript(cuts, args.transcript)
        cuts = prepare_cuts(cuts, split, config, args.perturb_speed, args.window)
        cuts = compute_in_parts(cuts, args, split, output_dir, config)
        write_feature_config(output_dir, config)
        with atomic_write(target) as temporary:
            cuts.to_file(temporary)
        shutil.rmtree(parts_folder(target), ignore_errors=True)
        hours = sum(cut.duration for cut in cuts) / 3600
        logging.info("%s: %d cuts, %.2f hours", target, len(cuts), hours)


def get_parser() -> argparse.ArgumentParser:
    """Flags of this stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest-dir", type=Path, help="lhotse's recordings and supervisions, or cuts")
    parser.add_argument("--kaldi-dir", type=Path, help="instead: a Kaldi data directory (wav.scp, text, segments)")
    parser.add_argument("--cuts", type=Path, help="instead: a lhotse cut manifest")
    parser.add_argument("--output-dir", type=Path, required=True, help="features and cut manifests go here")
    parser.add_argument("--corpus", required=True, help="first part of the manifests' names")
    parser.add_argument("--splits", required=True, help="splits, separated by spaces")
    parser.add_argument("--perturb-speed", type=str2bool, default=False, help="add training speech at 0.9 and 1.1")
    parser.add_argument("--window", type=float, default=0.0, help="cut recordings into windows of so many seconds")
    parser.add_argument("--normalize-text", choices=NORMALIZERS, default="none", help="case, and no punctuation")
    parser.add_argument("--transcript", type=Path, help="also write the texts to this file, one utterance a line")
    parser.add_argument("-j", "--num-jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--num-splits", type=int, default=1, help="parts, each of which is kept once it is done")
    parser.add_argument("--device", default="cpu", help="for kaldifeat: cpu or cuda")
    add_flags(parser, FeatureConfig)
    return parser


def main() -> None:
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO, datefmt="%Y-%m-%d %H:%M:%S")
    torch.set_num_threads(1)
    compute_fbank(get_parser().parse_args())


if __name__ == "__main__":
    run_main(main)
