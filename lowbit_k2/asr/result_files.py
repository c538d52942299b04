"""Result files of a recipe, small enough to be kept in its repository: error rates and sizes, and what was recognised.

`results/NAME.json` holds the evaluations of a system, `results/recogs/NAME-PRECISION-METHOD.txt.gz` the words of each,
`NAME-TEST_SET-PRECISION-METHOD.txt.gz` where a result is of several test sets. The tables of RESULTS.md are made of
them, and `lowbit-k2 compare`, `report` and `noise` read them.
"""

from __future__ import annotations

import gzip
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lowbit_k2.asr.evaluation import Evaluation
from lowbit_k2.fileio import atomic_write, read_json, write_json


def kept_recogs(result: Path, precision: str, method: str, test_set: str = "") -> Path:
    """What was recognised; `test_set` where the result is of several."""
    parts = (result.stem, test_set, precision, method)
    return result.parent / f"recogs/{'-'.join(filter(None, parts))}.txt.gz"


def sets_left(result: Path, test_sets: Sequence[str]) -> list[str]:
    """Those that a result file has no evaluations of."""
    done = {e["test_set"] for e in read_json(result)["evaluations"]} if result.is_file() else set()
    return [name for name in test_sets if name not in done]


def keep(
    result: Path, described: Mapping[str, Any], evaluations: Sequence[Evaluation], exp_dir: Path, several: bool = False
) -> None:
    """Add evaluations to a result file, and put what was recognised beside it.

    Args:
      described: what else a new result file says.
      exp_dir: where the evaluations were made.
      several: the result is of several test sets.
    """
    for e in evaluations:
        for method, path in e.recogs.items():
            with atomic_write(kept_recogs(result, e.precision, method, e.test_set if several else "")) as temporary:
                temporary.write_bytes(gzip.compress((exp_dir / path).read_bytes(), mtime=0))
    known = read_json(result) if result.is_file() else {**described, "evaluations": []}
    write_json(result, {**known, "evaluations": [*known["evaluations"], *(e.to_dict() for e in evaluations)]})
