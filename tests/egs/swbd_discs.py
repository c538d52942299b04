"""Small discs in the LDC's layout for the tests of the Switchboard recipe: calls of noise bursts, ms98 transcripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np

from tests.egs import scripts
from tests.egs.scripts import ROOT

SWITCHBOARD = ROOT / "egs/switchboard"
LOCAL = SWITCHBOARD / "local"
Words = Sequence[tuple[float, float, str]]  # start, end, text


def local_module(name: str) -> ModuleType:
    return scripts.local_module(LOCAL, name)


def write_call(
    path: Path, seconds: float = 10.0, channels: int = 2, coding: str = "ulaw", promised: int | None = None
) -> Path:
    """A SPHERE file of mu-law silence with a click at the start of every second, louder in later channels."""
    num_samples = round(8000 * seconds)
    samples = np.full((num_samples, channels), 0xFF, np.uint8)
    samples[::8000] = 0x80 + 0x20 * np.arange(channels, dtype=np.uint8)[::-1] % 0x80
    fields = {
        "sample_count": f"-i {num_samples if promised is None else promised}",
        "sample_n_bytes": "-i 1",
        "channel_count": f"-i {channels}",
        "sample_byte_format": "-s1 1",
        "sample_rate": "-i 8000",
        "sample_coding": f"-s{len(coding)} {coding}",
    }
    header = "NIST_1A\n   1024\n" + "".join(f"{k} {v}\n" for k, v in fields.items()) + "end_head\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header.encode().ljust(1024) + samples.tobytes())
    return path


def write_transcript(ms98_dir: Path, call: int, side: str, words: Words) -> Path:
    """One side's transcript."""
    name = f"sw{call}{side}-ms98-a"
    path = ms98_dir / f"{call // 100}" / f"{call}" / f"{name}-trans.text"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{name}-{i:04d} {start:.6f} {end:.6f} {text}\n" for i, (start, end, text) in enumerate(words, start=1)]
    path.write_text("".join(lines))
    return path


def write_discs(root: Path, callers: Mapping[int, tuple[int, int]], table: bool = True) -> Path:
    """Whole calls of ten seconds, two segments and silence a side; `callers` of sides A and B by the call's number."""
    for call in callers:
        write_call(root / f"LDC97S62/swb1_d{1 + call % 2}/data/sw{call:05d}.sph")
        for side in "AB":
            text = [(0, 2, "[silence]"), (2, 5, f"um side {side.lower()} [noise]"), (5, 9.5, "uh-huh [laughter-yeah]")]
            write_transcript(root / "ms98", call, side, [*text, (9.5, 10, "[silence]")])
    if table:
        rows = [f'{call}, "Y", {a}, {b}, 303, 0, 910304, 1218, 1222, " ", \n' for call, (a, b) in callers.items()]
        (root / "LDC97S62/conv_tab.csv").write_text("".join(rows))
    return root


def disc_flags(root: Path) -> list[str | Path]:
    """The flags that name training data."""
    return ["--swbd-dir", root / "LDC97S62", "--ms98-dir", root / "ms98"]
