"""Save and load graphs as dicts of tensors, with a record of the symbols that they were made for.

The file holds `arcs` and, for a transducer, `aux_labels` as k2's `Fsa.as_dict` has them, so that icefall reads it. Only
where an arc carries several words (k2 keeps a ragged tensor, which pickle alone could store), `aux_labels` holds all
values and `aux_row_splits` (number of arcs + 1) says where each arc's begin. `made_for` is JSON: checksums by name.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lowbit_k2.core.topology import CTC
from lowbit_k2.errors import UserError
from lowbit_k2.fileio import atomic_write
from lowbit_k2.k2_compat import require_k2
from lowbit_k2.tensorfile import DamagedError, load_tensors, save_tensors

if TYPE_CHECKING:
    import k2

TOPOLOGY = "topology"
NAMES = {"words": "words.txt", "units": "the model's units"}


def graph_file(graph: str, topology: str = CTC) -> str:
    """Where a lang directory has a graph: HLG.pt, or HLG_chain.pt."""
    return f"{graph}.pt" if topology == CTC else f"{graph}_{topology}.pt"


def made_for(words: Mapping[str, int], units: Iterable[str] = (), topology: str = CTC) -> dict[str, str]:
    """What a graph records: checksums of its symbols in the order of their ids, and a topology other than CTC's.

    Args:
      words: words.txt.
      units: of the model, or tokens.txt, whose disambiguation symbols do not count; none for a graph over words alone.
    """
    units = [unit for unit in units if not unit.startswith("#")]
    symbols = {"words": _checksum(sorted(words, key=words.__getitem__))}
    symbols |= {"units": _checksum(units)} if units else {}
    return symbols if topology == CTC else {**symbols, TOPOLOGY: topology}


def _checksum(symbols: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(symbols).encode("utf-8")).hexdigest()


def save_fsa(path: str | Path, fsa: k2.Fsa, record: Mapping[str, Any] | None = None) -> None:
    """Write a graph, atomically.

    Args:
      record: what it was made for and from (`made_for`).
    """
    k2 = require_k2()
    content: dict[str, Any] = {"arcs": fsa.as_dict()["arcs"].cpu()}
    aux = getattr(fsa, "aux_labels", None)
    if isinstance(aux, k2.RaggedTensor):
        content.update(_ragged_tensors(aux))
    elif aux is not None:
        content["aux_labels"] = aux.cpu()
    if record:
        content["made_for"] = json.dumps(record, sort_keys=True)
    with atomic_write(path) as temporary:
        save_tensors(temporary, content)


def _ragged_tensors(aux: k2.RaggedTensor) -> dict[str, Tensor]:
    """One label per arc (0: none) where that is enough; values and row splits otherwise."""
    splits, values = aux.shape.row_splits(1).cpu(), aux.values.cpu()
    lengths = splits.diff()  # (arcs,)
    if int(lengths.max()) > 1:
        return {"aux_labels": values, "aux_row_splits": splits}
    dense = torch.zeros_like(lengths)
    dense[lengths == 1] = values
    return {"aux_labels": dense}


def load_fsa(path: str | Path, device: str | torch.device = "cpu", expected: Mapping[str, str] | None = None) -> k2.Fsa:
    """Read a graph that `save_fsa` wrote, or one of icefall's whose arcs carry one word at most.

    Args:
      expected: what it must have been made for, as in `made_for`; a graph without a record is taken with a warning.

    Raises:
      UserError: missing file, not a graph, damaged, or one for other symbols.
    """
    k2 = require_k2()
    path = Path(path)
    content = _read(path)
    record = _record_of(content)
    if expected is not None and record.get(TOPOLOGY, CTC) != expected.get(TOPOLOGY, CTC):
        wanted = expected.get(TOPOLOGY, CTC)
        raise UserError(f"{path} is for another topology than the model's: compile it with --topology {wanted}")
    for name, value in ((n, v) for n, v in (expected or {}).items() if n != TOPOLOGY):
        if name not in record:
            logging.warning("%s does not say which %s it was made for: compile it again", path, NAMES[name])
        elif record[name] != value:
            raise UserError(
                f"{path} was made for other symbols than {NAMES[name]} has now: compile it again, or give the lang "
                "directory that belongs to it"
            )
    aux, splits = content.get("aux_labels"), content.get("aux_row_splits")
    problem = problem_of_arcs(content["arcs"], aux, splits)
    if problem:
        raise UserError(f"{path} holds no graph: {problem}; compile it again")
    if aux is None:
        return k2.Fsa(content["arcs"]).to(device)
    fsa = k2.Fsa(content["arcs"], aux_labels=None if splits is not None else aux)
    if splits is not None:
        fsa.aux_labels = k2.RaggedTensor(k2.ragged.create_ragged_shape2(splits, None, aux.numel()), aux)
    return fsa.to(device)


def read_record(path: Path) -> dict[str, Any]:
    """What a graph says that it was made for; {} where it says nothing or cannot be read."""
    try:
        return _record_of(_read(path))
    except UserError:
        return {}


def _record_of(content: Mapping[str, Any]) -> dict[str, Any]:
    try:
        record = json.loads(content.get("made_for", "{}"))
    except (TypeError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _read(path: Path) -> dict[str, Any]:
    """The file's dict, checked to hold arcs."""
    if not path.exists():
        raise UserError(f"{path} does not exist: run prepare_lang and compile_hlg first")
    try:
        content = load_tensors(path)
    except DamagedError as error:
        raise UserError(f"{path} cannot be read as a graph: it {error}; make it again with compile_hlg") from None
    if not isinstance(content, dict) or not isinstance(content.get("arcs"), Tensor):
        raise UserError(f"{path} holds no graph: make it again with compile_hlg")
    return content


def problem_of_arcs(arcs: Tensor, aux: Any, splits: Any) -> str | None:
    """What k2 would stumble over, or answer wrongly: None for arcs of a sound graph.

    Args:
      arcs: (A, 4) int32: source, target, label, and a float32 score's bits; sorted by source, the last state final.
      aux: output labels, (A,) int32, or with `splits` the values of a ragged tensor.
      splits: (A + 1,) int32.
    """
    if arcs.dtype != torch.int32 or arcs.dim() != 2 or arcs.size(1) != 4 or not len(arcs):
        return f"arcs are {arcs.dtype} {tuple(arcs.shape)}"
    source, target, label = arcs[:, 0], arcs[:, 1], arcs[:, 2]
    final = int(target.max())
    scores = arcs[:, 3].contiguous().view(torch.float32)
    tests = {
        "arcs are not sorted by state": bool((source.diff() >= 0).all()),
        "states are out of range": bool((source >= 0).all() and (target >= 0).all() and (source < final).all()),
        "only arcs into the final state are labelled -1": bool(((label == -1) == (target == final)).all()),
        "labels are out of range": bool((label >= -1).all()),
        "scores are not finite": bool(torch.isfinite(scores).all()),
        "output labels do not fit": _fits(aux, splits, len(arcs)),
    }
    return next((problem for problem, good in tests.items() if not good), None)


def _fits(aux: Any, splits: Any, num_arcs: int) -> bool:
    if aux is None:
        return splits is None
    if not isinstance(aux, Tensor) or aux.dtype != torch.int32 or aux.dim() != 1 or bool((aux < -1).any()):
        return False
    if splits is None:
        return len(aux) == num_arcs
    if not isinstance(splits, Tensor) or splits.dtype != torch.int32 or splits.shape != (num_arcs + 1,):
        return False
    return int(splits[0]) == 0 and int(splits[-1]) == len(aux) and bool((splits.diff() >= 0).all())
