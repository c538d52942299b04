"""A loaded model at one precision, with the searches that read its output: what decode.py and the command line use."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from lowbit_k2.asr.language_model import is_model_file
from lowbit_k2.asr.model_io import (
    CheckpointChoice,
    LoadedModel,
    load_packed,
    load_trained,
    parse_allocation,
    precision_label,
)
from lowbit_k2.asr.rescoring import (
    check_lists,
    check_spelling,
    load_lm_file,
    rescorings,
    sentence_scorer,
    token_scorer,
)
from lowbit_k2.core.chunks import ChunkConfig
from lowbit_k2.core.config import Config, ConfigError, option
from lowbit_k2.core.features import FeatureConfig
from lowbit_k2.core.lhuc import LhucConfig
from lowbit_k2.core.models import NEXT_UNIT, TRANSDUCER
from lowbit_k2.core.topology import unspoken_classes
from lowbit_k2.data.sources import ALLOW_COMMANDS
from lowbit_k2.decode import methods as _built_in  # noqa: F401  registers the methods
from lowbit_k2.decode.lattice import LARGEST_SCALE, SearchConfig
from lowbit_k2.decode.method import METHODS, Method, NetworkOutput, Setup, parse_methods
from lowbit_k2.decode.rescoring import Rescored, ScoredLists
from lowbit_k2.decode.transducer import blank_log_probs
from lowbit_k2.errors import UserError
from lowbit_k2.models.lhuc import SpeakerVectors
from lowbit_k2.quant import Allocation, use_precision
from lowbit_k2.runtime.search import SearchConfig as PlainSearchConfig

Search = tuple[str, str]  # method, setting of the method


def split_numbers(text: str) -> tuple[float, ...]:
    """`0.3,0.6` -> (0.3, 0.6); raises ValueError for anything else."""
    return tuple(float(part) for part in text.split(","))


@dataclass(frozen=True)
class DecodeConfig(Config):
    """Which model is run at which precisions, and what is searched how.

    precision: as `Allocation.parse` takes them; several are decoded in turn; none: the first trained.
    plugins: users' files, which processes of their own load again.
    """

    choice: CheckpointChoice = option(CheckpointChoice, flag="")
    chunking: ChunkConfig = option(ChunkConfig, flag="")
    packed: Path | None = option(None, "a file of export.py instead of checkpoints")
    precision: tuple[str, ...] = option(())
    decoding_method: str = option("", f"one or several, by commas, of {', '.join(METHODS)}; default: the greedy one")
    lang_dir: Path | None = option(None, "HLG.pt, LG.pt and words.txt, for methods with a lexicon")
    lm_dir: Path | None = option(None, "G_4_gram.pt, for rescoring; default: --lang-dir")
    token_lm: Path | None = option(
        None, "n-gram (make_lm --units) or language model over the model's own units, for modified_beam_search"
    )
    lodr_lm: Path | None = option(
        None, "bigram of the training transcripts in the model's units (make_lm --units), taken off --token-lm: LODR"
    )
    lodr_scale: tuple[float, ...] = option((0.2,), "of --lodr-lm; several by commas, for dev", parse=split_numbers)
    rescore_lm: Path | None = option(
        None, "language model, packed or a checkpoint, that lists of hypotheses are put in order by"
    )
    rescore_lm_scale: tuple[float, ...] = option(
        (0.5,), "of --rescore-lm; several by commas, for dev", parse=split_numbers
    )
    rescore_ngram_scale: tuple[float, ...] = option(
        (1.0,), "what then remains of the search's own language model; several by commas", parse=split_numbers
    )
    lm_precision: str = option("", "of a checkpoint that --rescore-lm or --token-lm names; default: the first trained")
    lm_scale: tuple[float, ...] = option(
        (1.0,), "of the graph, --lm-dir and --token-lm; several by commas, for dev", parse=split_numbers
    )
    search: SearchConfig = option(SearchConfig, flag="")
    lhuc: LhucConfig = option(LhucConfig, flag="")
    manifest_dir: Path = option(Path("data/fbank"), "cut manifests and features")
    max_duration: float = option(200.0, "seconds in a batch", above=0)
    num_workers: int = option(0, "processes that load batches; 0: the main process", low=0, high=256)
    on_the_fly_feats: bool = option(False, "compute features from the audio")
    allow_commands: bool = option(False, ALLOW_COMMANDS)
    cer: bool = option(False, "write and print character error rates, too")
    num_jobs: int = option(1, "processes that share a test set, one GPU each", low=1, high=1024)
    quiet: bool = option(False, flag="")
    num_threads: int = option(0, "CPU threads; 0 leaves PyTorch's choice", low=0, high=4096)
    plugins: tuple[Path, ...] = option((), flag="")

    def check(self) -> None:
        for name in ("rescore_lm_scale", "rescore_ngram_scale", "lodr_scale"):
            if not all(0 <= scale <= LARGEST_SCALE for scale in getattr(self, name)):
                raise ConfigError(name, f"takes numbers from 0 to {LARGEST_SCALE:g}")
        if self.lodr_lm and not self.token_lm:
            raise ConfigError("lodr_lm", "is taken off a language model: name that with --token-lm")
        if self.packed is not None and self.precision:
            raise ConfigError("precision", "is fixed in a packed file: leave it out, or decode from checkpoints")


@dataclass
class Recognizer:
    """A loaded model at one precision, with the searches that read its output.

    Attributes:
      label: checkpoint and precision, as they appear in file names.
      allocation: what `use_precision` gets; None for packed models, whose weights have their values.
      searches: by (method, setting).
      vectors: of the speakers that the model is adapted to; None: it is as it was trained.
    """

    loaded: LoadedModel
    label: str
    allocation: Allocation | None
    device: torch.device
    searches: dict[Search, Method | Rescored] = field(default_factory=dict)
    chunking: ChunkConfig = field(default_factory=ChunkConfig)
    vectors: SpeakerVectors | None = None

    @property
    def features(self) -> FeatureConfig:
        """Of what the model reads."""
        return FeatureConfig.from_dict(self.loaded.features)

    @property
    def chunk_frames(self) -> int:
        """Input frames of a chunk."""
        return self.chunking.frames(self.features.frame_shift)

    def is_long(self, num_frames: int) -> bool:
        """Whether so many input frames are decoded in chunks (`long_audio.py`)."""
        return 0 < self.chunk_frames < num_frames

    def precision(self) -> object:
        """Context in which the model runs at its precision."""
        return nullcontext() if self.allocation is None else use_precision(self.loaded.model, self.allocation)

    def adapted(self, utterances: Sequence[str]) -> AbstractContextManager:
        """Context in which the model is that of these utterances' speakers, where it is adapted."""
        return nullcontext() if self.vectors is None else self.vectors.adapted(utterances)

    @torch.no_grad()
    def run(self, inputs: Tensor, input_lens: Tensor) -> NetworkOutput:
        """The network on (N, T, F) inputs; audio too short for the encoder has 0 frames."""
        least = self.loaded.model_config.min_frames
        missing = max(0, least - inputs.size(1))
        inputs = torch.nn.functional.pad(inputs, (0, 0, 0, missing)).to(self.device)
        lens = input_lens.clamp(min=least).to(self.device)
        found = self.loaded.model.network_output(inputs, lens)
        frames = found.pop("lens").cpu() * (input_lens >= least)
        known = {name: found.pop(name, None) for name in ("log_probs", "encoder_out")}
        return NetworkOutput(frames, **known, more=found)

    @torch.no_grad()
    def blank_scores(self, output: NetworkOutput) -> Tensor | None:
        """(N, T) log-probabilities that a frame brings nothing; None for outputs of an unknown kind."""
        if output.log_probs is not None:
            nothing = list(unspoken_classes(self.loaded.model_config.topology))
            return output.log_probs[..., nothing].logsumexp(dim=-1)
        if TRANSDUCER not in self.loaded.model_config.networks or output.encoder_out is None:
            return None
        return blank_log_probs(self.loaded.model, output.encoder_out)


