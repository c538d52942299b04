"""NIST SPHERE, the format of LDC's telephone speech: the header, and lhotse recordings that need no sph2pipe.

A file begins with `NIST_1A`, the header's size, lines `name -type value`, `end_head` and padding; then come the
samples of all channels, interleaved. PCM, mu-law and A-law are read by libsndfile in place. Files compressed with
shorten are converted once with LDC's program sph2pipe. Source: the SPHERE library's documentation, NIST.

lhotse hands every path that ends in .sph to sph2pipe, compressed or not, unless its backend is chosen: the places
that read audio call `choose_backend` first; others set LHOTSE_AUDIO_BACKEND=LibsndfileBackend, before audio is read.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lowbit_k2.errors import UserError
from lowbit_k2.fileio import atomic_write

if TYPE_CHECKING:
    from lhotse import Recording
    from lhotse.cut import Cut

MAGIC = b"NIST_1A"
BLOCK = 1024  # headers are whole multiples of it
MAX_HEADER = 64 * BLOCK
CODINGS = {"pcm": "pcm", "ulaw": "ulaw", "mu-law": "ulaw", "mulaw": "ulaw", "alaw": "alaw", "a-law": "alaw"}
SPH2PIPE = "sph2pipe"
SPH2PIPE_FLAGS = {"pcm": "-p", "ulaw": "-u", "alaw": "-a"}
GET_SPH2PIPE = f"install {SPH2PIPE} (`lhotse install-sph2pipe`, or LDC's page of tools) and put it on the PATH"
REMEDY = "copy it again from the disc"
BACKEND_VARIABLE, LIBSNDFILE = "LHOTSE_AUDIO_BACKEND", "LibsndfileBackend"


class ToolMissingError(UserError):
    """sph2pipe is needed and not there: no fault of the file."""


@dataclass(frozen=True)
class SphereHeader:
    """What the header says.

    Attributes:
      num_samples: of each channel, as promised; the file may hold fewer.
      coding: pcm, ulaw or alaw.
      shorten: the samples are compressed.
      byte_order: "little" or "big"; "" for samples of one byte.
    """

    sampling_rate: int
    num_channels: int
    num_samples: int
    coding: str
    shorten: bool
    byte_order: str
    bytes_per_sample: int
    header_bytes: int


def read_header(path: str | Path) -> SphereHeader:
    """Read the header of a file.

    Raises:
      UserError: no SPHERE file, or a header that makes no sense; the line names the file.
    """
    try:
        with open(path, "rb") as file:
            return parse_header(file.read(MAX_HEADER), str(path))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}: {REMEDY}") from None


def parse_header(data: bytes, name: str) -> SphereHeader:
    """Parse the first bytes of a file.

    Args:
      data: as many bytes as the header may have; more do no harm.
      name: the file, for messages.

    Raises:
      UserError: see `read_header`.
    """
    size, fields = split_header(data, name)
    coding, _, compression = fields.get("sample_coding", "pcm").lower().partition(",")
    coding = CODINGS.get(coding.strip(), "")
    if not coding or (compression.strip() not in ("", "none") and "shorten" not in compression):
        raise UserError(f"{name}: sample_coding {fields['sample_coding']!r} is not read here: convert it to WAV")
    width = number(fields, "sample_n_bytes", 1, 4, name, default=1 if coding != "pcm" else None)
    if coding != "pcm" and width != 1:
        raise UserError(f"{name}: {coding} samples have 1 byte, but the header says {width}: {REMEDY}")
    return SphereHeader(
        sampling_rate=number(fields, "sample_rate", 1, 1_000_000, name),
        num_channels=number(fields, "channel_count", 1, 64, name),
        num_samples=number(fields, "sample_count", 0, 2**40, name),
        coding=coding,
        shorten="shorten" in compression,
        byte_order=byte_order(fields.get("sample_byte_format", ""), width, name),
        bytes_per_sample=width,
        header_bytes=size,
    )


def split_header(data: bytes, name: str) -> tuple[int, dict[str, str]]:
    """The size of the header, and its fields as text."""
    lines = data.split(b"\n", 2)
    if len(lines) < 3 or lines[0].strip() != MAGIC:
        found = "it is empty" if not data else f"it begins with {data[:8]!r}"
        raise UserError(f"{name} is no NIST SPHERE file ({found}): {REMEDY}")
    digits = lines[1].strip()
    size = int(digits) if digits.isdigit() and len(digits) < 8 else 0
    if not BLOCK <= size <= MAX_HEADER or size % BLOCK:
        raise UserError(f"{name}: a SPHERE header of {digits[:20]!r} bytes is none: {REMEDY}")
    if len(data) < size:
        raise UserError(f"{name} ends within its header, after {len(data)} of {size} bytes: {REMEDY}")
    fields: dict[str, str] = {}
    for line in data[len(lines[0]) + len(lines[1]) + 2 : size].split(b"\n"):
        parts = line.decode("latin-1").split(None, 2)
        if parts == ["end_head"]:
            return size, fields
        if len(parts) == 3:  # other lines are comments, or fields without a value
            fields[parts[0]] = parts[2].strip()
    raise UserError(f"{name}: its SPHERE header has no end_head: {REMEDY}")


def number(fields: Mapping[str, str], field: str, low: int, high: int, name: str, default: int | None = None) -> int:
    """A whole number of the header, perhaps written 8000.000, within its bounds."""
    text = fields.get(field, "" if default is None else str(default))
    whole, _, places = text.partition(".")
    if not whole.isdecimal() or not whole.isascii() or places.strip("0") or not low <= int(whole[:20]) <= high:
        what = f"{field} {text[:30]!r}" if field in fields else f"no {field}"
        raise UserError(f"{name}: its SPHERE header has {what}, expected {low} to {high}: {REMEDY}")
    return int(whole)


def byte_order(text: str, width: int, name: str) -> str:
    """`01` is little-endian, `10` big-endian; without it PCM is little-endian, as libsndfile takes it."""
    if width == 1:
        return ""
    little = "".join(str(i) for i in range(width))
    if text in ("", little):
        return "little"
    if text == little[::-1]:
        return "big"
    raise UserError(f"{name}: sample_byte_format {text[:10]!r} does not fit samples of {width} bytes: {REMEDY}")


def count_samples(path: str | Path, header: SphereHeader) -> int:
    """Samples per channel that the file truly holds, at most as many as promised.

    The first pressing of Switchboard counted both channels together; such a file is whole. How many samples a
    compressed file holds is known only once it is converted; here it counts as whole.
    """
    payload = max(0, Path(path).stat().st_size - header.header_bytes)
    if header.shorten:
        return header.num_samples if payload else 0
    return min(header.num_samples, payload // (header.num_channels * header.bytes_per_sample))


def is_cut(header: SphereHeader, num_samples: int) -> bool:
    """Whether `num_samples` per channel are fewer than the header promises, the old way of counting allowed for."""
    return num_samples < header.num_samples and num_samples * header.num_channels != header.num_samples


def make_recording(path: str | Path, recording_id: str | None = None, cache_dir: Path | None = None) -> Recording:
    """A lhotse recording of a file, channels 0, 1, ... in the file's order (side A is 0, B is 1).

    It is as long as the samples that are there; compare its `num_samples` with the header (`is_cut`).

    Args:
      recording_id: by default the file's name without suffix.
      cache_dir: where WAV files of compressed speech go.

    Raises:
      ToolMissingError: compressed speech and no sph2pipe.
      UserError: nonsense, no samples, or compressed speech and no `cache_dir`.
    """
    from lhotse import AudioSource, Recording

    path = Path(path).resolve()
    header = read_header(path)
    num_samples, audio = count_samples(path, header), path
    if num_samples and (header.shorten or not libsndfile_reads(path, header)):
        audio = convert(path, header, cache_dir)
        num_samples = min(header.num_samples, audio_shape(audio)[2])
    if num_samples == 0:
        raise UserError(f"{path} holds no samples: {REMEDY}")
    return Recording(
        id=recording_id or path.stem,
        sources=[AudioSource(type="file", channels=list(range(header.num_channels)), source=str(audio))],
        sampling_rate=header.sampling_rate,
        num_samples=num_samples,
        duration=num_samples / header.sampling_rate,
    )


def audio_shape(path: Path) -> tuple[int, int, int]:
    """Sampling rate, channels and samples per channel, as libsndfile sees the file.

    Raises:
      UserError: it cannot be read.
    """
    import soundfile

    try:
        info = soundfile.info(str(path))
    except (OSError, RuntimeError) as error:  # LibsndfileError is a RuntimeError
        raise UserError(f"{path} cannot be read as audio ({str(error).rstrip(': ')}): {REMEDY}") from None
    return info.samplerate, info.channels, info.frames


def libsndfile_reads(path: Path, header: SphereHeader) -> bool:
    """Whether libsndfile sees in the file what its header says; it refuses some rare ones, e.g. 24 bits."""
    try:
        rate, channels, frames = audio_shape(path)
    except UserError:
        return False
    return (rate, channels) == (header.sampling_rate, header.num_channels) and frames >= count_samples(path, header)


def convert(path: Path, header: SphereHeader, cache_dir: Path | None) -> Path:
    """A WAV file of a SPHERE file, with the same coding and channels, made by sph2pipe once.

    Raises:
      ToolMissingError: no sph2pipe.
      UserError: no folder to put the file into, or sph2pipe fails.
    """
    kind = "compressed with shorten" if header.shorten else "not read by libsndfile"
    program = shutil.which(SPH2PIPE)
    if program is None:
        raise ToolMissingError(f"{path} is {kind}: {GET_SPH2PIPE}")
    if cache_dir is None:
        raise UserError(f"{path} is {kind}: a folder for converted audio is needed")
    stat = path.stat()
    key = hashlib.sha256(f"{path} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:12]
    target = cache_dir.resolve() / f"{path.stem}-{key}.wav"
    if not target.is_file():
        with atomic_write(target) as temporary:
            run_sph2pipe(program, path, header, temporary)
    return target


def run_sph2pipe(program: str, path: Path, header: SphereHeader, target: Path) -> None:
    """Convert, and look at what came out.

    Raises:
      UserError: a failure, or audio that is not what the header says; too few samples are let through.
    """
    command = [program, "-f", "wav", SPH2PIPE_FLAGS[header.coding], str(path), str(target)]
    try:
        done = subprocess.run(command, capture_output=True, check=False, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise UserError(f"{program} cannot be run ({error.strerror}): {GET_SPH2PIPE}") from None
    said = " ".join(done.stderr.decode(errors="replace").split())[:200] or "it said nothing"
    if done.returncode:
        raise UserError(f"{SPH2PIPE} failed on {path} with status {done.returncode} ({said}): {REMEDY}")
    try:
        rate, channels, _ = audio_shape(target)
    except UserError:
        raise UserError(f"{SPH2PIPE} made no audio of {path} ({said}): {REMEDY}") from None
    if (rate, channels) != (header.sampling_rate, header.num_channels):
        raise UserError(f"{SPH2PIPE} made {channels} channels at {rate} Hz of {path}, which promises others: {REMEDY}")


def use_libsndfile() -> None:
    """Have lhotse read .sph files with libsndfile, in this process and those that it starts, if nobody chose."""
    from lhotse.audio import set_current_audio_backend

    if BACKEND_VARIABLE not in os.environ:
        os.environ[BACKEND_VARIABLE] = LIBSNDFILE
        set_current_audio_backend(LIBSNDFILE)


def choose_backend(cut: Cut) -> None:
    """`use_libsndfile` where a cut, or one that is mixed into it, comes from a .sph file."""
    parts = [track.cut for track in cut.tracks] if hasattr(cut, "tracks") else [cut]
    sources = [source.source for part in parts if part.has_recording for source in part.recording.sources]
    if any(str(source).lower().endswith(".sph") for source in sources):
        use_libsndfile()
