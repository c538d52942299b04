"""Transducer losses against all alignments added up, k2 against torchaudio, and their use in co-training."""

from __future__ import annotations

import importlib.util
import itertools
import math
from types import SimpleNamespace

import pytest
import torch

from lowbit_k2.core.models import TransducerConfig
from lowbit_k2.data.batch import Batch
from lowbit_k2.errors import UserError
from lowbit_k2.losses.co_training import CoTraining, CoTrainingConfig
from lowbit_k2.losses.distillation import as_targets, divergence
from lowbit_k2.losses.output import PassOutput
from lowbit_k2.losses.rnnt import (
    RnntConfig,
    RnntCriterion,
    full_occupancy,
    node_weights,
    pad_targets,
    pruned_occupancy,
    torchaudio_rnnt_loss,
)
from lowbit_k2.models.transducer import Transducer
from lowbit_k2.quant import QuantConfig, quantize_model, use_precision
from lowbit_k2.train.trainer import make_scaler
from lowbit_k2.train.update import run_branches

FEATURES = torch.randn(2, 60, 20, generator=torch.Generator().manual_seed(3))
LENS = torch.tensor([60, 44])  # 14 and 10 encoder frames
TARGETS = [[1, 2, 2, 3, 5], [6, 1]]
BATCH = Batch(FEATURES, LENS, ["", ""], ["a", "b"], targets=TARGETS)


def kl(teacher: PassOutput, student: PassOutput) -> torch.Tensor:
    return divergence(as_targets(teacher.terms), student.terms, {})


needs_torchaudio = pytest.mark.skipif(
    importlib.util.find_spec("torchaudio") is None, reason="torchaudio is not installed (modern lane)"
)


def make_model(ctc_head: bool = False, **prediction_network) -> Transducer:
    torch.manual_seed(0)
    config = TransducerConfig.preset(
        "demo", ctc_head=ctc_head, num_features=20, vocab_size=7, d_model=16, num_layers=3, ffn_dim=32, conv_kernel=5,
        subsampling_channels=4, dropout=0.0, ffn_dropout=0.0, decoder_dim=12, joiner_dim=10,
        **prediction_network,
    )  # fmt: skip
    return Transducer(config)


def run(model: Transducer, update: int = 5000, shared=None, **config):
    return RnntCriterion(RnntConfig(**config))(model, BATCH, update, shared)


def all_alignments(log_probs: torch.Tensor, symbols: list[int]) -> torch.Tensor:
    """-log of the summed probability of every path of blanks and symbols through (T, S + 1, V)."""
    frames, nodes, _ = log_probs.shape
    paths = []
    for order in set(itertools.permutations([0] * (frames - 1) + [1] * (nodes - 1))):
        t = u = 0
        score = torch.zeros((), dtype=log_probs.dtype)
        for step in order:
            score = score + log_probs[t, u, symbols[u] if step else 0]
            t, u = (t, u + 1) if step else (t + 1, u)
        paths.append(score + log_probs[t, u, 0])  # the last blank ends the utterance
    return -torch.logsumexp(torch.stack(paths), dim=0)


@needs_torchaudio
def test_the_full_loss_is_the_sum_over_all_alignments() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 4, 3, 5, generator=generator)
    lens, symbols, symbol_lens = torch.tensor([4, 3]), torch.tensor([[2, 4], [1, 0]]), torch.tensor([2, 1])
    expected = all_alignments(logits[0].double().log_softmax(-1), [2, 4])
    expected = expected + all_alignments(logits[1, :3, :2].double().log_softmax(-1), [1])
    found = torchaudio_rnnt_loss(logits, lens, symbols, symbol_lens)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.k2
def test_k2_and_torchaudio_agree() -> None:
    import k2

    logits = torch.randn(2, 9, 5, 6, generator=torch.Generator().manual_seed(2))
    lens, symbol_lens = torch.tensor([9, 7]), torch.tensor([4, 2])
    symbols = torch.tensor([[1, 2, 2, 3], [5, 4, 0, 0]])
    boundary = torch.zeros(2, 4, dtype=torch.int64)
    boundary[:, 2], boundary[:, 3] = symbol_lens, lens
    theirs = k2.rnnt_loss(logits, symbols, 0, boundary, reduction="sum")
    ours = torchaudio_rnnt_loss(logits, lens, symbols, symbol_lens)
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-4)


