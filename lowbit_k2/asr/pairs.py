"""Which recogniser with which language model: every pair of packed files, its word errors and its bytes.

The scales of each pair are chosen on a development set by the fewest word errors, then the test set is decoded once.
The first recogniser with the first language model is what the others are compared with: both in float, as a rule.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowbit_k2.asr.decoding import run_decode
from lowbit_k2.asr.recognizer import DecodeConfig, load_models, search_setups
from lowbit_k2.asr.results import Decoded
from lowbit_k2.core.config import ConfigError
from lowbit_k2.data.manifests import speakers_of
from lowbit_k2.errors import UserError
from lowbit_k2.fileio import read_json
from lowbit_k2.scoring.significance import compare, speaker_lookup
from lowbit_k2.tables import markdown_table

if TYPE_CHECKING:
    from lhotse import CutSet

NONE = "none"  # in the place of a language model's name
MARGIN = 0.05  # relative; below it two pairs count as equivalent
HEADERS = ("recogniser", "LM", "scales", "dev", "%WER (ins/del/sub)", "MB", "ratio", "relative", "95%", "p", "verdict")


@dataclass(frozen=True)
class Pair:
    """A recogniser, rescored by a language model or as it is.

    Attributes:
      lm: name of the language model; NONE: nothing is rescored.
      setting: the scales, as file names of results have them.
      dev_errors, dev_words: word errors of the development set, and its words.
      errors: ins, dels, sub, ref_words of the test set.
      recogniser_bytes, lm_bytes: of the packed files; graphs and n-grams are not counted.
      relative, interval, p, verdict: word error rate over that of the first pair, less 1, its 95% interval by bootstrap
        over speakers, over utterances where there is one speaker or none, p by MAPSSWE; None of the first pair itself.
    """

    recogniser: str
    lm: str
    setting: str
    dev_errors: int
    dev_words: int
    errors: dict[str, int]
    recogniser_bytes: int
    lm_bytes: int
    relative: float | None = None
    interval: tuple[float, float] | None = None
    p: float | None = None
    verdict: str = ""

    @property
    def bytes(self) -> int:
        return self.recogniser_bytes + self.lm_bytes

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def evaluate_pairs(
    config: DecodeConfig,
    recognisers: Mapping[str, Path],
    lms: Mapping[str, Path],
    dev: str,
    test: str,
    load_set: Callable[[str], CutSet],
    folder: Path,
) -> list[Pair]:
    """Decode all pairs, and each recogniser without a language model.

    Args:
      config: one decoding method that finds lists; the scales of the graph and of rescoring that are tried.
      recognisers, lms: packed files by name.
      dev, test: names of the sets that choose and count.
      folder: hypotheses of each pair go to `<folder>/<recogniser>-<lm>`; what is there is not decoded again.

    Raises:
      UserError: a file that is missing or is no such model, or a method that finds no lists.
    """
    for path in (*recognisers.values(), *lms.values()):
        if not path.is_file():
            raise UserError(f"{path} is no file: give packed files of export.py")
    sets = {name: load_set(name) for name in (dev, test)}
    speakers = speakers_of(sets[test])
    pairs, first = [], None
    for (recogniser, packed), (lm, lm_path) in product(recognisers.items(), [*lms.items(), (NONE, None)]):
        choice = replace(config.choice, exp_dir=folder / f"{recogniser}-{lm}")
        own = replace(config, choice=choice, packed=packed, precision=(), rescore_lm=lm_path)
        setting, best, on_dev = choose(own, dev, sets[dev])
        [decoded] = decode(best, test, sets[test]).values()
        logging.info("%s with %s at %s: %.2f%%", recogniser, lm, setting, 100 * decoded.stats.rate)
        found = Pair(
            recogniser,
            lm,
            setting,
            on_dev.stats.errors,
            on_dev.stats.ref_words,
            asdict(decoded.stats),
            packed.stat().st_size,
            lm_path.stat().st_size if lm_path else 0,
        )
        if first is None:
            first = decoded.results
        else:
            found = against(found, first, decoded, speakers)
        pairs.append(found)
    return pairs


def settings(config: DecodeConfig) -> Iterator[tuple[str, DecodeConfig]]:
    """Every combination of scales by what results are called with it, and the settings that have this one alone.

    Raises:
      ConfigError: several methods, or one that finds no lists.
    """
    loaded = load_models(config).loaded
    rescoring = product(config.rescore_lm_scale, config.rescore_ngram_scale) if config.rescore_lm else [((), ())]
    known = set()
    for graph, (lm, ngram) in product(config.lm_scale, list(rescoring)):
        single = replace(config, lm_scale=(graph,))
        if config.rescore_lm:
            single = replace(single, rescore_lm_scale=(lm,), rescore_ngram_scale=(ngram,))
        names = [setting for _, setting in search_setups(single, loaded)]
        if len(names) != 1:
            raise ConfigError("decoding_method", f"{config.decoding_method}: give one method")
        if names[0] not in known:  # a method without an n-gram knows nothing of its scale
            known.add(names[0])
            yield names[0], single


def choose(config: DecodeConfig, dev: str, cuts: CutSet) -> tuple[str, DecodeConfig, Decoded]:
    """The scales with the fewest word errors, the first of several that are equal; one run decodes at all of them."""
    single = dict(settings(config))
    found = decode(config, dev, cuts)
    best = min(single, key=lambda setting: found[setting].stats.errors)
    return best, single[best], found[best]


def decode(config: DecodeConfig, name: str, cuts: CutSet) -> dict[str, Decoded]:
    """Results by their scales."""
    return {setting: decoded for (_, _, setting, _), decoded in run_decode(config, lambda: {name: cuts}).items()}


def against(pair: Pair, first: list, decoded: Decoded, speakers: Mapping[str, str]) -> Pair:
    """The pair with how it differs from the first one's results."""
    found = compare([first], [decoded.results], speaker_lookup(speakers) if len(set(speakers.values())) > 1 else str)
    d = found.pooled
    return replace(
        pair, relative=d.relative, interval=d.relative_interval, p=found.cells[0].pairs.p, verdict=d.verdict(MARGIN)
    )


def load_pairs(path: Path) -> list[Pair]:
    """What `Pair.to_dict` has written."""
    return [Pair(**pair) for pair in read_json(path)]


def format_pairs(pairs: list[Pair]) -> str:
    """Markdown, in their order; ratios are of the bytes of the first pair."""
    lines = []
    for pair in pairs:
        errors = pair.errors
        wrong = errors["ins"] + errors["dels"] + errors["sub"]
        tested = ["-", "-", "-", "-"]
        if pair.interval is not None:
            low, high = pair.interval
            tested = [f"{pair.relative:+.1%}", f"{low:+.1%} to {high:+.1%}", f"{pair.p:.3f}", pair.verdict]
        lines.append(
            [
                pair.recogniser,
                pair.lm,
                pair.setting.replace("_", " ") or "-",
                f"{100 * pair.dev_errors / pair.dev_words:.2f}",
                f"{100 * wrong / errors['ref_words']:.2f} ({errors['ins']}/{errors['dels']}/{errors['sub']})",
                f"{pair.bytes / 1e6:.3f}",
                f"{pairs[0].bytes / pair.bytes:.1f}",
                *tested,
            ]
        )
    return markdown_table(HEADERS, lines)
