"""The built-in decoding methods, by name.

CTC, another topology of LF-MMI's (graphs HLG_chain.pt), or a transducer's CTC head:
  ctc-greedy-search         best token per frame; torch only
  ctc-decoding              best path of the k2 lattice on the topology
  1best                     best path of the k2 lattice on HLG (lexicon and n-gram)
  nbest                     of paths drawn from HLG's lattice the best word sequence, its alignments summed
  nbest-rescoring           the same with HLG's language model replaced by a larger one
  whole-lattice-rescoring   HLG's lattice composed with the larger one
  nbest-oracle              of the drawn sequences the one with the fewest errors: a bound, no result
Transducers:
  greedy_search             best token per frame; torch only
  modified_beam_search      best token sequence, its alignments summed, with or without a token LM; torch only
  fast_beam_search          best path of the k2 lattice of all token sequences
  fast_beam_search_nbest    of paths drawn from that lattice the best token sequence, its alignments summed
  fast_beam_search_LG       best path of the k2 lattice on LG
  fast_beam_search_nbest_LG of paths drawn from that lattice the best word sequence, its alignments summed
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from lowbit_k2.core.config import ConfigError
from lowbit_k2.core.models import CTC, TRANSDUCER
from lowbit_k2.core.topology import CTC as CTC_TOPOLOGY
from lowbit_k2.decode.fast_beam import any_tokens, keep_final_scores, transducer_lattice
from lowbit_k2.decode.greedy import ctc_greedy_search
from lowbit_k2.decode.hypothesis import Nbest
from lowbit_k2.decode.lattice import (
    SearchConfig,
    limit_arcs,
    make_lattice,
    one_best,
    scale_graph,
    search_with_retry,
)
from lowbit_k2.decode.method import Method, NetworkOutput, References, Setup, register_method
from lowbit_k2.decode.nbest import (
    draw,
    draw_rescored,
    keep_lm_scores,
    nonempty,
    rank_by_errors,
    rescore_lattice,
    rescoring_grammar,
)
from lowbit_k2.decode.token_lm import LowOrderRatio, TokenLm
from lowbit_k2.decode.transducer import greedy_search, modified_beam_search
from lowbit_k2.errors import UserError
from lowbit_k2.graphs.fsa_io import graph_file, load_fsa, made_for
from lowbit_k2.graphs.lexicon import WORD_DISAMBIG, read_symbols
from lowbit_k2.k2_compat import require_k2

if TYPE_CHECKING:
    import k2

LATTICE_GRAMMAR = "G_4_gram.pt"


class LatticeMethod(Method):
    """A lattice on a graph, and what is picked from it: the best path unless a subclass says otherwise.

    Class attributes:
      graph: "tokens" (any sequence), or the name of a graph in the lang directory, which puts out words.
    """

    gives_lists = True
    graph: ClassVar[str] = "tokens"

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        require_k2()
        self.words: dict[int, str] = {}
        if self.graph == "tokens":
            self.fsa = self.token_graph()
            return
        if setup.lang_dir is None:
            raise ConfigError("lang_dir", f"with {self.graph}.pt and words.txt is needed by {self.name}")
        path = self.graph_path(setup)
        self.ids = read_symbols(setup.lang_dir / "words.txt")
        expected = made_for(self.ids, setup.units.pieces(), setup.topology)
        graph = load_graph(path, setup.num_classes, setup.search.lm_scale, setup.device, expected)
        if largest_output(graph) > max(self.ids.values()):
            raise UserError(f"{path} puts out words that words.txt does not have: compile it again")
        self.fsa = keep_lm_scores(graph)
        self.words = {i: word for word, i in self.ids.items()}

    @classmethod
    def has_lm(cls, setup: Setup) -> bool:
        return cls.gives_words

    @classmethod
    def files(cls, setup: Setup) -> list[Path]:
        if cls.graph == "tokens" or setup.lang_dir is None:
            return []
        return [cls.graph_path(setup), setup.lang_dir / "words.txt"]

    @classmethod
    def graph_path(cls, setup: Setup) -> Path:
        """Of a graph in the lang directory."""
        path = setup.lang_dir / graph_file(cls.graph, setup.topology)
        if setup.topology != CTC_TOPOLOGY and not path.is_file():
            raise UserError(f"{path} does not exist: make it with compile_hlg --topology {setup.topology}")
        return path

    @abstractmethod
    def token_graph(self) -> k2.Fsa:
        """The graph of all token sequences."""

    @abstractmethod
    def lattice(self, output: NetworkOutput, rows: Tensor, beams: SearchConfig) -> k2.Fsa:
        """Lattices of the utterances `rows`, (M,) on the CPU."""

    def pick(self, lattice: k2.Fsa, references: References | None) -> list[Nbest]:
        """Hypotheses of lattices that have paths."""
        return one_best(lattice)

    def draw(self, lattice: k2.Fsa) -> list[Nbest]:
        """Different sequences along drawn paths: what another language model puts in order."""
        beams = self.setup.search
        return draw(limit_arcs(lattice, beams.max_arcs), beams.num_paths, beams.nbest_scale)

    def words_of(self, labels: Sequence[int]) -> list[str]:
        return [self.words[i] for i in labels] if self.words else super().words_of(labels)

    def search(self, output: NetworkOutput, n: int, references: References | None) -> list[Nbest]:
        def picked(lattice: k2.Fsa, own: References | None) -> list[Nbest]:
            return self.pick(lattice, own) if self.setup.rescoring is None else self.draw(lattice)

        def search_rows(rows: Tensor, beams: SearchConfig) -> list[Nbest]:
            lattice, found = nonempty(self.lattice(output, rows, beams))
            hypotheses: list[Nbest] = [[] for _ in rows]
            if found:
                own = None if references is None else [references[n] for n in rows[torch.tensor(found)].tolist()]
                for row, best in zip(found, picked(lattice, own), strict=True):
                    hypotheses[row] = best
            return hypotheses

        return search_with_retry(output.lens, self.setup.search, search_rows)


@register_method("ctc-greedy-search")
class CtcGreedySearch(Method):
    network = CTC

    def search(self, output: NetworkOutput, n: int, references: References | None) -> list[Nbest]:
        return [[best] for best in ctc_greedy_search(output.log_probs, output.lens, self.setup.topology)]


@register_method("ctc-decoding")
class CtcDecoding(LatticeMethod):
    network = CTC

    def token_graph(self) -> k2.Fsa:
        from lowbit_k2.graphs.hlg import topology_graph

        return topology_graph(self.setup.topology, self.setup.units.vocab_size).to(self.setup.device)

    def lattice(self, output: NetworkOutput, rows: Tensor, beams: SearchConfig) -> k2.Fsa:
        log_probs, lens = taken(output.log_probs, rows), taken(output.lens, rows)
        return make_lattice(log_probs, lens, self.fsa, beams)


@register_method("1best")
class OneBest(CtcDecoding):
    graph = "HLG"
    gives_words = True


@register_method("nbest")
class DrawnPaths(OneBest):
    def pick(self, lattice: k2.Fsa, references: References | None) -> list[Nbest]:
        return self.draw(lattice)


class Rescoring(OneBest):
    """With a larger n-gram, whose scores take the place of HLG's."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        if setup.lm_dir is None:
            raise ConfigError("lm_dir", f"with {LATTICE_GRAMMAR} is needed by {self.name}: see compile_g")
        path = setup.lm_dir / LATTICE_GRAMMAR
        if not path.is_file():
            raise UserError(f"{path} does not exist: make it with python -m lowbit_k2.recipe.compile_g")
        grammar, backoff = load_fsa(path, expected=made_for(self.ids)), self.ids[WORD_DISAMBIG]
        if int(grammar.labels.max()) > backoff:
            raise UserError(f"{path} was made for other words than words.txt has: make it again with compile_g")
        self.grammar = rescoring_grammar(grammar, backoff, setup.search.lm_scale, setup.device)

    @classmethod
    def files(cls, setup: Setup) -> list[Path]:
        return [*super().files(setup), *([setup.lm_dir / LATTICE_GRAMMAR] if setup.lm_dir else [])]