@pytest.mark.k2
def test_a_range_over_all_symbols_prunes_nothing() -> None:
    model = make_model().eval()
    pruned, full = run(model, prune_range=9), run(model, loss="full")
    assert pruned.parts["pruned"].item() == pytest.approx(full.loss.item(), rel=1e-5)
    assert pruned.num_frames == full.num_frames == 24
    assert pruned.loss.item() == pytest.approx((0.5 * pruned.parts["simple"] + pruned.parts["pruned"]).item())
    # the same nodes, so the same KL against some other model
    other = make_model().eval()
    torch.nn.init.normal_(other.joiner.output.weight)
    divergences = [kl(a, b).item() for a, b in ((pruned, run(other, prune_range=9)), (full, run(other, loss="full")))]
    assert divergences[0] == pytest.approx(divergences[1], rel=1e-4) and divergences[0] > 0


@pytest.mark.k2
def test_a_narrow_range_costs_probability() -> None:
    model = make_model().eval()
    losses = [run(model, prune_range=r).parts["pruned"].item() for r in (2, 3, 6)]
    assert losses[0] > losses[1] > losses[2]


@pytest.mark.parametrize(
    "kind", [pytest.param("pruned", marks=pytest.mark.k2), pytest.param("full", marks=needs_torchaudio)]
)
@pytest.mark.parametrize("decoder_kind", ["stateless", "lstm"])
def test_a_batch_is_the_sum_of_its_utterances(kind: str, decoder_kind: str) -> None:
    model = make_model(ctc_head=True, decoder_kind=decoder_kind).eval()
    criterion = RnntCriterion(RnntConfig(loss=kind, prune_range=3))
    together = run(model, loss=kind, prune_range=3)
    alone = [
        criterion(model, Batch(FEATURES[i : i + 1, : LENS[i]], LENS[i : i + 1], [""], [""], TARGETS[i : i + 1]), 5000)
        for i in range(2)
    ]
    assert together.loss.item() == pytest.approx(sum(out.loss.item() for out in alone), rel=1e-4)
    assert together.num_frames == sum(out.num_frames for out in alone)
    assert {"ctc"} <= set(together.parts)
    for part, value in together.parts.items():
        assert value.item() == pytest.approx(sum(out.parts[part].item() for out in alone), rel=1e-4)


@pytest.mark.k2
def test_equal_branches_have_no_divergence_and_shared_ranges_are_used() -> None:
    model = make_model(ctc_head=True).eval()
    teacher = run(model, prune_range=2)
    assert list(teacher.terms) == ["lattice", "ctc"] and teacher.shared.shape == (2, 14, 2)
    again = run(model, prune_range=2, shared=teacher.shared)
    assert kl(teacher, again) == 0
    moved = teacher.shared.clone()
    moved[:, :7] = moved[:, :1]
    other = run(model, prune_range=2, shared=moved)
    assert torch.equal(other.shared, moved)
    assert other.parts["simple"] == teacher.parts["simple"], "every branch has its own simple loss"
    assert not teacher.shared.requires_grad


def test_weights_of_the_nodes() -> None:
    ranges = torch.tensor([[[0, 1, 2], [1, 2, 3], [2, 3, 4]], [[0, 1, 2], [0, 1, 2], [0, 1, 2]]])
    weights = node_weights(ranges, torch.tensor([3, 2]), torch.tensor([3, 1]))
    third = 1 / 3
    expected = [[[third] * 3, [third] * 3, [0.5, 0.5, 0]], [[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 0]]]
    torch.testing.assert_close(weights, torch.tensor(expected))


def brute_force_occupancy(log_probs: torch.Tensor, symbols: list[int]) -> torch.Tensor:
    """(T, S + 1): share of all paths' probability that goes through each node."""
    frames, nodes, _ = log_probs.shape
    occupancy, total = torch.zeros(frames, nodes, dtype=torch.float64), 0.0
    for order in set(itertools.permutations([0] * (frames - 1) + [1] * (nodes - 1))):
        t = u = 0
        visited, score = [], 0.0
        for step in [*order, 0]:
            visited.append((t, u))
            score += log_probs[t, u, symbols[u] if step else 0].item()
            t, u = (t, u + 1) if step else (t + 1, u)
        for node in visited:
            occupancy[node] += math.exp(score)
        total += math.exp(score)
    return occupancy / total


def lattice() -> tuple[torch.Tensor, ...]:
    """Logits (2, 4, 3, 6) of two utterances of 4 and 3 frames, 2 symbols and 1; and their occupancies."""
    logits = 2 * torch.randn(2, 4, 3, 6, generator=torch.Generator().manual_seed(1))
    lens, symbols, symbol_lens = torch.tensor([4, 3]), torch.tensor([[2, 4], [1, 0]]), torch.tensor([2, 1])
    expected = torch.zeros(2, 4, 3, dtype=torch.float64)
    expected[0] = brute_force_occupancy(logits[0].double().log_softmax(-1), [2, 4])
    expected[1, :3, :2] = brute_force_occupancy(logits[1, :3, :2].double().log_softmax(-1), [1])
    return logits, lens, symbols, symbol_lens, expected


