"""Find and open cuts: `<manifest-dir>/<corpus>_cuts_<split>.jsonl.gz`, which compute_fbank writes, or the folder
`<corpus>_shar_<split>` of write_shar, whose shards hold cuts and data together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowbit_k2.core.config import ConfigError
from lowbit_k2.data.sources import Relocate
from lowbit_k2.errors import UserError
from lowbit_k2.fileio import atomic_write

if TYPE_CHECKING:
    from lhotse import CutSet
    from lhotse.cut import Cut


def cuts_path(manifest_dir: str | Path, corpus: str, split: str) -> Path:
    return Path(manifest_dir) / f"{corpus}_cuts_{split}.jsonl.gz"


def shar_path(manifest_dir: str | Path, corpus: str, split: str) -> Path:
    return Path(manifest_dir) / f"{corpus}_shar_{split}"


def write_manifests(corpus: str, manifests: Mapping[str, Mapping[str, Any]], manifest_dir: Path) -> None:
    """Write `<corpus>_<kind>_<split>.jsonl.gz`, each whole or not at all, items sorted by id, and print their numbers.

    Args:
      manifests: lhotse's sets by split and kind ("recordings", "supervisions"), as its recipes return them.
    """
    for split, kinds in sorted(manifests.items()):
        for kind, items in kinds.items():
            if items is None:
                continue
            items = type(items).from_items(sorted(items, key=lambda item: item.id))
            with atomic_write(manifest_dir / f"{corpus}_{kind}_{split}.jsonl.gz") as temporary:
                items.to_file(temporary)
            print(f"{corpus}_{kind}_{split}.jsonl.gz: {len(items)}")


def read_cuts(path: str | Path, lazy: bool = False) -> CutSet:
    """Open any lhotse cut manifest (.jsonl or .jsonl.gz); features that were moved with it are found beside it.

    Args:
      lazy: keep the cuts on disk and decode them at each pass: for corpora of hundreds of hours.

    Raises:
      UserError: missing, damaged, empty, or no manifest of cuts.
    """
    from lhotse import CutSet
    from lhotse.cut import Cut

    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist: run prepare.sh (compute_fbank) first, or give its folder")
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
    return cuts.map(Relocate(path.parent)) if lazy else CutSet.from_cuts(map(Relocate(path.parent), cuts))


def read_shar(folder: Path) -> CutSet:
    """Cuts of lhotse's Shar format, always lazy: their data comes with them.

    Raises:
      UserError: a shard lacks its data.
    """
    from lhotse import CutSet

    shards = sorted(folder.glob("cuts.*.jsonl.gz"))
    fields = {path.name.split(".")[0] for path in folder.glob("*.tar")}
    expected = {f"{field}.{shard.name.split('.')[1]}.tar" for field in fields for shard in shards}
    missing = sorted(expected - {path.name for path in folder.iterdir()})
    if not shards or not fields or missing:
        what = f"lacks {missing[0]}" if missing else "holds no shards"
        raise UserError(f"{folder} {what}: copy all of it again, or make it with write_shar")
    return CutSet.from_shar(in_dir=folder)


def read_split(manifest_dir: str | Path, corpus: str, split: str, lazy: bool = False) -> CutSet:
    """Cuts of a split from its manifest or, where there is none, from its shards.

    Raises:
      UserError: neither is there, or damaged.
    """
    path, folder = cuts_path(manifest_dir, corpus, split), shar_path(manifest_dir, corpus, split)
    return read_shar(folder) if folder.is_dir() and not path.is_file() else read_cuts(path, lazy)


def load_cuts(manifest_dir: str | Path, corpus: str, splits: str | Sequence[str], lazy: bool = False) -> CutSet:
    """Cuts of one split, or of several put together (lazy ones interleaved by their shares, as icefall does).

    Raises:
      UserError: a manifest that is missing or damaged.
    """
    from lhotse import CutSet

    names = splits.split() if isinstance(splits, str) else list(splits)
    if not names:
        raise UserError("no split was named")
    sets = [read_split(manifest_dir, corpus, name, lazy) for name in names]
    if len(sets) == 1:
        return sets[0]
    if any(cuts.is_lazy for cuts in sets):
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
        raise ConfigError(
            "enable_musan",
            f"finds no musan_cuts*.jsonl.gz in {manifest_dir}: prepare MUSAN first, or a folder by prepare_noise",
        )
    return CutSet.from_cuts(cut for path in paths for cut in read_cuts(path))


def speaker_of(cut: Cut) -> str | None:
    """Of its first supervision."""
    return cut.supervisions[0].speaker if cut.supervisions else None


def speakers_of(cuts: CutSet) -> dict[str, str]:
    """Of the cuts that have one."""
    return {cut.id: speaker for cut in cuts if (speaker := speaker_of(cut))}


def cuts_by_speaker(cuts: Iterable[Cut]) -> list[list[Cut]]:
    """The cuts of each speaker, in the order of their ids; one without a speaker stands alone."""
    groups: dict[tuple[str, str], list[Cut]] = {}
    for cut in sorted(cuts, key=lambda cut: cut.id):
        speaker = speaker_of(cut)
        groups.setdefault(("speaker", speaker) if speaker else ("cut", cut.id), []).append(cut)
    return list(groups.values())


def snrs_of(cuts: CutSet) -> dict[str, float]:
    """Speech over noise in dB, of the cuts that carry it: as `snr` among their own fields, or as lhotse mixed them."""
    found = {cut.id: snr_of(cut) for cut in cuts}
    return {utterance: snr for utterance, snr in found.items() if snr is not None}


def snr_of(cut: Cut) -> float | None:
    """Of one cut; with several noises the loudest one's."""
    own = (getattr(cut, "custom", None) or {}).get("snr")
    mixed = [track.snr for track in getattr(cut, "tracks", ()) if track.snr is not None]
    return own if isinstance(own, (int, float)) else min(mixed, default=None)
