"""The command `lowbit-k2`, also `python -m lowbit_k2.cli`.

lowbit-k2 inspect model.safetensors --float float.safetensors    # what takes how many bytes; also .pt and .onnx
lowbit-k2 transcribe --packed model.safetensors a.wav b.flac     # FILE<tab>words, without PyTorch where it can
lowbit-k2 score float/recogs-test.txt 1bit/recogs-test.txt       # errors, runs of deletions, by length and by noise
lowbit-k2 noise exp/float exp/cotrain --test-set test            # noisy copies of a test set: does 1 bit break sooner?
lowbit-k2 report exp/float exp/cotrain --output report.html      # one page: sizes, errors, curves, alignments
lowbit-k2 perplexity lm.safetensors text.gz                      # of a language model, packed or a checkpoint
lowbit-k2 import bitnet.safetensors --output packed.safetensors  # others' ternary or binary weights, without loss
lowbit-k2 compare float/recogs-test.txt 1bit/recogs-test.txt     # worse, better, equivalent, or cannot tell
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lowbit_k2.asr.engines import EngineConfig, transcribe_packed
from lowbit_k2.asr.transcripts import OutputConfig
from lowbit_k2.core.chunks import ChunkConfig
from lowbit_k2.core.text import printable
from lowbit_k2.data.text_config import TextConfig
from lowbit_k2.errors import UserError, run_main
from lowbit_k2.packed import (
    EntropyRow,
    PackedFileError,
    PackedModel,
    SizeTable,
    Step,
    entropy_rows,
    format_entropy,
    format_steps,
    import_table,
    import_tensors,
    next_steps,
    read_packed,
    size_table,
    write_packed,
)
from lowbit_k2.packed.container import FORMAT, MAX_HEADER
from lowbit_k2.plugins import PLUGIN_HELP, load_plugins
from lowbit_k2.recipe.flags import add_flags, errors_name_flags, read_flags
from lowbit_k2.runtime import SearchConfig

# by what `kind_of` says: functions of lowbit_k2.audit, which imports torch
AUDITS = {"checkpoint": "audit_checkpoint", "onnx": "audit_onnx", "safetensors": "audit_safetensors"}


def get_parser() -> argparse.ArgumentParser:
    """Flags of all subcommands."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="lowbit-k2", description=__doc__, formatter_class=formatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    inspect = commands.add_parser(
        "inspect", help="every byte of a file by role and encoding; entropy of codes; what fewer bits would save"
    )
    inspect.add_argument(
        "file", type=Path, metavar="FILE", help="a packed file of export.py, or any .pt of tensors, .onnx, .safetensors"
    )
    inspect.add_argument(
        "--float", type=Path, metavar="FILE", dest="float_file", help="its float32 file, for the ratio"
    )
    inspect.add_argument("--json", action="store_true", help="for programs")
    inspect.set_defaults(run=run_inspect)

    add_import(commands)

    transcribe = commands.add_parser("transcribe", help="audio files to text with a packed model")
    transcribe.add_argument("--packed", type=Path, required=True, metavar="FILE", help="a packed file of export.py")
    transcribe.add_argument("--plugin", type=Path, action="append", default=[], metavar="FILE", help=PLUGIN_HELP)
    add_flags(transcribe, EngineConfig, OutputConfig, SearchConfig, ChunkConfig)
    transcribe.add_argument("--threads", type=int, dest="num_threads", default=argparse.SUPPRESS, help="the same")
    transcribe.add_argument("--rtf", action="store_true", help="seconds of audio and of work on stderr, file by file")
    transcribe.add_argument(
        "audio",
        type=Path,
        nargs="+",
        metavar="AUDIO",
        help="files of any format that libsndfile reads, folders that hold some, or - for stdin",
    )
    transcribe.set_defaults(run=run_transcribe)

    align = commands.add_parser("align", help="when each word of known transcripts was said, as CTM")
    align.add_argument("--packed", type=Path, required=True, metavar="FILE", help="a packed file with a CTC layer")
    align.add_argument("--plugin", type=Path, action="append", default=[], metavar="FILE", help=PLUGIN_HELP)
    align.add_argument("--num-threads", type=int, default=0, help="CPU threads; 0 leaves PyTorch's choice")
    align.add_argument("--level", choices=("word", "token"), default="word", help="what the lines are of")
    align.add_argument("--wav", type=Path, metavar="WAV", help="one audio file, with --text")
    align.add_argument("--text", help="its transcript")
    align.add_argument("--transcripts", type=Path, metavar="FILE", help="instead: lines `WAV<tab>transcript`")
    add_flags(align, ChunkConfig)
    align.set_defaults(run=run_align)

    perplexity = commands.add_parser("perplexity", help="of a text, by a language model that train_lm.py trained")
    perplexity.add_argument("file", type=Path, metavar="FILE", help="a packed file, a checkpoint, or the folder of one")
    perplexity.add_argument("text", type=Path, nargs="+", metavar="TEXT", help="plain or gzip, one sentence per line")
    perplexity.add_argument("--precision", default="", help="of a checkpoint: bits, 1.5, or a file with an allocation")
    perplexity.add_argument("--plugin", type=Path, action="append", default=[], metavar="FILE", help=PLUGIN_HELP)
    perplexity.add_argument("--num-threads", type=int, default=0, help="CPU threads; 0 leaves PyTorch's choice")
    perplexity.add_argument("--json", action="store_true", help="for programs")
    add_flags(perplexity, TextConfig)
    perplexity.set_defaults(run=run_perplexity)

    add_evidence(commands)
    return parser


