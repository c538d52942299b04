"""Train the units of a recognizer with sentencepiece: a BPE of a given size, or characters.

  python -m lowbit_k2.recipe.train_bpe --lang-dir data/lang_bpe_500 --transcript data/train.txt --vocab-size 500
  python -m lowbit_k2.recipe.train_bpe --lang-dir data/lang_char --transcript data/train.txt --model-type char

The transcript has one sentence per line. Pieces 0, 1, 2 are `<blk>`, `<sos/eos>`, `<unk>`, as in icefall, so that
its lang directories and ours can be exchanged. The same transcript and flags give the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import io
from pathlib import Path

import sentencepiece

from lowbit_k2.data.tokenizer import BOUNDARY, BPE_MODEL, SentencePieceTokenizer
from lowbit_k2.errors import UserError, run_main
from lowbit_k2.fileio import atomic_write, read_json, write_json
from lowbit_k2.graphs.lexicon import BLANK
from lowbit_k2.textfile import read_lines

SPECIALS = (BLANK, BOUNDARY)  # and <unk> behind them
MODEL_TYPES = ("bpe", "char", "unigram")


def train_sentencepiece(sentences: list[str], model_type: str, vocab_size: int) -> bytes:
    """Train a sentencepiece model and return its bytes.

    Args:
      sentences: transcripts, words separated by spaces.
      model_type: "bpe", "unigram", or "char" (all characters that occur; `vocab_size` is then ignored).
      vocab_size: number of pieces, the three special ones included.

    Raises:
      UserError: no text, or a size that the text cannot fill.
    """
    sentences = [" ".join(sentence.split()) for sentence in sentences if sentence.strip()]
    if not sentences:
        raise UserError("the transcript holds no text: give one sentence per line")
    model = io.BytesIO()
    if model_type == "char":
        vocab_size = len(set("".join(sentences))) + len(SPECIALS) + 8  # an upper bound; the limit below is soft
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type=model_type,
            vocab_size=vocab_size,
            hard_vocab_limit=model_type != "char",
            user_defined_symbols=list(SPECIALS),
            unk_id=len(SPECIALS),
            bos_id=-1,
            eos_id=-1,
            character_coverage=1.0,
            normalization_rule_name="identity",  # the default carries a 240 kB table, the size of a packed model
            num_threads=1,  # more threads may order ties differently
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        reason = str(error).split("] ")[-1].strip() or "the trainer stopped"
        raise UserError(f"sentencepiece refuses --vocab-size {vocab_size}: {reason}") from None
    return model.getvalue()


def train_bpe(lang_dir: Path, transcript: Path, model_type: str, vocab_size: int) -> bool:
    """Write bpe.model into `lang_dir`; return False where it is there already, made from the same text and flags.

    Raises:
      UserError: unreadable transcript, impossible size, or a bpe.model made from other text or flags.
    """
    sentences = read_lines(transcript)
    settings = {
        "model_type": model_type,
        "vocab_size": vocab_size if model_type != "char" else None,
        "transcript_sha256": hashlib.sha256("\n".join(sentences).encode("utf-8")).hexdigest(),
    }
    target, record = lang_dir / BPE_MODEL, lang_dir / "bpe.json"
    if target.is_file():
        if record.is_file() and read_json(record) != settings:
            raise UserError(
                f"{target} was trained on another text or with other flags: remove it or choose another --lang-dir"
            )
        return False
    model = train_sentencepiece(sentences, model_type, vocab_size)
    write_json(record, settings)
    with atomic_write(target) as temporary:
        temporary.write_bytes(model)
    return True


def get_parser() -> argparse.ArgumentParser:
    """Flags of this stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lang-dir", type=Path, required=True, help="bpe.model is written here")
    parser.add_argument("--transcript", type=Path, required=True, help="one sentence per line")
    parser.add_argument("--vocab-size", type=int, default=500, help="pieces; ignored for characters")
    parser.add_argument("--model-type", choices=MODEL_TYPES, default="bpe")
    return parser


def main() -> None:
    args = get_parser().parse_args()
    made = train_bpe(args.lang_dir, args.transcript, args.model_type, args.vocab_size)
    tokenizer = SentencePieceTokenizer((args.lang_dir / BPE_MODEL).read_bytes())
    print(f"{args.lang_dir / BPE_MODEL}: {tokenizer.vocab_size} pieces{'' if made else ' (was there)'}")


if __name__ == "__main__":
    run_main(main)
