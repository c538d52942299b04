"""LF-MMI against all sequences of frames and units added up, its bounds, its warm-up and what it refuses."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from lowbit_k2.errors import UserError
from lowbit_k2.graphs.ngram import write_arpa
from lowbit_k2.graphs.unit_graphs import unit_ngram, unit_sequences
from lowbit_k2.losses.ctc import ctc_loss
from lowbit_k2.losses.lfmmi import UNIT_LM, LfMmiConfig, LfMmiCriterion
from lowbit_k2.losses.objectives import encoder_of, make_criterion

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
    """A model whose output is its parameter."""

    def __init__(self, shape: tuple[int, int], seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.logits = nn.Parameter(2 * torch.randn(*shape, len(PIECES), generator=generator))

    def forward(self, inputs: Tensor, lens: Tensor) -> tuple[Tensor, Tensor]:
        return self.logits.log_softmax(-1), lens


def bigram() -> object:
    return unit_ngram([[WORDS[word] for word in text.split()] for text in TEXTS], 4, 2, "ctc")


def criterion(**config) -> LfMmiCriterion:
    made = LfMmiCriterion(LfMmiConfig(**{"leak": 0.0, "warm_step": 0, **config}))
    made.begin(bigram(), Units())
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
    write_arpa(named, tmp_path / UNIT_LM)
    config = LfMmiConfig(leak=0.0, warm_step=0)
    made, frames = make_criterion("lfmmi", config, Units(), tmp_path), Frames((1, 8))
    first, second = (c(frames, batch(c, ["go no"], [8])).loss.item() for c in (made, criterion()))
    assert first == pytest.approx(second, rel=1e-4)
    assert encoder_of(made, Units())("go").labels and encoder_of(make_criterion("ctc"), Units())("go no") == [1, 2, 3]
    with pytest.raises(UserError, match="a transcript has no words, or one without pronunciation"):
        made.encode("go away")
    with pytest.raises(UserError, match=r"units_2gram.arpa does not exist: make it with .*make_lm --units"):
        make_criterion("lfmmi", config, Units(), tmp_path / "nowhere")
    (tmp_path / UNIT_LM).write_text((tmp_path / UNIT_LM).read_text().replace("OW", "AW"))
    with pytest.raises(UserError, match="has AW, which is none of the model's units"):
        make_criterion("lfmmi", config, Units(), tmp_path)