def add_evidence(commands: Any) -> None:
    """The subcommands on what was recognised."""
    scores = commands.add_parser(
        "score", help="word errors of recogs-*.txt files, runs of deleted words, error rates by length and by SNR"
    )
    scores.add_argument("recogs", type=Path, nargs="+", metavar="RECOGS", help="recogs-*.txt of decode.py")
    scores.add_argument("--cuts", type=Path, nargs="+", metavar="FILE", help="lhotse cuts that carry an SNR")
    scores.add_argument("--json", action="store_true", help="for programs")
    scores.set_defaults(run=run_score)

    compare = commands.add_parser(
        "compare", help="is a system worse than another, better, or equivalent? From their recogs-*.txt files"
    )
    what = "recogs-*.txt; of several test sets or seeds by commas, in the same order for all systems"
    compare.add_argument("reference", type=read_paths, metavar="REFERENCE", help=what)
    compare.add_argument("systems", type=read_paths, nargs="+", metavar="SYSTEM", help="what is compared with it")
    compare.add_argument("--margin", type=float, default=0.05, help="relative difference that does not matter (0.05)")
    speakers = compare.add_mutually_exclusive_group()
    speakers.add_argument("--cuts", type=Path, nargs="+", metavar="FILE", help="lhotse cuts, for bootstrap by speaker")
    speakers.add_argument("--utt2spk", type=Path, metavar="FILE", help="the same, from lines `utterance speaker`")
    compare.add_argument("--json", action="store_true", help="for programs")
    compare.set_defaults(run=run_compare)

    noise = commands.add_parser("noise", help="error rates of noisy copies of a test set, by condition and precision")
    noise.add_argument("folders", type=Path, nargs="+", metavar="EXP", help="folders of train.py, a float one first")
    noise.add_argument("--test-set", default="test", help="the clean one; its copies are TEST_SET-snr10, ...")
    noise.add_argument("--decoding-method", default="ctc-greedy-search", help="the search")
    noise.add_argument("--json", action="store_true", help="for programs")
    noise.set_defaults(run=run_noise)

    report = commands.add_parser("report", help="experiments as one HTML page, and its figures as PNG")
    report.add_argument("folders", type=Path, nargs="+", metavar="EXP", help="folders of train.py, or of result files")
    report.add_argument("--output", type=Path, default=Path("report.html"), metavar="FILE", help="the page")
    report.add_argument("--title", default="", help="of the page; by default the names of the folders")
    report.set_defaults(run=run_report)


def add_import(commands: argparse._SubParsersAction) -> None:
    """The flags of `import`."""
    bring = commands.add_parser("import", help="low-bit weights of others, from safetensors to a packed file")
    bring.add_argument("source", type=Path, metavar="SRC", help="codes with scales, or floats with few values")
    bring.add_argument("--output", type=Path, required=True, metavar="FILE", help="the packed file")
    bring.add_argument(
        "--skip", action="append", default=[], metavar="PATTERN", help="names (with * and ?) to leave out; repeatable"
    )
    bring.add_argument("--compress", action="store_true", help="code frequent weights in fewer bits")
    bring.set_defaults(run=run_import)


def run_inspect(args: argparse.Namespace) -> None:
    """Print what a file holds. For a packed file neither torch nor lhotse is imported."""
    audit = AUDITS.get(kind_of(args.file))
    if audit is not None:
        return inspect_other(args, audit)
    model = read_packed(args.file)
    reference = None if args.float_file is None else read_packed(args.float_file)
    table = size_table(model, reference)
    try:
        entropy = entropy_rows(model)
    except PackedFileError as error:
        raise PackedFileError(f"{args.file}: {error}") from None
    steps = next_steps(model.tensors, table.file.total)
    if args.json:
        description = {name: dict(getattr(model, name)) for name in ("model_config", "features", "extra")}
        tokens = {"kind": model.tokens_kind, "bytes": len(model.tokens)}
        return print_sizes_as_json(args.file, {**description, "tokens": tokens}, table, entropy, steps)
    print("\n".join(map(printable, describe(args.file, model))))
    print_sizes(table, entropy, steps)
    if table.ratio is not None:
        print(f"\nratio: {table.float_file.total:,} / {table.file.total:,} bytes = {table.ratio:.2f}x")


