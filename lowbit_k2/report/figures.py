"""The figures, each drawn once: as PNG in the light theme, and as SVG whose colours are variables of the page's style.

Figures are small and the page sets them side by side or one below the other: text stays readable on a phone.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from lowbit_k2.core.encodings import ENCODINGS
from lowbit_k2.fileio import read_json
from lowbit_k2.report.experiments import Curve, Experiment, Score
from lowbit_k2.scoring.detail import RUNS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lowbit_k2.packed import PackedModel
    from lowbit_k2.report.noise import NoiseCell

# The light theme; each colour stands for the variable of its name in the SVG. No two are equal.
COLOURS = {
    "ink": "#1a1d21",
    "muted": "#5d6670",
    "line": "#d4d9df",
    "surface": "#ffffff",
    "float": "#4a5058",
    "eight": "#0b6bb5",
    "four": "#008a66",
    "two": "#b87700",
    "one": "#c8401a",
    "mixed": "#a2489a",
}
NAMES = {"float": "float", "eight": "5 to 8 bit", "four": "3 and 4 bit", "two": "2 bit", "one": "1 bit"}
NAMES["mixed"] = "mixed, stochastic"
STYLE_VARIABLES = (*COLOURS, "page", "wrong", "lost", "added")  # that report.css defines, light and dark
WIDTH, HEIGHT = 4.8, 3.3  # inches
SIGNIFICANT = 0.05
DASHES, MOST_NAMED = ("-", "--", ":", "-."), 6  # of systems in the figure of noise; of more, none is named
PUBLISHED = Path(__file__).with_name("published.json")
LAYER = re.compile(r"(?P<layer>.*?layers\.\d+)\.(?P<rest>.+)")


def colour_of(precision: str) -> str:
    """Name of the colour of a precision or a branch."""
    bits = int(precision) if precision.isdigit() else 0
    names = {0: "mixed", 1: "one", 2: "two", 3: "four", 4: "four"}
    return names.get(bits, "eight" if bits <= 8 else "float")


@cache
def published() -> list[dict]:
    """Other systems' points: system, bits, mb, wer by test set, source, origin."""
    return read_json(PUBLISHED)["points"]


def new_figure(width: float = WIDTH, height: float = HEIGHT) -> tuple[Figure, Axes]:
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "lowbit_k2", "font.size": 10})
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    figure.patch.set_facecolor(COLOURS["surface"])
    axes.set_facecolor(COLOURS["surface"])
    axes.tick_params(colors=COLOURS["muted"], labelsize=9)
    axes.grid(color=COLOURS["line"], linewidth=0.7)
    axes.set_axisbelow(True)
    for name, spine in axes.spines.items():
        spine.set_color(COLOURS["line"])
        spine.set_visible(name in ("left", "bottom"))
    for label in (axes.xaxis.label, axes.yaxis.label, axes.title):
        label.set_color(COLOURS["ink"])
    return figure, axes