@needs_torchaudio
def test_occupancy_of_the_whole_lattice() -> None:
    logits, lens, symbols, symbol_lens, expected = lattice()
    found = full_occupancy(logits, symbols, lens, symbol_lens)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.k2
def test_occupancy_of_the_pruned_lattice() -> None:
    logits, lens, symbols, symbol_lens, expected = lattice()
    boundary = torch.zeros(2, 4, dtype=torch.int64)
    boundary[:, 2], boundary[:, 3] = symbol_lens, lens
    ranges = torch.arange(3).expand(2, 4, 3).contiguous()  # nothing is pruned
    found = pruned_occupancy(logits, symbols, ranges, boundary)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-4)
    # every frame of an utterance has one blank and the symbols said there
    assert found.sum().item() == pytest.approx(4 + 2 + 3 + 1, rel=1e-5)
    narrow = torch.tensor([[0, 1], [0, 1], [1, 2], [1, 2]]).expand(2, 4, 2).contiguous()
    narrow[1] = torch.tensor([[0, 1]] * 4)
    inner = logits.gather(2, narrow[..., None].expand(-1, -1, -1, 6))
    found = pruned_occupancy(inner, symbols, narrow, boundary)
    assert found.shape == (2, 4, 2) and found.sum().item() == pytest.approx(10, rel=1e-5)


@pytest.mark.k2
def test_weights_of_the_lattice_are_a_choice() -> None:
    model, other = make_model().eval(), make_model().eval()
    torch.nn.init.normal_(other.joiner.output.weight)
    values = {}
    for name in ("occupancy", "uniform"):
        teacher = run(model, prune_range=4, lattice_weights=name)
        values[name] = kl(teacher, run(other, prune_range=4, lattice_weights=name, shared=teacher.shared)).item()
    assert values["occupancy"] > 0 and values["occupancy"] != pytest.approx(values["uniform"], rel=1e-3)


def test_targets_are_padded() -> None:
    symbols, lens = pad_targets(TARGETS, torch.device("cpu"))
    assert symbols.tolist() == [[1, 2, 2, 3, 5], [6, 1, 0, 0, 0]] and lens.tolist() == [5, 2]


def test_the_warm_up() -> None:
    config = RnntConfig(warm_step=100)
    assert config.scales(0) == (1.0, 0.1) and config.scales(100) == config.scales(900) == (0.5, 1.0)
    assert config.scales(50) == pytest.approx((0.75, 0.55))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"loss": "half"}, "loss .half. is unknown"),
        ({"prune_range": 1}, "prune_range must be at least 2"),
        ({"warm_step": 0}, "warm_step"),
    ],
)
def test_refusals(config: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        RnntConfig(**config)


@pytest.mark.parametrize(
    "kind", [pytest.param("pruned", marks=pytest.mark.k2), pytest.param("full", marks=needs_torchaudio)]
)
def test_co_training_equals_the_formula_in_one_graph(kind: str) -> None:
    """The sequential branches accumulate what one backward through the whole formula gives."""
    quant = QuantConfig.preset("lossless16", precisions=(2, 1))
    models = []
    for _ in range(2):
        models.append(make_model(ctc_head=True).train())
        quantize_model(models[-1], quant)
    co_training = CoTraining(CoTrainingConfig(lambda1=0.3, lambda2=0.7), 3, quant.layer_prefix, seed=5)
    criterion = RnntCriterion(RnntConfig(loss=kind, prune_range=3, warm_step=10))

    frames = 24
    trainer = SimpleNamespace(
        model=models[0],
        co_training=co_training,
        criterion=criterion,
        scaler=make_scaler(enabled=False),
        device=torch.device("cpu"),
        config=SimpleNamespace(amp="float32"),
        teacher=None,
        drawn=None,
    )
    metrics = run_branches(trainer, BATCH, 4, frames)
    outs, shared = [], None
    for branch in co_training.branches(4):
        with use_precision(models[1], branch.allocation):
            outs.append(criterion(models[1], BATCH, 4, shared))
        shared = outs[0].shared
    total = outs[0].loss / frames
    for out in outs[1:]:
        total = total + 0.3 * out.loss / frames + 0.7 * kl(outs[0], out) / frames
    total.backward()
    assert metrics["loss"] == pytest.approx(total.item(), rel=1e-5)
    assert {"loss_2", "loss_sp", "kl_1", "kl_sp", "ctc_1"} <= set(metrics)
    for (name, p), q in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-5, msg=name)
