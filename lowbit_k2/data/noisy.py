"""Copies of a test set as heard elsewhere: with noise at a given level, in a room, over a telephone.

A condition is a name:  snr10    noise, 10 dB below the speech (`snr-5`: 5 dB above it)
                        room     the echoes of a room, another for each utterance (needs pyroomacoustics)
                        mulaw    8000 samples a second, 8 bits each by G.711's mu-law
and several of them joined by "+", from the speaker's mouth on: `room+snr10+mulaw`.

What an utterance gets depends on the seed and its id only, and noises are the same at each level.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lowbit_k2.data.audio import AudioFile
from lowbit_k2.data.resampling import resample
from lowbit_k2.errors import UserError
from lowbit_k2.fileio import atomic_write

if TYPE_CHECKING:
    from lhotse import CutSet
    from lhotse.cut import Cut, MonoCut

SNR = re.compile(r"snr(-?\d+(?:\.\d+)?)")
ROOM, TELEPHONE = "room", "mulaw"
AUDIO = (".wav", ".flac", ".ogg", ".opus", ".sph")
TELEPHONE_RATE = 8000
MU = 255
PEAK = 0.99  # of what is written; louder copies are turned down as a whole, which no SNR sees
SIZES = ((3.0, 8.0), (3.0, 6.0), (2.4, 3.5))  # m: of rooms
REVERBERATION = (0.3, 0.7)  # s, RT60
WALL = 0.5  # m that speaker and microphone keep away from


@dataclass(frozen=True)
class Condition:
    """What is done to the speech.

    snr: dB; None without noise.
    """

    name: str
    steps: tuple[str, ...]
    snr: float | None

    @classmethod
    def parse(cls, name: str) -> Condition:
        """Raises:
        UserError: it is none.
        """
        steps = tuple(name.split("+"))
        levels = [float(match[1]) for step in steps if (match := SNR.fullmatch(step))]
        known = all(step in (ROOM, TELEPHONE) or SNR.fullmatch(step) for step in steps)
        if not known or len(levels) > 1 or len(set(steps)) < len(steps):
            raise UserError(f"condition {name!r}: snr10 (any dB), {ROOM}, {TELEPHONE}, or some joined by +, each once")
        return cls(name, steps, levels[0] if levels else None)


def find_noises(folder: Path) -> dict[str, Path]:
    """All audio files below a folder by their paths in it, sorted.

    Raises:
      UserError: there are none.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in AUDIO)
    if not paths:
        raise UserError(f"{folder} holds no audio ({', '.join(AUDIO)}): give a folder of noises, as MUSAN's noise/")
    return {path.relative_to(folder).as_posix(): path for path in paths}


def read_noises(folder: Path, sampling_rate: int) -> dict[str, np.ndarray]:
    """All audio files below a folder, but for those of silence, as `find_noises` names them. -> float32 (n,) each

    Raises:
      UserError: there are none, or one cannot be read.
    """
    paths = find_noises(folder)
    noises = {name: np.concatenate(list(AudioFile(path, sampling_rate).blocks())) for name, path in paths.items()}
    loud = {name: noise for name, noise in noises.items() if np.any(noise)}
    if not loud:
        raise UserError(f"{folder} holds nothing but silence")
    return loud


def degrade(
    speech: np.ndarray, sampling_rate: int, condition: Condition, noises: Mapping[str, np.ndarray], key: str
) -> np.ndarray:
    """One utterance under a condition.

    Args:
      speech: (n,) float32.
      noises: by name, at the same rate; not looked at without an SNR.
      key: names the draws, e.g. seed and id.

    Returns:
      (n,) float32.
    """
    steps: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        ROOM: lambda x: in_room(x, sampling_rate, random.Random(f"{key}/room")),
        TELEPHONE: lambda x: telephone(x, sampling_rate),
    }
    for step in condition.steps:
        if step in steps:
            speech = steps[step](speech)
        else:
            name, rng = draw_noise(noises, key)
            speech = mix(speech, stretch_of(noises[name], len(speech), rng), condition.snr)
    return speech.astype(np.float32)


def draw_noise(names: Iterable[str], key: str) -> tuple[str, random.Random]:
    """The noise that an utterance gets at any level, and the generator that draws where in it."""
    rng = random.Random(f"{key}/noise")
    return rng.choice(list(names)), rng


def stretch_of(noise: np.ndarray, size: int, rng: random.Random) -> np.ndarray:
    """A stretch from anywhere in a noise; a shorter one is repeated. -> (size,)"""
    start = rng.randrange(max(1, len(noise) - size + 1))
    stretch = np.resize(noise[start:], size) if len(noise) < size else noise[start : start + size]
    return stretch if np.any(stretch) else np.resize(noise, size)


def mix(speech: np.ndarray, noise: np.ndarray, snr: float) -> np.ndarray:
    """The sum of both, with their powers over the whole utterance `snr` dB apart; silence stays silence.

    That is what lhotse's `CutSet.mix` does with `snr`.
    """
    power, noise_power = (float(np.mean(np.square(x, dtype=np.float64))) for x in (speech, noise))
    if not power or not noise_power:
        return speech
    return speech + noise * np.float32((power / noise_power * 10 ** (-snr / 10)) ** 0.5)