@register_method("nbest-rescoring")
class NbestRescoring(Rescoring):
    def pick(self, lattice: k2.Fsa, references: References | None) -> list[Nbest]:
        return self.draw(lattice)

    def draw(self, lattice: k2.Fsa) -> list[Nbest]:
        beams = self.setup.search
        return draw(limit_arcs(lattice, beams.max_arcs), beams.num_paths, beams.nbest_scale, self.grammar)


@register_method("whole-lattice-rescoring")
class WholeLatticeRescoring(Rescoring):
    def pick(self, lattice: k2.Fsa, references: References | None) -> list[Nbest]:
        return rescore_lattice(limit_arcs(lattice, self.setup.search.max_arcs), self.grammar)

    def draw(self, lattice: k2.Fsa) -> list[Nbest]:
        beams = self.setup.search
        return draw_rescored(limit_arcs(lattice, beams.max_arcs), beams.num_paths, beams.nbest_scale, self.grammar)


@register_method("nbest-oracle")
class NbestOracle(OneBest):
    needs_references = True
    gives_lists = False

    def pick(self, lattice: k2.Fsa, references: References | None) -> list[Nbest]:
        wanted = [[self.ids.get(word, -1) for word in words] for words in references]
        return rank_by_errors(self.draw(lattice), wanted)


