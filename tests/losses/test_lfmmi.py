"""LF-MMI against all sequences of frames and units added up, its bounds, its warm-up and what it refuses."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from lowbit_k2.core.topology import CHAIN, CTC, num_classes
from lowbit_k2.errors import UserError
from lowbit_k2.graphs.ngram import BackoffModel, write_arpa
from lowbit_k2.graphs.unit_graphs import unit_ngram, unit_sequences
from lowbit_k2.losses.ctc import ctc_loss
from lowbit_k2.losses.forward_backward import GraphBatch, log_total
from lowbit_k2.losses.lfmmi import UNIT_LMS, LfMmiConfig, LfMmiCriterion
from lowbit_k2.losses.objectives import encoder_of, make_criterion
from lowbit_k2.models.ctc import Heads

WORDS = {"go": [[1, 2]], "no": [[3], [3, 1]], "ah": [[1]]}
TEXTS = ["go no", "no no go", "ah", "go ah no", "no"]
PIECES = ["<blk>", "G", "OW", "N"]


class Units:
    """Three units and three words."""

    def pronunciations(self, word: str) -> list[list[int]]:
        return WORDS.get(word, [])

    def pieces(self) -> list[str]:
        return PIECES

    def encode(self, text: str) -> list[int]:
        return [unit for word in text.split() for unit in WORDS[word][0]]


class Frames(nn.Module):
    """A model whose outputs are its parameters."""

    def __init__(self, shape: tuple[int, int], seed: int = 0, topology: str = CTC, xent: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        size = (*shape, num_classes(topology, len(PIECES)))
        self.logits = nn.Parameter(2 * torch.randn(*size, generator=generator))
        self.xent = nn.Parameter(torch.randn(*size, generator=generator)) if xent else None

    def heads(self, inputs: None, lens: Tensor) -> Heads:
        return Heads(self.logits, lens, self.xent)


def bigram(topology: str = CTC) -> BackoffModel:
    return unit_ngram([[WORDS[word] for word in text.split()] for text in TEXTS], 4, 2, topology)


def criterion(**config) -> LfMmiCriterion:
    made = LfMmiCriterion(LfMmiConfig(**{"leak": 0.0, "warm_step": 0, **config}))
    made.begin(bigram(made.config.topology), Units())
    return made


def batch(made: LfMmiCriterion, texts: list[str], lens: list[int]) -> SimpleNamespace:
    return SimpleNamespace(inputs=None, input_lens=torch.tensor(lens), targets=[made.encode(text) for text in texts])


def collapse(frames: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(label for label, _ in itertools.groupby(frames) if label)


def added_up(log_probs: Tensor, weights: dict[tuple[int, ...], float]) -> float:
    """log of the summed weight of all frame sequences (T, V) whose units have one."""
    total = 0.0
    for frames in itertools.product(range(log_probs.size(1)), repeat=len(log_probs)):
        if collapse(frames) in weights:
            score = sum(float(log_probs[t, label]) for t, label in enumerate(frames))
            total += math.exp(score + weights[collapse(frames)])
    return math.log(total)


def test_the_loss_is_that_of_all_paths() -> None:
    made, model = criterion(), Frames((2, 5))
    out = made(model, batch(made, ["go no", "ah"], [5, 4]))
    language = dict(unit_sequences(made.language, 5))
    log_probs = model.logits.detach().double().log_softmax(-1)
    expected = 0.0
    for row, length, spoken in ((0, 5, [(1, 2, 3), (1, 2, 3, 1)]), (1, 4, [(1,)])):
        numerator = added_up(log_probs[row, :length], {units: language[units] for units in spoken})
        expected += added_up(log_probs[row, :length], language) - numerator
    assert out.loss.item() == pytest.approx(expected, rel=1e-5)
    assert out.num_frames == 9 and list(out.terms) == ["ctc"]
    assert out.loss.item() == pytest.approx((out.parts["denominator"] + out.parts["numerator"]).item(), rel=1e-5)


@pytest.mark.parametrize("leak", [0.0, 0.1])
def test_it_is_never_negative_and_its_gradient_sums_to_nothing(leak: float) -> None:
    made = criterion(leak=leak)
    for seed in range(5):
        model = Frames((3, 9), seed)
        out = made(model, batch(made, ["go no", "no no go", "go ah no"], [9, 8, 9]))
        assert out.loss.item() > 0
        (gradient,) = torch.autograd.grad(out.loss, model.logits)
        torch.testing.assert_close(gradient.sum(-1), torch.zeros(3, 9), atol=1e-5, rtol=0)
        assert not gradient[1, 8:].any()
    assert (
        criterion(leak=0.1)(model, batch(made, ["go", "go", "go"], [9, 9, 9])).loss
        > criterion()(model, batch(made, ["go", "go", "go"], [9, 9, 9])).loss
    )


def test_it_can_be_learnt() -> None:
    made, model = criterion(), Frames((2, 12))  # a leak would leave something to the denominator
    optimizer = torch.optim.Adam(model.parameters(), lr=0.3)
    given, losses = batch(made, ["no no go", "go ah no"], [12, 10]), []
    for _ in range(60):
        optimizer.zero_grad()
        loss = made(model, given).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
    best = model.logits.argmax(-1)
    assert collapse(tuple(best[0].tolist())) in [(3, 3, 1, 2), (3, 1, 3, 1, 2), (3, 3, 1, 1, 2), (3, 1, 3, 1, 1, 2)]


def test_the_warm_up_begins_with_ctc() -> None:
    config = LfMmiConfig(warm_step=4)
    assert [config.denominator_weight(n) for n in (1, 2, 4, 9)] == [0.25, 0.5, 1.0, 1.0]
    assert LfMmiConfig(warm_step=0).denominator_weight(1) == 1.0
    made, model = criterion(), Frames((1, 6))
    numerator = made(model, batch(made, ["ah go"], [6])).parts["numerator"].item()
    language = dict(unit_sequences(made.language, 3))
    ctc = ctc_loss(model.logits.log_softmax(-1), torch.tensor([6]), [[1, 1, 2]]).item()
    assert numerator == pytest.approx(ctc - language[1, 1, 2], rel=1e-5), "one pronunciation: CTC and the n-gram's part"


def test_what_cannot_be_said_in_the_time_is_counted_and_does_no_harm() -> None:
    made, model = criterion(), Frames((3, 7))
    out = made(model, batch(made, ["go no", "go go go", "ah"], [7, 3, 7]))
    alone = made(model, batch(made, ["go no", "ah", "ah"], [7, 7, 7])).loss
    assert out.parts["impossible"] == 1 and math.isfinite(out.loss.item())
    (gradient,) = torch.autograd.grad(out.loss, model.logits)
    assert bool(torch.isfinite(gradient).all()) and not gradient[1].any()
    assert out.loss.item() < alone.item()
    nothing = made(model, batch(made, ["go go go go"] * 3, [2, 2, 2]))
    assert nothing.parts["impossible"] == 3 and nothing.loss.item() == 0.0


def units_of_chain(frames: tuple[int, ...]) -> tuple[int, ...] | None:
    """Units of a sequence of classes in which each loop follows its entry or itself; None for any other."""
    units: list[int] = []
    for label in frames:
        if label % 2 == 0:
            units.append(label // 2)
        elif not units or units[-1] != label // 2:
            return None
    return tuple(units)


def test_the_chain_topology_adds_up_all_paths_with_optional_silence() -> None:
    made, model = criterion(topology=CHAIN), Frames((1, 4), topology=CHAIN)
    loss = made(model, batch(made, ["ah"], [4])).loss.item()
    language = dict(unit_sequences(made.language, 4))
    spoken = {(*before, 1, *behind) for before in ((), (0,)) for behind in ((), (0,))}
    log_probs = model.logits.detach().double().log_softmax(-1)[0]
    totals = {"all": 0.0, "spoken": 0.0}
    for frames in itertools.product(range(8), repeat=4):
        units = units_of_chain(frames)
        if units in language:
            weight = math.exp(sum(float(log_probs[t, c]) for t, c in enumerate(frames)) + language[units])
            totals["all"] += weight
            totals["spoken"] += weight if units in spoken else 0.0
    assert loss == pytest.approx(math.log(totals["all"]) - math.log(totals["spoken"]), rel=1e-5)


def test_the_second_head_learns_the_posteriors_of_the_numerator() -> None:
    plain, with_xent = criterion(), criterion(xent_regularize=0.1)
    model = Frames((2, 6), xent=True)
    given = batch(plain, ["go no", "go go go go"], [6, 3])  # the second cannot be said
    out = with_xent(model, given)
    log_probs = model.logits.detach().log_softmax(-1).requires_grad_()
    numerator = log_total(log_probs, torch.tensor([6, 3]), GraphBatch.of(given.targets))[0]
    (posteriors,) = torch.autograd.grad(numerator, log_probs)
    expected = -(posteriors * model.xent.detach().log_softmax(-1)).sum()
    torch.testing.assert_close(out.parts["xent"], expected)
    without = plain(model, given).loss  # the head is there, its weight is 0
    torch.testing.assert_close(out.loss, without + 0.1 * expected)
    gradients = torch.autograd.grad(out.loss, [model.logits, model.xent])
    torch.testing.assert_close(gradients[0], torch.autograd.grad(plain(model, given).loss, model.logits)[0])
    softmax = model.xent.detach().softmax(-1)
    torch.testing.assert_close(gradients[1][0], 0.1 * (softmax[0] - posteriors[0]), rtol=1e-4, atol=1e-6)
    assert not gradients[1][1].any(), "nothing is learnt from what cannot be said"


def test_squared_outputs_are_those_of_valid_frames_before_they_are_normalised() -> None:
    plain, made, model = criterion(), criterion(output_l2=0.01), Frames((2, 6))
    given = batch(plain, ["ah", "ah"], [6, 2])
    expected = 0.005 * (model.logits[0].square().sum() + model.logits[1, :2].square().sum())
    torch.testing.assert_close(
        made(model, given).loss - plain(model, given).loss, expected.detach(), rtol=1e-4, atol=1e-5
    )


def test_the_graphs_of_a_batch_are_packed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made, model, packed = criterion(), Frames((1, 6)), []
    given = batch(made, ["ah go"], [6])
    pack = GraphBatch.of
    monkeypatch.setattr(GraphBatch, "of", lambda graphs: packed.append(graphs) or pack(graphs))
    losses = {made(model, given).loss.item() for _ in range(3)}
    assert len(losses) == len(packed) == 1
    other = batch(made, ["no"], [6])
    assert made(model, other).loss.item() not in losses and len(packed) == 2


def test_the_ngram_is_a_file_of_the_lang_directory(tmp_path: Path) -> None:
    model = bigram()
    named = type(model)(
        tuple(
            {tuple(PIECES[int(u)] if u.isdigit() else u for u in n): p for n, p in t.items()}
            for t in model.probabilities
        ),
        {tuple(PIECES[int(u)] if u.isdigit() else u for u in n): p for n, p in model.backoffs.items()},
        tuple(PIECES[int(u)] if u.isdigit() else u for u in model.vocabulary),
    )
    write_arpa(named, tmp_path / UNIT_LMS[CTC])
    config = LfMmiConfig(leak=0.0, warm_step=0)
    made, frames = make_criterion("lfmmi", config, Units(), tmp_path), Frames((1, 8))
    first, second = (c(frames, batch(c, ["go no"], [8])).loss.item() for c in (made, criterion()))
    assert first == pytest.approx(second, rel=1e-4)
    assert encoder_of(made, Units())("go").labels and encoder_of(make_criterion("ctc"), Units())("go no") == [1, 2, 3]
    with pytest.raises(UserError, match="a transcript has no words, or one without pronunciation"):
        made.encode("go away")
    chain = LfMmiConfig(topology=CHAIN)
    with pytest.raises(UserError, match=r"units_2gram_chain.arpa does not exist: .* --topology chain"):
        make_criterion("lfmmi", chain, Units(), tmp_path)
    with pytest.raises(UserError, match="is not for the topology chain: make it again, with make_lm --topology"):
        make_criterion("lfmmi", LfMmiConfig(topology=CHAIN, unit_lm=tmp_path / UNIT_LMS[CTC]), Units(), tmp_path)
    with pytest.raises(UserError, match=r"units_2gram.arpa does not exist: make it with .*make_lm --units"):
        make_criterion("lfmmi", config, Units(), tmp_path / "nowhere")
    (tmp_path / UNIT_LMS[CTC]).write_text((tmp_path / UNIT_LMS[CTC]).read_text().replace("OW", "AW"))
    with pytest.raises(UserError, match="has AW, which is none of the model's units"):
        make_criterion("lfmmi", config, Units(), tmp_path)
