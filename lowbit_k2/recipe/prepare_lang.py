"""Make a lang directory: tokens.txt, words.txt, lexicon.txt, lexicon_disambig.txt and, with k2, L.pt, L_disambig.pt.

Units of a sentencepiece model (train_bpe first), words from a transcript or a word list:
  python -m lowbit_k2.recipe.prepare_lang --lang-dir data/lang_char --transcript data/train.txt
Phones of a pronunciation lexicon:
  python -m lowbit_k2.recipe.prepare_lang --lang-dir data/lang_phone --lexicon cmudict.txt --transcript data/train.txt

With --lexicon and neither --words nor --transcript, all words of the lexicon are taken. There is no silence phone:
the CTC blank takes its part. The files are rewritten whenever the command runs (seconds).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from lowbit_k2.data.tokenizer import BPE_MODEL, UNKNOWN, WORD_START, SentencePieceTokenizer, load_tokenizer
from lowbit_k2.errors import UserError, run_main
from lowbit_k2.graphs.lexicon import (
    BLANK,
    EPSILON,
    WORD_DISAMBIG,
    Entry,
    add_disambig,
    lexicon_fsa,
    read_lexicon,
    write_lexicon,
    write_symbols,
)
from lowbit_k2.k2_compat import has_k2
from lowbit_k2.textfile import read_lines

UNKNOWN_WORD = "<UNK>"
RESERVED = {EPSILON, UNKNOWN_WORD, WORD_DISAMBIG, "<s>", "</s>", "!SIL"}


def collect_words(words_file: Path | None, transcript: Path | None) -> list[str]:
    """The vocabulary, sorted: first fields of `words_file` and all words of `transcript`."""
    words: set[str] = set()
    if words_file is not None:
        words.update(line.split()[0] for line in read_lines(words_file) if line.strip())
    if transcript is not None:
        words.update(word for line in read_lines(transcript) for word in line.split())
    return sorted(words - RESERVED)


def spelled_lexicon(tokenizer: SentencePieceTokenizer, words: list[str]) -> list[Entry]:
    """One entry per word, its sentencepiece pieces, and `<UNK>` as icefall has it.

    Raises:
      UserError: a word with a character that the sentencepiece model does not know.
    """
    known = set(tokenizer.pieces())
    entries: list[Entry] = []
    for word, pieces in zip(words, tokenizer.encode_words(words), strict=True):
        if not pieces or any(piece not in known or piece == UNKNOWN for piece in pieces):
            raise UserError(f"word {word} has characters unknown to {BPE_MODEL}: train it on a text that has them")
        entries.append((word, tuple(pieces)))
    unknown = (UNKNOWN_WORD, (WORD_START, UNKNOWN) if WORD_START in known else (UNKNOWN,))
    return [*entries, unknown]


def phone_lexicon(lexicon: Path, words: list[str]) -> list[Entry]:
    """The lexicon's entries for `words` (all of them if `words` is empty), words sorted, variants in file order.

    Raises:
      UserError: words without a pronunciation (the first ones are named).
    """
    entries = [entry for entry in read_lexicon(lexicon) if entry[0] not in RESERVED - {UNKNOWN_WORD}]
    missing = sorted(set(words) - {word for word, _ in entries})
    if missing:
        shown = " ".join(missing[:5])
        raise UserError(f"{lexicon} has no pronunciation for {len(missing)} words ({shown}): add them")
    wanted = set(words)
    kept = [entry for entry in entries if not wanted or entry[0] in wanted]
    return sorted(kept, key=lambda entry: entry[0])


def word_table(entries: Iterable[Entry]) -> dict[str, int]:
    """words.txt: `<eps>`, the words, `#0 <s> </s>`; `<UNK>` comes first among the words, as in icefall."""
    words = sorted({word for word, _ in entries}, key=lambda word: (word != UNKNOWN_WORD, word))
    return {symbol: i for i, symbol in enumerate([EPSILON, *words, WORD_DISAMBIG, "<s>", "</s>"])}


def write_lang(lang_dir: Path, pieces: list[str], entries: list[Entry]) -> dict[str, int]:
    """Write the text files of a lang directory and, where k2 is installed, L.pt and L_disambig.pt.

    Args:
      pieces: symbols of the network's classes in order, `<blk>` first; `#0, #1, ...` are put behind them.
      entries: the pronunciations.

    Returns:
      The words with their ids.
    """
    marked, last = add_disambig(entries)
    tokens = {symbol: i for i, symbol in enumerate([*pieces, *(f"#{k}" for k in range(last + 1))])}
    words = word_table(entries)
    write_symbols(lang_dir / "tokens.txt", tokens)
    write_symbols(lang_dir / "words.txt", words)
    write_lexicon(lang_dir / "lexicon.txt", entries)
    write_lexicon(lang_dir / "lexicon_disambig.txt", marked)
    if has_k2():
        from lowbit_k2.graphs.fsa_io import made_for, save_fsa  # here, because it loads torch

        record = made_for(words, tokens)
        save_fsa(lang_dir / "L.pt", lexicon_fsa(entries, tokens, words), record)
        save_fsa(lang_dir / "L_disambig.pt", lexicon_fsa(marked, tokens, words, disambig_loop=True), record)
    return words


def prepare_lang(lang_dir: Path, lexicon: Path | None, words: Path | None, transcript: Path | None) -> int:
    """Make `lang_dir`; returns the number of words.

    Raises:
      UserError: no source of words, no units, or words that cannot be spelled.
    """
    vocabulary = collect_words(words, transcript)
    if lexicon is not None:
        if (lang_dir / BPE_MODEL).exists():
            raise UserError(f"{lang_dir} holds {BPE_MODEL}, so its units are pieces: give phones another --lang-dir")
        entries = phone_lexicon(lexicon, vocabulary)
        pieces = [BLANK, *sorted({phone for _, pronunciation in entries for phone in pronunciation})]
    else:
        if not vocabulary:
            raise UserError("no words: give --transcript or --words (or --lexicon for phones)")
        if not (lang_dir / BPE_MODEL).is_file():
            raise UserError(f"{lang_dir / BPE_MODEL} does not exist: run train_bpe, or give --lexicon for phones")
        tokenizer = load_tokenizer(lang_dir)
        assert isinstance(tokenizer, SentencePieceTokenizer)
        entries, pieces = spelled_lexicon(tokenizer, vocabulary), tokenizer.pieces()
    return len(write_lang(lang_dir, pieces, entries))


def get_parser() -> argparse.ArgumentParser:
    """Flags of this stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lang-dir", type=Path, required=True)
    parser.add_argument("--lexicon", type=Path, help="pronunciations in phones: WORD phone phone ...")
    parser.add_argument("--words", type=Path, help="vocabulary, one word per line (further fields are ignored)")
    parser.add_argument("--transcript", type=Path, help="vocabulary from a text, one sentence per line")
    return parser


def main() -> None:
    args = get_parser().parse_args()
    number = prepare_lang(args.lang_dir, args.lexicon, args.words, args.transcript)
    print(f"{args.lang_dir}: words.txt with {number} symbols{'' if has_k2() else '; no k2, so no L.pt'}")


if __name__ == "__main__":
    run_main(main)
