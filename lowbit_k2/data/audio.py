"""Audio files as samples of one channel at one rate, piece by piece: numpy and libsndfile, no torch.

It is read and resampled piece by piece, so that memory does not grow with rate, channels or length.
"""

from __future__ import annotations

import contextlib
import shutil
import struct
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from lowbit_k2.data.resampling import check_rate, resampled
from lowbit_k2.data.sources import check_audio_file, check_length, samples_chunk
from lowbit_k2.errors import UserError

READ_BLOCK = 1 << 18  # samples of a channel
# Lengths in headers of WAV streams whose writer does not know them yet: 0, or this and more (sox, arecord, ffmpeg).
UNKNOWN_LENGTH = 0x7FFFF000


class AudioFile:
    """The first channel of an audio file (WAV, FLAC, OGG, SPHERE, ... as libsndfile can).

    Attributes:
      num_samples: at the wanted rate.
    """

    def __init__(self, path: str | Path, sampling_rate: int) -> None:
        """Raises:
        UserError: missing, unreadable, damaged or empty file, or an unlikely rate.
        """
        if not Path(path).is_file():
            raise UserError(f"{path} does not exist, or is no file: give the path of an audio file")
        check_audio_file(Path(path))
        self._open(Path(path), sampling_rate, str(path))

    def _open(self, path: Path, sampling_rate: int, source: str | BinaryIO, **raw: object) -> None:
        """source, raw: as soundfile.SoundFile takes them."""
        import soundfile

        self.path, self.sampling_rate = path, sampling_rate
        self._errors = (soundfile.SoundFileError, RuntimeError, OSError)
        try:
            self._file = soundfile.SoundFile(source, **raw)
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


class AudioStream(AudioFile):
    """Audio that another program writes, as WAV, FLAC or OGG, or as raw samples. It goes through a file without a name:
    memory does not grow with it, and libsndfile can look back in it.
    """

    def __init__(self, stream: BinaryIO, sampling_rate: int, raw_rate: int = 0, name: str = "stdin") -> None:
        """Args:
          raw_rate: Hz; the stream is 16-bit little-endian PCM of one channel, without a header. 0: it has a header.
          name: for errors.
        Raises:
          UserError: no audio, damaged, or an unlikely rate.
        """
        with contextlib.ExitStack() as undo:
            file = undo.enter_context(tempfile.TemporaryFile())
            shutil.copyfileobj(stream, file)
            size = file.tell()
            raw = {}
            if raw_rate:
                file.truncate(size - size % 2)
                raw = dict(samplerate=raw_rate, channels=1, format="RAW", subtype="PCM_16", endian="LITTLE")
            elif not size:
                raise UserError(f"{name} gives no audio: pipe a WAV, FLAC or OGG stream into it")
            else:
                _mend_length(file, size)
                check_length(name, file, size)
            file.seek(0)
            self._open(Path(name), sampling_rate, file, **raw)
            weakref.finalize(self, undo.pop_all().close)


def _mend_length(file: BinaryIO, size: int) -> None:
    """Write into a WAV header how many bytes of samples there are, where its writer could not know."""
    length, left = samples_chunk(file, size) or (0, 0)
    if left > length == 0 or length >= UNKNOWN_LENGTH > left:
        file.seek(size - left - 4)
        file.write(struct.pack("<I", left))
