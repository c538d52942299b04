"""The tables of RESULTS.md, of result files (results/*.json) and what was recognised (results/recogs)."""

from __future__ import annotations

from pathlib import Path

from instruments import audit_table, failures_table
from noise_tables import MARGIN, by_bits_table, draw_in_noise, noise_table, runs_of_deletions, trained_in_noise_table
from result_files import RESULTS, TIMING, result_path, speaker_of
from systems import COLUMNS, CTC, FOLD_ROWS, LATTICE, REFERENCE, RNNT, ROWS, STREAMED, SYSTEMS, Row

from lowbit_k2.asr.evaluation import Evaluation
from lowbit_k2.asr.pairs import format_pairs, load_pairs
from lowbit_k2.asr.result_files import kept_recogs
from lowbit_k2.fileio import read_json
from lowbit_k2.scoring.detail import RUNS
from lowbit_k2.scoring.recogs import read_recogs
from lowbit_k2.scoring.significance import compare, matched, matched_pairs
from lowbit_k2.tables import fill_page, markdown_table

SECTIONS = {CTC: "ctc", RNNT: "transducer", LATTICE: "tdnnf", STREAMED: "lstm"}  # of RESULTS.md
PICTURE, COMMAND = RESULTS / "in-noise.png", "./local/rows.py results"
PAIRS = RESULTS / "pairs.json"  # of lowbit_k2.recipe.pair_models


def verdicts() -> str:
    """Every system of the cross-validation against float, over the folds and seeds that both have, by speaker."""
    lines, float_bits = [], SYSTEMS[REFERENCE].compared
    for method in CTC:
        for system in (s for s in SYSTEMS.values() if s.compared and s.name != REFERENCE):
            rows = [r for r in FOLD_ROWS if r.system == system]
            pairs = [
                (
                    kept_recogs(result_path(Row(SYSTEMS[REFERENCE], r.seed, r.fold)), float_bits, method),
                    kept_recogs(result_path(r), system.compared, method),
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
                    *d.relative_cells(),
                    f"{d.p:.4f}",
                    f"{found.worse} / {found.better} / {d.units - found.worse - found.better}",
                    d.verdict(MARGIN),
                ]
            )
    head = ["system", "search", "folds x seeds", "float", "WER", "relative", "95%", "p", "speakers -/+/=", "verdict"]
    return markdown_table(head, lines)


def write_results(page: Path, check: bool) -> None:
    """Put the results into the tables of a page, in the order of ROWS, by the searches that decode them, and draw the
    picture of noise anew where the page had others.

    time is that of an update over float's, del the number of runs of so many deleted words and more, p that of MAPSSWE
    against the float row that a row is compared with.

    Raises:
      UserError: `check`, and the page has others.
    """
    ratios = read_json(TIMING)["ratio"] if TIMING.is_file() else {}
    sections = {"verdicts": verdicts(), "noise": noise_table(), "failures": failures_table(), "audit": audit_table()}
    if PAIRS.is_file():
        sections["pairs"] = format_pairs(load_pairs(PAIRS))
    in_noise, by_bits = trained_in_noise_table(), by_bits_table()
    if in_noise:
        sections["trained-in-noise"] = in_noise
    if by_bits:
        sections["noise-by-bits"] = by_bits
    for methods, name in SECTIONS.items():
        found = [r for r in ROWS if r.system.methods == methods and result_path(r).is_file()]
        if found:
            sections[name] = format_results(found, methods, ratios)
    if fill_page(page, sections, COMMAND, check) and in_noise:
        draw_in_noise(PICTURE)


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
    path = kept_recogs(result_path(r), precision, method)
    return runs_of_deletions(read_recogs(path)) if path.is_file() else ""


def p_value(r: Row, precision: str, method: str) -> str:
    """Of MAPSSWE against the float row of the same seed and fold; "-" for that row itself, and where one is missing."""
    reference = SYSTEMS[r.system.reference]
    results = result_path(Row(reference, r.seed, r.fold)), result_path(r)
    paths = tuple(kept_recogs(result, bits, method) for result, bits in zip(results, ("32", precision), strict=True))
    if reference == r.system or not all(path.is_file() for path in paths):
        return "-"
    first, second = (read_recogs(path) for path in paths)
    return f"{matched_pairs(*matched(first, second, tuple(map(str, paths)))).p:.3f}"
