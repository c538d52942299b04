"""One table of a trained model's precisions: word errors, measured sizes, and whether the packed file agrees.

For every precision the model is decoded, exported, read back, and decoded again from the file; the hypotheses of both
must be the same. The same function makes the demo's last screen and the rows of a recipe's RESULTS.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowbit_k2.errors import UserError
from lowbit_k2.recipe.decoding import add_decoding_arguments, run_decode
from lowbit_k2.recipe.exporting import add_export_arguments, run_export
from lowbit_k2.scoring.wer import WerStats

if TYPE_CHECKING:
    from lhotse import CutSet

GREEDY, HLG = "ctc-greedy-search", "1best"


@dataclass(frozen=True)
class Evaluation:
    """One precision of one model on one test set."""

    precision: str
    test_set: str
    errors: dict[str, dict[str, int]]  # method -> ins, dels, sub, ref_words
    file_bytes: int
    float_bytes: int

    @property
    def ratio(self) -> float:
        return self.float_bytes / self.file_bytes

    def stats(self, method: str) -> WerStats:
        return WerStats(**self.errors[method])

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def evaluate(
    exp_dir: Path,
    precisions: Sequence[str],
    test_set: str,
    load_test_set: Callable[[], CutSet],
    decode_flags: Sequence[str] = (),
    average_flags: Sequence[str] = (),
) -> list[Evaluation]:
    """Decode and export every precision, and check the packed files.

    Args:
      exp_dir: folder of train.py; results and packed files (`packed/<precision>bit.safetensors`) go there.
      precisions: what `--precision` takes, `32` for a float model.
      decode_flags: further flags of decode.py, e.g. `--lang-dir`, `--manifest-dir`, `--decoding-method`.
      average_flags: `--epoch`, `--avg`, `--use-averaged-model`, for both decode.py and export.py.

    Raises:
      UserError: a packed file gave other hypotheses than the model.
    """
    decoder, exporter = argparse.ArgumentParser(), argparse.ArgumentParser()
    add_decoding_arguments(decoder)
    add_export_arguments(exporter)
    where = ["--exp-dir", str(exp_dir)]

    def decode(*flags: str) -> dict[str, WerStats]:
        args = decoder.parse_args([*where, *decode_flags, *flags])
        found = run_decode(args, lambda: {test_set: load_test_set()})
        return {method: stats for (_, method, _, _), stats in found.items()}

    results = []
    for precision in precisions:
        stats = decode(*average_flags, "--precision", precision)
        packed = exp_dir / "packed" / f"{precision.replace(',', '_')}bit.safetensors"
        flags = [*where, *average_flags, "--precision", precision, "--output", str(packed)]
        sizes = run_export(exporter.parse_args(flags), load_train_cuts=lambda: None)
        again = decode("--packed", str(packed))
        check_same_hypotheses(exp_dir, list(stats), test_set, precision, packed.stem)
        if stats != again:
            raise UserError(f"{packed} decodes with other errors than the model it was made from")
        results.append(
            Evaluation(
                precision=precision,
                test_set=test_set,
                errors={method: asdict(s) for method, s in stats.items()},
                file_bytes=sizes.file.total,
                float_bytes=sizes.float_file.total,
            )
        )
    return results


def check_same_hypotheses(exp_dir: Path, methods: Sequence[str], test_set: str, precision: str, packed: str) -> None:
    """Compare the newest recogs files of the model and of its packed file, utterance by utterance."""
    for method in methods:
        files = sorted((exp_dir / method).glob(f"recogs-{test_set}-*.txt"), key=lambda path: path.stat().st_mtime)
        from_model = [f for f in files if f.stem.endswith(f"-precision-{precision.replace(',', '_')}")][-1]
        from_packed = [f for f in files if f.stem.endswith(f"packed-{packed}")][-1]
        if from_model.read_text() != from_packed.read_text():
            raise UserError(f"{from_packed} differs from {from_model}: the packed file gave other words")


def format_table(evaluations: Sequence[Evaluation]) -> str:
    """Markdown: precision, WER by method with ins/del/sub, MB on disk, ratio."""
    methods = list(evaluations[0].errors)
    head = ["bits", *[f"%WER {method} (ins/del/sub)" for method in methods], "MB", "ratio"]
    rows = [head, ["---"] * len(head)]
    for e in evaluations:
        cells = [e.precision]
        for method in methods:
            s = e.stats(method)
            cells.append(f"{100 * s.rate:.2f} ({s.ins}/{s.dels}/{s.sub})")
        rows.append([*cells, f"{e.file_bytes / 1e6:.3f}", f"{e.ratio:.1f}"])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
