"""Write the embedded corpus as the LDC's discs and ISIP's transcripts have it.

Formats, as far as their public descriptions and the scripts that read them tell: NIST SPHERE (two interleaved mu-law
channels); ms98 transcripts (`sw2001A-ms98-a-0001 start end words`); caller_tab.csv and conv_tab.csv of LDC97S62
(columns in its caller_doc.txt and conv_doc.txt); the PEM of LDC2002S09 (`name channel speaker start end`); the STM of
LDC2002T43 (`name channel speaker start end <O,en,F,en-F> WORDS`).
"""

from __future__ import annotations

import io
import random
import re
from pathlib import Path

import numpy as np
import soundfile
from mini_calls import SIDES, Call, Caller, Plan
from mini_dialogue import EVENTS, HESITATIONS, TOPICS
from mini_line import LINE_RATE
from mini_talk import Segment, Talk

from lowbit_k2.synthesis.grammar import draw, uniform_int

IGNORED = "IGNORE_TIME_SEGMENT_IN_SCORING"
ALTERNATIVES = {"because_1": "{ BECAUSE / 'CAUSE }", "bye-bye": "{ BYE-BYE / BYE BYE }"}  # as spelled in references
CORPORA = {"callhm": ("en", "Callhome"), "swbd": ("sw", "Switchboard")}  # part -> (label, name)
UNSAID = re.compile(r"\[.*\]")  # th[at]-
SEXES = {"F": "Female", "M": "Male"}
DIALECTS = ("SOUTH MIDLAND", "WESTERN", "NORTHERN", "NORTH MIDLAND", "SOUTHERN", "NYC", "NEW ENGLAND", "MIXED")
FIRST_TOPIC = 301  # the number of the first of TOPICS in conv_tab.csv
DISCS = 2


def audio_path(root: Path, call: Call) -> Path:
    """Where a call's audio lies: training calls on two discs, test calls on one."""
    if call.part == "train":
        return root / "LDC97S62" / f"swb1_d{1 + call.number % DISCS}" / "data" / f"{call.name}.sph"
    return root / "LDC2002S09" / "hub5e_00" / "english" / f"{call.name}.sph"


def write_sphere(path: Path, samples: np.ndarray) -> None:
    """Write int16 samples, shape (num_samples, num_channels), at 8 kHz, as mu-law.

    The header is the LDC's kind, padded with blanks; libsndfile's own has a field of the wrong type.
    """
    fields = [
        f"sample_count -i {len(samples)}",
        "sample_n_bytes -i 1",
        f"channel_count -i {samples.shape[1]}",
        "sample_byte_format -s1 1",
        f"sample_rate -i {LINE_RATE}",
        "sample_coding -s4 ulaw",
    ]
    header = "\n".join(["NIST_1A", "   1024", *fields, "end_head", ""])
    raw = io.BytesIO()
    soundfile.write(raw, samples, LINE_RATE, format="RAW", subtype="ULAW")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header.ljust(1024).encode("ascii") + raw.getvalue())


def write_ms98(root: Path, plan: Plan, talks: dict[int, Talk], dictionary: str) -> None:
    """ISIP's transcripts of the training calls, and the dictionary."""
    folder = root / "swb_ms98_transcriptions"
    for call in plan.part("train"):
        for side in SIDES:
            name = f"sw{call.number}{side}-ms98-a"
            path = folder / f"{call.number // 100}" / f"{call.number}" / f"{name}-trans.text"
            path.parent.mkdir(parents=True, exist_ok=True)
            segments = talks[call.number].side(side)
            lines = [f"{name}-{i:04d} {_ms98(segment)}\n" for i, segment in enumerate(segments, 1)]
            path.write_text("".join(lines), encoding="utf-8")
    (folder / "sw-ms98-dict.text").write_text(dictionary, encoding="utf-8")


def _ms98(segment: Segment) -> str:
    start, end = segment.start / LINE_RATE, segment.end / LINE_RATE
    return f"{start:.6f} {end:.6f} {' '.join(segment.words) or '[silence]'}"


