"""Write the manifest of a plain folder of noises, for training with noise where there is no MUSAN.

  python -m lowbit_k2.recipe.prepare_noise --noise-dir noises --manifest-dir data/manifests
  python -m lowbit_k2.recipe.compute_fbank --corpus musan --splits noise --window 10 \\
    --manifest-dir data/manifests --output-dir data/fbank
  ./train.py --enable-musan true --cache-features false

Any sampling rate and number of channels; the first channel is taken. Keep the noises that the model is to be tested in
out of the folder.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from lowbit_k2.data.manifests import write_manifests
from lowbit_k2.data.noisy import find_noises
from lowbit_k2.data.sources import recording_of
from lowbit_k2.errors import run_main


def prepare_noise(noises: Mapping[str, Path], manifest_dir: Path) -> None:
    """Write `musan_cuts_noise.jsonl.gz`: under the name that training with noise looks for.

    Args:
      noises: audio files by name, as `find_noises` gives them.

    Raises:
      UserError: damaged audio.
    """
    from lhotse import CutSet, MonoCut

    recordings = [recording_of(path.resolve(), name) for name, path in noises.items()]
    cuts = [MonoCut(r.id, start=0.0, duration=r.duration, channel=0, recording=r) for r in recordings]
    write_manifests("musan", {"noise": {"cuts": CutSet.from_cuts(cuts)}}, manifest_dir)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--noise-dir", type=Path, required=True, help="audio files of noises, in any folders below")
    parser.add_argument("--manifest-dir", type=Path, required=True)
    args = parser.parse_args()
    prepare_noise(find_noises(args.noise_dir), args.manifest_dir)


if __name__ == "__main__":
    run_main(main)
