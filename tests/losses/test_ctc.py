"""CTC: against a sum over all alignments, against k2, and its length rule."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from lowbit_k2.data.filter import required_frames
from lowbit_k2.losses.ctc import ctc_loss


def collapse(path):
    """Merge repeats, drop blanks."""
    return [token for token, _ in itertools.groupby(path) if token != 0]


def brute_force(log_probs, target):
    """-log of the summed probability of all frame sequences that spell `target`."""
    frames, vocab = log_probs.shape
    paths = itertools.product(range(vocab), repeat=frames)
    scores = [sum(log_probs[t, k] for t, k in enumerate(p)) for p in paths if collapse(p) == target]
    return -torch.logsumexp(torch.stack(scores), 0) if scores else torch.tensor(math.inf)


def test_ctc_equals_the_sum_over_all_alignments():
    torch.manual_seed(0)
    log_probs = torch.randn(2, 5, 3).log_softmax(-1)
    lens, targets = torch.tensor([5, 3]), [[1, 1, 2], [2]]
    expected = brute_force(log_probs[0], targets[0]) + brute_force(log_probs[1, :3], targets[1])
    torch.testing.assert_close(ctc_loss(log_probs, lens, targets), expected)


def test_required_frames_is_the_shortest_length_with_a_finite_loss():
    log_probs = torch.randn(1, 7, 4).log_softmax(-1)
    for target in ([1], [1, 1], [1, 2, 1], [2, 2, 2], [3, 3, 1, 1]):
        need = required_frames(target)
        assert math.isfinite(ctc_loss(log_probs, torch.tensor([need]), [target]))
        if need > 1:
            assert math.isinf(ctc_loss(log_probs, torch.tensor([need - 1]), [target]))


@pytest.mark.k2
def test_ctc_equals_k2_on_the_ctc_topology():
    from lowbit_k2.k2_compat import require_k2

    k2 = require_k2()
    torch.manual_seed(0)
    logits = torch.randn(3, 12, 6)
    lens, targets = torch.tensor([12, 9, 7]), [[1, 2, 2, 5], [3], [4, 4]]  # k2 wants falling lengths
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss = ctc_loss(ours.log_softmax(-1), lens, targets)
    segments = torch.tensor([[n, 0, int(length)] for n, length in enumerate(lens)], dtype=torch.int32)
    dense = k2.DenseFsaVec(theirs.log_softmax(-1), segments)
    reference = k2.ctc_loss(k2.ctc_graph(targets), dense, reduction="sum")
    torch.testing.assert_close(loss, reference, rtol=1e-5, atol=1e-5)
    loss.backward(), reference.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)
