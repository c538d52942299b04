"""Find and open cut manifests: `<manifest-dir>/<corpus>_cuts_<split>.jsonl.gz`, written by compute_fbank."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lowbit_k2.errors import UserError

if TYPE_CHECKING:
    from lhotse import CutSet


def cuts_path(manifest_dir: str | Path, corpus: str, split: str) -> Path:
    return Path(manifest_dir) / f"{corpus}_cuts_{split}.jsonl.gz"


def read_cuts(path: str | Path, lazy: bool = False) -> CutSet:
    """Open any lhotse cut manifest (.jsonl or .jsonl.gz).

    Args:
      lazy: keep the cuts on disk and decode them at each pass: for corpora of hundreds of hours.

    Raises:
      UserError: missing, damaged, empty, or no manifest of cuts.
    """
    from lhotse import CutSet
    from lhotse.cut import Cut

    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist: run prepare.sh (compute_fbank) first, or check --manifest-dir")
    try:
        lazy_cuts = CutSet.from_jsonl_lazy(path)
        first = next(iter(lazy_cuts), None)
        cuts = lazy_cuts if lazy or first is None else CutSet.from_cuts(lazy_cuts)
    except Exception as error:  # lhotse has no class of its own for damaged manifests
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} cannot be read as cuts ({type(error).__name__}: {reason}): make it again") from None
    if first is None:
        raise UserError(f"{path} holds no cuts: run the stage that makes it again")
    if not isinstance(first, Cut):
        raise UserError(f"{path} holds {type(first).__name__} items, not cuts: give a cut manifest")
    return cuts


def load_cuts(manifest_dir: str | Path, corpus: str, splits: str | Sequence[str], lazy: bool = False) -> CutSet:
    """Cuts of one split, or of several put together (lazy ones interleaved by their shares, as icefall does).

    Raises:
      UserError: a manifest that is missing or damaged.
    """
    from lhotse import CutSet

    names = splits.split() if isinstance(splits, str) else list(splits)
    if not names:
        raise UserError("no split was named")
    sets = [read_cuts(cuts_path(manifest_dir, corpus, name), lazy) for name in names]
    if len(sets) == 1:
        return sets[0]
    if lazy:
        return CutSet.mux(*sets, weights=[sum(1 for _ in cuts) for cuts in sets], seed=0)
    return CutSet.from_cuts(cut for cuts in sets for cut in cuts)


def load_noise(manifest_dir: str | Path) -> CutSet:
    """All noise cuts: `musan_cuts*.jsonl.gz`.

    Raises:
      UserError: there are none.
    """
    from lhotse import CutSet

    paths = sorted(Path(manifest_dir).glob("musan_cuts*.jsonl.gz"))
    if not paths:
        raise UserError(f"--enable-musan true, but {manifest_dir} holds no musan_cuts*.jsonl.gz: prepare MUSAN first")
    return CutSet.from_cuts(cut for path in paths for cut in read_cuts(path))
