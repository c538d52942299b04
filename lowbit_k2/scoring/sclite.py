"""NIST's sclite: find it, run it as hubscr.pl does for English, and read its counts by segment.

Debian's package `sctk` puts the programs into /usr/lib/sctk/bin, which is not on PATH. The options are hubscr.pl's:
`-F` counts a word as correct where the reference has its fragment, `-D` an optional word that is left out. What
hubscr.pl writes about confidences (`-C det sbhist hist`) is left out: our hypotheses have none.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from lowbit_k2.errors import UserError
from lowbit_k2.fileio import TEMPORARY
from lowbit_k2.scoring.ctm import CtmWord
from lowbit_k2.scoring.glm import HypothesisItem, write_filtered_ctm
from lowbit_k2.scoring.nist import SegmentScore, in_scoring_order, is_scored, place_of, segment_place
from lowbit_k2.scoring.stm import StmSegment, write_stm
from lowbit_k2.scoring.word_network import NULL, Counts

VARIABLE = "LOWBIT_K2_SCTK"  # the folder of NIST's programs
DEBIAN_FOLDER = Path("/usr/lib/sctk/bin")
REPORTS = ("sum", "rsum", "sgml", "lur", "dtl", "pra", "prf")
REFERENCE, HYPOTHESIS, NAME = "ref.filt.stm", "hyp.filt.ctm", "sclite"
TIMEOUT = 3600  # seconds; a test set takes a few
COUNTS = re.compile(r"Scores: \(#C #S #D #I\) (\d+) (\d+) (\d+) (\d+)")
LABEL = re.compile(r';;\s*LABEL\s+"([^"]*)"', re.IGNORECASE)


def find_sclite(environ: Mapping[str, str] = os.environ, folder: Path = DEBIAN_FOLDER) -> Path | None:
    """The program: in the folder that LOWBIT_K2_SCTK names, on PATH, or where Debian has it; None if nowhere.

    Raises:
      UserError: LOWBIT_K2_SCTK is set and holds no sclite.
    """
    wanted = environ.get(VARIABLE)
    if wanted:
        program = Path(wanted) / "sclite"
        if not os.access(program, os.X_OK):
            raise UserError(f"{VARIABLE}={wanted} holds no program sclite: name the folder it is in, or unset it")
        return program
    on_path = shutil.which("sclite", path=environ.get("PATH"))
    if on_path is not None:
        return Path(on_path)
    return folder / "sclite" if os.access(folder / "sclite", os.X_OK) else None


def score_with_sclite(
    program: Path,
    segments: Iterable[StmSegment],
    header: Sequence[str],
    items: Iterable[HypothesisItem],
    output_dir: Path,
) -> list[SegmentScore]:
    """Score as `nist.score_segments` does, by sclite, and leave its input and its reports in a folder.

    Args:
      segments: filtered reference.
      header: comment lines of the reference, which name its labels.
      items: filtered hypothesis, sorted by time within each channel.
      output_dir: gets ref.filt.stm, hyp.filt.ctm and sclite.{sys,raw,pra,dtl,lur,prf,sgml}.

    Raises:
      UserError: sclite failed, or its reports are not those of these segments.
    """
    segments = in_scoring_order(segments)
    output_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output_dir, prefix=TEMPORARY) as name:
        folder = Path(name)
        write_input(folder, segments, header, items)
        _run(program, folder)
        counts = read_counts(folder / f"{NAME}.pra")
        scored = [segment for segment in segments if is_scored(segment)]
        if [place for place, _ in counts] != [segment_place(segment) for segment in scored]:
            raise UserError(
                f"{program} scored {len(counts)} segments instead of {len(scored)}: "
                "is it NIST's? choose another, or the Python scorer"
            )
        for path in folder.iterdir():
            path.replace(output_dir / path.name)
    return [SegmentScore(segment, c) for segment, (_, c) in zip(scored, counts, strict=True)]


def write_input(
    folder: Path, segments: Sequence[StmSegment], header: Sequence[str], items: Iterable[HypothesisItem]
) -> None:
    """Write the filtered reference and hypothesis so that sclite takes them.

    It stops at a label without a name, and at a recording or channel that only one side has: a channel without words
    gets `@`, which counts as nothing, and words of channels that the reference lacks are left out.
    """
    known = {found[1].lower() for line in header if (found := LABEL.match(line))}
    used = dict.fromkeys(label for segment in segments for label in segment.labels)
    names = [f';; LABEL "{label}" "{label}" "{label}"' for label in used if label.lower() not in known]
    write_stm(folder / REFERENCE, segments, [*header, *names])
    by_place: dict[tuple[str, str], list[HypothesisItem]] = {segment_place(segment): [] for segment in segments}
    first = {segment_place(segment): segment for segment in reversed(segments)}
    for item in items:
        by_place.get(place_of(*item.place), []).append(item)
    ordered: list[HypothesisItem] = []
    for place, mine in sorted(by_place.items()):
        segment = first[place]
        silent = CtmWord(segment.recording, segment.channel, segment.start, 0.0, NULL)
        ordered += mine or [HypothesisItem(((silent,),))]
    write_filtered_ctm(folder / HYPOTHESIS, ordered)


def _run(program: Path, folder: Path) -> None:
    command = [str(program), "-r", REFERENCE, "stm", "-h", HYPOTHESIS, "ctm", "hyp", "-F", "-D"]
    command += ["-o", *REPORTS, "-n", NAME]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, timeout=TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"{program} cannot be run ({error}): choose another, or the Python scorer") from None
    if done.returncode != 0 or not (folder / f"{NAME}.pra").is_file():
        said = (done.stderr or done.stdout).decode("utf-8", "replace").split("\n")
        last = next((line.strip() for line in reversed(said) if line.strip()), "it said nothing")
        raise UserError(f"{program} failed with status {done.returncode} ({last[:200]}): try the Python scorer")


def read_counts(path: Path) -> list[tuple[tuple[str, str], Counts]]:
    """Recording and channel (lower case) and counts of each segment of a .pra report, in the order of the STM file.

    The report is the one that names both and has the counts as numbers, so that odd words cannot mislead us.
    """
    found: list[tuple[tuple[str, str], Counts]] = []
    recording = channel = ""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("File: "):
            recording = line.split()[1].lower()
        elif line.startswith("Channel: "):
            channel = line.split()[1].lower()
        elif (numbers := COUNTS.match(line)) is not None:
            corr, sub, dels, ins = map(int, numbers.groups())
            found.append(((recording, channel), Counts(corr, sub, ins, dels)))
    return found
