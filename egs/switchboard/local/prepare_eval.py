#!/usr/bin/env python3
"""Write lhotse manifests of one test set, and its STM and GLM for scoring.

./local/prepare_eval.py --test-set eval2000 --audio-dir LDC2002S09 --text-dir LDC2002T43 --data-dir data
./local/prepare_eval.py --test-set rt02 --audio-dir LDC2004S11 --data-dir data
./local/prepare_eval.py --test-set rt03 --audio-dir LDC2007S10 --data-dir data

Every scored segment of the STM becomes a supervision whose `custom["subset"]` says which part of the set it belongs
to: swbd and callhm of eval2000, swbd1, swbd2 and swbdcell of rt02, swbd and fsh of rt03. Stretches that the STM takes
out of the scoring are not decoded. data/<set>/stm is the discs' STM with channels A and B and without what sclite
trips over; data/<set>/glm is a copy. The texts are for a look at the results: only score.py counts as NIST does.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[2]), str(HERE)]

from discs import SIDES, Problems, check_folder, find_audio, find_files, is_english_talk, read_lines

from lowbit_k2.data.kaldi_dir import OVERHANG
from lowbit_k2.data.sources import recording_of
from lowbit_k2.errors import UserError, run_main
from lowbit_k2.fileio import atomic_write
from lowbit_k2.scoring.glm import filter_reference, read_glm
from lowbit_k2.scoring.stm import COMMENT, GAP_SPEAKER, StmSegment, read_stm, read_stm_header, write_stm

if TYPE_CHECKING:
    from lhotse import Recording, SupervisionSegment

CHANNELS = {"A": "A", "B": "B", "1": "A", "2": "B"}
LABEL = re.compile(r';;\s*LABEL\s+"([^"]*)"\s+"([^"]*)"\s+"([^"]*)"', re.IGNORECASE)
OTHER = "other"
# What the category of a segment or the name of its recording says about the subset, the first that fits.
SUBSETS: dict[str, tuple[tuple[str, str], ...]] = {
    "eval2000": (("swbd", r"^sw_|\bswitchboard\b|^sw$"), ("callhm", r"^en_|call ?home|^en$")),
    "rt02": (
        ("swbdcell", r"cell|^sw_4\d{4}$"),
        ("swbd2", r"switchboard[- ]?(2|ii)\b|\bsw(bd?|itchboard)?[-_ ]?2\b|^sw_[123]\d{4}$"),
        ("swbd1", r"switchboard[- ]?(1|i)?\b|\bsw(bd?|itchboard)?[-_ ]?1\b|^sw_\d{4}$"),
    ),
    "rt03": (("fsh", r"fisher|^fsh"), ("swbd", r"^sw_|swbd|switchboard")),
}


@dataclass(frozen=True)
class Reference:
    """An STM as this recipe uses it, in the file's order."""

    header: list[str]
    segments: list[StmSegment]


def find_stms(text_dir: Path, given: Path | None) -> list[Path]:
    """The STM files of English telephone speech.

    Raises:
      UserError: there is none.
    """
    if given is not None:
        return [given]
    found = [path for path in find_files(text_dir, ".stm") if is_english_talk(path, text_dir)]
    english = [path for path in found if "english" in str(path.relative_to(text_dir)).lower()]
    if not found:
        raise UserError(f"{text_dir} holds no STM of English telephone speech: check the folder, or give --stm")
    return english or found


def find_glm(text_dir: Path, given: Path | None) -> Path:
    """The rules of English: en*.glm, the last by name if there are several.

    Raises:
      UserError: there is none.
    """
    if given is not None:
        return given
    found = find_files(text_dir, ".glm")
    english = [path for path in found if path.name.lower().startswith("en")]
    if not found:
        raise UserError(f"{text_dir} holds no .glm, without which nobody's scores compare: give --glm")
    return max(english or found, key=lambda path: (path.name, path))


def read_reference(paths: list[Path], problems: Problems) -> Reference:
    """The STM files one after the other, cleaned: channels A and B, no gaps, no marks that scoring trips over.

    Raises:
      UserError: damaged files, or a channel that is neither A nor B.
    """
    header: dict[str, None] = {}
    segments: dict[tuple[str, str, float, float], StmSegment] = {}
    for path in paths:
        header.update(dict.fromkeys(read_stm_header(path)))
        for segment in read_stm(path):
            if segment.speaker == GAP_SPEAKER:
                continue
            if segment.channel.upper() not in CHANNELS:
                raise UserError(f"{path}: {segment.recording} has channel {segment.channel!r}, expected A or B")
            text = clean_reference(segment.text)
            if (paired := pair_parentheses(text)) != text:
                problems.add("segments of the STM have parentheses that do not pair, dropped", f"{path}: {text[:60]}")
            segment = replace(segment, channel=CHANNELS[segment.channel.upper()], text=paired)
            key = (segment.recording, segment.channel, segment.start, segment.end)
            if key in segments:
                problems.add("segments of the STM occur twice", f"{path}: {segment.line()[:60]}")
            segments.setdefault(key, segment)
    return Reference(list(header), list(segments.values()))