def telephone(speech: np.ndarray, sampling_rate: int) -> np.ndarray:
    """Down to 8 kHz, through G.711's mu-law, and up again, as long as before; full scale is 1."""
    narrow = resample(speech, sampling_rate, TELEPHONE_RATE)
    wide = resample(mu_law(narrow), TELEPHONE_RATE, sampling_rate)[: len(speech)]
    return np.pad(wide, (0, len(speech) - len(wide)))


def mu_law(samples: np.ndarray) -> np.ndarray:
    """To 8 bits and back, as ITU-T G.711 has it in segments: what libsndfile writes and reads as ULAW."""
    import io

    import soundfile

    file = io.BytesIO()
    soundfile.write(file, np.clip(samples, -1, 1), TELEPHONE_RATE, format="WAV", subtype="ULAW")
    file.seek(0)
    return soundfile.read(file, dtype="float32")[0]


def in_room(speech: np.ndarray, sampling_rate: int, rng: random.Random) -> np.ndarray:
    """Speaker and microphone somewhere in a room, as pyroomacoustics has its echoes by images of the source.

    Raises:
      UserError: it is not installed.
    """
    try:
        import pyroomacoustics
    except ImportError:
        raise UserError(
            "rooms need pyroomacoustics, which is not installed: pip install -r requirements-rooms.txt"
        ) from None
    size = [rng.uniform(*span) for span in SIZES]
    seconds = rng.uniform(*REVERBERATION)
    absorption, order = pyroomacoustics.inverse_sabine(seconds, size)
    room = pyroomacoustics.ShoeBox(
        size, fs=sampling_rate, materials=pyroomacoustics.Material(absorption), max_order=order
    )
    for add in (room.add_source, room.add_microphone):
        add([rng.uniform(WALL, side - WALL) for side in size])
    room.compute_rir()
    return reverberate(speech, np.asarray(room.rir[0][0]))


def reverberate(speech: np.ndarray, response: np.ndarray) -> np.ndarray:
    """Convolved with a room's impulse response: as long, as loud, and as early as the speech.

    Args:
      speech: (n,).
      response: (k,); its largest value is where the direct sound arrives.
    """
    from scipy.signal import fftconvolve

    start = int(np.argmax(np.abs(response)))
    heard = fftconvolve(speech, response)[start : start + len(speech)]
    power, found = (float(np.mean(np.square(x, dtype=np.float64))) for x in (speech, heard))
    return heard * (power / found) ** 0.5 if found else heard


def noisy_cut(cut: Cut, samples: np.ndarray, custom: dict[str, str | float], path: Path) -> MonoCut:
    """Write the audio, and a cut of the same id and supervisions on it.

    Args:
      samples: (n,), at the cut's rate.
      custom: the cut's own fields.
      path: FLAC of 16 bits.
    """
    import soundfile
    from lhotse import Recording
    from lhotse.utils import fastcopy

    loudest = float(np.max(np.abs(samples), initial=0.0))
    with atomic_write(path) as temporary:
        soundfile.write(
            str(temporary), samples * min(1.0, PEAK / max(loudest, 1e-9)), cut.sampling_rate, "PCM_16", format="FLAC"
        )
    recording = Recording.from_file(path, recording_id=cut.id)
    supervisions = [fastcopy(s, recording_id=cut.id, channel=0) for s in cut.supervisions]
    return fastcopy(recording.to_cut(), id=cut.id, supervisions=supervisions, custom=custom)


def noisy_copy(
    cuts: CutSet,
    condition: Condition,
    noises: Mapping[str, np.ndarray],
    folder: Path,
    seed: int,
    sampling_rate: int,
) -> CutSet:
    """All cuts under a condition, their audio written into a folder; shows progress.

    The condition's name, with noise its `snr` and the name of the `noise`, are among the cuts' own fields.

    Raises:
      UserError: audio that cannot be read.
    """
    from lhotse import CutSet

    from lowbit_k2.data.features import unreadable
    from lowbit_k2.data.resampling import resample_in_lhotse
    from lowbit_k2.progress import progress_bar

    resample_in_lhotse()
    made = []
    for cut in progress_bar(cuts, condition.name):
        try:
            speech = cut.drop_features().resample(sampling_rate).load_audio()[0]
        except Exception as error:  # the audio libraries have no common class
            raise UserError(unreadable(cut, "recording", error)) from None
        key, custom = f"{seed}/{cut.id}", {"condition": condition.name}
        if condition.snr is not None:
            custom |= {"snr": condition.snr, "noise": draw_noise(noises, key)[0]}
        samples = degrade(speech, sampling_rate, condition, noises, key)
        made.append(noisy_cut(cut.resample(sampling_rate), samples, custom, folder / f"{cut.id}.flac"))
    return CutSet.from_cuts(made)
