"""One table of a trained model's precisions: word errors, measured sizes, and whether the packed file agrees.

For every precision the model is decoded, exported, read back, and decoded again from the file; the hypotheses of both
must be the same. The same function makes the demo's last screen and the rows of a recipe's RESULTS.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowbit_k2.asr.decoding import run_decode
from lowbit_k2.asr.exporting import ExportConfig, run_export
from lowbit_k2.asr.model_io import precision_in_names
from lowbit_k2.asr.recognizer import DecodeConfig
from lowbit_k2.asr.results import Decoded
from lowbit_k2.core.config import ConfigError
from lowbit_k2.errors import UserError
from lowbit_k2.scoring.wer import WerStats
from lowbit_k2.tables import markdown_table

if TYPE_CHECKING:
    from lhotse import CutSet

GREEDY, HLG = "ctc-greedy-search", "1best"


@dataclass(frozen=True)
class Evaluation:
    """One precision of one model on one test set."""

    precision: str
    test_set: str
    errors: dict[str, dict[str, int]]  # method -> ins, dels, sub, ref_words
    intervals: dict[str, tuple[float, float]]  # method -> 95% confidence interval of the word error rate
    file_bytes: int
    float_bytes: int
    recogs: dict[str, str] = field(default_factory=dict)  # method -> file of the hypotheses, from the exp-dir on

    @classmethod
    def of(
        cls, precision: str, test_set: str, decoded: Mapping[str, Decoded], on_disk: tuple[int, int], exp_dir: Path
    ) -> Evaluation:
        """Of what `run_decode` found by each method, in a folder.

        Args:
          on_disk: bytes of the packed file, and of its float32 version.
        """
        return cls(
            precision,
            test_set,
            errors={method: asdict(d.stats) for method, d in decoded.items()},
            intervals={method: d.interval for method, d in decoded.items() if d.interval},
            file_bytes=on_disk[0],
            float_bytes=on_disk[1],
            recogs={method: str(d.recogs.relative_to(exp_dir)) for method, d in decoded.items()},
        )

    @property
    def ratio(self) -> float:
        return self.float_bytes / self.file_bytes

    def stats(self, method: str) -> WerStats:
        return WerStats(**self.errors[method])

    def interval_text(self, method: str) -> str:
        """`3.9-8.1`, in percent."""
        return "-".join(f"{100 * end:.1f}" for end in self.intervals.get(method, ()))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def evaluate(
    decode: DecodeConfig, precisions: Sequence[str], test_set: str, load_test_set: Callable[[], CutSet]
) -> list[Evaluation]:
    """Decode and export every precision, and check the packed files.

    Args:
      decode: which checkpoints are averaged, and how they are decoded; results and packed files
        (`packed/1bit.safetensors`) go into their folder.
      precisions: as `Allocation.parse` takes them, `32` for a float model.

    Raises:
      UserError: several lm_scale, or a packed file gave other hypotheses than the model.
    """
    if len(decode.lm_scale) != 1:
        named = ",".join(f"{scale:g}" for scale in decode.lm_scale)
        raise ConfigError("lm_scale", f"{named}: give one, chosen on dev with decode.py")
    exp_dir, results = decode.choice.exp_dir, []

    def run(config: DecodeConfig) -> dict[str, Decoded]:
        found = run_decode(config, lambda: {test_set: load_test_set()})
        return {method: decoded for (_, method, _, _), decoded in found.items()}

    for precision in precisions:
        decoded = run(replace(decode, precision=(precision,)))
        packed = exp_dir / "packed" / f"{precision_in_names(precision)}.safetensors"
        sizes = run_export(ExportConfig(decode.choice, precision, output=packed), load_train_cuts=lambda: None)
        check_same_words(packed, decoded, run(replace(decode, packed=packed, precision=())))
        on_disk = sizes.file.total, sizes.float_file.total
        results.append(Evaluation.of(precision, test_set, decoded, on_disk, exp_dir))
    return results


def check_same_words(packed: Path, from_model: Mapping[str, Decoded], from_packed: Mapping[str, Decoded]) -> None:
    """The packed file must give the model's words for every utterance and method.

    Raises:
      UserError: the first utterance where it does not.
    """
    for method, decoded in from_model.items():
        for (utterance, _, words), (_, _, others) in zip(decoded.results, from_packed[method].results, strict=True):
            if list(words) != list(others):
                raise UserError(
                    f"{packed} gives other words than the model it was made from, first for {utterance} by {method}: "
                    f"{' '.join(others)!r} instead of {' '.join(words)!r}"
                )


def format_table(evaluations: Sequence[Evaluation]) -> str:
    """Markdown: precision, WER by method with its interval and ins/del/sub, MB on disk, ratio."""
    methods = list(evaluations[0].errors)
    head = ["bits", *[cell for method in methods for cell in (f"%WER {method} (ins/del/sub)", "95%")], "MB", "ratio"]
    rows = []
    for e in evaluations:
        cells = [e.precision]
        for method in methods:
            s = e.stats(method)
            cells += [f"{100 * s.rate:.2f} ({s.ins}/{s.dels}/{s.sub})", e.interval_text(method)]
        rows.append([*cells, f"{e.file_bytes / 1e6:.3f}", f"{e.ratio:.1f}"])
    return markdown_table(head, rows)
