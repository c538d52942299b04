"""What every decode.py does once its corpus is known: load a model, run it once, search, score, write the files.

Results go to `<exp-dir>/<method>/{recogs,errs,wer-summary}-<test set>-...txt`, as in icefall, and a line per result
    [test, 1best, lm_scale_1, epoch-30-avg-5-precision-1] %WER 5.43% [42 / 773, 9 ins, 10 del, 23 sub ]
is printed with its 95% confidence interval.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm import tqdm

from lowbit_k2.data.batch import Batch, collate
from lowbit_k2.data.datamodule import AsrDataModule, DataConfig
from lowbit_k2.data.features import FeatureConfig, extract_wav, make_extractor, read_feature_config
from lowbit_k2.data.flags import str2bool
from lowbit_k2.decode.lattice import SearchConfig
from lowbit_k2.decode.methods import (
    METHODS,
    DecodingResources,
    NetworkOutput,
    decode_batch,
    load_resources,
    parse_methods,
)
from lowbit_k2.errors import UserError
from lowbit_k2.models import TransducerConfig
from lowbit_k2.models.subsampling import subsampled_length
from lowbit_k2.quant import use_precision
from lowbit_k2.recipe.model_io import (
    LoadedModel,
    add_checkpoint_arguments,
    load_chosen,
    load_packed,
    precision_assignment,
)
from lowbit_k2.scoring.wer import Result, WerStats, bootstrap_interval, write_errs, write_recogs, write_summary

if TYPE_CHECKING:
    from lhotse import CutSet

MIN_FRAMES = next(t for t in range(100) if subsampled_length(t) > 0)  # fewer give the encoder nothing
Key = tuple[str, str, str, str]  # test set, method, setting of the method, model (checkpoint and precision)


def add_decoding_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of decode.py; names as icefall's where it has them."""
    model = parser.add_argument_group("model")
    add_checkpoint_arguments(model)
    model.add_argument("--packed", type=Path, help="a file of export.py instead of checkpoints")
    model.add_argument(
        "--precision",
        nargs="+",
        help="1, 2, 1.5, 1.5r, 32 or one per layer as 1,1,2,2; several are decoded in turn; default: the first trained",
    )

    search = parser.add_argument_group("search")
    search.add_argument(
        "--decoding-method", help=f"one or several, by commas, of {', '.join(METHODS)}; default: the greedy one"
    )
    search.add_argument("--lang-dir", type=Path, help="HLG.pt, LG.pt and words.txt, for methods with a lexicon")
    search.add_argument("--lm-dir", type=Path, help="G_4_gram.pt, for rescoring; default: --lang-dir")
    search.add_argument("--lm-scale", default="1.0", help="of the graph and of --lm-dir; several by commas, for dev")
    beams = (
        ("search_beam", float, "log-probability below a frame's best state at which states are dropped"),
        ("output_beam", float, "CTC lattices: log-probability below the best path at which arcs are cut"),
        ("min_active_states", int, "CTC lattices: states kept per frame at least"),
        ("max_active_states", int, "CTC lattices: states kept per frame at most"),
        ("max_states", int, "transducer lattices: states kept per frame at most"),
        ("max_contexts", int, "transducer lattices: contexts kept per frame at most"),
        ("max_arcs", int, "arcs of a lattice that is rescored or that paths are drawn from; more are pruned"),
        ("num_paths", int, "paths drawn for an n-best list"),
        ("nbest_scale", float, "factor on scores while they are drawn; smaller: more different ones"),
        ("beam_size", int, "hypotheses of modified_beam_search"),
        ("blank_penalty", float, "off the blank's logit in transducer search"),
    )
    for name, kind, text in beams:
        flag, default = f"--{name.replace('_', '-')}", getattr(SearchConfig, name)
        search.add_argument(flag, type=kind, default=default, help=f"{text}; default: {default}")

    data = parser.add_argument_group("data")
    data.add_argument("--manifest-dir", type=Path, default=Path("data/fbank"), help="cut manifests and features")
    data.add_argument("--max-duration", type=float, default=DataConfig.max_duration, help="seconds in a batch")
    data.add_argument("--num-workers", type=int, default=DataConfig.num_workers)
    data.add_argument("--on-the-fly-feats", type=str2bool, default=False, help="compute features from the audio")
    data.add_argument("--wav", type=Path, nargs="+", metavar="FILE", help="transcribe audio files: FILE<tab>words")
    data.add_argument("--quiet", action="store_true", help="no progress bar")
    data.add_argument("--num-threads", type=int, default=0, help="CPU threads; 0 leaves PyTorch's choice")


