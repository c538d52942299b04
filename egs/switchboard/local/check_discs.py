#!/usr/bin/env python3
"""Look at the discs before the stages rely on them: what is there, what is missing and which LDC number it has.

./local/check_discs.py --swbd-dir LDC97S62 --ms98-dir swb_ms98_transcriptions \
    --eval2000-audio LDC2002S09 --eval2000-text LDC2002T43 --rt02-dir LDC2004S11 --rt03-dir LDC2007S10 \
    --fisher-text LDC2004T19,LDC2005T19

Folders may be laid out in any way; an empty name stands for a part that you do not have, which is left out. Training
audio and its transcripts must be there, every part that is named must be whole enough for its stage, and sph2pipe must
be there where audio is compressed; all else is counted, named on stderr, and left out by the later stages.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[2]), str(HERE)]

from discs import (
    DICTIONARY,
    SIDES,
    Problems,
    check_folder,
    find_audio,
    find_calls,
    find_files,
    find_one,
    find_transcripts,
    read_callers,
)

from lowbit_k2.data.sources import check_audio_file
from lowbit_k2.data.sphere import GET_SPH2PIPE, SPH2PIPE, audio_shape, count_samples, is_cut, read_header
from lowbit_k2.errors import UserError, run_main

# Release 2 of Switchboard-1 has 2438 calls, all of which ms98 transcribes (4876 sides). Copies of the discs with 2435
# are about, too; Kaldi's recipe takes both numbers for whole.
WHOLE = (2435, 2438)
SMALL = 500  # fewer calls are no set of discs but somebody's choice
SWBD = "LDC97S62 (Switchboard-1 Release 2)"
MS98 = "the ms98 transcripts (switchboard_word_alignments.tar.gz of Mississippi State's ISIP, also on OpenSLR as SLR5)"


@dataclass(frozen=True)
class TestSet:
    """What one test set needs."""

    name: str
    audio_flag: str
    text_flag: str
    audio_source: str
    text_source: str
    calls: int


TEST_SETS = (
    TestSet("eval2000", "eval2000_audio", "eval2000_text", "LDC2002S09", "LDC2002T43", 40),
    TestSet("rt02", "rt02_dir", "rt02_dir", "LDC2004S11", "LDC2004S11", 60),
    TestSet("rt03", "rt03_dir", "rt03_dir", "LDC2007S10", "LDC2007S10", 72),
)


def count_word(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def check_headers(audio: dict[str, Path], problems: Problems) -> int:
    """Headers make sense, two channels, whole; returns how many files are compressed."""
    compressed = 0
    for path in audio.values():
        try:
            if path.suffix.lower() == ".wav":
                check_audio_file(path)
                header, channels = None, audio_shape(path)[1]
            else:
                header = read_header(path)
                channels = header.num_channels
        except UserError as error:
            problems.add("audio files are unreadable", str(error))
            continue
        if channels != len(SIDES):
            problems.add("audio files have not two channels", f"{path} ({channels})")
        if header is None:
            continue
        compressed += header.shorten
        if is_cut(header, found := count_samples(path, header)):
            problems.add("audio files are cut", f"{path} ({found} of {header.num_samples} samples)")
    return compressed


def check_training(swbd_dir: Path, ms98_dir: Path, problems: Problems) -> int:
    """Print what there is to train on; returns how many files are compressed.

    Raises:
      UserError: no audio, or no transcripts of it.
    """
    calls, transcripts = find_calls(swbd_dir, problems), find_transcripts(ms98_dir, problems)
    if not calls:
        raise UserError(f"{swbd_dir} holds no sw0NNNN.sph: give --swbd-dir the folder of {SWBD}")
    if not transcripts:
        raise UserError(f"{ms98_dir} holds no swNNNNA-ms98-a-trans.text: give --ms98-dir the folder of {MS98}")
    compressed = check_headers(calls, problems)
    for (call, _), path in transcripts.items():
        if call not in calls:
            problems.add("transcripts have no audio", str(path))
        elif path.stat().st_size == 0:
            problems.add("transcripts are empty", str(path))
    for call, path in calls.items():
        for side in SIDES:
            if (call, side) not in transcripts:
                problems.add("sides have audio and no transcript", f"{path} side {side}")
    both = sum(all((call, side) in transcripts for side in SIDES) for call in calls)
    if both == 0 and not any(call in calls for call, _ in transcripts):
        raise UserError(f"no call of {swbd_dir} has a transcript in {ms98_dir}: do the two belong together?")
    print(f"{swbd_dir}: {count_word(len(calls), 'call')}, {both} of them with transcripts of both sides")
    check_number(len(calls))
    check_papers(swbd_dir, ms98_dir)
    return compressed


def check_number(calls: int) -> None:
    """Say what it means that there are so many."""
    whole = f"{SWBD} has {WHOLE[1]} (some copies {WHOLE[0]})"
    if calls < SMALL:
        print(f"note: a small set of {count_word(calls, 'call')}; {whole}")
    elif calls not in WHOLE:
        print(f"warning: {calls} calls, but {whole}: is a disc missing, or another corpus beside it?", file=sys.stderr)


def check_papers(swbd_dir: Path, ms98_dir: Path) -> None:
    """The dictionary and the table of callers."""
    dictionary = find_one([ms98_dir, swbd_dir], DICTIONARY)
    if dictionary is None:
        print(f"note: no {DICTIONARY}: no phone lexicon, and acronyms are not spelled; it comes with {MS98}")
    else:
        print(f"{dictionary}: the dictionary")
    callers, table = read_callers([swbd_dir, ms98_dir], Problems())
    if callers:
        print(f"{table}: {len(set(callers.values()))} callers")
    else:
        print(
            "note: no table of callers (conv_tab.csv or call_con_tab.csv, free in LDC97S62's online documentation): "
            "dev is held out by conversation only, and its speakers may be in training"
        )


def check_test_set(test_set: TestSet, audio_dir: Path | None, text_dir: Path | None, problems: Problems) -> int:
    """Print what there is of a test set; returns how many files are compressed.

    Raises:
      UserError: its folders were named and lack audio, STM or GLM: a later stage would stop there.
    """
    missing = []
    audio = find_audio(audio_dir, problems) if audio_dir else {}
    if not audio:
        missing.append(f"audio ({test_set.audio_source}, --{test_set.audio_flag.replace('_', '-')})")
    for suffix, what in ((".stm", "STM"), (".glm", "GLM")):
        if not (text_dir and find_files(text_dir, suffix)):
            missing.append(f"{what} ({test_set.text_source}, --{test_set.text_flag.replace('_', '-')})")
    if missing and (audio_dir or text_dir):
        raise UserError(f"{test_set.name}: there is no {', no '.join(missing)}: check the folders, or leave them out")
    if missing:
        print(f"note: {test_set.name} is left out: no {', no '.join(missing)}")
        return 0
    compressed = check_headers(audio, problems)
    print(f"{test_set.name}: {count_word(len(audio), 'audio file')}, STM and GLM")
    if len(audio) < test_set.calls:
        print(f"note: {test_set.name} has {test_set.calls} calls on LDC's discs, here are {len(audio)}")
    return compressed


def check_fisher(names: str) -> None:
    """Fisher's transcripts, which only the language model uses.

    Raises:
      UserError: folders were named and hold none.
    """
    folders = [check_folder(Path(name), "--fisher-text", "Fisher transcripts") for name in names.split(",") if name]
    number = sum(len([p for p in find_files(f, ".txt") if p.name.lower().startswith("fe_03_")]) for f in folders)
    if folders and not number:
        raise UserError(f"no fe_03_*.txt below {names}: give --fisher-text LDC2004T19 and LDC2005T19, or leave it out")
    if number:
        print(f"Fisher: {count_word(number, 'transcript')} of 11699")
    else:
        print("note: no Fisher transcripts (LDC2004T19, LDC2005T19, --fisher-text): the language model does without")


def optional_folder(path: str, flag: str, what: str) -> Path | None:
    return check_folder(Path(path), flag, what) if path else None


def check_discs(args: argparse.Namespace) -> None:
    """Look at everything, then report what is wrong.

    Raises:
      UserError: nothing to train on, a named part without what it is named for, or compressed audio and no sph2pipe.
    """
    problems = Problems()
    swbd_dir = check_folder(args.swbd_dir, "--swbd-dir", SWBD)
    ms98_dir = check_folder(args.ms98_dir, "--ms98-dir", MS98)
    folders = {
        flag: optional_folder(getattr(args, flag), f"--{flag.replace('_', '-')}", f"{t.name}")
        for t in TEST_SETS
        for flag in (t.audio_flag, t.text_flag)
    }
    compressed = check_training(swbd_dir, ms98_dir, problems)
    for t in TEST_SETS:
        compressed += check_test_set(t, folders[t.audio_flag], folders[t.text_flag], problems)
    check_fisher(args.fisher_text)
    problems.report()
    if compressed and shutil.which(SPH2PIPE) is None:
        raise UserError(
            f"{count_word(compressed, 'audio file')} compressed with shorten, and no sph2pipe: {GET_SPH2PIPE}"
        )


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--swbd-dir", type=Path, required=True, help=SWBD)
    parser.add_argument("--ms98-dir", type=Path, required=True, help=MS98)
    for t in TEST_SETS:
        for flag, source in dict.fromkeys([(t.audio_flag, t.audio_source), (t.text_flag, t.text_source)]):
            parser.add_argument(f"--{flag.replace('_', '-')}", default="", help=source)
    parser.add_argument("--fisher-text", default="", help="LDC2004T19 and LDC2005T19, by commas")
    return parser


if __name__ == "__main__":
    run_main(lambda: check_discs(get_parser().parse_args()))
