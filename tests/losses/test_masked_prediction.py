"""Masked prediction: what is hidden, that it is hidden, and the loss written out in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lowbit_k2.core.hubert import MaskedHubertConfig
from lowbit_k2.data.batch import Batch
from lowbit_k2.losses.masked_prediction import MaskedPredictionConfig, MaskedPredictionCriterion, draw_spans
from lowbit_k2.models.masked_hubert import MaskedHubert
from lowbit_k2.quant import generator_seed
from tests.models.hubert_samples import BASE, LENS, waveforms

CONFIG = MaskedHubertConfig(**vars(BASE), vocab_size=7, code_dim=5)


def spans(lens: list[int], share: float = 0.8, length: int = 10, seed: int = 0) -> Tensor:
    return draw_spans(torch.tensor(lens), share, length, torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def model() -> MaskedHubert:
    torch.manual_seed(0)
    return MaskedHubert(CONFIG).eval()


def test_spans_are_whole_and_as_many_as_asked_for() -> None:
    for share, length in ((0.8, 10), (0.3, 4), (1.0, 1)):
        drawn = spans([200] * 500 + [120], share, length)
        assert not drawn[-1, 120:].any()
        # each frame is free where none of the starts lies in the `length` places before it
        free = 1 - drawn[:-1, 50:150].float().mean().item()
        places, number = 200 - length + 1, share * 200 / length
        expected = 1.0
        for i in range(length):
            expected *= 1 - number / (places - i)
        assert free == pytest.approx(expected, abs=0.03), (share, length)
        for row in drawn[:20].tolist():
            runs = "".join("x" if masked else " " for masked in row).split()
            assert runs and all(len(run) >= length for run in runs)


def test_short_utterances_have_a_span_and_keep_a_frame() -> None:
    for frames in range(2, 25):
        [row] = spans([frames], seed=frames)
        assert row.sum() > 0 and (frames < 20 or not row.all())
    assert spans([1]).all()
    assert torch.equal(spans([90, 30], seed=3), spans([90, 30], seed=3))
    assert not torch.equal(spans([90, 30], seed=3), spans([90, 30], seed=4))


@torch.no_grad()
def test_what_is_masked_is_not_seen(model: MaskedHubert) -> None:
    x, lens = waveforms(), CONFIG.output_lens(LENS)
    masked = spans(lens.tolist(), length=3)
    before = model.predict(x, LENS, masked).out
    hook = model.projection.register_forward_hook(lambda module, inputs, out: out + masked[..., None] * 9.0)
    torch.testing.assert_close(model.predict(x, LENS, masked).out, before)
    hook.remove()
    hook = model.projection.register_forward_hook(lambda module, inputs, out: out + ~masked[..., None] * 9.0)
    assert not torch.allclose(model.predict(x, LENS, masked).out, before, atol=1e-2)
    hook.remove()


@torch.no_grad()
def test_the_loss_written_out(model: MaskedHubert) -> None:
    config = MaskedPredictionConfig(mask_length=3, feature_penalty=2.0, unmasked_weight=0.5)
    lens = CONFIG.output_lens(LENS)
    targets = torch.randint(7, (3, int(lens.max())))
    found = MaskedPredictionCriterion(config)(model, Batch(waveforms(), LENS, [""] * 3, ["a", "b", "c"], targets), 5)
    masked = draw_spans(lens, 0.8, 3, torch.Generator().manual_seed(generator_seed("masked spans", 0, 5)))

    _, valid, features = model.extract(waveforms(), LENS)
    x = model.projection(features)
    x[masked] = model.head.mask
    out = model.contextual(x, lens, valid).out.double()
    state = {name: value.double() for name, value in model.head.state_dict().items()}
    nll, right, number = {True: 0.0, False: 0.0}, 0, {True: 0, False: 0}
    for n, t in valid.nonzero().tolist():
        projected = state["projection.weight"] @ out[n, t] + state["projection.bias"]
        cosines = [projected @ e / projected.norm() / e.norm() for e in state["codewords.weight"]]
        p, hidden = torch.stack([(c / 0.1).exp() for c in cosines]), bool(masked[n, t])
        nll[hidden] -= (p[targets[n, t]] / p.sum()).log().item()
        number[hidden] += 1
        right += int(hidden and p.argmax() == targets[n, t])
    frames = int(lens.sum())
    squares = sum(features[n, :t].double().square().mean(-1).sum().item() for n, t in enumerate(lens.tolist()))
    means = {hidden: frames * nll[hidden] / number[hidden] for hidden in nll}
    assert found.num_frames == frames
    assert found.parts["nll"].item() == pytest.approx(means[True], rel=1e-5)
    assert found.parts["unmasked"].item() == pytest.approx(means[False], rel=1e-5)
    assert found.parts["accuracy"].item() == pytest.approx(right * frames / number[True], rel=1e-5)
    assert found.loss.item() == pytest.approx(means[True] + 0.5 * means[False] + 2.0 * squares, rel=1e-5)
    assert found.terms["classes"].weights.sum().item() == pytest.approx(frames, rel=1e-5)


def test_every_part_gets_a_gradient(model: MaskedHubert) -> None:
    targets = torch.randint(7, (3, CONFIG.output_lens(9000)))
    batch = Batch(waveforms(), LENS, [""] * 3, ["a", "b", "c"], targets)
    MaskedPredictionCriterion(MaskedPredictionConfig(mask_length=3))(model, batch, 1).loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    model.zero_grad()
