"""What experiment folders hold: error rates, packed files, training curves; and what they lack.

A folder is one of train.py (`log/`, `<method>/recogs-*.txt`, `*.safetensors`), or one of result files, JSON with
"evaluations" as rows of a RESULTS.md have them, with what was recognised in `recogs/NAME-PRECISION-METHOD.txt.gz`, or
`recogs/NAME-TEST_SET-PRECISION-METHOD.txt.gz` where a result is of several test sets.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lowbit_k2.errors import UserError
from lowbit_k2.fileio import read_json
from lowbit_k2.packed import PackedFileError, PackedModel, read_packed
from lowbit_k2.scoring.detail import count_runs, deletion_runs
from lowbit_k2.scoring.recogs import read_recogs
from lowbit_k2.scoring.wer import Result, WerStats, bootstrap_interval, score
from lowbit_k2.textfile import read_lines

FLOAT = "32"
# recogs-<test set>[-<setting>]-<model>[-precision-<bits>].txt
RECOGS = re.compile(
    r"recogs-(?P<test_set>.+?)(-(?P<setting>\w+_(scale|penalty)\w*_[^-]+(-\w+_[^-]+)*))?"
    r"-(?P<model>(epoch|iter|packed|pretrained).*?)(-precision-(?P<precision>.+?))?(?P<adapted>-lhuc)?"
)
VALID = re.compile(r".*INFO epoch (\d+), valid at update (?P<update>\d+): (?P<values>.+)")
TRAIN = re.compile(r".*INFO epoch (\d+), update (?P<update>\d+): (?P<values>.+)")
LOSS = re.compile(r"\b(?P<name>loss\w*)=(?P<value>[-+.\deinfa]+)")
MANY = 400  # points of a curve; of more, every n-th is kept
Curve = list[tuple[int, float]]  # updates, loss per frame


@dataclass(frozen=True)
class Score:
    """One system at one precision on one test set by one search.

    Attributes:
      interval: 95%, as fractions.
      results: what was recognised, where that was kept.
      num_bytes, float_bytes: of the packed file and of its float32 version, where known.
    """

    system: str
    precision: str
    test_set: str
    method: str
    setting: str
    stats: WerStats
    interval: tuple[float, float] | None
    results: list[Result] | None
    num_bytes: int | None
    float_bytes: int | None

    @property
    def ratio(self) -> float | None:
        return self.float_bytes / self.num_bytes if self.num_bytes and self.float_bytes else None

    @property
    def label(self) -> str:
        bits = f"{self.precision} bit" if self.precision[:1].isdigit() else self.precision
        return f"{self.system} at {bits}" + (f", {self.setting}" if self.setting else "")

    def runs(self) -> dict[int, int] | None:
        """Runs of deleted words, as `lowbit-k2 score` counts them."""
        return None if self.results is None else count_runs(deletion_runs(self.results))


@dataclass
class Experiment:
    """What is there, and lines on what is not.

    Attributes:
      key: tells it from another of the same name.
      packed: by precision. valid, train: by branch, as "1", "2", "sp".
    """

    name: str
    key: str
    scores: list[Score] = field(default_factory=list)
    packed: dict[str, PackedModel] = field(default_factory=dict)
    valid: dict[str, Curve] = field(default_factory=dict)
    train: dict[str, Curve] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)


def read_experiment(folder: Path) -> list[Experiment]:
    """The experiment of a folder, or those of its result files.

    Raises:
      UserError: no such folder, or damaged files in it.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: give folders of train.py, or of result files")
    evaluated = [(path, value) for path in sorted(folder.glob("*.json")) if (value := _evaluations(path)) is not None]
    if evaluated:
        return [_of_results(path, value) for path, value in evaluated]
    found = Experiment(folder.resolve().name, str(folder))
    found.packed = dict(_packed_files(folder, found.missing))
    found.scores = _scores(found, folder)
    found.valid, found.train = _curves(folder)
    if not found.scores:
        found.missing.append("no recogs-*.txt: decode.py writes them")
    if not found.packed:
        found.missing.append("no packed file: export.py writes it; sizes, bits and scales are left out")
    if not found.valid and not found.train:
        found.missing.append("no losses in log/: train.py writes them")
    return [found]


# --- folders of train.py -----------------------------------------------------------------------------------------


