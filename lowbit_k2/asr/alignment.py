"""Audio files and their transcripts to CTM: when each word, or token, was said."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lowbit_k2.asr.long_audio import network_pieces
from lowbit_k2.asr.recognizer import Recognizer
from lowbit_k2.core.text import printable
from lowbit_k2.data.features import extract_wav, make_extractor
from lowbit_k2.data.text import squeeze
from lowbit_k2.decode.alignment import AlignedToken, Pronunciations, align_tokens
from lowbit_k2.errors import ReportedError, UserError, print_error
from lowbit_k2.scoring.stm import format_seconds
from lowbit_k2.textfile import numbered_lines

LEVELS = ("word", "token")
BOUNDARY = "▁"


@dataclass(frozen=True)
class CtmLine:
    """A line of NIST's CTM format: recording, channel, start and duration in seconds, word, confidence."""

    recording: str
    start: float
    duration: float
    word: str
    confidence: float

    def __str__(self) -> str:
        times = f"{format_seconds(self.start)} {format_seconds(self.duration)}"
        return printable(f"{self.recording} 1 {times} {self.word} {self.confidence:.3f}")


def read_pairs(path: Path) -> list[tuple[Path, str]]:
    """Lines `FILE<tab>transcript`, or with a blank in the place of the tab, as `transcribe` prints them.

    Raises:
      UserError: a line without a transcript.
    """
    pairs = []
    for number, line in numbered_lines(path, "give lines `FILE<tab>transcript`"):
        file, _, text = line.partition("\t") if "\t" in line else line.partition(" ")
        if not text.strip():
            raise UserError(f"{path} line {number}: expected FILE<tab>transcript, found {line[:80]!r}")
        pairs.append((Path(file), text))
    return pairs


def align_files(
    pairs: Sequence[tuple[Path, str]],
    recognizer: Recognizer,
    level: str = "word",
    say: Callable[[str], object] = print,
) -> None:
    """Print the CTM of each file, one by one; one that cannot be aligned costs the others nothing.

    Args:
      pairs: audio files and their transcripts.
      level: of `LEVELS`.

    Raises:
      ReportedError: at the end, where some could not be aligned; each has had its line on stderr.
      UserError: a model without CTC.
    """
    extractor = make_extractor(recognizer.features)
    failed = 0
    with recognizer.precision():
        for file, text in pairs:
            try:
                found = align(recognizer, extract_wav(file, recognizer.features, extractor), text, file.stem, level)
                for line in found:
                    say(str(line))
            except UserError as error:
                failed += 1
                print_error(str(error) if str(file) in str(error) else f"{file}: {error}")
    if failed:
        raise ReportedError(f"{failed} of {len(pairs)} files could not be aligned")


def align(recognizer: Recognizer, features: Tensor, text: str, name: str, level: str = "word") -> list[CtmLine]:
    """Words or tokens of one transcript with their times.

    A token lasts from its first frame to its last; a word from the first frame of its first token to the last of its
    last, where a mark of the word's beginning alone (sentencepiece's "▁"), which may stand anywhere in the pause
    before, is left out. Confidence is the geometric mean of the posteriors of these tokens' frames.

    Args:
      features: (T, F).

    Raises:
      UserError: no CTC posteriors, characters or words that the units cannot spell, or audio too short for the text.
    """
    config = recognizer.loaded.model_config
    seconds = config.encoder.frames_per_output * recognizer.features.frame_shift
    words = squeeze(text).split()
    spoken = [pronunciations(recognizer, word) for word in words]
    tokens = align_tokens(posteriors(recognizer, features), spoken, config.topology)
    pieces = recognizer.loaded.tokenizer.pieces()
    groups = [[token] for token in tokens]
    if level == "word":
        groups = [[t for t in group if pieces[t.token] != BOUNDARY] or group for group in _by_word(tokens)]
    return [
        CtmLine(
            name,
            round(group[0].start * seconds, 6),
            round((group[-1].end - group[0].start) * seconds, 6),
            words[group[0].word] if level == "word" else pieces[group[0].token],
            math.exp(sum(t.log_prob for t in group) / sum(t.end - t.start for t in group)),
        )
        for group in groups
    ]


def _by_word(tokens: Sequence[AlignedToken]) -> Iterator[list[AlignedToken]]:
    group: list[AlignedToken] = []
    for token in tokens:
        if group and token.word != group[0].word:
            yield group
            group = []
        group.append(token)
    if group:
        yield group


def posteriors(recognizer: Recognizer, features: Tensor) -> Tensor:
    """(T, V) CTC log-probabilities; of long audio put together from chunks."""
    if recognizer.is_long(len(features)):
        outputs = list(network_pieces(recognizer, features))
    else:
        outputs = [recognizer.run(features[None], torch.tensor([len(features)]))]
    if any(output.log_probs is None for output in outputs):
        raise UserError("the model has no CTC layer to align with: train it with the objective ctc or ctc-rnnt")
    return torch.cat([output.log_probs[0, : int(output.lens[0])] for output in outputs])


def pronunciations(recognizer: Recognizer, word: str) -> Pronunciations:
    """All ways to spell or say a word, as token ids."""
    tokenizer = recognizer.loaded.tokenizer
    unknown = tokenizer.unknown(word)
    if unknown:
        raise UserError(f"the units cannot spell {unknown} of {word}: is the text in their case?")
    return tokenizer.pronunciations(word)