def clean_reference(text: str) -> str:
    """Without marks of asides and doubled brackets, which sclite does not know (so does Kaldi's eval2000)."""
    text = re.sub(r"<[BE]_ASIDE>", " ", text, flags=re.IGNORECASE).replace("((", "(").replace("))", ")")
    return " ".join(text.split())


def pair_parentheses(text: str) -> str:
    """Without parentheses that no other one closes, that surround others, or that hold nothing."""
    parts = re.split(r"(\([^()]*[^()\s][^()]*\))", text)
    parts[::2] = [re.sub(r"[()]", "", part) for part in parts[::2]]
    return " ".join("".join(parts).split())


def reference_words(text: str) -> str:
    """What was said: small letters, the first of alternatives, optional words as words, no noises."""
    text = re.sub(r"\{([^{}/]*)/[^{}]*\}", r"\1", text.lower())
    words = [re.sub(r"(?<=^[a-z])\.", "", word.strip("()")) for word in text.split()]  # u. s. is u s to the model
    kept = [word.lstrip("%") for word in words if word not in ("@", "/", "{", "}") and not re.match(r"[<\[]", word)]
    return " ".join("uh" if word == "hesitation" else word for word in kept if re.search(r"[a-z0-9]", word))


def name_subset(test_set: str, segment: StmSegment, titles: dict[str, str]) -> str:
    """By the titles of its categories in the STM's header, then its categories, then the recording's name."""
    labels = [label.lower() for label in segment.labels if label]
    for text in [*(titles[label] for label in labels if label in titles), *labels, segment.recording.lower()]:
        for subset, pattern in SUBSETS[test_set]:
            if re.search(pattern, text):
                return subset
    return OTHER


def label_titles(header: Iterable[str]) -> dict[str, str]:
    """en -> `callhome callhome conversations`, of LABEL lines."""
    found = (LABEL.match(line) for line in header)
    return {label[1].lower(): f"{label[2]} {label[3]}".lower() for label in found if label}


def check_pem(audio_dir: Path, text_dir: Path, segments: list[StmSegment], problems: Problems) -> None:
    """The PEM lists the stretches that systems were given; the STM should know each of them."""
    known = {(s.recording, s.channel, round(100 * s.start), round(100 * s.end)) for s in segments}
    recordings = {s.recording for s in segments}
    for path in dict.fromkeys([*find_files(audio_dir, ".pem"), *find_files(text_dir, ".pem")]):
        for number, line in read_lines(path):
            fields = line.split()
            if line.startswith(COMMENT) or not fields or fields[0] not in recordings:
                continue
            try:
                channel, start, end = CHANNELS[fields[1].upper()], float(fields[3]), float(fields[4])
            except (KeyError, ValueError, IndexError):
                problems.add("lines of the PEM are not understood", f"{path} line {number}: {line[:60]!r}")
                continue
            if (fields[0], channel, round(100 * start), round(100 * end)) not in known:
                problems.add("segments of the PEM are not in the STM", f"{path} line {number}: {line[:60]!r}")


def describe(segment: StmSegment, recording: Recording, subset: str, problems: Problems) -> SupervisionSegment | None:
    """lhotse's record of a segment, e.g. en_4156-A_030185-030248; None if it lies outside of the audio."""
    from lhotse import SupervisionSegment

    start, end = segment.start, min(segment.end, recording.duration)
    name = f"{segment.recording}-{segment.channel}_{round(100 * start):06d}-{round(100 * segment.end):06d}"
    if start >= end or segment.end > recording.duration + OVERHANG:
        problems.add("segments lie outside of their audio", f"{name}, which has {recording.duration} s")
    if start >= end:
        return None
    return SupervisionSegment(
        id=name,
        recording_id=recording.id,
        start=start,
        duration=round(end - start, 8),
        channel=SIDES.index(segment.channel),
        text=reference_words(segment.text),
        speaker=f"{segment.recording}-{segment.channel}",
        language="English",
        custom={"subset": subset},
    )


