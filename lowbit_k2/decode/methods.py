"""The decoding methods by name: the network's output of a batch in, words out.

greedy_search       transducer: best token per frame; torch only
ctc-greedy-search   best token per frame; torch only
ctc-decoding        best path of the k2 lattice on the CTC topology
1best               best path of the k2 lattice on HLG (lexicon and n-gram)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lowbit_k2.decode.greedy import TransducerParts, ctc_greedy_search, transducer_greedy_search
from lowbit_k2.decode.lattice import SearchConfig, decode_lattice, scale_graph
from lowbit_k2.errors import UserError
from lowbit_k2.graphs.lexicon import read_symbols
from lowbit_k2.k2_compat import require_k2

if TYPE_CHECKING:
    import k2

CTC_METHODS = ("ctc-greedy-search", "ctc-decoding", "1best")
TRANSDUCER_METHODS = ("greedy_search",)
METHODS = (*CTC_METHODS, *TRANSDUCER_METHODS)
SpellTokens = Callable[[Sequence[int]], str]


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
      graph: the scaled graph, None for greedy search.
      words: id to word, for graphs that put out words.
      transducer: prediction network and joiner, with the number of tokens that the network sees; None for CTC.
      blank_penalty: subtracted from the blank's logit in transducer search.
      num_decoded: utterances decoded so far.
      num_without_path: those whose lattice stayed empty with wider beams, too; their hypothesis is empty.
    """

    method: str
    spell: SpellTokens
    search: SearchConfig = field(default_factory=SearchConfig)
    graph: k2.Fsa | None = None
    words: Mapping[int, str] | None = None
    transducer: tuple[TransducerParts, int] | None = None
    blank_penalty: float = 0.0
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
) -> DecodingResources:
    """Load or build the graph of a method.

    Args:
      spell: token ids to text.
      spells_words: False for phones: methods without a lexicon are refused then.
      num_classes: classes of the network, blank included.
      lang_dir: HLG.pt and words.txt, for `1best`.

    Raises:
      UserError: a missing file, a graph for other units, or phones without a lexicon.
    """
    [method] = parse_methods(method)
    search = search or SearchConfig()
    if method != "1best" and not spells_words:
        raise UserError(f"{method} gives phones, which spell no words: use --decoding-method 1best")
    if method in ("ctc-greedy-search", *TRANSDUCER_METHODS):
        return DecodingResources(method, spell, search)
    require_k2()
    if method == "ctc-decoding":
        from lowbit_k2.graphs.hlg import ctc_topology

        return DecodingResources(method, spell, search, ctc_topology(num_classes).to(device))
    if lang_dir is None:
        raise UserError("--decoding-method 1best needs --lang-dir with HLG.pt and words.txt")
    graph = load_hlg(lang_dir, num_classes, search.lm_scale, device)
    words = {i: word for word, i in read_symbols(lang_dir / "words.txt").items()}
    return DecodingResources(method, spell, search, graph, words)


def load_hlg(lang_dir: Path, num_classes: int, lm_scale: float, device: str | torch.device) -> k2.Fsa:
    """HLG.pt with its scores scaled.

    Raises:
      UserError: no such file, or its labels do not fit the network.
    """
    from lowbit_k2.graphs.fsa_io import load_fsa

    path = lang_dir / "HLG.pt"
    graph = load_fsa(path)
    if int(graph.labels.max()) >= num_classes:
        raise UserError(
            f"{path} has tokens up to {int(graph.labels.max())} but the model {num_classes} classes: "
            "give the --lang-dir that the model was trained with"
        )
    return scale_graph(graph, lm_scale).to(device)


def decode_batch(output: NetworkOutput, resources: DecodingResources) -> list[list[str]]:
    """Decode a batch whose tensors are on the device of the resources' graph.

    Returns:
      N lists of words. Counters of `resources` are advanced.
    """
    resources.num_decoded += len(output.lens)
    if resources.method == "greedy_search":
        model, context_size = resources.transducer
        found = transducer_greedy_search(model, context_size, output.encoder_out, output.lens, resources.blank_penalty)
        return [resources.spell(ids).split() for ids in found]
    if resources.graph is None:
        return [resources.spell(ids).split() for ids in ctc_greedy_search(output.log_probs, output.lens)]
    labels, without_path = decode_lattice(output.log_probs, output.lens, resources.graph, resources.search)
    resources.num_without_path += len(without_path)
    if resources.words is None:
        return [resources.spell(ids).split() for ids in labels]
    return [[resources.words[i] for i in ids] for ids in labels]