@dataclass(frozen=True)
class Models:
    """What the settings name, before any graph is read.

    Attributes:
      allocations: by label (checkpoint and precision, as in file names); None for a packed file.
    """

    loaded: LoadedModel
    allocations: dict[str, Allocation | None]


def load_models(config: DecodeConfig) -> Models:
    """The model, on the CPU.

    Raises:
      UserError: no such model, or a precision that was never trained.
    """
    if config.packed is not None:
        return Models(load_packed(config.packed), {f"packed-{config.packed.stem}": None})
    loaded, label = load_trained(config.choice)
    names = config.precision or [loaded.usual_precision]
    allocations = {f"{label}-precision-{precision_label(name)}": parse_allocation(name, loaded) for name in names}
    return Models(loaded, allocations)


def make_recognizers(
    config: DecodeConfig, part: int = 0, models: Models | None = None, only: Collection[Search] | None = None
) -> list[Recognizer]:
    """One recognizer per precision; they share the model and the graphs. Sets the number of threads, too.

    Args:
      part: which of several processes this is; they take the GPUs in turn.
      models: what `load_models` gave, to spare another reading.
      only: the searches that are wanted; default: all that the settings name.

    Raises:
      UserError: a precision that was never trained, or searches that the settings do not make possible.
    """
    if config.num_threads > 0:
        torch.set_num_threads(config.num_threads)
    gpus = torch.cuda.device_count()
    device = torch.device("cuda", part % gpus) if gpus else torch.device("cpu")
    models = models or load_models(config)
    models.loaded.model.to(device).eval()
    searches = make_searches(config, models.loaded, device, only)
    return [
        Recognizer(models.loaded, label, allocation, device, searches, config.chunking)
        for label, allocation in models.allocations.items()
    ]


