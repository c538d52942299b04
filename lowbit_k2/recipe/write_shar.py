"""Put a corpus into shards that hold cuts and data together (lhotse's Shar format), for storage that is not local.

  python -m lowbit_k2.recipe.write_shar --corpus librispeech --splits "train-clean-100 train-clean-360" \\
    --manifest-dir data/fbank --output-dir /archive/shar

Each split becomes a folder `<corpus>_shar_<split>` of numbered cut manifests and tar files with their features (or
audio, `--field recording`). train.py and decode.py read such folders under `--manifest-dir` where there is no cut
manifest of the split. A folder is complete or not there; splits that are there are skipped.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import tempfile
from collections.abc import Sequence
from functools import partial
from itertools import islice, pairwise
from pathlib import Path

from lowbit_k2.core.config import ConfigError
from lowbit_k2.data.features import read_feature_config, write_feature_config
from lowbit_k2.data.manifests import cuts_path, read_cuts, shar_path
from lowbit_k2.data.sources import ALLOW_COMMANDS, check_sources
from lowbit_k2.errors import UserError, run_main
from lowbit_k2.fileio import TEMPORARY
from lowbit_k2.origins import content_sha256, is_done, write_origin
from lowbit_k2.processes import check_num_jobs, in_fresh_processes
from lowbit_k2.recipe.flags import str2bool

COMPRESSION = {"features": "lilcom", "recording": "flac"}


def write_shar(
    manifest_dir: Path,
    output_dir: Path,
    corpus: str,
    splits: Sequence[str],
    field: str = "features",
    shard_size: int = 1000,
    num_jobs: int = 1,
    allow_commands: bool = False,
) -> None:
    """Do all splits that are not done.

    Args:
      field: what the shards hold, a key of `COMPRESSION`.
      shard_size: cuts in each.

    Raises:
      UserError: a manifest that is missing, or cuts without the data that the shards shall hold.
    """
    check_num_jobs(num_jobs)
    if shard_size < 1:
        raise ConfigError("shard_size", "must be at least 1")
    for split in splits:
        target, manifest = shar_path(output_dir, corpus, split), cuts_path(manifest_dir, corpus, split)
        origin = {"field": field, "shard_size": shard_size}
        if manifest.is_file():
            origin[manifest.name] = content_sha256(manifest)
        if is_done(target, origin):
            continue
        cuts = read_cuts(manifest, lazy=True)
        first, total = next(iter(cuts)), 0
        for cut in cuts:
            check_sources(cut, field, allow_commands)
            total += 1
        if not getattr(first, f"has_{field}"):
            raise UserError(f"the cuts of {split} have no {field}, first {first.id}: choose another field")
        output_dir.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=output_dir))
        try:
            write_shards(manifest, folder, field, shard_size, total, num_jobs)
            write_origin(target, origin)
            folder.chmod(0o755)
            folder.rename(target)
        except Exception as error:  # the audio libraries have no common class
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{target} cannot be written ({type(error).__name__}: {reason})") from None
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        write_feature_config(output_dir, read_feature_config(manifest_dir))
        logging.info("%s: %d shards", target, len(list(target.glob("cuts.*"))))


def write_shards(manifest: Path, folder: Path, field: str, shard_size: int, total: int, jobs: int) -> None:
    """All shards of a manifest of `total` cuts; each process takes as many in a row, the first one shows progress."""
    shards = -(-total // shard_size)
    jobs = min(jobs, shards)
    bounds = [shards * job // jobs for job in range(jobs + 1)]
    work = partial(write_run, manifest, folder, field, shard_size)
    if jobs == 1:
        work((0, shards))
    else:
        in_fresh_processes(work, list(pairwise(bounds)), jobs)


def write_run(manifest: Path, folder: Path, field: str, shard_size: int, run: tuple[int, int]) -> None:
    """Shards number first to last - 1, `run`, of a manifest."""
    from lhotse import CutSet

    first, last = run
    cuts = CutSet.from_cuts(islice(read_cuts(manifest, lazy=True), first * shard_size, last * shard_size))
    cuts.to_shar(
        folder,
        fields={field: COMPRESSION[field]},
        shard_size=shard_size,
        shard_offset=first,
        warn_unused_fields=False,
        verbose=first == 0,
    )


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest-dir", type=Path, required=True, help="folder of compute_fbank")
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--splits", required=True, help="separated by spaces")
    parser.add_argument("--field", choices=list(COMPRESSION), default="features", help="what the shards hold")
    parser.add_argument("--shard-size", type=int, default=1000, help="cuts")
    parser.add_argument("--allow-commands", type=str2bool, default=False, metavar="BOOL", help=ALLOW_COMMANDS)
    parser.add_argument("-j", "--num-jobs", type=int, default=1, help="processes at a time")
    return parser


def run(args: argparse.Namespace) -> None:
    """`write_shar` as flags describe it."""
    write_shar(**{**vars(args), "splits": args.splits.split()})


def main() -> None:
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO, datefmt="%Y-%m-%d %H:%M:%S")
    run(get_parser().parse_args())


if __name__ == "__main__":
    run_main(main)