@dataclass
class Recognizer:
    """A loaded model at one precision, with the searches that read its output.

    Attributes:
      label: checkpoint and precision, as they appear in file names.
      assignment: what `use_precision` gets; None for packed models, whose weights have their values.
      searches: by (method, setting).
    """

    loaded: LoadedModel
    label: str
    assignment: int | Mapping[str, int] | None
    device: torch.device
    searches: dict[tuple[str, str], DecodingResources] = field(default_factory=dict)

    def precision(self) -> object:
        """Context in which the model runs at its precision."""
        return nullcontext() if self.assignment is None else use_precision(self.loaded.model, self.assignment)

    @torch.no_grad()
    def run(self, features: Tensor, feature_lens: Tensor) -> NetworkOutput:
        """The network on (N, T, F) features; audio too short for the encoder has 0 frames."""
        missing = max(0, MIN_FRAMES - features.size(1))
        features = torch.nn.functional.pad(features, (0, 0, 0, missing)).to(self.device)
        lens = feature_lens.clamp(min=MIN_FRAMES).to(self.device)
        model = self.loaded.model
        if isinstance(self.loaded.model_config, TransducerConfig):
            encoder_out, frames = model.encoder(features, lens)
            log_probs = None if model.ctc_head is None else model.ctc_log_probs(encoder_out)
        else:
            encoder_out = None
            log_probs, frames = model(features, lens)
        return NetworkOutput(frames.cpu() * (feature_lens >= MIN_FRAMES), log_probs, encoder_out)


@dataclass(frozen=True)
class Decoded:
    """What one search made of one test set.

    Attributes:
      results: (utterance, reference words, hypothesis words), sorted by utterance.
      interval: 95% confidence interval of the word error rate, as fractions; None without reference words.
    """

    results: list[Result]
    stats: WerStats
    interval: tuple[float, float] | None


@dataclass
class Timing:
    """Seconds of audio, of the network, and of the searches by (method, setting)."""

    audio: float = 0.0
    network: float = 0.0
    search: dict[tuple[str, str], float] = field(default_factory=dict)

    def real_time_factor(self, key: tuple[str, str]) -> float:
        return (self.network + self.search[key]) / max(self.audio, 1e-9)


def load_model(args: argparse.Namespace) -> tuple[LoadedModel, str]:
    """The model that the flags name, and how files call it."""
    if args.packed is not None:
        if args.precision:
            raise UserError("--precision is fixed in a packed file: leave it out, or decode from --exp-dir")
        return load_packed(args.packed), f"packed-{args.packed.stem}"
    return load_chosen(args)