def kind_of(path: Path) -> str:
    """What `inspect` takes a file for: a key of AUDITS, or "packed", whose reader says what is wrong with others."""
    try:
        with path.open("rb") as file:
            head = file.read(8 + MAX_HEADER)
    except OSError:
        return "packed"
    if head.startswith(b"PK\x03\x04"):
        return "checkpoint"
    if head[8:9] == b"{":
        return "packed" if f'"{FORMAT}"'.encode() in head else "safetensors"
    return "onnx" if path.suffix == ".onnx" else "packed"


def inspect_other(args: argparse.Namespace, audit: str) -> None:
    """Print the sizes of a file that is not ours."""
    import lowbit_k2.audit

    if args.float_file is not None:
        raise UserError("--float is for packed files: leave it out")
    found = getattr(lowbit_k2.audit, audit)(args.file)
    entropy, steps = found.entropy(), next_steps(found.tensors, found.total)
    if args.json:
        return print_sizes_as_json(args.file, {"kind": found.kind}, found.table, entropy, steps)
    print(printable(f"{args.file}: {found.kind}, {found.total:,} bytes"))
    print_sizes(found.table, entropy, steps)


def print_sizes(table: SizeTable, entropy: Sequence[EntropyRow], steps: Sequence[Step]) -> None:
    parts = [f"{table}\n{table.summary()}"]
    parts += [format_entropy(entropy)] if entropy else []
    parts += [format_steps(steps)] if steps else []
    print("\n\n".join(parts))


def print_sizes_as_json(
    path: Path, about: Mapping[str, Any], table: SizeTable, entropy: Sequence[EntropyRow], steps: Sequence[Step]
) -> None:
    value = {"path": str(path), **about, "sizes": table.to_dict(), "entropy": [row.to_dict() for row in entropy]}
    print(json.dumps({**value, "next_steps": [step.to_dict() for step in steps]}, indent=2))


def describe(path: Path, model: PackedModel) -> Iterator[str]:
    """Lines on everything but sizes."""
    yield f"{path}: packed model of lowbit_k2, checksum right, {path.stat().st_size:,} bytes"
    for title, values in (("origin", model.extra), ("model", model.model_config), ("features", model.features)):
        if values:
            yield f"{title}: {_spell(values)}"
    yield f"tokens: {model.tokens_kind or 'none'}, {len(model.tokens):,} bytes uncompressed"


