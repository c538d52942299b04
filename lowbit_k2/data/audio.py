"""Audio files as samples of one channel at one rate, piece by piece: numpy and libsndfile, no torch.

It is read and resampled piece by piece, so that memory does not grow with rate, channels or length.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lowbit_k2.data.resampling import check_rate, resampled
from lowbit_k2.data.sources import check_audio_file
from lowbit_k2.errors import UserError

READ_BLOCK = 1 << 18  # samples of a channel


class AudioFile:
    """The first channel of an audio file (WAV, FLAC, OGG, SPHERE, ... as libsndfile can).

    Attributes:
      num_samples: at the wanted rate.
    """

    def __init__(self, path: str | Path, sampling_rate: int) -> None:
        """Raises:
        UserError: missing, unreadable, damaged or empty file, or an unlikely rate.
        """
        import soundfile

        self.path, self.sampling_rate = Path(path), sampling_rate
        self._errors = (soundfile.SoundFileError, RuntimeError, OSError)
        if not self.path.is_file():
            raise UserError(f"{path} does not exist, or is no file: give the path of an audio file")
        check_audio_file(self.path)
        try:
            self._file = soundfile.SoundFile(str(path))
        except self._errors as error:
            raise self._unreadable(error) from None
        check_rate(self._file.samplerate, str(path))
        if not self._file.frames:
            raise UserError(f"{path} holds no audio samples")
        self.num_samples = -(-self._file.frames * sampling_rate // self._file.samplerate)

    def blocks(self) -> Iterator[np.ndarray]:
        """All samples, once: float32 pieces (n,), altogether (num_samples,).

        Raises:
          UserError: the file is damaged, or samples are missing at its end.
        """
        return resampled(self._read(), self._file.samplerate, self.sampling_rate)

    def _read(self) -> Iterator[np.ndarray]:
        with self._file as file:
            expected, found = file.frames, 0
            try:
                while len(block := file.read(READ_BLOCK, dtype="float32", always_2d=True)):
                    found += len(block)
                    yield np.ascontiguousarray(block[:, 0])
            except self._errors as error:
                raise self._unreadable(error) from None
        if found != expected:
            raise UserError(f"{self.path} is cut short, {found} of {expected} samples are there: copy it again")

    def _unreadable(self, error: Exception) -> UserError:
        reason = str(error).split(": ")[-1].strip()
        return UserError(f"{self.path} cannot be read as audio ({reason}): convert it to WAV or FLAC")
