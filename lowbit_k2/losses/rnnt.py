"""Transducer losses: k2's pruned RNN-T (arXiv 2206.13236) and, where k2 is missing, torchaudio's full lattice.

    loss = scale_simple * simple + scale_pruned * pruned [+ ctc_scale * CTC]

`simple` is the loss of a joiner that merely adds an encoder and a decoder term; its gradients tell which symbols of
each frame matter. `pruned` is the loss of the real joiner on those alone.

In co-training all branches take the teacher's prune ranges, so that their lattices have the same nodes. The KL of a
branch is, over the nodes (t, u) of that lattice,

    sum_t,u  w(t, u)  KL(p_teacher(. | t, u) || p_branch(. | t, u))   [+ the KL of the CTC posteriors]

where w is the probability that a path of the teacher's, of those that spell the transcript, goes through the node
(`--lattice-weights occupancy`): branches are compared where alignments run. Or all nodes of a frame that belong to the
utterance weigh alike, and a frame as much as in CTC (`uniform`); most of the weight then lies where no path goes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from lowbit_k2.core.config import Config, option
from lowbit_k2.errors import UserError
from lowbit_k2.k2_compat import require_k2
from lowbit_k2.losses.ctc import ctc_loss
from lowbit_k2.losses.distillation import Posterior
from lowbit_k2.losses.output import PassOutput, TrainingBatch
from lowbit_k2.models.masking import valid_frames
from lowbit_k2.models.prediction import BLANK
from lowbit_k2.models.transducer import Transducer

KINDS = ("pruned", "full")
WEIGHTS = ("occupancy", "uniform")


@dataclass(frozen=True)
class RnntConfig(Config):
    """Which lattice, and how the parts are weighted; names and defaults as icefall's."""

    loss: str = option("pruned", "full needs no k2, but much memory", flag="rnnt-loss", choices=KINDS)
    prune_range: int = option(5, "symbols kept at each frame", low=2, high=1000)
    simple_loss_scale: float = option(0.5, "weight of the simple loss after the warm-up, in which it falls from 1")
    lm_scale: float = option(0.25, "smoothing of the simple loss with the decoder term alone")
    am_scale: float = option(0.0, "smoothing of the simple loss with the encoder term alone")
    warm_step: int = option(2000, "updates in which the pruned loss rises from 0.1", flag="rnnt-warm-step", low=1)
    ctc_loss_scale: float = option(0.2, "weight of the CTC loss, for ctc-rnnt")
    lattice_weights: str = option("occupancy", "of the nodes in the KL: how likely paths go there", choices=WEIGHTS)
    delay_penalty: float = option(0.0, "k2's penalty on symbols that come late")

    def scales(self, update: int) -> tuple[float, float]:
        """Weights of the simple and of the pruned loss at an update."""
        progress = min(1.0, update / self.warm_step)
        return 1.0 - progress * (1.0 - self.simple_loss_scale), 0.1 + 0.9 * progress