def _spell(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def run_import(args: argparse.Namespace) -> None:
    """Write a packed file of a safetensors file's tensors and print what became of each. Imports no torch."""
    if args.output.exists() and args.output.samefile(args.source):
        raise UserError(f"--output {args.output} is the source: choose another name")
    found = import_tensors(args.source, args.skip)
    model = PackedModel([imported.tensor for imported in found], {}, tokens_kind="none", extra={"imported": True})
    write_packed(args.output, model, args.compress)
    print(import_table(found))
    before, after = args.source.stat().st_size, args.output.stat().st_size
    print(f"{printable(str(args.output))}: {after:,} bytes of {before:,}, {before / after:.2f}x smaller")


def run_transcribe(args: argparse.Namespace) -> None:
    """Put out what is said in each audio file, one by one. torch is imported only where the packed runtime has no
    parts for the model.
    """
    load_plugins(args.plugin)
    settings = (read_flags(kind, args) for kind in (EngineConfig, SearchConfig, ChunkConfig))
    transcribe_packed(args.packed, args.audio, *settings, read_flags(OutputConfig, args, rtf=args.rtf))


def run_align(args: argparse.Namespace) -> None:
    """Print CTM lines: file, channel, start, duration, word or token, confidence."""
    if (args.transcripts is None) == (args.wav is None) or (args.wav is None) != (args.text is None):
        raise UserError("give --wav with --text, or --transcripts")
    import torch

    from lowbit_k2.asr.alignment import align_files, read_pairs
    from lowbit_k2.asr.model_io import load_packed
    from lowbit_k2.asr.recognizer import packed_recognizer

    if args.num_threads > 0:
        torch.set_num_threads(args.num_threads)
    load_plugins(args.plugin)
    pairs = read_pairs(args.transcripts) if args.transcripts else [(args.wav, args.text)]
    align_files(pairs, packed_recognizer(load_packed(args.packed), read_flags(ChunkConfig, args)), args.level)


def run_score(args: argparse.Namespace) -> None:
    """Print how often each system errs, and how."""
    from lowbit_k2.scoring.detail import check_snrs, detail, format_details
    from lowbit_k2.scoring.recogs import read_recogs

    systems = [(path, read_recogs(path)) for path in args.recogs]
    snrs = None
    if args.cuts is not None:
        from lowbit_k2.data.manifests import read_cuts, snrs_of

        snrs = {utterance: snr for path in args.cuts for utterance, snr in snrs_of(read_cuts(path)).items()}
        check_snrs(snrs, systems)
    found = {str(path): detail(results, snrs) for path, results in systems}
    if args.json:
        print(json.dumps([{"file": name, **one.to_dict()} for name, one in found.items()], indent=2))
    else:
        print(format_details(found))


def run_noise(args: argparse.Namespace) -> None:
    """Print a table of conditions and precisions."""
    from lowbit_k2.report.experiments import read_experiment
    from lowbit_k2.report.noise import format_noise, noise_cells

    scores = [score for folder in args.folders for e in read_experiment(folder) for score in e.scores]
    cells = noise_cells(scores, args.test_set, args.decoding_method)
    print(json.dumps([cell.to_dict() for cell in cells], indent=2) if args.json else format_noise(cells))


def run_report(args: argparse.Namespace) -> None:
    """Write the page, and say what was written."""
    from lowbit_k2.report import write_report

    page, *images = write_report(args.folders, args.output, args.title)
    print(
        f"{page}: {page.stat().st_size:,} bytes" + (f", {len(images)} figures in {images[0].parent}" if images else "")
    )


def run_perplexity(args: argparse.Namespace) -> None:
    """Print perplexities per word and unit, and what `<unk>` has to do with them."""
    import torch

    from lowbit_k2.asr.language_model import load_language_model
    from lowbit_k2.asr.perplexity import print_perplexity

    if args.num_threads > 0:
        torch.set_num_threads(args.num_threads)
    load_plugins(args.plugin)
    config = read_flags(TextConfig, args)
    with errors_name_flags([(TextConfig, "")]):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        print_perplexity(load_language_model(args.file, args.precision, device), args.text, config, args.json)


def read_paths(text: str) -> tuple[Path, ...]:
    return tuple(Path(part) for part in text.split(",") if part)


def run_compare(args: argparse.Namespace) -> None:
    """Print how systems compare with the first one."""
    from lowbit_k2.scoring.comparison_table import as_json, format_comparisons
    from lowbit_k2.scoring.recogs import read_recogs
    from lowbit_k2.scoring.significance import compare, speaker_lookup

    if not 0 < args.margin < 1:
        raise UserError(f"--margin {args.margin:g}: give a fraction between 0 and 1, as 0.05 for 5%")
    speakers = read_speakers(args)
    unit, unit_of = ("utterances", str) if speakers is None else ("speakers", speaker_lookup(speakers))
    reference, found = [read_recogs(path) for path in args.reference], []
    for files in args.systems:
        if len(files) != len(args.reference):
            raise UserError(f"{len(args.reference)} files against {len(files)} ({files[0]}, ...): give as many of each")
        names = [(str(a), str(b)) for a, b in zip(args.reference, files, strict=True)]
        found.append((files, compare(reference, [read_recogs(path) for path in files], unit_of, names)))
    form = (args.reference, found, args.margin, unit)
    print(json.dumps(as_json(*form), indent=2) if args.json else format_comparisons(*form))


def read_speakers(args: argparse.Namespace) -> dict[str, str] | None:
    """By utterance; None without --cuts and --utt2spk."""
    if args.utt2spk is not None:
        from lowbit_k2.data.kaldi_dir import read_table

        return {utterance: speaker for utterance, (speaker, *_) in read_table(args.utt2spk, 1).items()}
    if args.cuts is None:
        return None
    from lowbit_k2.data.manifests import read_cuts, speakers_of

    return {utterance: s for path in args.cuts for utterance, s in speakers_of(read_cuts(path)).items()}


def run(argv: Sequence[str] | None = None) -> None:
    """Parse and run; a reader that stops reading, such as `head`, is no error."""
    args = get_parser().parse_args(argv)
    try:
        args.run(args)
        sys.stdout.flush()
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("lowbit_k2"):
            raise
        remedy = "pip install 'lowbit_k2[train]'"
        raise UserError(f"{args.command} needs {error.name}, which is not installed here: {remedy}") from None
    except BrokenPipeError:
        # what Python would flush at exit has no reader either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main() -> None:
    run_main(run)


if __name__ == "__main__":
    main()
