"""The tables of RESULTS.md, of result files (results/*.json) and what was recognised (results/recogs)."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, product
from pathlib import Path

from systems import (
    COLUMNS,
    CONDITIONS,
    CTC,
    FOLD_ROWS,
    LATTICE,
    NOISY_SETS,
    NOISY_SYSTEMS,
    RECIPE,
    REFERENCE,
    RNNT,
    ROWS,
    STREAMED,
    SYSTEMS,
    Row,
)

from lowbit_k2.asr.evaluation import Evaluation
from lowbit_k2.errors import UserError
from lowbit_k2.fileio import read_json
from lowbit_k2.scoring.detail import RUNS, count_runs, deletion_runs, format_runs
from lowbit_k2.scoring.recogs import read_recogs
from lowbit_k2.scoring.significance import compare, matched, matched_pairs
from lowbit_k2.scoring.wer import Result
from lowbit_k2.tables import fill_sections, markdown_table

RESULTS, NOISE, TIMING = RECIPE / "results", "noise", RECIPE / "timing.json"
SECTIONS = {CTC: "ctc", RNNT: "transducer", LATTICE: "tdnnf", STREAMED: "lstm"}  # of RESULTS.md
MARGIN = 0.05  # relative; below it two systems count as equivalent


def result_path(r: Row, folder: str = "") -> Path:
    """Of a row on the test set, or, in the folder `NOISE`, on the sets of the table of noise."""
    return RESULTS / folder / f"{r.key}.json"


def recogs_path(result: Path, precision: str, method: str, test_set: str = "") -> Path:
    """What was recognised; `test_set` where the result is of several."""
    parts = (result.stem, test_set, precision, method)
    return result.parent / f"recogs/{'-'.join(filter(None, parts))}.txt.gz"


def in_noise(split: str) -> list[str]:
    """Test sets of the table of noise: the clean one, and its copies."""
    return [split, *(f"{split}-{condition}" for condition in CONDITIONS)]


def verdicts() -> str:
    """Every system of the cross-validation against float, over the folds and seeds that both have, by speaker."""
    lines, float_bits = [], SYSTEMS[REFERENCE].compared
    for method in CTC:
        for system in (s for s in SYSTEMS.values() if s.compared and s.name != REFERENCE):
            rows = [r for r in FOLD_ROWS if r.system == system]
            pairs = [
                (
                    recogs_path(result_path(Row(SYSTEMS[REFERENCE], r.seed, r.fold)), float_bits, method),
                    recogs_path(result_path(r), system.compared, method),
                )
                for r in rows
            ]
            pairs = [pair for pair in pairs if all(path.is_file() for path in pair)]
            if not pairs:
                continue
            reference, other = ([read_recogs(path) for path in paths] for paths in zip(*pairs, strict=True))
            found = compare(reference, other, speaker_of)
            d = found.pooled
            lines.append(
                [
                    system.label,
                    COLUMNS[method],
                    str(len(pairs)),
                    f"{100 * d.reference:.2f}",
                    f"{100 * d.other:.2f}",
                    f"{100 * d.relative:+.1f}%",
                    " .. ".join(f"{100 * end:+.1f}" for end in d.relative_interval),
                    f"{d.p:.4f}",
                    f"{found.worse} / {found.better} / {d.units - found.worse - found.better}",
                    d.verdict(MARGIN),
                ]
            )
    head = ["system", "search", "folds x seeds", "float", "WER", "relative", "95%", "p", "speakers -/+/=", "verdict"]
    return markdown_table(head, lines)


def noise_table() -> str:
    """Systems in noise against float, by speaker: each condition alone, and all that are noisy together."""
    reference, *others = (Row(SYSTEMS[name], 1) for name in NOISY_SYSTEMS)
    lines = []
    for split in NOISY_SETS:
        sets = in_noise(split)
        conditions = {name: [test_set] for name, test_set in zip(("clean", *CONDITIONS), sets, strict=True)}
        for r, method in product(others, CTC):
            for name, test_sets in (conditions | {"all noisy": sets[1:]}).items():
                first, second = (
                    [
                        read_recogs(recogs_path(result_path(own, NOISE), own.system.precisions[0], method, t))
                        for t in test_sets
                    ]
                    for own in (reference, r)
                )
                found = compare(first, second, speaker_of)
                d, alone = found.pooled, len(test_sets) == 1
                lines.append(
                    [
                        split,
                        COLUMNS[method],
                        name,
                        f"{100 * d.reference:.2f}",
                        f"{100 * d.other:.2f}",
                        f"{100 * d.relative:+.1f}%",
                        " .. ".join(f"{100 * end:+.1f}" for end in d.relative_interval),
                        f"{found.cells[0].pairs.p:.3f}" if alone else "-",
                        *(runs_of_deletions(chain(*results)) for results in (first, second)),
                        d.verdict(MARGIN),
                    ]
                )
    head = ["set", "search", "condition", "float", f"{others[0].system.precisions[0]} bit", "relative", "95%", "p"]
    return markdown_table([*head, "del 3+/5+/11+ float", "1 bit", "verdict"], lines)


def speaker_of(utterance: str) -> str:
    """an251-fash-b -> fash."""
    return utterance.split("-")[1]


def fill(page: Path, sections: dict[str, str], check: bool) -> bool:
    """Put the sections into a page, if it has others; whether it had.

    Raises:
      UserError: `check`, and it has.
    """
    text = page.read_text()
    filled = fill_sections(text, sections)
    if filled == text:
        return False
    if check:
        raise UserError(f"{page} has other tables than {RESULTS}: run ./local/rows.py results")
    page.write_text(filled)
    return True


def write_results(page: Path, check: bool) -> None:
    """Put the results into the tables of a page, in the order of ROWS, by the searches that decode them.

    time is that of an update over float's, del the number of runs of so many deleted words and more, p that of MAPSSWE
    against the float row that a row is compared with.

    Raises:
      UserError: `check`, and the page has others.
    """
    ratios = read_json(TIMING)["ratio"] if TIMING.is_file() else {}
    sections = {"verdicts": verdicts(), "noise": noise_table()}
    for methods, name in SECTIONS.items():
        found = [r for r in ROWS if r.system.methods == methods and result_path(r).is_file()]
        if found:
            sections[name] = format_results(found, methods, ratios)
    fill(page, sections, check)


def format_results(rows: list[Row], methods: tuple[str, ...], ratios: dict[str, float]) -> str:
    """Markdown."""
    tested = any(p_value(r, r.system.precisions[0], methods[0]) != "-" for r in rows)
    kept = all(deleted_runs(r, r.system.precisions[0], methods[0]) for r in rows)
    head = ["system", "bits", "seed"]
    for method in methods:
        head += [f"WER {COLUMNS[method]}", "95%", "ins/del/sub"]
        head += [*([f"del {'/'.join(f'{n}+' for n in RUNS)}"] if kept else []), *(["p"] if tested else [])]
    lines = []
    for r in rows:
        result = read_json(result_path(r))
        time_ratio = f"{ratios[r.system.name]:.2f}" if r.system.name in ratios else "-"
        for values in result["evaluations"]:
            e = Evaluation(**values)
            cells = [r.system.label, e.precision, str(r.seed)]
            for method in methods:
                s = e.stats(method)
                cells += [f"{100 * s.rate:.2f}", e.interval_text(method), f"{s.ins}/{s.dels}/{s.sub}"]
                cells += [deleted_runs(r, e.precision, method)] if kept else []
                cells += [p_value(r, e.precision, method)] if tested else []
            lines.append([*cells, f"{e.file_bytes / 1e6:.3f}", f"{e.ratio:.1f}", time_ratio])
    return markdown_table([*head, "MB", "ratio", "time"], lines)


def deleted_runs(r: Row, precision: str, method: str) -> str:
    """How many runs of at least so many deleted words, `3/1/0`; "" where what was recognised was not kept."""
    path = recogs_path(result_path(r), precision, method)
    return runs_of_deletions(read_recogs(path)) if path.is_file() else ""


def runs_of_deletions(results: Iterable[Result]) -> str:
    return format_runs(count_runs(deletion_runs(results)))


def p_value(r: Row, precision: str, method: str) -> str:
    """Of MAPSSWE against the float row of the same seed and fold; "-" for that row itself, and where one is missing."""
    reference = SYSTEMS[r.system.reference]
    results = result_path(Row(reference, r.seed, r.fold)), result_path(r)
    paths = tuple(recogs_path(result, bits, method) for result, bits in zip(results, ("32", precision), strict=True))
    if reference == r.system or not all(path.is_file() for path in paths):
        return "-"
    first, second = (read_recogs(path) for path in paths)
    return f"{matched_pairs(*matched(first, second, tuple(map(str, paths)))).p:.3f}"
