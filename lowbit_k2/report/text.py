"""Tables and aligned utterances as HTML; whatever comes from files is escaped here."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence

from lowbit_k2.core.text import printable
from lowbit_k2.report.experiments import FLOAT, Experiment, Score
from lowbit_k2.report.figures import SIGNIFICANT
from lowbit_k2.scoring.detail import format_runs
from lowbit_k2.scoring.significance import matched, matched_pairs
from lowbit_k2.scoring.wer import Pair, aligned

WORST = 5  # utterances of a system


def escaped(text: object) -> str:
    return html.escape(printable(str(text)))


def table(head: Sequence[str], rows: Iterable[Sequence[str]], wide: Sequence[str] = ()) -> str:
    """Cells are HTML already; columns named in `wide` are left out on narrow screens."""
    marks = [' class="wide"' if name in wide else "" for name in head]
    lines = ["<tr>" + "".join(f"<th{m}>{escaped(h)}</th>" for h, m in zip(head, marks, strict=True)) + "</tr>"]
    for row in rows:
        lines.append("<tr>" + "".join(f"<td{m}>{cell}</td>" for cell, m in zip(row, marks, strict=True)) + "</tr>")
    body = "\n".join(lines)
    return f'<div class="scroll"><table>\n{body}\n</table></div>'


def escaped_rows(rows: Iterable[Sequence[object]]) -> list[list[str]]:
    return [[escaped(cell) for cell in row] for row in rows]


def reference_of(score: Score, scores: Iterable[Score]) -> Score | None:
    """A float system on the same words by the same search.

    The one that the score's experiment names; where it names none, that of the experiment itself, or the first one.
    """
    if score.reference:
        scores = [other for other in scores if other.key == score.reference]
    for other in sorted(scores, key=lambda other: other.system != score.system):
        same = (other.test_set, other.method, other.precision) == (score.test_set, score.method, FLOAT)
        if same and other.results and score.results and _words(other) == _words(score):
            return other
    return None


def _words(score: Score) -> dict[str, list[str]]:
    return {utterance: list(ref) for utterance, ref, _ in score.results or ()}


def p_value(score: Score, reference: Score) -> float:
    """Of MAPSSWE."""
    return matched_pairs(*matched(reference.results, score.results, (reference.label, score.label))).p


def p_cell(score: Score, reference: Score | None) -> str:
    """MAPSSWE against float, marked where it is significant."""
    if reference is None or reference is score or not score.results:
        return "-"
    p = p_value(score, reference)
    if p >= SIGNIFICANT:
        return f"{p:.3f}"
    kind = "worse" if score.stats.rate > reference.stats.rate else "better"
    return f'<span class="{kind}">{p:.3f} {kind}</span>'


def score_table(scores: Sequence[Score], every: Sequence[Score]) -> str:
    """Errors of systems on one test set by one search.

    Args:
      every: in which the float system to compare with is found.
    """
    head = ["system", "bits", "%WER", "95%", "ins/del/sub", "del 3+/5+/11+", "p", "MB", "ratio"]
    rows = []
    for s in scores:
        runs = s.runs()
        ends = "" if s.interval is None else "-".join(f"{100 * end:.1f}" for end in s.interval)
        rows.append(
            [
                escaped(" ".join(part for part in (s.system, s.setting) if part)),
                escaped(s.precision),
                f"{100 * s.stats.rate:.2f}",
                ends,
                f"{s.stats.ins}/{s.stats.dels}/{s.stats.sub}",
                "-" if runs is None else format_runs(runs),
                p_cell(s, reference_of(s, every)),
                "-" if s.num_bytes is None else f"{s.num_bytes / 1e6:.3f}",
                "-" if s.ratio is None else f"{s.ratio:.1f}x",
            ]
        )
    note = "del: runs of at least 3, 5 and 11 deleted words."
    references = dict.fromkeys(r.label for s in scores if (r := reference_of(s, every)) is not None and r is not s)
    if references:
        note += f" p: MAPSSWE against {escaped(', '.join(references))}."
    return table(head, rows, wide=("95%", "ins/del/sub", "del 3+/5+/11+", "ratio")) + f'<p class="muted">{note}</p>'


def worst(score: Score) -> list[str]:
    """The utterances with the most errors, aligned."""
    found = []
    for utterance, ref, hyp in score.results or ():
        pairs = aligned(ref, hyp)
        errors = sum(r != h for r, h in pairs)
        if errors:
            found.append((errors, utterance, pairs))
    found.sort(key=lambda item: (-item[0], item[1]))
    return [alignment(utterance, errors, pairs) for errors, utterance, pairs in found[:WORST]]


def alignment(utterance: str, errors: int, pairs: Sequence[Pair]) -> str:
    """Reference above, hypothesis below, word by word."""
    words = "".join(_pair(ref, hyp) for ref, hyp in pairs)
    of = sum(ref is not None for ref, _ in pairs)
    note = f"{escaped(utterance)}: {errors} error{'s' * (errors != 1)}, {of} words"
    return f'<div class="aligned"><div class="id">{note}</div>{words}</div>'


def _pair(ref: str | None, hyp: str | None) -> str:
    if ref == hyp:
        return f'<span class="pair"><i>{escaped(ref)}</i></span>'
    kind = "ins" if ref is None else "del" if hyp is None else "sub"
    above, below = (escaped(word) if word is not None else "&nbsp;" for word in (ref, hyp))
    return f'<span class="pair {kind}" title="{kind}"><i>{above}</i><i>{below}</i></span>'


def size_table(experiments: Sequence[Experiment]) -> str:
    """Packed files: bytes, bits per weight, and the step down that would save most."""
    from lowbit_k2.packed import next_steps, size_rows

    rows = []
    for e in experiments:
        for precision, model in e.packed.items():
            total, weights = model.sizes.total, sum(t.num_weights for t in model.tensors)
            low = sum(r.num_bytes for r in size_rows(model.tensors) if r.encoding in ("binary", "ternary"))
            steps = next_steps(model.tensors, total)
            gain = f"{escaped(steps[0].role)} to {steps[0].to}: {100 * steps[0].saved / total:.0f}%" if steps else "-"
            cells = [
                f"{total / 1e6:.3f}",
                f"{8 * total / weights:.2f}" if weights else "-",
                f"{100 * low / total:.0f}%",
            ]
            rows.append([escaped(e.name), escaped(precision), *cells, gain])
    head = ["system", "bits", "MB", "per weight", "bytes in 1 and 2 bits", "next step down saves"]
    return table(head, rows, wide=("bytes in 1 and 2 bits", "next step down saves"))


def published_table(points: Iterable[Mapping]) -> str:
    """Other systems, with the source of each."""
    rows = []
    for p in points:
        rates = ", ".join(f"{escaped(name)} {wer:g}" for name, wer in p["wer"].items())
        origin = escaped(p["source"]) + (" (reported by others)" if p["origin"] == "others" else "")
        rows.append([escaped(p["system"]), escaped(p["bits"]), f"{p['mb']:g}", rates, origin])
    return table(["system", "bits", "MB", "%WER", "source"], rows, wide=("source",))
