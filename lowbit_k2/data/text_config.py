"""How text for language models is read; without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lowbit_k2.core.config import Config, option
from lowbit_k2.data.text import NORMALIZERS


def split_paths(text: str) -> tuple[Path, ...]:
    """`a.txt,b.txt.gz` as paths."""
    return tuple(Path(part.strip()) for part in text.split(",") if part.strip())


@dataclass(frozen=True)
class TextConfig(Config):
    """How text is read, and put together to rows and batches."""

    kaldi_text: bool = option(False, "lines begin with an id, as in a Kaldi data directory's text")
    normalize_text: str = option("none", "case and punctuation of the text", choices=tuple(NORMALIZERS))
    max_length: int = option(1000, "units of a line; longer lines are refused", low=1, high=1_000_000)
    batch_tokens: int = option(2000, "units in a batch, padding included", low=1, high=10**9)
    pack_length: int = option(
        0, "join lines that follow one another to rows of so many units, which see what is before; 0: no", low=0
    )
