"""The page: what the experiments are, how good and how large, how they were trained, how they fail, what is missing."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lowbit_k2 import __version__
from lowbit_k2.errors import UserError
from lowbit_k2.fileio import atomic_write
from lowbit_k2.progress import progress_bar
from lowbit_k2.report import figures, text
from lowbit_k2.report.experiments import Experiment, Score, read_experiment
from lowbit_k2.report.noise import NOTE, condition_of, noise_cells, noise_rows, runs_of
from lowbit_k2.report.text import escaped
from lowbit_k2.scoring.detail import by_length, group_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = Path(__file__).with_name("report.css")
LIBRISPEECH = ("test-clean", "test-other")  # whose published points stand beside other test sets
MOST_BARS = 12  # systems in the figure of deletion runs, those with the most
MOST_ALIGNED = 8  # systems whose worst utterances are shown


@dataclass
class _Page:
    """HTML in the making, and its figures by name, which are written as PNG at the end."""

    parts: list[str] = field(default_factory=list)
    drawn: dict[str, Figure] = field(default_factory=dict)

    def add(self, *parts: str) -> None:
        self.parts += parts

    def section(self, title: str, note: str = "") -> None:
        self.add(f"<h2>{escaped(title)}</h2>", f"<p class='muted'>{note}</p>" if note else "")

    def figure(self, name: str, title: str, figure: Figure, note: str = "") -> str:
        """An element that shows the figure."""
        self.drawn[name] = figure
        caption = f"<figcaption>{note}</figcaption>" if note else ""
        return f"<figure><h3>{escaped(title)}</h3>{figures.as_svg(figure, escaped(title))}{caption}</figure>"

    def grid(self, elements: Sequence[str]) -> None:
        if elements:
            self.add('<div class="grid">', *elements, "</div>")


def write_report(folders: Sequence[Path], output: Path, title: str = "") -> list[Path]:
    """Read experiments, write the page, and its figures beside it in a folder `<name of the page>-png`.

    Args:
      folders: of train.py, or of result files.
      output: the page.
      title: of the page; by default the folders' names.

    Returns:
      What was written, the page first.
    Raises:
      UserError: a folder that is missing, or files in it that are damaged.
    """
    if output.is_dir():
        raise UserError(f"--output {output} is a folder: name a file, as {output}/report.html")
    found = [e for folder in progress_bar(folders, "experiments") for e in read_experiment(folder)]
    names = Counter(experiment.name for experiment in found)
    for experiment in found:
        if names[experiment.name] > 1:
            experiment.name += f" ({experiment.key})"
            experiment.scores = [replace(score, system=experiment.name) for score in experiment.scores]
    page = _Page()
    _fill(page, found, title or ", ".join(folder.resolve().name for folder in folders))
    with atomic_write(output) as temporary:
        temporary.write_text("\n".join(part for part in page.parts if part) + "\n", encoding="utf-8")
    written, folder = [output], output.with_name(f"{output.stem}-png")
    for name, figure in progress_bar(page.drawn.items(), "figures"):
        written.append(folder / f"{name}.png")
        with atomic_write(written[-1]) as temporary:
            figure.savefig(temporary, format="png", dpi=150)
    return written


def _fill(page: _Page, found: Sequence[Experiment], title: str) -> None:
    scores = [score for experiment in found for score in experiment.scores]
    page.add(
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escaped(title)}</title><style>\n{STYLE.read_text(encoding='utf-8')}</style></head><body>",
        f"<h1>{escaped(title)}</h1>",
        f"<p class='muted'>lowbit_k2 {__version__}, {time.strftime('%Y-%m-%d')}, {len(found)} experiments</p>",
    )
    _tiles(page, scores)
    page.add(_legend())
    _sizes_and_errors(page, scores)
    _noise(page, scores)
    _layers(page, found)
    _training(page, found)
    _deletions(page, scores)
    _utterances(page, scores)
    _published(page)
    _missing(page, found)
    page.add("</body></html>")


def _legend() -> str:
    dots = [f'<li><span class="dot" style="color:var(--{n})"></span>{text}</li>' for n, text in figures.NAMES.items()]
    rival = '<li><span class="diamond" style="color:var(--muted)"></span>published, other systems</li>'
    return f'<ul class="legend">{"".join([*dots, rival])}</ul>'


def _tiles(page: _Page, scores: Sequence[Score]) -> None:
    """What one looks for first: the lowest float and low-bit rates, and of how many; the smallest file."""
    tiles = []
    for label, members in (
        ("float", [s for s in scores if s.precision == "32"]),
        ("fewer bits", [s for s in scores if s.precision not in ("32", "16")]),
    ):
        if members:
            best = min(members, key=lambda s: s.stats.rate)
            size = "" if best.num_bytes is None else f", {best.num_bytes / 1e6:.2f} MB"
            where = f"{escaped(best.label)}, {escaped(best.test_set)}, {escaped(best.method)}{size}"
            tiles.append((f"{label}, lowest of {len(members)}", f"{100 * best.stats.rate:.2f}% WER", where))
    sized = [s for s in scores if s.ratio]
    if sized:
        smallest = max(sized, key=lambda s: s.ratio)
        tiles.append(
            ("smallest", f"{smallest.ratio:.1f}x", f"{escaped(smallest.label)}, {smallest.num_bytes / 1e6:.3f} MB")
        )
    cells = [f'<div class="card tile"><span class="muted">{a}</span><b>{b}</b>{c}</div>' for a, b, c in tiles]
    page.add('<div class="tiles">', *cells, "</div>")


def _by_test(scores: Sequence[Score]) -> Iterator[tuple[str, str, list[Score]]]:
    """Test set, search, scores."""
    for key in dict.fromkeys((s.test_set, s.method) for s in scores):
        yield *key, [s for s in scores if (s.test_set, s.method) == key]


def _not_noisy(scores: Sequence[Score]) -> list[Score]:
    """Those that are of no noisy copy of another test set: these have a section of their own."""
    names = {s.test_set for s in scores}
    noisy = {name for name in names if any(condition_of(name, clean) for clean in names - {name})}
    return [s for s in scores if s.test_set not in noisy]


def _sizes_and_errors(page: _Page, scores: Sequence[Score]) -> None:
    page.section(
        "Word error rate against size",
        "Bars: 95% intervals by bootstrap over utterances. Systems that fail altogether may lie above the axis.",
    )
    elements = []
    for test_set, method, own in _by_test(_not_noisy(scores)):
        rivals = [
            (p["system"], p["bits"], p["mb"], p["wer"][test_set]) for p in figures.published() if test_set in p["wer"]
        ]
        sized = [s for s in own if s.num_bytes is not None]
        if sized:
            drawn = figures.error_rates(sized, rivals)
            elements.append(page.figure(f"wer-mb-{test_set}-{method}", f"{test_set}, {method}", drawn))
    for test_set in LIBRISPEECH:
        if test_set not in {s.test_set for s in scores}:
            note = f"LibriSpeech's {test_set}, for orientation: another test set than those above."
            drawn = figures.published_rates([test_set])
            elements.append(page.figure(f"published-{test_set}", f"Published, {test_set}", drawn, note))
    page.grid(elements)
    for number, (test_set, method, own) in enumerate(_by_test(_not_noisy(scores))):
        opened = " open" if number < 2 and len(own) <= 12 else ""
        systems = f"{len(own)} system{'s' * (len(own) != 1)}"
        page.add(f"<details{opened}><summary>{escaped(test_set)}, {escaped(method)}: {systems}</summary>")
        page.add(f'<div class="card">{text.score_table(own, scores)}</div></details>')


def _noise(page: _Page, scores: Sequence[Score]) -> None:
    """Of every test set with noisy copies, by every search."""
    elements, tables = [], []
    clean = {s.test_set for s in scores}
    for test_set in sorted(clean):
        for method in dict.fromkeys(s.method for s in scores if condition_of(s.test_set, test_set)):
            own = [s for s in scores if s.method == method and condition_of(s.test_set, test_set)]
            if len({s.test_set for s in own}) < 2:
                continue
            cells = noise_cells(own, test_set, method)
            title = f"{test_set}, {method}"
            elements.append(page.figure(f"noise-{test_set}-{method}", title, figures.noise(cells)))
            rates, runs = (
                text.table(head, text.escaped_rows(rows))
                for head, rows in (noise_rows(cells), noise_rows(cells, runs_of))
            )
            runs = f"<details><summary>runs of 3+/5+/11+ deleted words</summary>{runs}</details>"
            tables.append(f'<div class="card"><h3>{escaped(title)}: %WER</h3>{rates}{runs}</div>')
    if elements:
        page.section("Noise", f"{escaped(NOTE)}. Crosses: worse than float, p &lt; {figures.SIGNIFICANT:g}.")
        page.grid(elements)
        page.add("<p></p>", '<div class="stack">', *tables, "</div>")


def _layers(page: _Page, found: Sequence[Experiment]) -> None:
    packed = [(e, precision, model) for e in found for precision, model in e.packed.items()]
    if not packed:
        return
    page.section("Bits and scales by layer", "Read from the packed files. A step is what a code of 1 stands for.")
    page.add(f'<div class="card">{text.size_table(found)}</div><p></p>')
    elements = []
    for number, (e, precision, model) in enumerate(packed, 1):
        if all(t.is_float for t in model.tensors):
            continue
        title = f"{e.name}, {precision} bit"
        elements.append(page.figure(f"bits-{number}", f"{title}: bits", figures.bits_by_layer(model)))
        elements.append(page.figure(f"scales-{number}", f"{title}: steps", figures.scales(model)))
    page.grid(elements)


def _training(page: _Page, found: Sequence[Experiment]) -> None:
    trained = [e for e in found if e.valid or e.train]
    if trained:
        page.section("Training", "Thick: validation loss of each precision. Thin: training loss of single updates.")
        page.grid([page.figure(f"training-{n}", e.name, figures.curves(e)) for n, e in enumerate(trained, 1)])


def _deletions(page: _Page, scores: Sequence[Score]) -> None:
    """Only systems that lose phrases; the number of the others is said."""
    known = [s for s in _not_noisy(scores) if s.runs() is not None]
    if not known:
        return
    page.section(
        "Runs of deleted words, and errors by length", "Models of few bits that are too weak lose whole phrases."
    )
    elements, quiet = [], []
    for test_set, method, own in _by_test(known):
        runs = {s.label: s.runs() for s in own}
        losing = sorted((label for label in runs if any(runs[label].values())), key=lambda n: -min(runs[n].items())[1])
        if losing:
            shown = {label: runs[label] for label in losing[:MOST_BARS]}
            drawn = figures.deletions(shown, {s.label: s.precision for s in own})
            elements.append(page.figure(f"deletions-{test_set}-{method}", f"{test_set}, {method}", drawn))
        if len(runs) > len(losing):
            quiet.append(f"{escaped(test_set)}, {escaped(method)}: {len(runs) - len(losing)} of {len(runs)}")
    page.grid(elements)
    for test_set, method, own in _by_test(known):
        head, rows = group_rows({s.label: by_length(s.results) for s in own})
        page.add(f"<details><summary>{escaped(test_set)}, {escaped(method)}: %WER by words of the reference</summary>")
        page.add(f'<div class="card">{text.table(head, text.escaped_rows(rows))}</div></details>')
    if quiet:
        page.add(f"<p class='muted'>No run of three or more deleted words: {'; '.join(quiet)} systems.</p>")


def _utterances(page: _Page, scores: Sequence[Score]) -> None:
    """Of the worst system and the float one first."""
    kept = sorted((s for s in scores if s.results and s.stats.errors), key=lambda s: -s.stats.rate)
    if not kept:
        return
    marks = "".join(f'<span class="pair {kind}">{word}</span> ' for kind, word in _KINDS)
    page.section("Worst utterances", f"Reference above, hypothesis below. {marks}")
    floats = [s for s in kept if s.precision == "32"][:1]
    for number, s in enumerate([*floats, *(s for s in kept if s not in floats)][:MOST_ALIGNED]):
        page.add(
            f"<details{' open' if number < 2 else ''}><summary>{escaped(s.label)}: {escaped(s.test_set)}, "
            f'{escaped(s.method)}, {100 * s.stats.rate:.2f}% WER</summary><div class="card">',
            *text.worst(s),
            "</div></details>",
        )
    if len(kept) > MOST_ALIGNED:
        page.add(f"<p class='muted'>{len(kept) - MOST_ALIGNED} more systems are left out here.</p>")


_KINDS = (("sub", "substituted"), ("del", "deleted"), ("ins", "inserted"))


def _published(page: _Page) -> None:
    page.section("Published points", "Of other systems, as their sources have them; none was measured here.")
    page.add(f"<details><summary>{len(figures.published())} points</summary>")
    page.add(f'<div class="card">{text.published_table(figures.published())}</div></details>')


def _missing(page: _Page, found: Sequence[Experiment]) -> None:
    lines = [f"<li>{escaped(e.name)}: {escaped(line)}</li>" for e in found for line in e.missing]
    if lines:
        page.section("Missing")
        page.add(f"<details{' open' if len(lines) <= 6 else ''}><summary>{len(lines)} notes</summary>")
        page.add('<ul class="missing">', *lines, "</ul></details>")
