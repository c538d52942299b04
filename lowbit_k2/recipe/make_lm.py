"""Estimate the word n-gram of a graph and write it as ARPA.

  python -m lowbit_k2.recipe.make_lm --transcript data/train.txt --words data/lang/words.txt --arpa data/3gram.arpa

The smoothing is interpolated modified Kneser-Ney (graphs/ngram.py). All words of words.txt get a unigram. Words of
the transcript that are not in it are left out with their n-grams, unless `--unknown-word` gives them a symbol.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from lowbit_k2.errors import UserError, run_main
from lowbit_k2.graphs.lexicon import read_lines, read_symbols
from lowbit_k2.graphs.ngram import estimate, write_arpa
from lowbit_k2.recipe.prepare_lang import RESERVED


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
    model = estimate(sentences, order, vocabulary, unknown, min_counts)
    write_arpa(model, arpa)
    return [len(table) for table in model.probabilities]


def get_parser() -> argparse.ArgumentParser:
    """Flags of this stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transcript", type=Path, required=True, help="one sentence per line")
    parser.add_argument("--order", type=int, default=3)
    parser.add_argument("--words", type=Path, required=True, help="words.txt of the lang directory")
    parser.add_argument("--arpa", type=Path, required=True, help="output")
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
    sizes = make_lm(args.transcript, args.order, args.words, args.arpa, args.unknown_word, args.min_counts)
    print(f"{args.arpa}: " + ", ".join(f"{size} {n}-grams" for n, size in enumerate(sizes, start=1)))


if __name__ == "__main__":
    run_main(main)