class TransducerMethod(Method):
    """Reads a transducer: encoder output, and the model's prediction network and joiner."""

    network = TRANSDUCER

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        assert setup.model is not None, f"{self.name} runs the model's prediction network"


@register_method("greedy_search")
class GreedySearch(TransducerMethod):
    def search(self, output: NetworkOutput, n: int, references: References | None) -> list[Nbest]:
        penalty = self.setup.search.blank_penalty
        found = greedy_search(self.setup.model, output.encoder_out, output.lens, penalty)
        return [[best] for best in found]


@register_method("modified_beam_search")
class ModifiedBeamSearch(TransducerMethod):
    gives_lists = True

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.lm = setup.token_scorer
        if setup.token_lm and self.lm is None:
            self.lm = TokenLm.read(setup.token_lm, setup.units.pieces())
        self.lm_scale = setup.search.lm_scale
        if setup.lodr_lm:
            low = TokenLm.read(setup.lodr_lm, setup.units.pieces(), "lodr_lm")
            self.lm, self.lm_scale = LowOrderRatio(self.lm, low, self.lm_scale, setup.search.lodr_scale), 1.0

    @classmethod
    def has_lm(cls, setup: Setup) -> bool:
        return setup.token_lm is not None

    @classmethod
    def files(cls, setup: Setup) -> list[Path]:
        return [path for path in (setup.token_lm, setup.lodr_lm) if path]

    def search(self, output: NetworkOutput, n: int, references: References | None) -> list[Nbest]:
        beams = self.setup.search
        return modified_beam_search(
            self.setup.model,
            output.encoder_out,
            output.lens,
            beam_size=max(n, beams.beam_size),
            blank_penalty=beams.blank_penalty,
            lm=self.lm,
            lm_scale=self.lm_scale,
        )


@register_method("fast_beam_search")
class FastBeamSearch(TransducerMethod, LatticeMethod):
    """k2 keeps a context of so many tokens with each of its states, and nothing else."""

    def __init__(self, setup: Setup) -> None:
        if setup.model.decoder.context_size is None:
            raise ConfigError(
                "decoding_method",
                f"{self.name} needs a transducer of --decoder-kind stateless, an LSTM predicts this one's tokens: "
                "choose greedy_search or modified_beam_search",
            )
        super().__init__(setup)

    def token_graph(self) -> k2.Fsa:
        return any_tokens(self.setup.units.vocab_size, self.setup.device)

    def lattice(self, output: NetworkOutput, rows: Tensor, beams: SearchConfig) -> k2.Fsa:
        encoder_out, lens = taken(output.encoder_out, rows), taken(output.lens, rows)
        return transducer_lattice(self.setup.model, encoder_out, lens, self.fsa, beams)


@register_method("fast_beam_search_nbest")
class FastBeamSearchNbest(FastBeamSearch):
    def pick(self, lattice: k2.Fsa, references: References | None) -> list[Nbest]:
        return self.draw(lattice)


@register_method("fast_beam_search_LG")
class FastBeamSearchLG(FastBeamSearch):
    graph = "LG"
    gives_words = True

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.fsa = keep_final_scores(self.fsa)


@register_method("fast_beam_search_nbest_LG")
class FastBeamSearchNbestLG(FastBeamSearchLG):
    def pick(self, lattice: k2.Fsa, references: References | None) -> list[Nbest]:
        return self.draw(lattice)


def taken(values: Tensor, rows: Tensor) -> Tensor:
    """Rows of a tensor, on its own device."""
    return values[rows.to(values.device)]


def largest_output(graph: k2.Fsa) -> int:
    """The largest output label, ragged or not."""
    labels = graph.aux_labels if isinstance(graph.aux_labels, Tensor) else graph.aux_labels.values
    return int(labels.max()) if labels.numel() else 0


def load_graph(
    path: Path,
    num_classes: int,
    lm_scale: float,
    device: str | torch.device,
    expected: Mapping[str, str] | None = None,
) -> k2.Fsa:
    """HLG.pt or LG.pt with its scores scaled.

    Args:
      expected: the symbols that it must have been made for, as `load_fsa` takes them.

    Raises:
      UserError: no such file, or its labels do not fit the network.
    """
    graph = load_fsa(path, expected=expected)
    if int(graph.labels.max()) >= num_classes:
        raise UserError(
            f"{path} has tokens up to {int(graph.labels.max())} but the model {num_classes} classes: "
            "give the lang directory that the model was trained with"
        )
    return scale_graph(graph, lm_scale).to(device)
