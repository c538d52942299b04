"""RESULTS.md's tables of noise, and its picture: what 1 bit loses in noise, trained without noise and with it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain, product
from pathlib import Path

from noises import for_training
from result_files import NOISE, RESULTS, noisy_sets, result_path, speaker_of
from systems import (
    BY_BITS,
    BY_BITS_SEED,
    COLUMNS,
    CONDITIONS,
    CTC,
    FAMILIES,
    NOISY_SETS,
    NOISY_SYSTEMS,
    ROOMS,
    SYSTEMS,
    TRAINED_IN_NOISE,
    Row,
)

from lowbit_k2.asr.evaluation import GREEDY, HLG
from lowbit_k2.asr.result_files import kept_recogs
from lowbit_k2.data.noisy import SNR
from lowbit_k2.fileio import read_json
from lowbit_k2.report.figures import COLOURS, SIGNIFICANT, colour_of, new_figure
from lowbit_k2.report.noise import marked
from lowbit_k2.scoring.detail import count_runs, deletion_runs, format_runs
from lowbit_k2.scoring.recogs import read_recogs
from lowbit_k2.scoring.significance import MatchedPairs, compare, matched_pairs
from lowbit_k2.scoring.wer import Result, score
from lowbit_k2.tables import markdown_table

CLIPS = RESULTS / NOISE / "clips.json"  # all noises, and the one that each utterance of a set got
MARGIN = 0.05  # relative; below it two systems count as equivalent
SNRS = [name for name in CONDITIONS if SNR.fullmatch(name)]


def noise_table() -> str:
    """Systems in noise against float, by speaker: each condition alone, and all that are noisy together."""
    reference, *others = (Row(SYSTEMS[name], 1) for name in NOISY_SYSTEMS)
    lines = []
    for split in NOISY_SETS:
        sets = {name: [test_set] for name, test_set in noisy_sets(split).items() if name in ("clean", *CONDITIONS)}
        sets["all noisy"] = [test_set for name, (test_set,) in sets.items() if name != "clean"]
        for r, method in product(others, CTC):
            for name, test_sets in sets.items():
                first, second = ([recognised(own, method, t) for t in test_sets] for own in (reference, r))
                found = compare(first, second, speaker_of)
                d, alone = found.pooled, len(test_sets) == 1
                lines.append(
                    [
                        split,
                        COLUMNS[method],
                        name,
                        f"{100 * d.reference:.2f}",
                        f"{100 * d.other:.2f}",
                        *d.relative_cells(),
                        f"{found.cells[0].pairs.p:.3f}" if alone else "-",
                        *(runs_of_deletions(chain(*results)) for results in (first, second)),
                        d.verdict(MARGIN),
                    ]
                )
    head = ["set", "search", "condition", "float", f"{others[0].system.precisions[0]} bit", "relative", "95%", "p"]
    return markdown_table([*head, "del 3+/5+/11+ float", "1 bit", "verdict"], lines)


def recognised(r: Row, method: str, test_set: str, bits: str = "") -> list[Result]:
    """By a row, at a precision (its first one), on a set of the tables of noise."""
    return read_recogs(kept_in_noise(r, method, test_set, bits))


def kept_in_noise(r: Row, method: str, test_set: str, bits: str = "") -> Path:
    return kept_recogs(result_path(r, NOISE), bits or r.system.precisions[0], method, test_set)


def runs_of_deletions(results: Iterable[Result]) -> str:
    return format_runs(count_runs(deletion_runs(results)))


# --- by bits -------------------------------------------------------------------------------------------------------


def by_bits_table() -> str:
    """%WER by condition of models of one kind at their bits, none trained in noise; "" until they are decoded.

    Marks: against float under the same condition. All noisy: CONDITIONS together, by speaker.
    """
    lines = []
    for split, family in product(NOISY_SETS, BY_BITS):
        sets = noisy_sets(split)
        members = [(Row(SYSTEMS[name], BY_BITS_SEED), bits) for name, bits in family]
        if not all(result_path(r, NOISE).is_file() for r, _ in members):
            continue
        methods = members[0][0].system.methods
        for method in (m for m in methods if m != HLG):
            floats = None
            for r, bits in members:
                own = {name: recognised(r, method, test_set, bits) for name, test_set in sets.items()}
                cells = [rate_cell([own[name]], floats and [floats[name]]) for name in sets]
                d = compare(
                    *([found[name] for name in CONDITIONS] for found in (floats or own, own)), speaker_of
                ).pooled
                tested = [*d.relative_cells(), d.verdict(MARGIN)] if floats else ["-", "-", "-"]
                start, runs = [split, FAMILIES[methods][0], COLUMNS[method]], runs_of_deletions(chain(*own.values()))
                lines.append([*start, bits, *cells, f"{100 * d.other:.2f}", *tested, runs])
                floats = floats or own
    if not lines:
        return ""
    head = ["set", "model", "search", "bits", "clean", *CONDITIONS, *ROOMS, "all noisy", "relative", "95%", "verdict"]
    return markdown_table([*head, "del 3+/5+/11+"], lines)


# --- trained in noise ----------------------------------------------------------------------------------------------


class UnseenNoise:
    """Results under a condition, with noise those of utterances that got a clip that no model was trained on."""

    def __init__(self, split: str) -> None:
        clips = read_json(CLIPS)
        known = set(for_training(clips["noises"]))
        self.sets = noisy_sets(split)
        self.utterances = {utterance for utterance, clip in clips[split].items() if clip not in known}

    def of(self, r: Row, method: str, condition: str) -> list[Result] | None:
        """None: it was not decoded."""
        if not kept_in_noise(r, method, self.sets[condition]).is_file():
            return None
        results = recognised(r, method, self.sets[condition])
        noisy = any(map(SNR.fullmatch, condition.split("+")))
        return [result for result in results if not noisy or result[0] in self.utterances]


def trained_in_noise_table() -> str:
    """Float and 1 bit, trained without noise and with it; "" until the latter are decoded.

    Marks: "1 bit" against float, the others against the model of as many bits that was trained without noise.
    """
    plain, noisy = ([Row(SYSTEMS[name], 1) for name in names] for names in (NOISY_SYSTEMS, TRAINED_IN_NOISE))
    if not all(result_path(r, NOISE).is_file() for r in noisy):
        return ""
    lines = []
    for split, method in product(NOISY_SETS, CTC):
        unseen = UnseenNoise(split)
        cases = {name: [name] for name in unseen.sets} | {"20 to 0 dB": SNRS}
        for name, conditions in cases.items():
            found = [[unseen.of(r, method, condition) for condition in conditions] for r in (*plain, *noisy)]
            if any(results is None for cells in found[2:] for results in cells):
                continue
            found = [None if None in cells else cells for cells in found]
            compared = compare(found[2], found[3], speaker_of)
            d, alone = compared.pooled, len(conditions) == 1
            against = (None, found[0], found[0], found[1])
            cells = [rate_cell(own, other if alone else None) for own, other in zip(found, against, strict=True)]
            words = sum(len(ref) for _, ref, _ in chain(*found[2]))
            lines.append(
                [
                    split,
                    COLUMNS[method],
                    name,
                    str(words),
                    *cells,
                    *d.relative_cells(),
                    f"{compared.cells[0].pairs.p:.3f}" if alone else "-",
                    d.verdict(MARGIN),
                ]
            )
    head = ["set", "search", "condition", "words", "float", "1 bit", "float, in noise", "1 bit, in noise"]
    return markdown_table([*head, "relative", "95%", "p", "verdict"], lines)


def rate_cell(own: Sequence[Sequence[Result]] | None, other: Sequence[Sequence[Result]] | None) -> str:
    """%WER over all sets, marked where it differs from that of another system on the first."""
    if own is None:
        return "-"
    stats = score(list(chain(*own)))
    pairs = None if other is None else paired(own[0], other[0])
    return marked(stats.rate, pairs and pairs.p, pairs is not None and pairs.mean > 0)


def paired(own: Sequence[Result], other: Sequence[Result]) -> MatchedPairs:
    """MAPSSWE; its mean is above 0 where `own` makes more errors."""
    return matched_pairs(own, other)


def draw_in_noise(path: Path, split: str = "test", method: str = GREEDY) -> None:
    """%WER against the level of noises that no model was trained on; crosses: worse than float, trained alike."""
    figure, axes = new_figure(6.4, 3.6)
    unseen, levels = UnseenNoise(split), [float(SNR.fullmatch(name)[1]) for name in SNRS]
    for names, trained, style in ((NOISY_SYSTEMS, "without noise", "--"), (TRAINED_IN_NOISE, "in noise", "-")):
        reference = Row(SYSTEMS[names[0]], 1)
        for r in (Row(SYSTEMS[name], 1) for name in names):
            bits = r.system.precisions[0]
            colour = COLOURS[colour_of(bits)]
            label = f"{'float' if r == reference else f'{bits} bit'}, trained {trained}"
            found = [unseen.of(r, method, name) for name in SNRS]
            rates = [100 * score(results).rate for results in found]
            axes.plot(levels, rates, style, color=colour, linewidth=1.4, label=label)
            for level, rate, results, name in zip(levels, rates, found, SNRS, strict=True):
                pairs = paired(results, unseen.of(reference, method, name))
                worse = pairs.mean > 0 and pairs.p < SIGNIFICANT
                axes.plot([level], [rate], "X" if worse else "o", color=colour, markersize=8 if worse else 4)
    axes.set_xticks(levels, [f"{level:g}" for level in levels])
    axes.set_xlabel("dB of speech over noise")
    axes.set_ylabel(f"%WER, AN4 {split}, {COLUMNS[method]}")
    axes.set_ylim(bottom=0)
    axes.invert_xaxis()
    axes.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=110, metadata={"Software": None})