class RnntCriterion:
    """One pass of a transducer: losses, and the distributions on its lattice."""

    def __init__(self, config: RnntConfig) -> None:
        """Raises UserError where k2 is missing and the loss needs it: now, not after minutes of preparation."""
        self.config = config
        if config.loss == "pruned":
            require_k2()

    def __call__(
        self,
        model: Transducer,
        batch: TrainingBatch,
        update: int,
        shared: Tensor | None = None,
    ) -> PassOutput:
        """
        Args:
          batch: inputs (N, T, F), input_lens (N,), and N token sequences, not empty, each no longer than its encoder
            frames.
          update: its number sets the warm-up.
          shared: the teacher's prune ranges (N, T', R), None to find them here.
        """
        encoder_out, lens = model.encoder(batch.inputs, batch.input_lens)  # (N, T', C)
        symbols, symbol_lens = pad_targets(batch.targets, encoder_out.device)
        decoder_out = model.decoder(torch.nn.functional.pad(symbols, (1, 0), value=BLANK))  # (N, S + 1, D)
        if self.config.loss == "full":
            loss, parts, posterior, ranges = self.full(model, encoder_out, lens, decoder_out, symbols, symbol_lens)
        else:
            loss, parts, posterior, ranges = self.pruned(
                model, encoder_out, lens, decoder_out, symbols, symbol_lens, update, shared
            )
        terms = {"lattice": posterior}
        if model.ctc_head is not None:
            log_probs = model.ctc_log_probs(encoder_out)
            parts["ctc"] = ctc_loss(log_probs, lens, batch.targets)
            loss = loss + self.config.ctc_loss_scale * parts["ctc"]
            terms["ctc"] = Posterior.of_frames(log_probs, lens)
        detached = {name: part.detach() for name, part in parts.items()}
        return PassOutput(loss, int(lens.sum()), terms, detached, ranges)

    def pruned(
        self,
        model: Transducer,
        encoder_out: Tensor,
        lens: Tensor,
        decoder_out: Tensor,
        symbols: Tensor,
        symbol_lens: Tensor,
        update: int,
        shared: Tensor | None,
    ) -> tuple[Tensor, dict[str, Tensor], Posterior, Tensor]:
        """k2's two losses, the joiner's distributions on the pruned lattice, and its ranges."""
        k2 = require_k2()
        boundary = torch.zeros(len(lens), 4, dtype=torch.int64, device=lens.device)
        boundary[:, 2], boundary[:, 3] = symbol_lens, lens
        am, lm = model.simple.am(encoder_out), model.simple.lm(decoder_out)
        with torch.autocast(encoder_out.device.type, enabled=False):
            simple, gradients = k2.rnnt_loss_smoothed(
                lm=lm.float(),
                am=am.float(),
                symbols=symbols,
                termination_symbol=BLANK,
                lm_only_scale=self.config.lm_scale,
                am_only_scale=self.config.am_scale,
                boundary=boundary,
                delay_penalty=self.config.delay_penalty,
                reduction="sum",
                return_grad=True,
            )
        ranges = shared
        if ranges is None:
            ranges = k2.get_rnnt_prune_ranges(*gradients, boundary=boundary, s_range=self.config.prune_range)
        am, lm = k2.do_rnnt_pruning(
            am=model.joiner.encoder_proj(encoder_out), lm=model.joiner.decoder_proj(decoder_out), ranges=ranges
        )  # (N, T', R, D_j)
        logits = model.joiner(am, lm, project=False).float()  # (N, T', R, V)
        with torch.autocast(encoder_out.device.type, enabled=False):
            pruned = k2.rnnt_loss_pruned(
                logits=logits,
                symbols=symbols,
                ranges=ranges,
                termination_symbol=BLANK,
                boundary=boundary,
                delay_penalty=self.config.delay_penalty,
                reduction="sum",
            )
        simple_scale, pruned_scale = self.config.scales(update)
        loss = simple_scale * simple + pruned_scale * pruned
        weights = partial(node_weights, ranges, lens, symbol_lens)
        if self.config.lattice_weights == "occupancy":
            weights = partial(pruned_occupancy, logits, symbols, ranges, boundary)
        posterior = Posterior(logits, weights, normalized=False)
        return loss, {"simple": simple, "pruned": pruned}, posterior, ranges

    def full(
        self,
        model: Transducer,
        encoder_out: Tensor,
        lens: Tensor,
        decoder_out: Tensor,
        symbols: Tensor,
        symbol_lens: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor], Posterior, None]:
        """The loss on the whole lattice, by torchaudio."""
        logits = model.joiner(encoder_out[:, :, None], decoder_out[:, None]).float()  # (N, T', S + 1, V)
        loss = torchaudio_rnnt_loss(logits, lens, symbols, symbol_lens)
        nodes = torch.arange(logits.size(2), device=lens.device).expand(logits.shape[:3])  # (N, T', S + 1)
        weights = partial(node_weights, nodes, lens, symbol_lens)
        if self.config.lattice_weights == "occupancy":
            weights = partial(full_occupancy, logits, symbols, lens, symbol_lens)
        posterior = Posterior(logits, weights, normalized=False)
        return loss, {}, posterior, None


