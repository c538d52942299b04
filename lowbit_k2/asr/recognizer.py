"""A loaded model at one precision, with the searches that read its output: what decode.py and the command line use."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from lowbit_k2.asr.model_io import LoadedModel, load_chosen, load_packed, precision_assignment
from lowbit_k2.decode.lattice import SearchConfig
from lowbit_k2.decode.methods import METHODS, DecodingResources, NetworkOutput, load_resources, parse_methods
from lowbit_k2.errors import UserError
from lowbit_k2.models import TransducerConfig
from lowbit_k2.models.subsampling import subsampled_length
from lowbit_k2.quant import use_precision

MIN_FRAMES = next(t for t in range(100) if subsampled_length(t) > 0)  # fewer give the encoder nothing


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


def load_model(args: argparse.Namespace) -> tuple[LoadedModel, str]:
    """The model that the flags name, and how files call it."""
    if args.packed is not None:
        if args.precision:
            raise UserError("--precision is fixed in a packed file: leave it out, or decode from --exp-dir")
        return load_packed(args.packed), f"packed-{args.packed.stem}"
    return load_chosen(args)


def make_recognizers(args: argparse.Namespace, part: int = 0) -> list[Recognizer]:
    """One recognizer per precision; they share the model and the graphs. Sets the number of threads, too.

    Args:
      part: which of several processes this is; they take the GPUs in turn.

    Raises:
      UserError: a precision that was never trained, or searches that the flags do not make possible.
    """
    if args.num_threads > 0:
        torch.set_num_threads(args.num_threads)
    gpus = torch.cuda.device_count()
    device = torch.device("cuda", part % gpus) if gpus else torch.device("cpu")
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
