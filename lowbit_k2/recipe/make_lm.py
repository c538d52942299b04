"""Estimate an n-gram and write it as ARPA: over the words of a graph, or over a model's units for `--token-lm`.

  python -m lowbit_k2.recipe.make_lm --transcript data/train.txt --words data/lang/words.txt --arpa data/3gram.arpa
  python -m lowbit_k2.recipe.make_lm --transcript data/train.txt --units data/lang_bpe_500 --arpa data/units.arpa

The smoothing is interpolated modified Kneser-Ney (graphs/ngram.py). All words of words.txt get a unigram. Words of
the transcript that are not in it are left out with their n-grams, unless `--unknown-word` gives them a symbol.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from collections.abc import Sequence, Set
from pathlib import Path

from lowbit_k2.core.topology import CHAIN, CTC, SILENCE, TOPOLOGIES
from lowbit_k2.data.tokenizer import UNKNOWN, load_tokenizer
from lowbit_k2.errors import UserError, run_main
from lowbit_k2.graphs.lexicon import read_symbols
from lowbit_k2.graphs.ngram import estimate, write_arpa
from lowbit_k2.graphs.unit_graphs import spoken_units
from lowbit_k2.recipe.prepare_lang import RESERVED
from lowbit_k2.recipe.train_bpe import SPECIALS
from lowbit_k2.textfile import read_lines

NAMED = 5  # units in a warning
MANY_UNKNOWN = 0.1  # share of a text's words from which on their absence is a warning


def make_lm(
    transcript: Path, order: int, words: Path, arpa: Path, unknown: str | None = None, min_counts: Sequence[int] = ()
) -> list[int]:
    """Write `arpa` and return the number of n-grams of each order.

    Raises:
      UserError: unreadable files, an empty transcript, or an unknown word that words.txt does not hold.
    """
    symbols = read_symbols(words)
    if unknown is not None and unknown not in symbols:
        raise UserError(f"--unknown-word {unknown} is not in {words}: choose one of its symbols")
    vocabulary = [word for word in symbols if word not in RESERVED and not word.startswith("#")]
    sentences = [line.split() for line in read_lines(transcript) if line.strip()]
    report_unknown(Counter(word for sentence in sentences for word in sentence), set(vocabulary), transcript, words)
    model = estimate(sentences, order, vocabulary, unknown, min_counts)
    write_arpa(model, arpa)
    return [len(table) for table in model.probabilities]


def report_unknown(counts: Counter[str], known: set[str], transcript: Path, words: Path) -> None:
    """Print how many words of a text words.txt lacks, or a model's units cannot spell.

    Raises:
      UserError: all of them.
    """
    unknown = Counter({word: number for word, number in counts.items() if word not in known})
    if not unknown:
        return
    first, share = unknown.most_common(1)[0][0], unknown.total() / counts.total()
    if len(unknown) == len(counts):
        raise UserError(f"no word of {transcript} is in {words}, the commonest is {first}: are letter cases equal?")
    print(
        f"{'warning: ' if share > MANY_UNKNOWN else ''}{unknown.total()} of {counts.total()} words of {transcript} "
        f"({share:.1%}) are not in {words}, most often {first}",
        flush=True,
    )


def make_token_lm(
    transcript: Path, order: int, units: Path, arpa: Path, min_counts: Sequence[int] = (), topology: str = CTC
) -> list[int]:
    """Write an n-gram over the units of a tokenizer and return the number of n-grams of each order.

    Args:
      topology: with chain silence, unit 0, is put into the text at random, at its ends and between words.

    Raises:
      UserError: unreadable files, an empty transcript, or words that the tokenizer cannot spell.
    """
    tokenizer = load_tokenizer(units)
    pieces = tokenizer.pieces()
    lines = [line for line in read_lines(transcript) if line.strip()]
    words = Counter(word for line in lines for word in line.split())
    report_unknown(words, {word for word in words if not tokenizer.unknown(word)}, transcript, units)
    draw = random.Random(0)

    def spoken(line: str) -> list[int]:
        if topology == CTC:
            return tokenizer.encode(line)
        return spoken_units([tokenizer.pronunciations(word) for word in line.split()], topology, draw)

    sentences = [[pieces[i] for i in spoken(line)] for line in lines]
    silent = {pieces[SILENCE]} if topology == CHAIN else set()
    vocabulary = [piece for piece in pieces if piece in silent or piece not in SPECIALS]
    report_unused(vocabulary, {unit for sentence in sentences for unit in sentence}, transcript)
    model = estimate(sentences, order, vocabulary, None, min_counts)
    write_arpa(model, arpa)
    return [len(table) for table in model.probabilities]


def report_unused(vocabulary: Sequence[str], used: Set[str], transcript: Path) -> None:
    """Print which units a text lacks: a model that is trained on it never hears them."""
    unused = [unit for unit in vocabulary if unit not in used and unit != UNKNOWN]
    if unused:
        shown = ", ".join(unused[:NAMED]) + (", ..." if len(unused) > NAMED else "")
        print(
            f"warning: {len(unused)} of {len(vocabulary)} units do not occur in {transcript} ({shown}): "
            "no model learns them from it",
            flush=True,
        )


def get_parser() -> argparse.ArgumentParser:
    """Flags of this stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transcript", type=Path, required=True, help="one sentence per line")
    parser.add_argument("--order", type=int, default=3)
    over = parser.add_mutually_exclusive_group(required=True)
    over.add_argument("--words", type=Path, help="over words: words.txt of the lang directory")
    over.add_argument("--units", type=Path, help="over a model's units: its lang directory or bpe.model")
    parser.add_argument("--arpa", type=Path, required=True, help="output")
    parser.add_argument(
        "--topology", choices=TOPOLOGIES, default=CTC, help="of LF-MMI, with --units: chain has silence as a unit"
    )
    parser.add_argument("--unknown-word", help="symbol for words outside words.txt, e.g. <UNK>; default: none")
    parser.add_argument(
        "--min-counts", type=min_counts, default=(), help="leave out rarer n-grams: a number per order, e.g. 1,1,2"
    )
    return parser


def min_counts(text: str) -> list[int]:
    """`1,1,2` as numbers, for argparse."""
    return [int(part) for part in text.split(",")]


def main() -> None:
    args = get_parser().parse_args()
    if args.units and args.unknown_word:
        raise UserError("--unknown-word goes with --words: units spell every word")
    if args.words and args.topology != CTC:
        raise UserError("--topology goes with --units: words have none")
    if args.units:
        sizes = make_token_lm(args.transcript, args.order, args.units, args.arpa, args.min_counts, args.topology)
    else:
        sizes = make_lm(args.transcript, args.order, args.words, args.arpa, args.unknown_word, args.min_counts)
    print(f"{args.arpa}: " + ", ".join(f"{size} {n}-grams" for n, size in enumerate(sizes, start=1)))


if __name__ == "__main__":
    run_main(main)