def as_svg(figure: Figure, title: str) -> str:
    """An element for a page."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].rstrip()
    for name, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{name})")
    svg = re.sub(
        r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1), count=1
    )
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)  # the page's own letters
    return svg.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)


def error_rates(scores: Sequence[Score], rivals: Sequence[tuple[str, str, float, float]]) -> Figure:
    """WER against MB with 95% intervals.

    Args:
      scores: of one test set and search, all with sizes.
      rivals: (name, bits, MB, WER in percent) of other systems on this test set.
    """
    figure, axes = new_figure()
    for s in scores:
        wer, colour = 100 * s.stats.rate, COLOURS[colour_of(s.precision)]
        ends = [100 * end for end in s.interval] if s.interval else [wer, wer]
        spread = [[max(0.0, wer - ends[0])], [max(0.0, ends[1] - wer)]]
        axes.errorbar([s.num_bytes / 1e6], [wer], spread, fmt="o", color=colour, markersize=5, linewidth=1, alpha=0.85)
    _draw_rivals(axes, rivals)
    if scores:
        axes.set_ylim(0, _top(scores))
    megabytes(axes, [s.num_bytes / 1e6 for s in scores] + [mb for _, _, mb, _ in rivals])
    axes.set_ylabel("%WER")
    return figure


def _top(scores: Sequence[Score]) -> float:
    """Where the axis ends: systems that fail altogether do not squeeze the others."""
    ends = sorted(100 * (s.interval[1] if s.interval else s.stats.rate) for s in scores)
    middle = ends[len(ends) // 2]
    return 1.08 * (max(end for end in ends if end <= 5 * middle) or 1.0)


def noise(cells: Sequence[NoiseCell]) -> Figure:
    """WER against the level of noise, a line for each system and precision; crosses: significantly worse than float.

    Colours tell precisions, dashes systems of the same precision.
    """
    figure, axes = new_figure()
    lines: dict[tuple[str, str], list[NoiseCell]] = {}
    for cell in cells:
        if cell.snr is not None:
            lines.setdefault((cell.system, cell.precision), []).append(cell)
    drawn: dict[str, int] = {}  # lines of each colour
    for (system, precision), own in lines.items():
        own.sort(key=lambda cell: cell.snr)
        colour = COLOURS[colour_of(precision)]
        dashes = DASHES[drawn.setdefault(colour, 0) % len(DASHES)]
        drawn[colour] += 1
        label = textwrap.shorten(f"{precision} bit, {system}", 44, placeholder=" ...")
        axes.plot([c.snr for c in own], [100 * c.rate for c in own], dashes, color=colour, linewidth=1.4, label=label)
        for c in own:
            worse = c.worse and c.p is not None and c.p < SIGNIFICANT
            axes.plot([c.snr], [100 * c.rate], "X" if worse else "o", color=colour, markersize=8 if worse else 4)
    levels = sorted({cell.snr for own in lines.values() for cell in own})
    axes.set_xticks(levels, [f"{level:g}" for level in levels])
    axes.set_xlabel("dB of speech over noise")
    axes.set_ylabel("%WER")
    axes.set_ylim(bottom=0)
    axes.invert_xaxis()
    if 0 < len(lines) <= MOST_NAMED:
        axes.legend(fontsize=8, frameon=False, labelcolor=COLOURS["muted"], loc="upper left")
    return figure


def published_rates(test_sets: Sequence[str]) -> Figure:
    """Other systems' points on their own test sets."""
    figure, axes = new_figure()
    points = [
        (p["system"], p["bits"], p["mb"], p["wer"][name]) for p in published() for name in test_sets if name in p["wer"]
    ]
    _draw_rivals(axes, points)
    megabytes(axes, [mb for _, _, mb, _ in points])
    axes.set_ylim(0, 1.2 * max(wer for *_, wer in points))
    axes.set_ylabel("%WER")
    return figure


def _draw_rivals(axes: Axes, rivals: Iterable[tuple[str, str, float, float]]) -> None:
    for number, (name, bits, mb, wer) in enumerate(sorted(rivals, key=lambda point: (point[2], point[3]))):
        colour = COLOURS["two" if bits == "ternary" else colour_of(bits)]
        axes.plot([mb], [wer], "D", markersize=6, markerfacecolor="none", markeredgecolor=colour, markeredgewidth=1.5)
        # above and below in turn: neighbours' names do not lie on each other
        above = number % 2 == 0
        axes.annotate(
            name,
            (mb, wer),
            xytext=(0, 7 if above else -7),
            textcoords="offset points",
            ha="center",
            va="bottom" if above else "top",
            fontsize=8,
            color=COLOURS["muted"],
        )


