"""Audio files to text, one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from lowbit_k2.asr.long_audio import search_long
from lowbit_k2.asr.recognizer import DecodeConfig, Recognizer, make_recognizers
from lowbit_k2.asr.transcripts import OutputConfig, PlainText, find_audio, open_audio, print_transcripts
from lowbit_k2.core.chunks import output_step
from lowbit_k2.core.config import ConfigError
from lowbit_k2.data.features import extract_wav, make_extractor
from lowbit_k2.decode.hypothesis import Hypothesis
from lowbit_k2.errors import UserError
from lowbit_k2.runtime.transcript import Transcript, make_transcript
from lowbit_k2.runtime.units import Units, read_units


def run_transcription(config: DecodeConfig, files: Sequence[Path]) -> None:
    """`transcribe_files` with the model that the settings name.

    Raises:
      UserError: settings that are of no use to single files.
    """
    if config.lhuc.epochs:
        raise ConfigError("epochs", "adapts to the speakers of test sets: use 0 with audio files")
    transcribe_files(find_audio(files), make_recognizers(config))


def transcribe_files(
    files: Mapping[Path, Path],
    recognizers: Sequence[Recognizer],
    output: OutputConfig | None = None,
    raw_rate: int = 0,
) -> None:
    """`print_transcripts` by PyTorch.

    Args:
      raw_rate: of stdin, see `open_audio`.
    Raises:
      ReportedError: some could not be transcribed.
      UserError: several methods, scales or precisions.
    """
    if len(recognizers) != 1 or len(recognizers[0].searches) != 1:
        raise UserError("audio files are transcribed at one precision, by one method, with one lm_scale")
    [recognizer] = recognizers
    config = recognizer.features
    extractor, units = make_extractor(config), spelling(recognizer)

    def transcript(file: Path) -> Transcript | PlainText:
        audio = open_audio(file, config.sampling_rate, raw_rate)
        heard = hear(recognizer, extract_wav(audio, config, extractor))
        return with_times(recognizer, heard, units, audio.num_samples / config.sampling_rate)

    with recognizer.precision():
        print_transcripts(files, transcript, output)


def transcribe(recognizer: Recognizer, features: Tensor) -> list[str]:
    """Words that the recognizer's one search finds in (T, F) features, within its precision."""
    return list(hear(recognizer, features).words)


def hear(recognizer: Recognizer, features: Tensor) -> Hypothesis:
    """The same with labels and, where the search keeps them, frames."""
    [(key, method)] = recognizer.searches.items()
    if recognizer.is_long(len(features)):
        return search_long(recognizer, features)[0][key]
    [nbest] = method.nbest(recognizer.run(features[None], torch.tensor([len(features)])))
    return nbest[0] if nbest else Hypothesis((), 0.0, frames=())


def spelling(recognizer: Recognizer) -> Units | None:
    """How the search's labels spell words; None where they are no tokens, or tokens of a user's own kind."""
    [method], tokenizer = recognizer.searches.values(), recognizer.loaded.tokenizer
    try:
        return None if method.gives_words else read_units(tokenizer.kind, tokenizer.to_bytes())
    except UserError:
        return None


def with_times(
    recognizer: Recognizer, heard: Hypothesis, units: Units | None, seconds: float
) -> Transcript | PlainText:
    """A hypothesis with the times of its tokens and words, if these can be told.

    Args:
      units: of `spelling`.
      seconds: of audio.
    """
    plain = PlainText(heard.words, seconds)
    if units is None or heard.frames is None or list(heard.words) != units.words(heard.labels):
        return plain
    frame_seconds = output_step(recognizer.loaded.model_config.output_lens) * recognizer.features.shift_seconds
    return make_transcript(units, heard.labels, heard.frames, frame_seconds, seconds)