def open_audio(audio_dir: Path, names: list[str], wav_dir: Path, problems: Problems) -> dict[str, Recording]:
    """The recordings of the STM.

    Raises:
      UserError: some are missing, unreadable or have not two channels: the score would be of another test set.
    """
    audio = find_audio(audio_dir, problems)
    missing = [name for name in names if name.lower() not in audio]
    if missing:
        raise UserError(
            f"{audio_dir} lacks {len(missing)} of the {len(names)} calls in the STM, first {missing[0]}.sph: "
            "a score without them would not compare; copy all discs, or give an --stm without them"
        )
    recordings = {name: recording_of(audio[name.lower()], name, wav_dir) for name in names}
    for name, recording in recordings.items():
        if recording.num_channels != len(SIDES):
            raise UserError(f"{audio[name.lower()]} has {recording.num_channels} channels, expected 2: copy it again")
    return recordings


def prepare(args: argparse.Namespace) -> None:
    """Read everything, then write."""
    problems = Problems()
    audio_dir = check_folder(args.audio_dir, "--audio-dir", f"{args.test_set}'s audio")
    text_dir = check_folder(args.text_dir or args.audio_dir, "--text-dir", f"{args.test_set}'s STM and GLM")
    glm = find_glm(text_dir, args.glm)
    reference = read_reference(find_stms(text_dir, args.stm), problems)
    for kind in ("ref", "hyp"):  # better now than when a trained model is scored
        filter_reference(reference.segments, read_glm(glm, kind), f"the STM of {args.test_set}")
    check_pem(audio_dir, text_dir, reference.segments, problems)
    names = sorted({segment.recording for segment in reference.segments if not segment.is_ignored})
    recordings = open_audio(audio_dir, names, args.data_dir / "wav" / args.test_set, problems)
    titles = label_titles(reference.header)
    supervisions = {}
    for segment in reference.segments:
        if segment.is_ignored:
            continue
        subset = name_subset(args.test_set, segment, titles)
        if subset == OTHER:
            problems.add("segments belong to no known subset", segment.line()[:60])
        supervision = describe(segment, recordings[segment.recording], subset, problems)
        if supervision is not None and supervisions.setdefault(supervision.id, supervision) is not supervision:
            problems.add("segments are closer than 0.01 s to another one and left out", supervision.id)
    problems.report()
    if not supervisions:
        raise UserError(f"the STM of {args.test_set} has no segment that is scored: give another --stm")
    write(args, reference, glm, sorted(supervisions.values(), key=lambda s: s.id), recordings)


def write(
    args: argparse.Namespace,
    reference: Reference,
    glm: Path,
    supervisions: list[SupervisionSegment],
    recordings: dict[str, Recording],
) -> None:
    """STM, GLM and manifests; the recordings last, because the next stage looks for them."""
    from lhotse import RecordingSet, SupervisionSet

    name, manifest_dir = args.test_set, args.manifest_dir or args.data_dir / "manifests"
    write_stm(args.data_dir / name / "stm", reference.segments, reference.header)
    with atomic_write(args.data_dir / name / "glm") as temporary:
        shutil.copyfile(glm, temporary)
    with atomic_write(manifest_dir / f"swbd_supervisions_{name}.jsonl.gz") as temporary:
        SupervisionSet.from_segments(supervisions).to_file(temporary)
    with atomic_write(manifest_dir / f"swbd_recordings_{name}.jsonl.gz") as temporary:
        RecordingSet.from_recordings(recordings.values()).to_file(temporary)
    parts = Counter(supervision.custom["subset"] for supervision in supervisions)
    hours = sum(supervision.duration for supervision in supervisions) / 3600
    shown = ", ".join(f"{count} {subset}" for subset, count in sorted(parts.items()))
    print(f"{name}: {len(supervisions)} segments ({shown}) of {len(recordings)} calls, {hours:.2f} hours; {glm.name}")


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--test-set", choices=tuple(SUBSETS), required=True)
    parser.add_argument("--audio-dir", type=Path, required=True, help="holds the .sph files, at any depth")
    parser.add_argument("--text-dir", type=Path, help="holds STM and GLM; by default --audio-dir")
    parser.add_argument("--data-dir", type=Path, required=True, help="gets <set>/stm, <set>/glm and manifests/")
    parser.add_argument("--manifest-dir", type=Path, help="by default manifests in --data-dir")
    parser.add_argument("--stm", type=Path, help="this one, instead of all STMs of English telephone speech there")
    parser.add_argument("--glm", type=Path, help="this one, instead of the last en*.glm there")
    return parser


if __name__ == "__main__":
    run_main(lambda: prepare(get_parser().parse_args()))
