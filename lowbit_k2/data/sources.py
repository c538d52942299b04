"""What cuts have read on their behalf: audio files and stored features, and nothing else.

A manifest can name shell commands as audio (`AudioSource` of type `command`), and lhotse opens storage paths that begin
with `pipe:` by a shell, too. Manifests come from others, so neither is run unless the user says so.
"""

from __future__ import annotations

import dataclasses
import io
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from lowbit_k2.data.sphere import MAGIC, make_recording, use_libsndfile
from lowbit_k2.errors import UserError

if TYPE_CHECKING:
    from lhotse import Recording
    from lhotse.cut import Cut

AUDIO_TYPES = ("file", "memory", "shar")
STORAGE_TYPES = (
    "lilcom_chunky",
    "lilcom_files",
    "lilcom_hdf5",
    "chunked_lilcom_hdf5",
    "numpy_files",
    "numpy_hdf5",
    "memory_lilcom",
    "memory_raw",
    "memory_npy",
    "shar",
)
ALLOW_COMMANDS = "run shell commands that manifests name as audio or features: for manifests that you trust"  # help
REMEDY = "store it in files, or give allow_commands for manifests that you trust"


def parts_of(cut: Cut) -> Iterator[Any]:
    """The cuts that a cut is mixed of, or itself; padding is none."""
    for part in [track.cut for track in cut.tracks] if hasattr(cut, "tracks") else [cut]:
        if hasattr(part, "recording"):
            yield part


def check_sources(cut: Cut, kind: str, allow_commands: bool = False) -> None:
    """Refuse a cut whose audio or features are not plain data in files.

    Args:
      kind: "recording" or "features": what is about to be read.

    Raises:
      UserError: reading it would run a command or open a network connection.
    """
    if allow_commands:
        return
    for part in parts_of(cut):
        if kind == "recording":
            for source in part.recording.sources if part.has_recording else ():
                if source.type not in AUDIO_TYPES or _is_command(source.source):
                    named = source.type if source.type != "file" else "command"
                    raise UserError(f"cut {cut.id} has its audio from a {named}, which is not run: {REMEDY}")
        elif part.has_features:
            store = part.features
            if store.storage_type not in STORAGE_TYPES or _is_command(store.storage_path):
                raise UserError(f"cut {cut.id} has features of type {store.storage_type}, which are not read: {REMEDY}")


def _is_command(place: object) -> bool:
    text = str(place).strip() if isinstance(place, (str, Path)) else ""
    return text.startswith("pipe:") or text.endswith("|") or "://" in text


class Relocate:
    """Finds stored features beside their manifest, where the whole folder has been moved."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.known: dict[str, str] = {}

    def __call__(self, cut: Cut) -> Cut:
        store = getattr(cut, "features", None)  # a mixed cut has none of its own
        if store is None or not isinstance(store.storage_path, str):
            return cut
        if store.storage_path not in self.known:
            self.known[store.storage_path] = self._place(store.storage_path)
        place = self.known[store.storage_path]
        if place == store.storage_path:
            return cut
        return dataclasses.replace(cut, features=dataclasses.replace(store, storage_path=place))

    def _place(self, path: str) -> str:
        old = Path(path)
        if not old.is_absolute() or old.exists():
            return path
        beside = (self.folder / old.name, self.folder / old.parent.name / old.name)
        return str(next((place for place in beside if place.exists()), path))


# --- audio files ------------------------------------------------------------------------------------------------


def recording_of(path: Path, name: str, cache_dir: Path | None = None) -> Recording:
    """An audio file as lhotse sees it, SPHERE included.

    Args:
      cache_dir: where WAV files of compressed SPHERE go, see `make_recording`.

    Raises:
      UserError: it cannot be read, is cut short, or holds no samples.
    """
    from lhotse import Recording

    check_audio_file(path)
    try:
        if is_sphere(path):
            use_libsndfile()
            return make_recording(path, name, cache_dir)
        found = Recording.from_file(path.resolve(), recording_id=name)
    except UserError:
        raise
    except Exception as error:  # the audio libraries have no common class
        raise UserError(f"{path} cannot be read as audio ({type(error).__name__}): convert it to WAV") from None
    if found.num_samples <= 0:
        raise UserError(f"{path} holds no samples by its header: was it written to a pipe? convert it again")
    return found


def recording_of_command(command: str, name: str) -> Recording:
    """A recording of what a shell command writes; it is run here once, for its length, and whenever it is read.

    Raises:
      UserError: it fails, or writes no audio.
    """
    import soundfile
    from lhotse import AudioSource, Recording

    done = subprocess.run(command, shell=True, capture_output=True, check=False, stdin=subprocess.DEVNULL)
    try:
        info = soundfile.info(io.BytesIO(done.stdout))
    except (RuntimeError, OSError):  # LibsndfileError is a RuntimeError
        said = " ".join(done.stderr.decode(errors="replace").split())[:200] or "it said nothing"
        raise UserError(f"the command of {name} wrote no audio (status {done.returncode}, {said}): {command}") from None
    source = AudioSource("command", list(range(info.channels)), command)
    return Recording(name, [source], info.samplerate, info.frames, info.frames / info.samplerate)


def check_audio_file(path: Path) -> None:
    """An audio file is there and, if it is a WAV file, as long as its header says.

    Raises:
      UserError: it is missing, no regular file, empty, or cut short.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist, or is no file: has the corpus been moved?")
    try:
        with path.open("rb") as file:
            check_length(path, file, path.stat().st_size)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None


def check_length(name: object, file: BinaryIO, size: int) -> None:
    """Of a WAV file of so many bytes; of others nothing.

    Raises:
      UserError: there are fewer samples than its header says.
    """
    length, left = samples_chunk(file, size) or (0, 0)
    if length == 0 and left > 0:
        raise UserError(f"{name} holds no samples by its header: was it written to a pipe? convert it again")
    if left < length < 0xFFFFFFFF:  # the largest number: written to a pipe, libsndfile reads on to the end
        raise UserError(f"{name} is cut short, {left} of {length} bytes of samples are there: copy it again")


def samples_chunk(file: BinaryIO, size: int) -> tuple[int, int] | None:
    """Bytes of samples in a WAV file by its header, and bytes from there to its end; None of anything else."""
    file.seek(0)
    if file.read(4) != b"RIFF":
        return None
    file.seek(12)  # RIFF, size, WAVE
    while len(chunk := file.read(8)) == 8:
        name, length = struct.unpack("<4sI", chunk)
        if name == b"data":
            return length, size - file.tell()
        file.seek(length + length % 2, 1)
    return None


def is_sphere(path: Path) -> bool:
    """By what it begins with."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
