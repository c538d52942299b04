"""Write lhotse manifests of MUSAN's parts: music, speech and noise.

  python -m lowbit_k2.recipe.prepare_musan --musan-dir download/musan --manifest-dir data/manifests

As `lhotse prepare musan` does, with the same file names, whole or not at all and sorted by id.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lowbit_k2.data.manifests import write_manifests
from lowbit_k2.errors import UserError, run_main


def prepare_musan(musan_dir: Path, manifest_dir: Path) -> None:
    """Write `musan_recordings_<part>.jsonl.gz` for the parts that are there.

    Raises:
      UserError: no MUSAN there, or damaged audio.
    """
    from lhotse.recipes import prepare_musan as read_musan

    if not musan_dir.is_dir():
        raise UserError(f"no MUSAN at {musan_dir}: download it (OpenSLR 17) and give its folder with --musan-dir")
    try:
        manifests = read_musan(musan_dir.resolve())  # manifests name audio by full paths: usable from any folder
    except Exception as error:  # lhotse and the audio libraries have no common class
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{musan_dir} cannot be read ({type(error).__name__}: {reason}): unpack it again") from None
    write_manifests("musan", manifests, manifest_dir)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--musan-dir", type=Path, required=True, help="the folder with music/, speech/ and noise/")
    parser.add_argument("--manifest-dir", type=Path, required=True)
    args = parser.parse_args()
    prepare_musan(args.musan_dir, args.manifest_dir)


if __name__ == "__main__":
    run_main(main)