def packed_recognizer(
    loaded: LoadedModel, chunking: ChunkConfig | None = None, search: PlainSearchConfig | None = None
) -> Recognizer:
    """A packed model with a search that needs neither graphs nor k2, on the CPU. Phones are put out as phones.

    Raises:
      UserError: a search that does not fit the model.
    """
    search = search or PlainSearchConfig()
    [name] = methods_for(search.decoding_method, loaded)
    method = METHODS[name](
        Setup(
            loaded.tokenizer,
            loaded.model,
            SearchConfig(beam_size=search.beam_size, blank_penalty=search.blank_penalty),
            phones_are_words=True,
            topology=loaded.model_config.topology,
        )
    )
    searches = {(name, ""): method}
    return Recognizer(loaded, name, None, torch.device("cpu"), searches, chunking or ChunkConfig())


def search_setups(config: DecodeConfig, loaded: LoadedModel, device: str | torch.device = "cpu") -> dict[Search, Setup]:
    """What each search is made from, by method and setting; those with a language model have one per `lm_scale`, and
    with `rescore_lm` each has one per pair of scales.

    Raises:
      UserError: a method that the model does not fit or that finds no lists to rescore, or `token_lm` is given and no
        method uses it.
    """
    setup = Setup(
        units=loaded.tokenizer,
        model=loaded.model,
        lang_dir=config.lang_dir,
        lm_dir=config.lm_dir or config.lang_dir,
        token_lm=config.token_lm,
        lodr_lm=config.lodr_lm,
        device=device,
        topology=loaded.model_config.topology,
    )
    setups: dict[Search, Setup] = {}
    for name in methods_for(config.decoding_method, loaded):
        for setting, search in scaled_searches(config, METHODS[name], setup).items():
            scaled = replace(setup, search=search)
            if config.rescore_lm is None:
                setups[name, setting] = scaled
                continue
            check_lists(name)
            for label, scales in rescorings(config.rescore_lm_scale, config.rescore_ngram_scale).items():
                setups[name, "_".join(filter(None, [setting, label]))] = replace(scaled, rescoring=scales)
    if config.token_lm and "modified_beam_search" not in {name for name, _ in setups}:
        raise ConfigError("token_lm", "is used by modified_beam_search alone: name it with --decoding-method")
    return setups