def write_tables(root: Path, plan: Plan, talks: dict[int, Talk]) -> None:
    """caller_tab.csv and conv_tab.csv of the training calls, without header lines, as the LDC has them."""
    calls = plan.part("train")
    callers = sorted({c for call in calls for c in call.callers}, key=lambda c: c.id)
    folder = root / "LDC97S62"
    (folder / "caller_tab.csv").write_text("".join(_caller_row(c, plan.seed) for c in callers), encoding="utf-8")
    rows = [_call_row(call, talks[call.number].num_samples // LINE_RATE) for call in calls]
    (folder / "conv_tab.csv").write_text("".join(rows), encoding="utf-8")


def _caller_row(caller: Caller, seed: int) -> str:
    """Number, PIN, target, sex, year of birth, dialect, education, TI, payment and so on; invented."""
    rng = random.Random(f"{seed} row {caller.id}")
    pin, born, dialect = uniform_int(rng, 1000, 9999), uniform_int(rng, 1930, 1972), draw(DIALECTS, rng)
    sex, education = SEXES[caller.sex].upper(), uniform_int(rng, 0, 3)
    return f'{caller.id}, {pin}, "N", "{sex}", {born}, "{dialect}", {education}, 0, "CASH", 15, "N", "", 0, "UNK"\n'


def _call_row(call: Call, seconds: int) -> str:
    """Number, active, callers of A and B, topic, ?, day, start and stop (hhmm), remarks."""
    stop = 1200 + seconds // 60
    a, b = call.callers
    topic = FIRST_TOPIC + TOPICS.index(call.topic)
    return f'{call.number}, "Y", {a.id}, {b.id}, {topic}, 0, 910304, 1200, {stop}, " ", \n'


def write_eval(root: Path, plan: Plan, talks: dict[int, Talk]) -> None:
    """PEM and STM of the test calls, in which the same segments stand."""
    pem = [";; Segments of the embedded corpus's test calls\n"]
    stm = [stm_header()]
    for call in sorted(plan.part("swbd", "callhm"), key=lambda c: c.name):
        for side in SIDES:
            for number, segment in enumerate(s for s in talks[call.number].side(side) if s.words):
                times = f"{segment.start / LINE_RATE:.2f} {segment.end / LINE_RATE:.2f}"
                text = IGNORED if number == 0 else stm_text(segment.words)  # who they are is private
                pem.append(f"{call.name} {side} unknown_speaker {times}\n")
                stm.append(f"{call.name} {side} {call.name}_{side} {times} <{_labels(call, side)}>  {text}\n")
    (root / "LDC2002S09" / "hub5e_00" / "english" / "hub5e_00.pem").write_text("".join(pem), encoding="utf-8")
    folder = root / "LDC2002T43" / "reference"
    folder.mkdir(parents=True)
    (folder / "hub5e00.english.000405.stm").write_text("".join(stm), encoding="utf-8")


def stm_header() -> str:
    """The categories by which scores are reported."""
    categories: list[tuple[str, list[tuple[str, str, str]]]] = [
        ("", [("O", "Overall", "The Complete Test Set")]),
        ("Corpus", [(n.upper(), name, f"{name} conversations") for n, name in CORPORA.values()]),
        ("Sex", [(s, name, f"{name} Caller") for s, name in SEXES.items()]),
    ]
    both = [
        (f"{n.upper()}-{s}", f"{corpus} {sex}", f"{corpus} {sex} Caller")
        for n, corpus in CORPORA.values()
        for s, sex in SEXES.items()
    ]
    lines = []
    for number, (category, labels) in enumerate([*categories, ("Corpus/Sex", both)]):
        lines.append(f';; CATEGORY "{number}" "{category}" ""\n')
        lines.extend(f';; LABEL "{label}" "{name}" "{description}"\n' for label, name, description in labels)
    return "".join(lines)


def _labels(call: Call, side: str) -> str:
    corpus, sex = CORPORA[call.part][0], call.caller(side).sex
    return f"O,{corpus},{sex},{corpus}-{sex}"


def stm_text(words: tuple[str, ...]) -> str:
    """A segment's words as a reference for scoring: upper case, no events, what need not be recognised in brackets."""
    text = " ".join(filter(None, map(_stm_word, words)))
    return text or IGNORED


def _stm_word(word: str) -> str:
    if word in EVENTS:
        return ""
    if word in HESITATIONS:
        return "(%HESITATION)"
    plain = word.removeprefix("[laughter-").removesuffix("]") if word.startswith("[laughter-") else word
    if "[" in plain:
        return f"({UNSAID.sub('', plain).upper()})"
    return ALTERNATIVES.get(plain, plain.upper())