def megabytes(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis of sizes on disk, wide enough for the values."""
    axes.set_xscale("log")
    low, high = min(values) / 1.7, max(values) * 1.7
    axes.set_xlim(low, high)
    nice = [m * 10.0**e for e in range(-3, 5) for m in (1, 2, 5)]
    ticks = [tick for tick in nice if low <= tick <= high]
    ticks = ticks[:: -(-len(ticks) // 7)] if ticks else [math.sqrt(low * high)]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("MB on disk")


def curves(experiment: Experiment) -> Figure:
    """Losses by branch: of validation with points, of training as thin lines."""
    figure, axes = new_figure()
    for branch, points in experiment.train.items():
        _draw_curve(axes, points, branch, linewidth=0.7, alpha=0.45)
    for branch, points in experiment.valid.items():
        _draw_curve(axes, points, branch, linewidth=1.6, marker="o", markersize=3)
    values = [v for kind in (experiment.train, experiment.valid) for c in kind.values() for _, v in c]
    positive = sorted(v for v in values if math.isfinite(v) and v > 0)
    if positive and positive[-1] > 8 * positive[len(positive) // 2] and len(positive) == len(values):
        axes.set_yscale("log")
    axes.set_xlabel("updates")
    axes.set_ylabel("loss per frame")
    ends = [(c[-1], branch) for branch, c in (experiment.valid or experiment.train).items()]
    for number, ((x, y), branch) in enumerate(sorted(ends, key=lambda end: end[0][1])):
        text = f"{branch} bit" if branch.isdigit() else branch
        style = {"fontsize": 9, "color": COLOURS[colour_of(branch)], "va": "center"}
        axes.annotate(text, (x, y), xytext=(6, 9 * number), textcoords="offset points", **style)
    axes.margins(x=0.12)
    return figure


def _draw_curve(axes: Axes, points: Curve, branch: str, **style: object) -> None:
    axes.plot([x for x, _ in points], [y for _, y in points], color=COLOURS[colour_of(branch)], **style)


def bits_by_layer(model: PackedModel) -> Figure:
    """A cell for each matrix: its bits, layers below each other."""
    rows: dict[str, dict[str, int]] = {}
    columns: list[str] = []
    for tensor in model.tensors:
        if len(tensor.shape) < 2:
            continue
        match = LAYER.fullmatch(tensor.name)
        row, column = (match["layer"], match["rest"]) if match else ("", tensor.name)
        rows.setdefault(row, {})[column.removesuffix(".weight")] = bits_of(tensor.encoding)
    layers = [row for row in rows if row]
    columns = list(dict.fromkeys(column for row in layers for column in rows[row]))
    grid = [[rows[row].get(column) for column in columns] for row in layers]
    labels = [row.replace("encoder.layers.", "layer ") for row in layers]
    rest = list(rows.get("", {}).items())
    height = 1.6 + 0.24 * (len(columns) + len(rest))
    figure, axes = new_figure(WIDTH, height)  # layers side by side, matrices below each other: names are long
    lines = [(column, [row[n] for row in grid]) for n, column in enumerate(columns)]
    width = max(1, len(layers))
    for y, (_, cells) in enumerate(lines):
        for x, bits in enumerate(cells):
            _cell(axes, x, y, 1, bits, len(layers) <= 16)
    for y, (_, bits) in enumerate(rest, start=len(lines)):
        _cell(axes, 0, y, width, bits, True)
    names = [short_name(name) for name, _ in [*lines, *rest]]
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_xticks(range(len(labels)), [label.removeprefix("layer ") for label in labels], fontsize=8)
    axes.set_xlabel("layer")
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(visible=False)
    return figure


def short_name(name: str) -> str:
    return name if len(name) <= 26 else f"...{name[-24:]}"


def bits_of(encoding: str) -> int:
    return ENCODINGS[encoding].bits or 2


def _cell(axes: Axes, x: float, y: float, width: float, bits: int | None, labelled: bool) -> None:
    from matplotlib.patches import Rectangle

    if bits is None:
        return
    colour = COLOURS[colour_of(str(bits))]
    axes.add_patch(Rectangle((x - 0.46, y - 0.42), width - 0.08, 0.84, facecolor=colour, alpha=0.9, linewidth=0))
    if labelled:
        style = {"ha": "center", "va": "center", "fontsize": 8, "color": COLOURS["surface"]}
        axes.text(x + (width - 1) / 2, y, str(bits), **style)


def scales(model: PackedModel) -> Figure:
    """Step of each matrix in codes, mean over its channels, in the order of the file."""
    figure, axes = new_figure()
    found = [(t, float(t.step.mean())) for t in model.tensors if t.step is not None and len(t.shape) > 1]
    for number, (tensor, step) in enumerate(found):
        axes.plot([number], [step], "o", markersize=4, color=COLOURS[colour_of(str(bits_of(tensor.encoding)))])
    if found:
        axes.set_yscale("log")
    starts: dict[str, int] = {}
    for number, (tensor, _) in enumerate(found):
        match = LAYER.fullmatch(tensor.name)
        if match:
            starts.setdefault(match["layer"].rpartition(".")[2], number)
    shown = list(starts.items())[:: max(1, len(starts) // 8)]
    axes.set_xticks([place for _, place in shown], [layer for layer, _ in shown])
    axes.set_xlabel("matrices, from the layer's first on")
    axes.set_ylabel("step")
    return figure


def deletions(counts: Mapping[str, Mapping[int, int]], precisions: Mapping[str, str]) -> Figure:
    """Bars of runs of deleted words, the longer the darker; systems below each other.

    Args:
      counts, precisions: by the label of the system.
    """
    figure, axes = new_figure(WIDTH, 1.1 + 0.5 * len(counts))
    for y, (label, found) in enumerate(counts.items()):
        for number, least in enumerate(RUNS):
            place = y + 0.26 * (number - 1)
            colour, alpha = COLOURS[colour_of(precisions[label])], (0.45, 0.7, 1.0)[number]
            axes.barh(place, found[least], 0.24, color=colour, alpha=alpha)
            text = f" {found[least]} of {least}+"
            axes.text(found[least], place, text, va="center", fontsize=7, color=COLOURS["muted"])
    axes.set_yticks(range(len(counts)), [textwrap.fill(name, 26) for name in counts], fontsize=8)
    axes.set_ylim(len(counts) - 0.5, -0.5)
    axes.set_xlabel("runs of deleted words")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.2)
    return figure
