"""The interface of decoding methods and their registry: the network's output of a batch in, n-best lists out.

    @register_method("my-search")
    class MySearch(Method):
        network = "ctc"

        def search(self, output, n, references):
            return [[Hypothesis(labels, score)] for ...]

What stands in a file that `--plugin` names is a choice of `--decoding-method` like the built-in methods (`methods.py`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Protocol, TypeVar

import torch
from torch import Tensor

from lowbit_k2.core.config import ConfigError
from lowbit_k2.core.topology import CTC, num_classes
from lowbit_k2.decode.beam import TokenScorer
from lowbit_k2.decode.hypothesis import Nbest, Scales
from lowbit_k2.decode.lattice import SearchConfig

References = Sequence[Sequence[str]]  # words of each utterance


@dataclass(frozen=True)
class NetworkOutput:
    """What the network says of a batch.

    Attributes:
      lens: (N,) valid frames, 0 for audio that is too short.
      log_probs: (N, T, V), log-probabilities of CTC's classes, or of another topology's; None for a transducer without
        a CTC head.
      encoder_out: (N, T, C), for transducer search; None for a CTC model.
      more: whatever else a model's `network_output` gives, by name.
    """

    lens: Tensor
    log_probs: Tensor | None = None
    encoder_out: Tensor | None = None
    more: Mapping[str, Tensor] = field(default_factory=dict)


class Units(Protocol):
    """What decoding needs of a tokenizer."""

    spells_words: bool

    @property
    def vocab_size(self) -> int:
        """Units of the network, blank included."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids."""

    def pieces(self) -> list[str]:
        """The symbol of every id."""


@dataclass(frozen=True)
class Setup:
    """What a method is made from; each takes what it needs.

    Attributes:
      units: the model's tokens.
      model: the network, for searches that run parts of it (a transducer's prediction network and joiner).
      search: beams and scales.
      lang_dir: HLG.pt or LG.pt, and words.txt, for methods with a lexicon.
      lm_dir: G_4_gram.pt, for rescoring.
      token_lm: an n-gram (ARPA) or a language model over the model's units, for shallow fusion.
      token_scorer: the latter, read.
      lodr_lm: an n-gram (ARPA) of the training transcripts in the model's units, which is taken off these.
      rescoring: scales at which lists are put into another order.
      device: where the network's output is.
      phones_are_words: phones may be put out as they are.
      topology: of the model's units, which says what the classes of its log-probabilities are.
    """

    units: Units
    model: torch.nn.Module | None = None
    search: SearchConfig = field(default_factory=SearchConfig)
    lang_dir: Path | None = None
    lm_dir: Path | None = None
    token_lm: Path | None = None
    token_scorer: TokenScorer | None = None
    lodr_lm: Path | None = None
    rescoring: Scales | None = None
    device: str | torch.device = "cpu"
    phones_are_words: bool = False
    topology: str = CTC

    @property
    def num_classes(self) -> int:
        """Of the network's log-probabilities."""
        return num_classes(self.topology, self.units.vocab_size)


class Method(ABC):
    """A decoding method, ready for one model.

    Class attributes:
      network: the output that it reads, one of the model config's `networks`.
      gives_words: its labels are words; otherwise tokens, which the units spell.
      needs_references: it compares with the transcripts, and so cannot transcribe.
      gives_lists: it finds several hypotheses where the setup's `rescoring` asks for what may be reordered.
      name: set by `register_method`.

    Raises:
      UserError: a missing file, a graph for other units, or phones without a lexicon.
    """

    network: ClassVar[str]
    gives_words: ClassVar[bool] = False
    needs_references: ClassVar[bool] = False
    gives_lists: ClassVar[bool] = False
    shared_seconds: float = 0.0  # of the last call: work that was timed with another one
    name: ClassVar[str] = ""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        if not (self.gives_words or setup.units.spells_words or setup.phones_are_words):
            others = [name for name, kind in METHODS.items() if kind.network == self.network and kind.gives_words]
            remedy = f"choose {others[0]}" if others else "no method with a lexicon reads this network"
            raise ConfigError("decoding_method", f"{self.name} gives phones, which spell no words: {remedy}")

    @classmethod
    def has_lm(cls, setup: Setup) -> bool:
        """A language model takes part, which `search.lm_scale` scales."""
        return False

    @classmethod
    def files(cls, setup: Setup) -> list[Path]:
        """What it reads besides the model: results are made anew where one of these has changed."""
        return []

    @abstractmethod
    def search(self, output: NetworkOutput, n: int, references: References | None) -> list[Nbest]:
        """N lists of hypotheses, the best first; more than `n` may come, or fewer where the method finds fewer."""

    def words_of(self, labels: Sequence[int]) -> list[str]:
        """What labels spell."""
        return self.setup.units.decode(labels).split()

    @torch.no_grad()
    def nbest(self, output: NetworkOutput, n: int = 1, references: References | None = None) -> list[Nbest]:
        """The `n` best hypotheses of each utterance of a batch whose tensors are on the setup's device.

        Args:
          references: N lists of words, for methods that need them.

        Returns:
          N lists, the best first; shorter where the method finds fewer (a best path is one), empty where no path
          survived the beams.

        Raises:
          UserError: no references for a method that needs them.
        """
        if self.needs_references and references is None:
            raise ConfigError("decoding_method", f"{self.name} needs references: it cannot transcribe")
        found = self.search(output, n, references)
        assert len(found) == len(output.lens), (self.name, len(found), len(output.lens))
        return [[replace(h, words=tuple(self.words_of(h.labels))) for h in hypotheses[:n]] for hypotheses in found]


METHODS: dict[str, type[Method]] = {}
M = TypeVar("M", bound=type[Method])


def register_method(name: str) -> Callable[[M], M]:
    """Make a method a choice of `--decoding-method`; the first one of a network is its default.

    Raises:
      ValueError: the name is taken by another class.
    """

    def register(cls: M) -> M:
        if METHODS.get(name, cls) is not cls:
            raise ValueError(f"decoding method {name!r} is registered already, as {METHODS[name].__name__}")
        cls.name = name
        METHODS[name] = cls
        return cls

    return register


def parse_methods(text: str) -> list[str]:
    """Split a comma separated list of methods.

    Raises:
      UserError: an unknown or repeated name.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in METHODS:
            raise ConfigError("decoding_method", f"{name!r} is unknown: choose of {', '.join(METHODS)}")
    if not names or len(set(names)) != len(names):
        raise ConfigError("decoding_method", f"{text!r} must name methods, each once: {', '.join(METHODS)}")
    return names
