"""Save and load graphs as dicts of tensors, which `torch.load(..., weights_only=True)` accepts in both lanes."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lowbit_k2.errors import UserError
from lowbit_k2.fileio import atomic_write
from lowbit_k2.k2_compat import require_k2

if TYPE_CHECKING:
    import k2


def save_fsa(path: str | Path, fsa: k2.Fsa) -> None:
    """Write a graph, atomically.

    The file holds `arcs` and, for a transducer, `aux_labels` as k2's `Fsa.as_dict` has them, so that icefall reads
    it. Only where an arc carries several words (k2 keeps a ragged tensor, which pickle alone could store),
    `aux_labels` holds all values and `aux_row_splits` (number of arcs + 1) says where each arc's begin.
    """
    k2 = require_k2()
    tensors = {"arcs": fsa.as_dict()["arcs"].cpu()}
    aux = getattr(fsa, "aux_labels", None)
    if isinstance(aux, k2.RaggedTensor):
        tensors.update(_ragged_tensors(aux))
    elif aux is not None:
        tensors["aux_labels"] = aux.cpu()
    # An open file, because torch writes the name of a path into the archive: equal graphs give equal bytes.
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        torch.save(tensors, file)


def _ragged_tensors(aux: k2.RaggedTensor) -> dict[str, Tensor]:
    """One label per arc (0: none) where that is enough; values and row splits otherwise."""
    splits, values = aux.shape.row_splits(1).cpu(), aux.values.cpu()
    lengths = splits.diff()  # (arcs,)
    if int(lengths.max()) > 1:
        return {"aux_labels": values, "aux_row_splits": splits}
    dense = torch.zeros_like(lengths)
    dense[lengths == 1] = values
    return {"aux_labels": dense}


def load_fsa(path: str | Path, device: str | torch.device = "cpu") -> k2.Fsa:
    """Read a graph that `save_fsa` wrote, or one of icefall's whose arcs carry one word at most.

    Raises:
      UserError: missing file, or not a graph.
    """
    k2 = require_k2()
    tensors = _read_tensors(Path(path))
    aux = tensors.get("aux_labels")
    if aux is None:
        return k2.Fsa(tensors["arcs"]).to(device)
    fsa = k2.Fsa(tensors["arcs"], aux_labels=None if "aux_row_splits" in tensors else aux)
    if "aux_row_splits" in tensors:
        shape = k2.ragged.create_ragged_shape2(tensors["aux_row_splits"], None, aux.numel())
        fsa.aux_labels = k2.RaggedTensor(shape, aux)
    return fsa.to(device)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """The file's dict, checked to be a graph's."""
    if not path.is_file():
        raise UserError(f"{path} does not exist: run prepare_lang and compile_hlg first")
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} cannot be read as a graph ({reason}): make it again with compile_hlg") from None
    if not isinstance(tensors, dict) or not isinstance(tensors.get("arcs"), Tensor):
        raise UserError(f"{path} holds no graph: make it again with compile_hlg")
    return tensors
