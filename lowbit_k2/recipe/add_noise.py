"""Noisy copies of a test set, with features, beside the set itself: decode.py takes them by their names.

  python -m lowbit_k2.recipe.add_noise --corpus an4 --split test --manifest-dir data/fbank \\
    --noise-dir musan/noise --conditions "snr20 snr10 snr5 snr0 room mulaw room+snr10+mulaw"
  ./decode.py --exp-dir exp/cotrain --precision 2 1 --test-sets test,test-snr20,test-snr10,test-snr5,test-snr0
  lowbit-k2 noise exp/float exp/cotrain --test-set test

writes `<corpus>_cuts_<split>-<condition>.jsonl.gz` and the audio under `noisy/`. Conditions that are there already are
skipped if they were made from the same cuts, noises and seed. docs/decoding.md says what the conditions are.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from lowbit_k2.core.config import ConfigError
from lowbit_k2.data.extraction import compute_in_parts
from lowbit_k2.data.features import read_feature_config
from lowbit_k2.data.manifests import cuts_path, read_cuts
from lowbit_k2.data.noisy import Condition, noisy_copy, read_noises
from lowbit_k2.errors import UserError, run_main
from lowbit_k2.fileio import atomic_write, sha256
from lowbit_k2.origins import content_sha256, is_done, write_origin

DEFAULT = "snr20 snr10 snr5 snr0"


def add_noise(
    manifest_dir: Path,
    corpus: str,
    split: str,
    conditions: list[Condition],
    noise_dir: Path | None = None,
    seed: int = 0,
    num_jobs: int = 1,
) -> None:
    """Do all conditions that are not done.

    Args:
      num_jobs: processes for features.

    Raises:
      UserError: manifest, audio or noises that cannot be read, or a condition is there that was made from others.
    """
    noisy = any(condition.snr is not None for condition in conditions)
    if noisy and noise_dir is None:
        raise ConfigError("noise_dir", "is missing: conditions with an SNR take their noises from a folder")
    source, features = cuts_path(manifest_dir, corpus, split), read_feature_config(manifest_dir)
    cuts = read_cuts(source)
    noises = read_noises(noise_dir, features.sampling_rate) if noisy else {}
    names = sorted(p.relative_to(noise_dir).as_posix() for p in noise_dir.rglob("*") if p.is_file()) if noisy else []
    of_noises = [[name, sha256(noise_dir / name)] for name in names]
    for condition in conditions:
        name = f"{split}-{condition.name}"
        target = cuts_path(manifest_dir, corpus, name)
        origin = {"cuts": content_sha256(source), "seed": seed, "features": features.stored()}
        origin |= {"noises": of_noises} if condition.snr is not None else {}
        if is_done(target, origin):
            continue
        folder = manifest_dir.resolve() / "noisy" / f"{corpus}_{name}"
        copies = noisy_copy(cuts, condition, noises, folder, seed, features.sampling_rate)
        copies = compute_in_parts(copies, corpus, name, manifest_dir.resolve(), features, num_jobs=num_jobs)
        write_origin(target, origin)
        with atomic_write(target) as temporary:
            copies.to_file(temporary)
        logging.info("%s: %d cuts", target, len(copies))


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", required=True, help="first part of the manifests' names")
    parser.add_argument("--split", default="test", help="the test set")
    parser.add_argument("--manifest-dir", type=Path, default=Path("data/fbank"), help="folder of compute_fbank")
    parser.add_argument("--conditions", default=DEFAULT, help=f"separated by spaces ({DEFAULT})")
    parser.add_argument("--noise-dir", type=Path, help="audio files of noises, in any folders below")
    parser.add_argument("--seed", type=int, default=0, help="of what each utterance gets")
    parser.add_argument("-j", "--num-jobs", type=int, default=1, help="processes for the features")
    return parser


def run(args: argparse.Namespace) -> None:
    """`add_noise` as flags describe it."""
    conditions = [Condition.parse(name) for name in args.conditions.split()]
    if not conditions:
        raise UserError("--conditions names none")
    add_noise(**{**vars(args), "conditions": conditions})


def main() -> None:
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO, datefmt="%Y-%m-%d %H:%M:%S")
    run(get_parser().parse_args())


if __name__ == "__main__":
    run_main(main)