def scaled_searches(config: DecodeConfig, method: type[Method], setup: Setup) -> dict[str, SearchConfig]:
    """A method's search at all scales of the language models that take part in it, by the name of the setting."""
    if not method.has_lm(setup):
        return {"": config.search}
    scaled = {f"lm_scale_{scale:g}": replace(config.search, lm_scale=scale) for scale in config.lm_scale}
    if setup.lodr_lm is None or setup.lodr_lm not in method.files(setup):
        return scaled
    return {
        f"{setting}_lodr_{scale:g}": replace(search, lodr_scale=scale)
        for setting, search in scaled.items()
        for scale in config.lodr_scale
    }


def make_searches(
    config: DecodeConfig, loaded: LoadedModel, device: torch.device, only: Collection[Search] | None = None
) -> dict[Search, Method | Rescored]:
    """The searches themselves, with the graphs that they read.

    Raises:
      UserError: as `search_setups`, or what a method needs is missing.
    """
    setups = search_setups(config, loaded, device)
    wanted = {key: setup for key, setup in setups.items() if only is None or key in only}
    if config.token_lm and is_model_file(config.token_lm):
        lm = load_lm_file(config.token_lm, "token_lm", config.lm_precision, device)
        scorer = token_scorer(lm, loaded.tokenizer.pieces(), config.token_lm)
        wanted = {key: replace(setup, token_scorer=scorer) for key, setup in wanted.items()}
    if config.rescore_lm is None:
        return {key: METHODS[key[0]](setup) for key, setup in wanted.items()}
    return rescored_searches(config, wanted, device)


def rescored_searches(
    config: DecodeConfig, setups: Mapping[Search, Setup], device: str | torch.device
) -> dict[Search, Rescored]:
    """Each search once, and what rescoring makes of its lists at all scales.

    Raises:
      UserError: as `make_searches`, or the language model is none, or knows nothing of what a search spells.
    """
    lm = load_lm_file(config.rescore_lm, "rescore_lm", config.lm_precision, device)
    scorer = sentence_scorer(lm)
    lists: dict[tuple[str, SearchConfig], ScoredLists] = {}
    found = {}
    for (name, setting), setup in setups.items():
        same = (name, setup.search)
        if same not in lists:
            method = METHODS[name](setup)
            check_spelling(lm, method, config.rescore_lm)
            lists[same] = ScoredLists(method, scorer)
        found[name, setting] = Rescored(lists[same], setup.rescoring)
    return found


def methods_for(text: str, loaded: LoadedModel) -> list[str]:
    """The methods that are named, or the model's first: the greedy one.

    Raises:
      UserError: a method that reads what this model does not put out.
    """
    config = loaded.model_config
    if NEXT_UNIT in config.networks:
        raise UserError(f"a {config.kind} reads text, no speech: give it as --rescore-lm or --token-lm of a recogniser")
    if not config.networks:
        raise UserError(f"a {config.kind} recognises nothing: train a recogniser on its states, see extract_states")
    possible = [name for network in config.networks for name, m in METHODS.items() if m.network == network]
    if not possible:
        outputs = ", ".join(config.networks)
        raise UserError(
            f"no search reads what a model of kind {config.kind} puts out ({outputs}): register one with "
            "lowbit_k2.decode.method.register_method in a file that --plugin names"
        )
    methods = parse_methods(text or possible[0])
    for method in methods:
        if method not in possible:
            fits = ", ".join(possible)
            raise ConfigError("decoding_method", f"{method} does not fit this {config.kind} model: choose of {fits}")
    return methods
