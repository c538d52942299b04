"""Transcripts of audio files on stdout, by whatever engine makes them; no torch."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from lowbit_k2.core.text import printable
from lowbit_k2.errors import ReportedError, is_one_line_error, is_out_of_memory, print_error

Words = tuple[Sequence[str], float]  # of a file, and the seconds of its audio


def print_transcripts(files: Sequence[Path], transcribe: Callable[[Path], Words], rtf: bool = False) -> None:
    """Print `FILE<tab>words` for each audio file, one by one, so that a file never depends on its neighbours.

    Args:
      rtf: print seconds of audio and of work, and their ratio, on stderr, for each file.
    Raises:
      ReportedError: at the end, where some could not be transcribed; each has had its line on stderr.
    """
    failed = 0
    for file in files:
        start = time.perf_counter()
        try:
            words, seconds = transcribe(file)
        except Exception as error:
            if not (is_one_line_error(error) or is_out_of_memory(error)):
                raise
            failed += 1
            print_error(str(error) if is_one_line_error(error) else f"{file} needs more memory than there is")
            continue
        print(f"{printable(str(file))}\t{printable(' '.join(words))}", flush=True)
        if rtf:
            taken = time.perf_counter() - start
            line = f"{seconds:.2f} s of audio in {taken:.2f} s, RTF {taken / seconds:.4f}"
            print(f"{printable(str(file))}: {line}", file=sys.stderr, flush=True)
    if failed:
        raise ReportedError(f"{failed} of {len(files)} files could not be transcribed")
