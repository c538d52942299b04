"""What `lowbit-k2 compare` prints: a row per system and cell against the reference system, and one for all cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lowbit_k2.scoring.significance import Comparison, Difference
from lowbit_k2.tables import text_table

HEAD = ["system", "WER", "reference", "difference", "95%", "relative", "95%", "p", "segments", "p MAPSSWE", "verdict"]
FEW_UNITS = 20  # a bootstrap over fewer is too sure of itself


def name_of(files: Sequence[Path]) -> str:
    """What the files of a system have in common, or the name of its only one."""
    return str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"


def format_comparisons(
    reference: Sequence[Path],
    others: Sequence[tuple[Sequence[Path], Comparison]],
    margin: float,
    unit: str,
) -> str:
    """A table, and a line per system on what its rows together say.

    Args:
      reference: files of the system that all are compared with.
      others: files of each other system, and how it compares.
      margin: relative, as a fraction.
      unit: what was drawn: "speakers" or "utterances".
    """
    rows, notes = [], []
    for files, found in others:
        if len(files) > 1:
            rows += [_row(str(file), c.difference, margin, c.pairs) for file, c in zip(files, found.cells, strict=True)]
            rows.append(_row(f"all {len(files)}", found.pooled, margin))
        else:
            rows.append(_row(str(files[0]), found.pooled, margin, found.cells[0].pairs))
        units = found.pooled.units
        equal = units - found.worse - found.better
        note = f"{name_of(files)}: {unit} worse / better / equal: {found.worse} / {found.better} / {equal}"
        if len(files) > 1:
            note += f"; sign test over {len(files)} cells: p {found.sign_p:.3f}"
        if units < FEW_UNITS:
            note += f"; {units} {unit} are few: the intervals are too narrow"
        notes.append(note)
    title = (
        f"against {name_of(reference)}; bootstrap over {unit}; equivalent: 90% interval of the relative difference "
        f"within {margin:.1%}"
    )
    return "\n".join([title, text_table(HEAD, rows), *notes])


def _row(name: str, d: Difference, margin: float, pairs: Any = None) -> list[str]:
    return [
        name,
        f"{d.other:.2%}",
        f"{d.reference:.2%}",
        f"{100 * d.absolute:+.2f}",
        " .. ".join(f"{100 * end:+.2f}" for end in d.absolute_interval),
        *d.relative_cells(),
        f"{d.p:.4f}",
        "" if pairs is None else str(pairs.segments),
        "" if pairs is None else f"{pairs.p:.4f}",
        d.verdict(margin),
    ]


def as_json(
    reference: Sequence[Path], others: Sequence[tuple[Sequence[Path], Comparison]], margin: float, unit: str
) -> dict[str, Any]:
    """All numbers, rates and differences as fractions."""
    systems = []
    for files, found in others:
        cells = [
            {**asdict(c.difference), "verdict": c.difference.verdict(margin), "mapsswe": asdict(c.pairs)}
            for c in found.cells
        ]
        pooled = {**asdict(found.pooled), "verdict": found.pooled.verdict(margin)}
        votes = {"worse": found.worse, "better": found.better, "sign_p": found.sign_p}
        systems.append({"files": list(map(str, files)), "cells": cells, "pooled": pooled, **votes})
    return {"reference": list(map(str, reference)), "unit": unit, "margin": margin, "systems": systems}