def pad_targets(targets: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token sequences as (N, S), padded with blanks, and their lengths (N,)."""
    assert all(len(target) for target in targets), [len(target) for target in targets]
    lens = torch.tensor([len(t) for t in targets])  # (N,)
    symbols = torch.full((len(targets), int(lens.max())), BLANK, dtype=torch.int64)
    for row, target in zip(symbols, targets, strict=True):
        row[: len(target)] = torch.tensor(list(target))
    return symbols.to(device), lens.to(device)


def node_weights(nodes: Tensor, lens: Tensor, symbol_lens: Tensor) -> Tensor:
    """Weights of the KL: nodes (N, T', R) of the utterance share their frame equally, others have 0."""
    assert nodes.dim() == 3 and len(nodes) == len(lens) == len(symbol_lens), (nodes.shape, lens, symbol_lens)
    valid = valid_frames(lens, nodes.size(1))[..., None] & (nodes <= symbol_lens[:, None, None])  # (N, T', R)
    return valid / valid.sum(dim=-1, keepdim=True).clamp(min=1)


@torch.no_grad()
def pruned_occupancy(logits: Tensor, symbols: Tensor, ranges: Tensor, boundary: Tensor) -> Tensor:
    """Share of the paths through each node of a pruned lattice, by k2.

    Args:
      logits: (N, T', R, V), float32; symbols: (N, S); ranges: (N, T', R); boundary: (N, 4), as k2 has them.

    Returns:
      (N, T', R); a frame's sum is 1 and the number of symbols expected at it.
    """
    k2 = require_k2()
    px, py = k2.get_rnnt_logprobs_pruned(
        logits=logits.detach(), symbols=symbols, ranges=ranges, termination_symbol=BLANK, boundary=boundary
    )  # (N, S, T' + 1) of symbols, (N, S + 1, T') of blanks
    with torch.enable_grad():
        _, (px_grad, py_grad) = k2.mutual_information_recursion(px, py, boundary, return_grad=True)
    by_node = py_grad + torch.nn.functional.pad(px_grad[..., : py.size(2)], (0, 0, 0, 1))  # (N, S + 1, T')
    return by_node.transpose(1, 2).gather(2, ranges)  # (N, T', R)


@torch.no_grad()
def full_occupancy(logits: Tensor, symbols: Tensor, lens: Tensor, symbol_lens: Tensor) -> Tensor:
    """The same on a whole lattice (N, T', S + 1, V), from the gradient of torchaudio's loss.

    With respect to a logit that is `occupancy * p(token) - (share of the paths that take the arc)`, and a node has two
    arcs at most: all other tokens give the occupancy. It takes three of them.
    """
    with torch.enable_grad():
        leaf = logits.detach().requires_grad_()
        (grad,) = torch.autograd.grad(torchaudio_rnnt_loss(leaf, lens, symbols, symbol_lens), leaf)
    probs = logits.detach().softmax(dim=-1)  # (N, T', S + 1, V)
    others = torch.ones_like(probs, dtype=torch.bool)
    others[..., BLANK] = False
    leaving = torch.nn.functional.pad(symbols, (0, 1), value=BLANK)  # (N, S + 1): of each node
    others.scatter_(3, leaving[:, None, :, None].expand(-1, probs.size(1), -1, 1), False)
    return (grad * others).sum(dim=-1) / (probs * others).sum(dim=-1).clamp(min=1e-30)


def torchaudio_rnnt_loss(logits: Tensor, lens: Tensor, symbols: Tensor, symbol_lens: Tensor) -> Tensor:
    """Sum over the batch of the full transducer loss (nats).

    Raises:
      UserError: torchaudio is not installed, or does not fit this torch.
    """
    try:
        from torchaudio.functional import rnnt_loss
    except (ImportError, OSError, AttributeError) as error:
        raise UserError(
            f"the full transducer loss needs torchaudio, which cannot be imported ({error}): install your torch's, or "
            "k2 for the pruned one"
        ) from None
    # 32-bit lengths and symbols, and a lattice no larger than the longest utterance, are torchaudio's conditions
    return rnnt_loss(logits, symbols.int(), lens.int(), symbol_lens.int(), blank=BLANK, clamp=-1.0, reduction="sum")
