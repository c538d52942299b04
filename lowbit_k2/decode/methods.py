"""The decoding methods by name: the network's output of a batch in, words out.

CTC, or a transducer's CTC head:
  ctc-greedy-search         best token per frame; torch only
  ctc-decoding              best path of the k2 lattice on the CTC topology
  1best                     best path of the k2 lattice on HLG (lexicon and n-gram)
  nbest                     of paths drawn from HLG's lattice the best word sequence, its alignments summed
  nbest-rescoring           the same with HLG's language model replaced by a larger one
  whole-lattice-rescoring   HLG's lattice composed with the larger one
  nbest-oracle              of the drawn sequences the one with the fewest errors: a bound, no result
Transducers:
  greedy_search             best token per frame; torch only
  modified_beam_search      best token sequence, its alignments summed; torch only
  fast_beam_search          best path of the k2 lattice of all token sequences
  fast_beam_search_nbest    of paths drawn from that lattice the best token sequence, its alignments summed
  fast_beam_search_LG       best path of the k2 lattice on LG
  fast_beam_search_nbest_LG of paths drawn from that lattice the best word sequence, its alignments summed
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lowbit_k2.decode.fast_beam import any_tokens, keep_final_scores, transducer_lattice
from lowbit_k2.decode.greedy import ctc_greedy_search
from lowbit_k2.decode.lattice import (
    Labels,
    SearchConfig,
    limit_arcs,
    make_lattice,
    one_best,
    scale_graph,
    search_with_retry,
)
from lowbit_k2.decode.nbest import (
    RescoringGrammar,
    keep_lm_scores,
    nbest,
    nonempty,
    oracle,
    rescore_lattice,
    rescore_nbest,
    rescoring_grammar,
)
from lowbit_k2.decode.transducer import TokenScorer, TransducerParts, greedy_search, modified_beam_search
from lowbit_k2.errors import UserError
from lowbit_k2.graphs.lexicon import WORD_DISAMBIG, read_symbols
from lowbit_k2.k2_compat import require_k2

if TYPE_CHECKING:
    import k2

LATTICE_GRAMMAR = "G_4_gram.pt"
SpellTokens = Callable[[Sequence[int]], str]


@dataclass(frozen=True)
class Method:
    """How a method searches.

    Attributes:
      network: "ctc" or "transducer", the output that it reads.
      graph: what lattices are made on: "tokens" (any sequence), "HLG", "LG"; None for methods without lattices.
      pick: what is taken from the lattice, or the search without one.
    """

    network: str
    graph: str | None
    pick: str

    @property
    def has_lm(self) -> bool:
        """Its graph holds a language model, which `--lm-scale` scales."""
        return self.graph in ("HLG", "LG")

    @property
    def needs_grammar(self) -> bool:
        return self.pick in ("rescored nbest", "rescored lattice")


METHODS = {
    "ctc-greedy-search": Method("ctc", None, "greedy"),
    "ctc-decoding": Method("ctc", "tokens", "1best"),
    "1best": Method("ctc", "HLG", "1best"),
    "nbest": Method("ctc", "HLG", "nbest"),
    "nbest-rescoring": Method("ctc", "HLG", "rescored nbest"),
    "whole-lattice-rescoring": Method("ctc", "HLG", "rescored lattice"),
    "nbest-oracle": Method("ctc", "HLG", "oracle"),
    "greedy_search": Method("transducer", None, "greedy"),
    "modified_beam_search": Method("transducer", None, "beam"),
    "fast_beam_search": Method("transducer", "tokens", "1best"),
    "fast_beam_search_nbest": Method("transducer", "tokens", "nbest"),
    "fast_beam_search_LG": Method("transducer", "LG", "1best"),
    "fast_beam_search_nbest_LG": Method("transducer", "LG", "nbest"),
}


@dataclass(frozen=True)
class NetworkOutput:
    """What the network says of a batch.

    Attributes:
      lens: (N,) valid frames, 0 for audio that is too short.
      log_probs: (N, T, V), CTC log-probabilities; None for a transducer without a CTC head.
      encoder_out: (N, T, C), for transducer search; None for a CTC model.
    """

    lens: Tensor
    log_probs: Tensor | None = None
    encoder_out: Tensor | None = None


@dataclass
class DecodingResources:
    """What a method needs besides the network's output; made by `load_resources`.

    Attributes:
      method: one of `METHODS`.
      spell: token ids to text (a tokenizer's `decode`).
      search: beams.
      graph: the scaled graph, None for methods without lattices.
      words: id to word, for graphs that put out words.
      grammar: the n-gram that lattices are rescored with, scaled.
      transducer: prediction network and joiner, with the number of tokens that the network sees; None for CTC.
      token_lm: language model for shallow fusion in modified_beam_search, scaled by the search's `lm_scale`.
      num_decoded: utterances decoded so far.
      num_without_path: those whose lattice stayed empty with wider beams, too; their hypothesis is empty.
    """

    method: str
    spell: SpellTokens
    search: SearchConfig = field(default_factory=SearchConfig)
    graph: k2.Fsa | None = None
    words: Mapping[int, str] | None = None
    grammar: RescoringGrammar | None = None
    transducer: tuple[TransducerParts, int] | None = None
    token_lm: TokenScorer | None = None
    num_decoded: int = 0
    num_without_path: int = 0


def parse_methods(text: str) -> list[str]:
    """Split a comma separated list of methods.

    Raises:
      UserError: an unknown or repeated name.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in METHODS:
            raise UserError(f"--decoding-method {name!r} is unknown: choose of {', '.join(METHODS)}")
    if not names or len(set(names)) != len(names):
        raise UserError(f"--decoding-method {text!r} must name methods, each once: {', '.join(METHODS)}")
    return names


def load_resources(
    method: str,
    spell: SpellTokens,
    spells_words: bool,
    num_classes: int,
    lang_dir: Path | None = None,
    search: SearchConfig | None = None,
    device: str | torch.device = "cpu",
    lm_dir: Path | None = None,
    transducer: tuple[TransducerParts, int] | None = None,
) -> DecodingResources:
    """Load or build the graph of a method.

    Args:
      spell: token ids to text.
      spells_words: False for phones: methods without a lexicon are refused then.
      num_classes: classes of the network, blank included.
      lang_dir: HLG.pt or LG.pt, and words.txt, for methods with a lexicon.
      lm_dir: G_4_gram.pt, for rescoring.
      transducer: prediction network and joiner, and the tokens that the network sees.

    Raises:
      UserError: a missing file, a graph for other units, or phones without a lexicon.
    """
    [method] = parse_methods(method)
    search, kind = search or SearchConfig(), METHODS[method]
    if not kind.has_lm and not spells_words:
        with_lexicon = [name for name, other in METHODS.items() if other.network == kind.network and other.has_lm]
        raise UserError(f"{method} gives phones, which spell no words: use --decoding-method {with_lexicon[0]}")
    resources = DecodingResources(method, spell, search, transducer=transducer)
    if kind.graph is None:
        return resources
    require_k2()
    if kind.graph == "tokens" and kind.network == "ctc":
        from lowbit_k2.graphs.hlg import ctc_topology

        resources.graph = ctc_topology(num_classes).to(device)
    elif kind.graph == "tokens":
        resources.graph = any_tokens(num_classes, device)
    else:
        if lang_dir is None:
            raise UserError(f"--decoding-method {method} needs --lang-dir with {kind.graph}.pt and words.txt")
        graph = load_graph(lang_dir / f"{kind.graph}.pt", num_classes, search.lm_scale, device)
        if kind.pick != "1best":
            graph = keep_lm_scores(graph)
        resources.graph = keep_final_scores(graph) if kind.network == "transducer" else graph
        ids = read_symbols(lang_dir / "words.txt")
        resources.words = {i: word for word, i in ids.items()}
        if kind.needs_grammar:
            resources.grammar = load_grammar(method, lm_dir, ids, search.lm_scale, device)
    return resources


def load_graph(path: Path, num_classes: int, lm_scale: float, device: str | torch.device) -> k2.Fsa:
    """HLG.pt or LG.pt with its scores scaled.

    Raises:
      UserError: no such file, or its labels do not fit the network.
    """
    from lowbit_k2.graphs.fsa_io import load_fsa

    graph = load_fsa(path)
    if int(graph.labels.max()) >= num_classes:
        raise UserError(
            f"{path} has tokens up to {int(graph.labels.max())} but the model {num_classes} classes: "
            "give the --lang-dir that the model was trained with"
        )
    return scale_graph(graph, lm_scale).to(device)


def load_grammar(
    method: str, lm_dir: Path | None, words: Mapping[str, int], lm_scale: float, device: str | torch.device
) -> RescoringGrammar:
    """G_4_gram.pt, which compile_g makes.

    Raises:
      UserError: no such file, or one for other words.
    """
    from lowbit_k2.graphs.fsa_io import load_fsa

    if lm_dir is None:
        raise UserError(f"--decoding-method {method} needs --lm-dir with {LATTICE_GRAMMAR}: see compile_g")
    path = lm_dir / LATTICE_GRAMMAR
    if not path.is_file():
        raise UserError(f"{path} does not exist: make it with python -m lowbit_k2.recipe.compile_g")
    grammar = load_fsa(path)
    if int(grammar.labels.max()) > words[WORD_DISAMBIG]:
        raise UserError(f"{path} was made for other words than those of --lang-dir: make it again with compile_g")
    return rescoring_grammar(grammar, words[WORD_DISAMBIG], lm_scale, device)


def decode_batch(
    output: NetworkOutput, resources: DecodingResources, references: Sequence[Sequence[str]] | None = None
) -> list[list[str]]:
    """Decode a batch whose tensors are on the device of the resources' graph.

    Args:
      references: N lists of words, for `nbest-oracle` alone.

    Returns:
      N lists of words. Counters of `resources` are advanced.

    Raises:
      UserError: an oracle without references.
    """
    resources.num_decoded += len(output.lens)
    if METHODS[resources.method].graph is None:
        return [resources.spell(ids).split() for ids in search_tokens(output, resources)]
    if METHODS[resources.method].pick == "oracle" and references is None:
        raise UserError(f"--decoding-method {resources.method} needs references: it cannot transcribe")

    def search(rows: Tensor, beams: SearchConfig) -> Labels:
        lattice, found = nonempty(lattice_of(output, rows, resources, beams))
        labels: Labels = [None] * len(rows)
        if found:
            own = None if references is None else [references[n] for n in rows[torch.tensor(found)].tolist()]
            for row, picked in zip(found, pick(lattice, resources, own), strict=True):
                labels[row] = picked
        return labels

    found, without_path = search_with_retry(output.lens, resources.search, search)
    resources.num_without_path += len(without_path)
    if resources.words is None:
        return [resources.spell(ids).split() for ids in found]
    return [[resources.words[i] for i in ids] for ids in found]


def search_tokens(output: NetworkOutput, resources: DecodingResources) -> list[list[int]]:
    """The methods without lattices."""
    kind, beams = METHODS[resources.method], resources.search
    if kind.network == "ctc":
        return ctc_greedy_search(output.log_probs, output.lens)
    inputs = (*resources.transducer, output.encoder_out, output.lens)
    if kind.pick == "greedy":
        return greedy_search(*inputs, beams.blank_penalty)
    return modified_beam_search(*inputs, beams.beam_size, beams.blank_penalty, resources.token_lm, beams.lm_scale)


def lattice_of(output: NetworkOutput, rows: Tensor, resources: DecodingResources, beams: SearchConfig) -> k2.Fsa:
    """Lattices of some utterances of a batch."""
    lens = output.lens[rows.to(output.lens.device)]
    if METHODS[resources.method].network == "ctc":
        return make_lattice(output.log_probs[rows.to(output.log_probs.device)], lens, resources.graph, beams)
    encoder_out = output.encoder_out[rows.to(output.encoder_out.device)]
    return transducer_lattice(*resources.transducer, encoder_out, lens, resources.graph, beams)


def pick(lattice: k2.Fsa, resources: DecodingResources, references: Sequence[Sequence[str]] | None) -> Labels:
    """What the method takes from lattices that have paths."""
    kind, config = METHODS[resources.method], resources.search
    if kind.pick == "1best":
        return one_best(lattice)
    lattice = limit_arcs(lattice, config.max_arcs)
    if kind.pick == "nbest":
        return nbest(lattice, config.num_paths, config.nbest_scale)
    if kind.pick == "rescored nbest":
        return rescore_nbest(lattice, config.num_paths, config.nbest_scale, resources.grammar)
    if kind.pick == "rescored lattice":
        return rescore_lattice(lattice, resources.grammar)
    ids = {word: i for i, word in resources.words.items()}
    return oracle(lattice, config.num_paths, config.nbest_scale, [[ids.get(w, -1) for w in r] for r in references])
