"""Audio files to text, one by one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from lowbit_k2.asr.long_audio import decode_long
from lowbit_k2.asr.recognizer import DecodeConfig, Recognizer, make_recognizers
from lowbit_k2.asr.results import best_words
from lowbit_k2.core.config import ConfigError
from lowbit_k2.core.text import printable
from lowbit_k2.data.features import extract_wav, make_extractor
from lowbit_k2.errors import ReportedError, UserError, is_one_line_error, is_out_of_memory, print_error


def run_transcription(config: DecodeConfig, files: Sequence[Path]) -> None:
    """`transcribe_files` with the model that the settings name.

    Raises:
      UserError: settings that are of no use to single files.
    """
    if config.lhuc.epochs:
        raise ConfigError("epochs", "adapts to the speakers of test sets: use 0 with audio files")
    transcribe_files(files, make_recognizers(config))


def transcribe_files(files: Sequence[Path], recognizers: Sequence[Recognizer]) -> None:
    """Print `FILE<tab>words` for each audio file, one by one, so that a file never depends on its neighbours.

    Raises:
      ReportedError: at the end, where some could not be transcribed; each has had its line on stderr.
      UserError: several methods, scales or precisions.
    """
    if len(recognizers) != 1 or len(recognizers[0].searches) != 1:
        raise UserError("audio files are transcribed at one precision, by one method, with one lm_scale")
    [recognizer] = recognizers
    config = recognizer.features
    extractor = make_extractor(config)
    failed = 0
    with recognizer.precision():
        for file in files:
            try:
                words = transcribe(recognizer, extract_wav(file, config, extractor))
            except Exception as error:
                if not (is_one_line_error(error) or is_out_of_memory(error)):
                    raise
                failed += 1
                print_error(str(error) if is_one_line_error(error) else f"{file} needs more memory than there is")
            else:
                print(f"{printable(str(file))}\t{printable(' '.join(words))}", flush=True)
    if failed:
        raise ReportedError(f"{failed} of {len(files)} files could not be transcribed")


def transcribe(recognizer: Recognizer, features: Tensor) -> list[str]:
    """Words that the recognizer's one search finds in (T, F) features, within its precision."""
    [(key, method)] = recognizer.searches.items()
    if recognizer.is_long(len(features)):
        return decode_long(recognizer, features)[0][key]
    [nbest] = method.nbest(recognizer.run(features[None], torch.tensor([len(features)])))
    return best_words(nbest)
