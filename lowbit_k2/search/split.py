"""Training utterances in two: for the weights of a supernet, and for its logits."""

from __future__ import annotations

import hashlib
import re
from functools import partial
from typing import TYPE_CHECKING, Any

from lowbit_k2.core.config import ConfigError

if TYPE_CHECKING:
    from lhotse import CutSet

PERTURBED = re.compile(r"(_(?:sp|tp|vp)\d+(?:\.\d+)?)+$")  # lhotse's marks of other speeds, tempos and volumes


def utterance_of(cut_id: str) -> str:
    """The id without the marks of perturbed copies, which belong to the same utterance."""
    return PERTURBED.sub("", cut_id)


def is_held_out(cut_id: str, share: float) -> bool:
    """Whether the utterance is of the smaller part: a function of its name alone, so that no list need be kept."""
    digest = hashlib.blake2b(utterance_of(cut_id).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def _on_side(cut: Any, share: float, held_out: bool) -> bool:
    return is_held_out(cut.id, share) == held_out


def split_cuts(cuts: CutSet, share: float) -> tuple[CutSet, CutSet]:
    """Most of the cuts, lazy ones still lazy, and about `share` of them, in memory.

    Raises:
      ConfigError: one of the parts is empty.
    """
    from lhotse import CutSet

    most, rest = (cuts.filter(partial(_on_side, share=share, held_out=side)) for side in (False, True))
    rest = CutSet.from_cuts(rest)
    if not cuts.is_lazy:
        most = CutSet.from_cuts(most)
    if len(rest) == 0 or next(iter(most), None) is None:
        raise ConfigError("logits_share", f"{share:g} of the training utterances leaves one part empty: change it")
    return most, rest
