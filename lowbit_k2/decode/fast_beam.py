"""Transducer lattices by k2: beam search of a stateless transducer against a graph of tokens (arXiv 2211.00484).

The graph is either k2's trivial one, which accepts every token sequence, or LG, which puts out words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lowbit_k2.decode.lattice import SearchConfig
from lowbit_k2.decode.prediction import TransducerParts
from lowbit_k2.k2_compat import require_k2

if TYPE_CHECKING:
    import k2


def any_tokens(num_classes: int, device: str | torch.device = "cpu") -> k2.Fsa:
    """The graph that accepts every sequence of tokens 1..num_classes-1."""
    k2 = require_k2()
    return k2.trivial_graph(num_classes - 1, device=str(device))


def keep_final_scores(graph: k2.Fsa) -> k2.Fsa:
    """The graph with its scores of sentence ends in `final_scores`, too: k2's search leaves these out of lattices."""
    graph.final_scores = torch.where(graph.labels == -1, graph.scores, torch.zeros_like(graph.scores))
    return graph


@torch.no_grad()
def transducer_lattice(
    model: TransducerParts, encoder_out: Tensor, lens: Tensor, graph: k2.Fsa, config: SearchConfig
) -> k2.Fsa:
    """Search a batch.

    Args:
      model: a stateless prediction network and a joiner.
      encoder_out: (N, T, C).
      lens: (N,) valid frames, each at least 1.
      graph: tokens in, without epsilons, arc-sorted, on the device of `encoder_out`, its scores scaled already; one
        with scores of sentence ends has gone through `keep_final_scores`.
      config: `search_beam`, `max_states`, `max_contexts` and `blank_penalty` are used.

    Returns:
      An FsaVec of N lattices; one without arcs where no path survived.
    """
    k2 = require_k2()
    projected = model.joiner.encoder_proj(encoder_out)  # (N, T, D)
    num_classes = model.joiner.output.out_features
    assert int(graph.labels.max()) < num_classes, (int(graph.labels.max()), num_classes)
    streams = k2.RnntDecodingStreams(
        [k2.RnntDecodingStream(graph) for _ in range(len(lens))],
        k2.RnntDecodingConfig(
            vocab_size=num_classes,
            decoder_history_len=model.decoder.context_size,
            beam=config.search_beam,
            max_states=config.max_states,
            max_contexts=config.max_contexts,
        ),
    )
    # k2 takes the arcs into the final state from a frame of its own: the lattice of n frames needs n + 1. Asked for n,
    # it would leave out the last one (k2 pull request 1089). The arcs are pruned as if they were blanks, so behind
    # the end of an utterance the blank is certain; their scores stay 0.
    projected = torch.nn.functional.pad(projected, (0, 0, 0, 1))  # (N, T + 1, D)
    certain_blank = torch.full((num_classes,), -1e4, device=projected.device)
    certain_blank[0] = 0.0
    lens = lens.to(projected.device)
    for t in range(int(lens.max()) + 1):
        shape, contexts = streams.get_contexts()  # [utterance][context], (M, context_size)
        owners = shape.row_ids(1).long()
        after = model.joiner.decoder_proj(model.decoder(contexts.long(), pad=False))[:, 0]  # (M, D)
        logits = model.joiner(projected[owners, t], after, project=False)  # (M, V)
        logits[:, 0] -= config.blank_penalty
        ended = t >= lens[owners]  # (M,)
        streams.advance(torch.where(ended[:, None], certain_blank, logits.float().log_softmax(dim=-1)))
    streams.terminate_and_flush_to_streams()
    lattice = streams.format_output((lens + 1).tolist())
    if hasattr(lattice, "final_scores"):
        lattice.scores = lattice.scores + lattice.final_scores
    return lattice