def make_recognizers(args: argparse.Namespace) -> list[Recognizer]:
    """One recognizer per precision; they share the model and the graphs.

    Raises:
      UserError: a precision that was never trained, or searches that the flags do not make possible.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loaded, label = load_model(args)
    loaded.model.to(device).eval()
    searches = make_searches(args, loaded, device)
    if loaded.quant_config is None:
        return [Recognizer(loaded, label, None, device, searches)]
    names = args.precision or [str(loaded.trained_precisions[0])]
    assignments = [precision_assignment(name, loaded) for name in names]
    return [
        Recognizer(loaded, f"{label}-precision-{name.replace(',', '_')}", assignment, device, searches)
        for name, assignment in zip(names, assignments, strict=True)
    ]


def greedy_recognizer(loaded: LoadedModel) -> Recognizer:
    """A packed model with its greedy search, on the CPU: needs neither graphs nor k2. Phones are put out as phones."""
    [method] = methods_for(None, loaded)
    num_classes = loaded.model_config.vocab_size
    resources = load_resources(method, loaded.tokenizer.decode, True, num_classes, transducer=transducer_of(loaded))
    return Recognizer(loaded, method, None, torch.device("cpu"), {(method, ""): resources})


def transducer_of(loaded: LoadedModel) -> tuple[torch.nn.Module, int] | None:
    """What transducer search needs of the model; None for CTC."""
    config = loaded.model_config
    return (loaded.model, config.context_size) if isinstance(config, TransducerConfig) else None


def make_searches(
    args: argparse.Namespace, loaded: LoadedModel, device: torch.device
) -> dict[tuple[str, str], DecodingResources]:
    """Resources by method and setting: methods with a language model have a setting per `--lm-scale`."""
    try:
        scales = [float(text) for text in str(args.lm_scale).split(",")]
    except ValueError:
        raise UserError(f"--lm-scale {args.lm_scale}: give a number, or several by commas") from None
    flags = {f.name: getattr(args, f.name) for f in fields(SearchConfig) if f.name != "lm_scale"}
    tokenizer, searches = loaded.tokenizer, {}
    for method in methods_for(args.decoding_method, loaded):
        for scale in scales if METHODS[method].has_lm else [1.0]:
            setting = f"lm_scale_{scale:g}" if METHODS[method].has_lm else ""
            searches[method, setting] = load_resources(
                method,
                tokenizer.decode,
                tokenizer.spells_words,
                loaded.model_config.vocab_size,
                args.lang_dir,
                SearchConfig(lm_scale=scale, **flags),
                device,
                args.lm_dir or args.lang_dir,
                transducer_of(loaded),
            )
    return searches


def methods_for(text: str | None, loaded: LoadedModel) -> list[str]:
    """The methods of `--decoding-method`, or the greedy one of the model.

    Raises:
      UserError: a method that this model has no head for.
    """
    is_transducer = isinstance(loaded.model_config, TransducerConfig)
    networks = {"transducer"} if is_transducer else {"ctc"}
    if is_transducer and loaded.model_config.ctc_head:
        networks.add("ctc")
    methods = parse_methods(text or ("greedy_search" if is_transducer else "ctc-greedy-search"))
    possible = [name for name, method in METHODS.items() if method.network in networks]
    for method in methods:
        if method not in possible:
            kind = "transducer" if is_transducer else "CTC model"
            raise UserError(f"--decoding-method {method} does not fit this {kind}: choose of {', '.join(possible)}")
    return methods


def run_decode(args: argparse.Namespace, load_test_sets: Callable[[], Mapping[str, CutSet]]) -> dict[Key, Decoded]:
    """Decode test sets, or transcribe the files of `--wav`.

    Args:
      args: flags of `add_decoding_arguments`.
      load_test_sets: gives the cuts by the name of the test set; not called with `--wav`.

    Returns:
      Hypotheses and errors by (test set, method, setting, model).
    """
    if args.num_threads > 0:
        torch.set_num_threads(args.num_threads)
    recognizers = make_recognizers(args)
    if args.wav:
        transcribe_files(args.wav, recognizers)
        return {}
    test_sets = load_test_sets()
    data = make_data(args, FeatureConfig.from_dict(recognizers[0].loaded.features))
    results: dict[Key, Decoded] = {}
    for recognizer in recognizers:
        for name, cuts in test_sets.items():
            frame_shift = data.features.frame_shift
            with tqdm(total=len(cuts), desc=name, unit="utt", disable=args.quiet, leave=False) as bar:
                found, timing = decode_set(recognizer, data.test_batches(cuts), frame_shift, bar.update)
            results.update(report(args.exp_dir, name, recognizer, found, timing))
    return results


def make_data(args: argparse.Namespace, features: FeatureConfig) -> AsrDataModule:
    """The datamodule with the model's features.

    Raises:
      UserError: the stored features were made with other settings.
    """
    if not args.on_the_fly_feats and read_feature_config(args.manifest_dir).stored() != features.stored():
        raise UserError(
            f"the features in {args.manifest_dir} are not those that the model was trained on: "
            "use --on-the-fly-feats true, or compute them again"
        )
    config = DataConfig(
        manifest_dir=args.manifest_dir,
        max_duration=args.max_duration,
        num_workers=args.num_workers,
        on_the_fly_feats=args.on_the_fly_feats,
        feature_normalize=features.normalize,
    )
    return AsrDataModule(config, features)


def decode_set(
    recognizer: Recognizer,
    batches: Iterable[Batch],
    frame_shift: float,
    advance: Callable[[int], object] = lambda n: None,
) -> tuple[dict[tuple[str, str], list[Result]], Timing]:
    """Run the network once over the batches and every search on its output.

    Args:
      frame_shift: seconds per feature frame, for the real-time factor.
      advance: called with the number of utterances done.
    """
    found: dict[tuple[str, str], list[Result]] = {key: [] for key in recognizer.searches}
    timing = Timing(search=dict.fromkeys(recognizer.searches, 0.0))
    for resources in recognizer.searches.values():
        resources.num_decoded = resources.num_without_path = 0
    with recognizer.precision():
        for batch in batches:
            start = time.perf_counter()
            output = recognizer.run(batch.features, batch.feature_lens)
            timing.network += time.perf_counter() - start
            timing.audio += float(batch.feature_lens.sum()) * frame_shift
            refs = [text.split() for text in batch.texts]
            for key, resources in recognizer.searches.items():
                start = time.perf_counter()
                hyps = decode_batch(output, resources, refs)
                timing.search[key] += time.perf_counter() - start
                found[key] += zip(batch.ids, refs, hyps, strict=True)
            advance(len(batch.ids))
    return found, timing


def report(
    exp_dir: Path,
    test_set: str,
    recognizer: Recognizer,
    found: Mapping[tuple[str, str], list[Result]],
    timing: Timing,
) -> dict[Key, Decoded]:
    """Write icefall's files of one test set and print a line per result."""
    decoded: dict[Key, Decoded] = {}
    for method in dict.fromkeys(method for method, _ in found):
        folder, summary = exp_dir / method, {}
        for (_, setting), results in ((key, value) for key, value in found.items() if key[0] == method):
            name = "-".join(part for part in (test_set, setting, recognizer.label) if part)
            results = sorted(results, key=lambda result: result[0])
            write_recogs(folder / f"recogs-{name}.txt", results)
            stats = write_errs(folder / f"errs-{name}.txt", results)
            summary[setting or method] = stats
            interval = bootstrap_interval(results) if stats.ref_words else None
            decoded[test_set, method, setting, recognizer.label] = outcome = Decoded(results, stats, interval)
            what = ", ".join(part for part in (test_set, method, setting, recognizer.label) if part)
            print(f"[{what}] {stats}")
            print_details(recognizer.searches[method, setting], outcome, timing.real_time_factor((method, setting)))
        write_summary(folder / f"wer-summary-{test_set}-{recognizer.label}.txt", summary)
    return decoded


