"""Every text file of users is read here, by one rule.

- UTF-8; files of the LDC (`legacy`) may be Latin-1 instead. Bytes that are neither are refused with their line.
- Byte-order marks are no characters, wherever concatenation has left them; characters come composed (NFC).
- Lines end with LF or CRLF (in files without any LF, with CR). Other separators that Unicode knows (U+000B, U+0085,
  U+2028, ...) are white space within a line, as `str.split` takes them.
- gzip is unpacked, told by its first bytes. Pipes, devices and folders are refused.
"""

from __future__ import annotations

import gzip
import unicodedata
import zlib
from collections.abc import Iterator
from pathlib import Path

from lowbit_k2.errors import UserError

BYTE_ORDER_MARK = "\ufeff"
GZIP = b"\x1f\x8b"
UTF16 = (b"\xff\xfe", b"\xfe\xff")
MISSING = "run the stage that makes it first"


def clean(text: str) -> str:
    """Composed characters (NFC) without byte-order marks."""
    return unicodedata.normalize("NFC", text.replace(BYTE_ORDER_MARK, ""))


def read_bytes(path: str | Path, missing: str = MISSING) -> bytes:
    """A regular file, unpacked where it is gzipped.

    Args:
      missing: the remedy where it does not exist.

    Raises:
      UserError: it is missing, no regular file, unreadable, or a damaged archive.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path} does not exist: {missing}")
    if not path.is_file():
        raise UserError(f"{path} is no regular file: give the path of a file")
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if data.startswith(GZIP) else data
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be unpacked ({error}): copy it again") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None


def read_text(path: str | Path, missing: str = MISSING, legacy: bool = False) -> str:
    """A whole text, its lines ended by LF.

    Args:
      legacy: Latin-1 where it is not UTF-8.

    Raises:
      UserError: it cannot be read, or holds bytes that are no text; the line is named.
    """
    data = read_bytes(path, missing)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        if not legacy:
            raise _no_utf8(path, data, error) from None
        text = data.decode("latin-1")
    if "\0" in text:
        raise UserError(f"{path} line {text[: text.index(chr(0))].count(chr(10)) + 1}: a NUL byte: is it a text file?")
    text = text.replace("\r\n", "\n")
    return clean(text if "\n" in text else text.replace("\r", "\n"))


def _no_utf8(path: str | Path, data: bytes, error: UnicodeDecodeError) -> UserError:
    if data.startswith(UTF16):
        return UserError(f"{path} is UTF-16: convert it with iconv -f utf-16 -t utf-8")
    line = data[: error.start].count(b"\n") + 1
    return UserError(f"{path} line {line}: byte 0x{data[error.start]:02x} is not UTF-8: convert it with iconv -t utf-8")


def read_lines(path: str | Path, missing: str = MISSING, legacy: bool = False) -> list[str]:
    """The lines of a text, without their ends.

    Raises:
      UserError: as `read_text`.
    """
    lines = read_text(path, missing, legacy).split("\n")
    return lines[:-1] if not lines[-1] else lines


def numbered_lines(path: str | Path, missing: str = MISSING, legacy: bool = False) -> Iterator[tuple[int, str]]:
    """Lines with something in them, without the blanks around, numbered from 1.

    Raises:
      UserError: as `read_text`.
    """
    for number, line in enumerate(read_lines(path, missing, legacy), start=1):
        if line.strip():
            yield number, line.strip()