def _packed_files(folder: Path, missing: list[str]) -> Iterator[tuple[str, PackedModel]]:
    for path in sorted([*folder.glob("packed/*.safetensors"), *folder.glob("*.safetensors")]):
        try:
            model = read_packed(path)
        except PackedFileError as error:
            missing.append(str(error))
            continue
        if not model.extra.get("reference"):
            yield str(model.extra.get("precision", path.stem)), model


def _scores(found: Experiment, folder: Path) -> list[Score]:
    sizes = {precision: model.sizes.total for precision, model in found.packed.items()}
    weights = {sum(t.num_weights for t in model.tensors) for model in found.packed.values()}
    float_bytes = sizes.get(FLOAT) or (4 * max(weights) if weights else None)
    kept: dict[tuple[str, ...], tuple[bool, Path]] = {}
    for path in sorted(folder.glob("*/recogs-*.txt")):
        match = RECOGS.fullmatch(path.stem)
        if match is None or match["adapted"]:
            continue
        from_packed = match["model"].startswith("packed")
        precision = match["precision"] or _precision_of(match["model"], found.packed)
        key = (path.parent.name, match["test_set"], match["setting"] or "", precision)
        if key not in kept or kept[key][0]:  # what the model gave, before what its packed file gave
            kept[key] = from_packed, path
    scores = []
    for (method, test_set, setting, precision), (_, path) in kept.items():
        results = read_recogs(path)
        stats = score(results)
        interval = bootstrap_interval(results) if stats.ref_words else None
        where = (found.name, precision, test_set, method, setting)
        scores.append(Score(*where, stats, interval, results, sizes.get(precision), float_bytes))
    return scores


def _precision_of(model: str, packed: dict[str, PackedModel]) -> str:
    """Of a decoding without `-precision-`: of the packed file whose name it has, or float."""
    name = model.removeprefix("packed-").removeprefix("pretrained-")
    return name.removesuffix("bit") if name.removesuffix("bit") in packed else (name if name in packed else FLOAT)


def _curves(folder: Path) -> tuple[dict[str, Curve], dict[str, Curve]]:
    """Losses of validation and training by branch, from all logs; of an update that was made again the later one."""
    found: tuple[dict, dict] = ({}, {})
    for path in sorted(folder.glob("log/log-train-*")):
        for line in read_lines(path):
            for kind, pattern in enumerate((VALID, TRAIN)):
                match = pattern.fullmatch(line)
                if match is None:
                    continue
                losses = {m["name"]: m["value"] for m in LOSS.finditer(match["values"])}
                branches = {name.removeprefix("loss_"): v for name, v in losses.items() if name != "loss"}
                for branch, value in (branches or {"all": losses.get("loss", "nan")}).items():
                    found[kind].setdefault(branch, {})[int(match["update"])] = float(value)
    return tuple({branch: _thinned(sorted(points.items())) for branch, points in kind.items()} for kind in found)


def _thinned(points: Curve) -> Curve:
    points = [point for point in points if math.isfinite(point[1])]
    return points[:: -(-len(points) // MANY)]


# --- folders of result files -------------------------------------------------------------------------------------


def _evaluations(path: Path) -> Any:
    value = read_json(path)
    return value if isinstance(value, dict) and isinstance(value.get("evaluations"), list) else None


def _of_results(path: Path, value: dict[str, Any]) -> Experiment:
    seed = value.get("seed")
    name = f"{value.get('label', path.stem)}" + (f", seed {seed}" if seed is not None else "")
    fold = f" of fold {value['fold']}" if value.get("fold") else ""
    found = Experiment(name, f"{path.resolve().parent.name}/{path.stem}")
    try:
        for e in value["evaluations"]:
            for method, errors in e["errors"].items():
                end = f"{e['precision']}-{method}.txt.gz"
                names = f"{path.stem}-{e['test_set']}-{end}", f"{path.stem}-{end}"
                kept = [file for name in names if (file := path.parent / "recogs" / name).is_file()]
                interval = e["intervals"].get(method)
                found.scores.append(
                    Score(
                        name,
                        str(e["precision"]),
                        e["test_set"] + fold,
                        method,
                        "",
                        WerStats(**errors),
                        None if interval is None else tuple(interval),
                        read_recogs(kept[0]) if kept else None,
                        int(e["file_bytes"]),
                        int(e["float_bytes"]),
                    )
                )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is no result file ({type(error).__name__}: {error}): make it again") from None
    if not all(s.results for s in found.scores):
        found.missing.append("what was recognised was not kept: no deletion runs, no significance, no alignments")
    return found