def print_details(resources: DecodingResources, decoded: Decoded, rtf: float) -> None:
    """Confidence interval, real-time factor, and what the search could not decode."""
    line = f"  RTF {rtf:.4f}"
    if decoded.interval:
        low, high = decoded.interval
        line = f"  95% interval {low:.2%} - {high:.2%} (bootstrap over {len(decoded.results)} utterances)," + line[1:]
    if resources.num_without_path:
        line += f"; {resources.num_without_path} utterances without any path were left empty: widen --search-beam"
    print(line, flush=True)


def transcribe_files(files: Sequence[Path], recognizers: Sequence[Recognizer]) -> None:
    """Print `FILE<tab>words` for each audio file, one by one, so that a file never depends on its neighbours.

    Raises:
      UserError: unreadable audio, or flags that name several methods, scales or precisions.
    """
    if len(recognizers) != 1 or len(recognizers[0].searches) != 1:
        raise UserError("--wav takes one --precision, one --decoding-method and one --lm-scale")
    [recognizer] = recognizers
    [resources] = recognizer.searches.values()
    config = FeatureConfig.from_dict(recognizer.loaded.features)
    extractor = make_extractor(config)
    with recognizer.precision():
        for file in files:
            batch = collate([extract_wav(file, config, extractor)], [""], [str(file)])
            [words] = decode_batch(recognizer.run(batch.features, batch.feature_lens), resources)
            print(f"{file}\t{' '.join(words)}", flush=True)
