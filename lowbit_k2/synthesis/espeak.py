"""Speech synthesis for the embedded corpora: espeak-ng's C interface through ctypes.

The library and its voices come from the pip package `espeakng-loader`, so that no system package is needed.
espeak-ng (GPL-3.0) runs here as a separate program library at data preparation only; nothing of it is shipped,
and no trained model depends on it.

espeak-ng keeps state between utterances (the phase of its oscillators, its random numbers). Audio is therefore a
function of the whole history of a process: for equal bytes, start a fresh process and make the same calls.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np

from lowbit_k2.errors import UserError

# Values of the enumerations in espeak-ng's speak_lib.h.
OUTPUT_SYNCHRONOUS = 2
OPTION_DONT_EXIT = 0x8000
PARAMETER_RATE, PARAMETER_VOLUME, PARAMETER_PITCH, PARAMETER_RANGE = 1, 2, 3, 4
CHARACTERS_UTF8 = 1
PHONEME_SEPARATOR = ord("_") << 8  # of espeak_TextToPhonemes: mnemonics, with this between them
STATUS_OK = 0

VOLUME = 40  # default 100 clips with some of the voices
CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


@dataclass(frozen=True)
class Prosody:
    """How to say it: `rate` in words a minute (80-450), `pitch` and `pitch_range` from 0 to 99, 50 neutral."""

    rate: int = 175
    pitch: int = 50
    pitch_range: int = 50


class Espeak:
    """One initialised espeak-ng library. Make at most one of these in a process.

    Attributes:
      sampling_rate: Hz of the samples that `synthesize` returns (22050).

    Raises:
      UserError: the package espeakng-loader is not installed, or its library does not start.
    """

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ImportError:
            raise UserError(
                "speech synthesis needs the Python package espeakng-loader: pip install espeakng-loader"
            ) from None
        self._chunks: list[np.ndarray] = []
        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        data = espeakng_loader.get_data_path().encode()
        self.sampling_rate = self._library.espeak_Initialize(OUTPUT_SYNCHRONOUS, 0, data, OPTION_DONT_EXIT)
        if self.sampling_rate <= 0:
            raise UserError(f"espeak-ng does not start with its data in {data.decode()}: reinstall it")
        self._callback = CALLBACK(self._collect)  # kept: ctypes does not hold a reference for C
        self._library.espeak_SetSynthCallback(self._callback)

    def seed(self, seed: int) -> None:
        """Seed espeak-ng's own random numbers, which it takes from the clock at the start."""
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(seed))
        ctypes.CDLL(None).srand(ctypes.c_uint(seed))

    def synthesize(self, text: str, voice: str, prosody: Prosody) -> np.ndarray:
        """Say `text` with `voice` ("accent+variant", e.g. "en-us+f3").

        Returns:
          int16 samples, shape (num_samples,), at `sampling_rate`.

        Raises:
          UserError: espeak-ng does not know the voice or returns no speech.
        """
        self._set_voice(voice)
        settings = (
            (PARAMETER_RATE, prosody.rate),
            (PARAMETER_VOLUME, VOLUME),
            (PARAMETER_PITCH, prosody.pitch),
            (PARAMETER_RANGE, prosody.pitch_range),
        )
        for parameter, value in settings:
            self._library.espeak_SetParameter(parameter, value, 0)
        self._chunks.clear()
        data = text.encode() + b"\0"
        status = self._library.espeak_Synth(data, len(data), 0, 0, 0, CHARACTERS_UTF8, None, None)
        if status != STATUS_OK or not self._chunks:
            raise UserError(f"espeak-ng made no speech of {text!r} with voice {voice!r} (status {status})")
        return np.concatenate(self._chunks)

    def phonemes(self, word: str, voice: str) -> list[str]:
        """How `voice` says a word: espeak-ng's mnemonics (`"water"`: `["w", "O:", "t#", "3"]`), without stress.

        Raises:
          UserError: espeak-ng does not know the voice.
        """
        self._set_voice(voice)
        to_phonemes = self._library.espeak_TextToPhonemes
        to_phonemes.restype = ctypes.c_char_p
        text = ctypes.c_char_p(word.encode())
        mnemonics = to_phonemes(ctypes.byref(text), CHARACTERS_UTF8, PHONEME_SEPARATOR).decode()
        stripped = (m.strip("',%=; ") for m in mnemonics.replace(" ", "_").split("_"))
        return [m for m in stripped if m not in ("", ":")]  # "_:" is a pause

    def _set_voice(self, voice: str) -> None:
        if self._library.espeak_SetVoiceByName(voice.encode()) != STATUS_OK:
            raise UserError(f"espeak-ng has no voice {voice!r}: espeakng-loader 0.2.4 has it")

    def _collect(self, samples: ctypes._Pointer, num_samples: int, events: int | None) -> int:
        """espeak-ng's callback: keep a copy of the samples; 0 means go on."""
        if samples and num_samples > 0:
            self._chunks.append(np.ctypeslib.as_array(samples, (num_samples,)).copy())
        return 0
