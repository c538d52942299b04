"""Audio files to text, one by one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from lowbit_k2.asr.long_audio import decode_long
from lowbit_k2.asr.recognizer import DecodeConfig, Recognizer, make_recognizers
from lowbit_k2.asr.results import best_words
from lowbit_k2.asr.transcripts import print_transcripts
from lowbit_k2.core.config import ConfigError
from lowbit_k2.data.features import extract_wav, make_extractor
from lowbit_k2.errors import UserError


def run_transcription(config: DecodeConfig, files: Sequence[Path]) -> None:
    """`transcribe_files` with the model that the settings name.

    Raises:
      UserError: settings that are of no use to single files.
    """
    if config.lhuc.epochs:
        raise ConfigError("epochs", "adapts to the speakers of test sets: use 0 with audio files")
    transcribe_files(files, make_recognizers(config))


def transcribe_files(files: Sequence[Path], recognizers: Sequence[Recognizer], rtf: bool = False) -> None:
    """`print_transcripts` by PyTorch.

    Raises:
      ReportedError: some could not be transcribed.
      UserError: several methods, scales or precisions.
    """
    if len(recognizers) != 1 or len(recognizers[0].searches) != 1:
        raise UserError("audio files are transcribed at one precision, by one method, with one lm_scale")
    [recognizer] = recognizers
    config = recognizer.features
    extractor = make_extractor(config)

    def words_of(file: Path) -> tuple[list[str], float]:
        features = extract_wav(file, config, extractor)
        return transcribe(recognizer, features), len(features) * config.frame_shift

    with recognizer.precision():
        print_transcripts(files, words_of, rtf)


def transcribe(recognizer: Recognizer, features: Tensor) -> list[str]:
    """Words that the recognizer's one search finds in (T, F) features, within its precision."""
    [(key, method)] = recognizer.searches.items()
    if recognizer.is_long(len(features)):
        return decode_long(recognizer, features)[0][key]
    [nbest] = method.nbest(recognizer.run(features[None], torch.tensor([len(features)])))
    return best_words(nbest)
