#!/usr/bin/env python3
"""Download LibriSpeech's language model from OpenSLR 11: the pruned 3-gram and the list of its 200,000 words.

    ./local/download_lm.py --output-dir download/lm               # 35 MB
    ./local/download_lm.py --output-dir download/lm --rescoring   # and the full 4-gram, 1.3 GB

An interrupted download goes on where it stopped. A file gets its name only when it is whole: as long as the server
says, gzip's checksum right, and the ARPA file with its end mark.
"""

from __future__ import annotations

import argparse
import gzip
import http.client
import shutil
import sys
import urllib.error
import urllib.request
import zlib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from lowbit_k2.errors import UserError, run_main
from lowbit_k2.fileio import atomic_write
from lowbit_k2.progress import progress_bar

BASE_URL = "https://www.openslr.org/resources/11"
ARPA = "3-gram.pruned.1e-7.arpa"
RESCORING_ARPA = "4-gram.arpa"
WORDS = "librispeech-vocab.txt"
CHUNK = 1 << 18
TIMEOUT_SECONDS = 60


def download(url: str, path: Path) -> None:
    """Fetch `url` to `path` through `path` + ".part", which a later call continues.

    Raises:
      UserError: the server cannot be reached, refuses, or sends less than it announced.
    """
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
            if response.status != http.client.PARTIAL_CONTENT:
                have = 0  # the server sends the file from its beginning
            _receive(response, part, have)
    except urllib.error.HTTPError as error:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            part.unlink()  # longer than the file, or all of a file that was replaced since: start again
            return download(url, path)
        raise UserError(f"{url} answers {error.code} {error.reason}: try later, or fetch it by hand") from None
    except (OSError, http.client.HTTPException) as error:
        raise UserError(f"{url} cannot be downloaded ({error}): run the stage again to go on") from None
    part.replace(path)


def _receive(response: http.client.HTTPResponse, part: Path, have: int) -> None:
    """Append the body of `response` to `part`, which holds `have` valid bytes."""
    length = response.headers.get("Content-Length")
    total = have + int(length) if length is not None else None
    with part.open("r+b" if have else "wb") as output:
        output.seek(have)
        with progress_bar(desc=part.stem, total=total, initial=have, unit="B", unit_scale=True) as progress:
            while chunk := response.read(CHUNK):
                output.write(chunk)
                progress.update(len(chunk))
        size = output.tell()
    if total is not None and size != total:
        raise OSError(f"{size} of {total} bytes came")


def unpack_arpa(packed: Path, path: Path) -> None:
    """Decompress an ARPA file and check its end mark; a damaged archive is removed, so that it is fetched anew.

    Raises:
      UserError: the archive is damaged.
    """
    try:
        with atomic_write(path) as temporary:
            with gzip.open(packed, "rb") as source, temporary.open("wb") as target:
                shutil.copyfileobj(source, target, CHUNK)
            with temporary.open("rb") as arpa:
                arpa.seek(max(0, temporary.stat().st_size - 64))
                if b"\\end\\" not in arpa.read():
                    raise EOFError("no \\end\\ mark")
    except (OSError, EOFError, zlib.error) as error:
        packed.unlink(missing_ok=True)
        raise UserError(f"{packed} is damaged ({error}) and was removed: run the stage again") from None


def download_lm(output_dir: Path, base_url: str, rescoring: bool = False) -> None:
    """Put ARPA and WORDS into `output_dir`, for rescoring the 4-gram too; files that are there already stay."""
    if not (output_dir / WORDS).is_file():
        download(f"{base_url}/{WORDS}", output_dir / WORDS)
    for name in (ARPA, RESCORING_ARPA) if rescoring else (ARPA,):
        if (output_dir / name).is_file():
            continue
        packed = output_dir / f"{name}.gz"
        if not packed.is_file():
            download(f"{base_url}/{name}.gz", packed)
        unpack_arpa(packed, output_dir / name)


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--rescoring", action="store_true", help="also the 4-gram that lattices are rescored with")
    parser.add_argument("--base-url", default=BASE_URL, help="of a mirror with the same file names")
    return parser


def main() -> None:
    args = get_parser().parse_args()
    download_lm(args.output_dir, args.base_url.rstrip("/"), args.rescoring)


if __name__ == "__main__":
    run_main(main)
