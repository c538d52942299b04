"""The rows of results/hubert.json: how each is trained, what is counted of it, and the table on the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lowbit_k2.core.grids import HALF_BITS
from lowbit_k2.core.hubert import HubertConfig
from lowbit_k2.core.operations import Operations
from lowbit_k2.errors import UserError
from lowbit_k2.fileio import read_json
from lowbit_k2.scoring.significance import paired_bootstrap
from lowbit_k2.tables import fill_page, markdown_table

RECIPE = Path(__file__).resolve().parents[1]
PAGE, RESULTS, SECTION, CLAIMS = RECIPE / "RESULTS-hubert.md", RECIPE / "results/hubert.json", "rows", "claims"
FLOAT, FBANK = "float", "filter-banks"
BITS = (8, 4, 2, 1)
SEARCHES = {"ctc-greedy-search": "greedy", "1best": "HLG"}
PROBES = ("keywords", "speakers")
COUNTED_SECONDS = 10  # of the utterance that operations are counted in
HEADERS = (
    *("row", "bits", "distance", "AN4 WER, greedy", "HLG", "keywords", "speakers", "MB", "ratio"),
    *("GFLOPs", "Gbit", "estimated", "PyTorch", "matrices, packed"),
)


@dataclass(frozen=True)
class Row:
    """One model at one precision.

    Attributes:
      bits: of the switched weights and of what goes into them, as the table has them.
      precision: that hidden states are taken at.
      flags: of train_hubert.py.
      of: the name of the training, which several rows may share.
      counted: scheme and bits, as `Operations.counted` takes them.
    """

    bits: str
    precision: str
    flags: tuple[str, ...] = ()
    of: str = ""
    counted: tuple[str, int] = ("", HALF_BITS)


WEIGHTS_ALONE = ("--quant-config", "bit-l", "--input-bits", "0")
TOGETHER = ",".join([*map(str, BITS), "sp"])  # and stochastic precision: a draw for each layer


def _alone(name: str, *flags: str, scheme: str = "", inputs: str = "32") -> dict[str, Row]:
    """A training of its own at each precision."""
    return {
        f"{name}-{b}": Row(
            f"w{b}a{inputs.format(b)}",
            str(b),
            (*flags, "--precisions", str(b)),
            f"{name}-{b}",
            (scheme, b if scheme else HALF_BITS),
        )
        for b in BITS
    }


def _together(name: str, *flags: str, scheme: str = "", inputs: str = "32") -> dict[str, Row]:
    """One training of all precisions."""
    return {
        f"{name}-{b}": Row(
            f"w{b}a{inputs.format(b)}",
            str(b),
            (*flags, "--precisions", TOGETHER),
            name,
            (scheme, b if scheme else HALF_BITS),
        )
        for b in BITS
    }


ROWS: dict[str, Row] = {
    FBANK: Row("-", ""),
    FLOAT: Row("w32a32", "32", of=FLOAT),
    **_alone("weights", *WEIGHTS_ALONE),
    **_alone("bit-l", "--quant-config", "bit-l", scheme="bit-l", inputs="{}"),
    **_alone("bit-la", "--quant-config", "bit-la", scheme="bit-la", inputs="{}"),
    **_alone("sqwq", "--quant-config", "sqwq", "--squash-lambda", "0.1", scheme="sqwq", inputs="8"),
    "bit-l-w1a8": Row(
        "w1a8", "1", ("--quant-config", "bit-l", "--input-bits", "8", "--precisions", "1"), "bit-l-w1a8", ("sqwq", 1)
    ),
    **_together("co-trained-weights", *WEIGHTS_ALONE),
    **_together("co-trained", "--quant-config", "bit-la", scheme="bit-la", inputs="{}"),
}
# "no worse": a row, and those that it is compared with
COMPARED = (("co-trained-weights-1", "weights-1"), ("co-trained-weights-1", "bit-l-w1a8"))


def counts_of(row: Row, config: HubertConfig) -> dict[str, float]:
    """Operations of `COUNTED_SECONDS` of audio, and the run time that the paper's formula makes of them.

    Where activations are float, so are all operations, whatever the weights; w1a8 counts alike in both schemes.
    """
    operations = Operations.of(config, COUNTED_SECONDS * 16000)
    gflops, gbit = operations.counted(*row.counted)
    return {"gflops": gflops, "gbit": gbit, "estimated": operations.runtime(*row.counted)}


def format_rows(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown, in the order of ROWS."""
    return markdown_table(HEADERS, [line(name, rows) for name in ROWS if name in rows])


def line(name: str, rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Cells of a row; "-" for what it has not."""
    own = rows[name]
    cells = [name, ROWS[name].bits, f"{own['distance']:.3f}" if "distance" in own else "-"]
    cells += [f"{100 * own['asr'][search]['wer']:.1f}%" for search in SEARCHES]
    for probe in PROBES:
        found = own.get(probe)
        cells.append(f"{100 * found['right'] / found['tested']:.1f}%" if found else "-")
    if "bytes" not in own:
        return cells + ["-"] * (len(HEADERS) - len(cells))
    cells += [f"{own['bytes'] / 1e6:.2f}", f"{own['float_bytes'] / own['bytes']:.1f}"]
    cells += [f"{own['gflops']:.2f}", f"{own['gbit']:.2f}", f"{own['estimated']:.2f}", f"{own['measured']:.2f}"]
    matrices = own.get("matrices")
    return [*cells, f"{matrices['packed'] / matrices['torch']:.2f}" if matrices else "-"]


def against(reference: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """By search: absolute difference of word error rates, its 95% interval, p of no difference.

    Raises:
      UserError: they were scored on other words.
    """
    found = {}
    for search in SEARCHES:
        first, second = (np.array(side["asr"][search]["counts"]) for side in (reference, own))  # (utterances, 2)
        if first.shape != second.shape or (first[:, 1] != second[:, 1]).any():
            raise UserError("rows were scored on different words: remove their result-*.json, and make them again")
        difference = paired_bootstrap(np.stack([first[:, 0], second[:, 0], first[:, 1]], axis=1))
        low, high = difference.absolute_interval
        found[search] = {"absolute": difference.absolute, "interval": [low, high], "p": difference.p}
    return found


def compared(rows: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Those of COMPARED that can be made, from rows that still have the counts of each utterance."""
    return [
        {"row": name, "against": other, "search": search, **found}
        for name, other in COMPARED
        if name in rows and other in rows
        for search, found in against(rows[other], rows[name]).items()
    ]


def without_counts(own: Mapping[str, Any]) -> dict[str, Any]:
    """A row for results/hubert.json."""
    return {**own, "asr": {search: {"wer": found["wer"]} for search, found in own["asr"].items()}}


def format_claims(claims: Sequence[Mapping[str, Any]]) -> str:
    """A line for each."""
    lines = []
    for c in claims:
        low, high = (f"{100 * end:+.1f}" for end in c["interval"])
        absolute = f"{100 * c['absolute']:+.1f}"
        lines.append([c["row"], c["against"], SEARCHES[c["search"]], absolute, f"{low} to {high}", f"{c['p']:.4f}"])
    return markdown_table(("row", "against", "search", "WER, absolute", "95%", "p"), lines)


def write_results(page: Path, check: bool) -> None:
    """Put what `results/hubert.json` has into the tables of a page.

    Raises:
      UserError: `check`, and the page has others.
    """
    found = read_json(RESULTS)
    sections = {SECTION: format_rows(found["rows"]), CLAIMS: format_claims(found["claims"])}
    fill_page(page, sections, "./local/rows_hubert.py results", check)
