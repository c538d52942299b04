"""Divergences between branches against their formulas, and that no gradient leads into the teacher."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lowbit_k2.losses.distillation import Features, Posterior, as_targets, divergence


def kl(teacher: Posterior, student: Posterior) -> torch.Tensor:
    return teacher.as_target().divergence(student)


def posterior(logits: torch.Tensor, lens: list[int]) -> Posterior:
    return Posterior.of_frames(logits.log_softmax(-1), torch.tensor(lens))


def test_kl_is_zero_for_equal_branches_and_blind_to_padding() -> None:
    logits = torch.randn(2, 6, 5)
    assert kl(posterior(logits, [6, 2]), posterior(logits, [6, 2])) == 0
    other = logits.clone()
    other[1, 2:] = torch.randn(4, 5)
    assert kl(posterior(logits, [6, 2]), posterior(other, [6, 2])) == 0
    assert kl(posterior(logits, [6, 2]), posterior(torch.randn(2, 6, 5), [6, 2])) > 0


def test_the_teacher_gets_no_gradient() -> None:
    teacher, student = (torch.randn(1, 4, 5, requires_grad=True) for _ in range(2))
    kl(posterior(teacher, [4]), posterior(student, [4])).backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0
    teacher, student = (torch.randn(1, 4, 5, requires_grad=True) for _ in range(2))
    weights = torch.ones(1, 4)
    Features(teacher, weights).as_target().divergence(Features(student, weights)).backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0


def test_kl_weighs_positions() -> None:
    p, q = torch.randn(1, 2, 3, 4).log_softmax(-1), torch.randn(1, 2, 3, 4).log_softmax(-1)
    weights = torch.tensor([[[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]])
    each = (p.exp() * (p - q)).sum(-1)
    expected = 0.5 * each[0, 0, 0] + 0.5 * each[0, 0, 1] + each[0, 1, 0]
    torch.testing.assert_close(kl(Posterior(p, weights), Posterior(q, weights)), expected)


def test_logits_are_normalised_where_they_are_compared() -> None:
    p, q, weights = torch.randn(2, 3, 4), torch.randn(2, 3, 4), torch.ones(2, 3)
    by_logits = kl(Posterior(p, weights, normalized=False), Posterior(q, weights, normalized=False))
    torch.testing.assert_close(by_logits, kl(*(Posterior(x.log_softmax(-1), weights) for x in (p, q))))


@pytest.mark.parametrize("metric", ["mse", "cosine"])
def test_features_are_compared_frame_by_frame(metric: str) -> None:
    a, b = torch.randn(2, 5, 7), torch.randn(2, 5, 7)
    weights = (torch.arange(5) < torch.tensor([[5], [3]])).float()
    expected = 0.0
    for n, length in enumerate((5, 3)):
        for t in range(length):
            pair = a[n, t], b[n, t]
            expected += F.mse_loss(*pair) if metric == "mse" else 1 - F.cosine_similarity(*pair, dim=0)
    found = Features(a, weights, metric).as_target().divergence(Features(b, weights, metric))
    torch.testing.assert_close(found, expected)


def test_terms_are_weighted_by_name() -> None:
    a, b, weights = torch.randn(1, 2, 3), torch.randn(1, 2, 3), torch.ones(1, 2)
    teacher = {"x": Features(a, weights), "y": Features(a, weights, "cosine")}
    student = {"x": Features(b, weights), "y": Features(b, weights, "cosine")}
    x, y = (teacher[name].as_target().divergence(student[name]) for name in "xy")
    torch.testing.assert_close(divergence(as_targets(teacher), student, {}), x + y)
    torch.testing.assert_close(divergence(as_targets(teacher), student, {"y": 0.5}), x + 0.5 * y)
