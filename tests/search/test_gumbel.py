"""The Gumbel-softmax and its temperature; the penalty; nothing but the logits moves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from lowbit_k2.core.models import ModelConfig
from lowbit_k2.losses.co_training import CoTraining, CoTrainingConfig
from lowbit_k2.losses.ctc import CtcCriterion
from lowbit_k2.quant import QuantConfig, quantize_model
from lowbit_k2.search.config import SearchConfig
from lowbit_k2.search.costs import cost_table
from lowbit_k2.search.gumbel import (
    LOGITS,
    GumbelCriterion,
    add_logits,
    gumbel_noise,
    gumbel_softmax,
    hold_weights,
    temperature_at,
)
from lowbit_k2.search.supernet import Supernet
from lowbit_k2.train.epochs import train_epoch
from lowbit_k2.train.trainer import LoopConfig, Trainer
from tests.search.toy import MODELS, TDNNF, space_of, wide_model
from tests.train.toy import encode, toy_batches


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return gumbel_noise(shape, torch.Generator().manual_seed(seed))


def test_the_noise_is_gumbels() -> None:
    draws = noise(200_000)
    assert draws.dtype == torch.float32 and bool(draws.isfinite().all())
    assert float(draws.mean()) == pytest.approx(0.5772, abs=0.01)  # Euler's constant
    assert float(draws.var()) == pytest.approx(torch.pi**2 / 6, abs=0.02)
    assert torch.equal(draws, noise(200_000)) and not torch.equal(draws, noise(200_000, seed=1))


def test_limits_of_the_temperature() -> None:
    logits, draws = torch.tensor([[0.0, 1.0, -1.0], [3.0, 0.0, 0.5]]), noise(2, 3)
    cold, hot = gumbel_softmax(logits, draws, 0.001), gumbel_softmax(logits, draws, 1e6)
    assert torch.equal(cold, F.one_hot((logits + draws).argmax(dim=1), 3).float())
    torch.testing.assert_close(hot, torch.full((2, 3), 1 / 3))
    torch.testing.assert_close(gumbel_softmax(logits, draws, 0.3).sum(dim=1), torch.ones(2))


def test_candidates_are_drawn_by_their_probabilities() -> None:
    logits = torch.tensor([0.0, 1.0, -1.0])
    drawn = gumbel_softmax(logits.expand(40_000, 3), noise(40_000, 3), 0.001).mean(dim=0)
    torch.testing.assert_close(drawn, logits.softmax(dim=0), atol=0.01, rtol=0)


def test_the_schedule_falls_by_a_constant_factor() -> None:
    config = SearchConfig()
    assert [temperature_at(config, done) for done in (0.0, 1.0)] == pytest.approx([1.0, 0.03])
    steps = [temperature_at(config, i / 10) for i in range(11)]
    assert [b / a for a, b in zip(steps, steps[1:], strict=False)] == pytest.approx([0.03**0.1] * 10)
    still = SearchConfig(start_temperature=0.5, final_temperature=0.5)
    assert temperature_at(still, 0.7) == pytest.approx(0.5)


def searcher(config: ModelConfig, folder: Path, quant: QuantConfig | None = None, **settings: object) -> Trainer:
    """The second phase on a model of the toy."""
    model, space = wide_model(config), space_of(config)
    quantize_model(model, quant or QuantConfig.preset("float"))
    supernet, search = Supernet(model, space), SearchConfig(**settings)
    hold_weights(model)
    logits = add_logits(model, supernet)
    costs = cost_table(space, config, QuantConfig.preset("float"), search)
    criterion = GumbelCriterion(CtcCriterion(), supernet, logits, costs, search, seed=5)
    precision = "32" if quant is None else str(quant.switched_precisions[0])
    return Trainer(
        model=model,
        criterion=criterion,
        co_training=CoTraining(CoTrainingConfig(precisions=(precision,)), space.num_layers, "encoder.layers", seed=1),
        optimizer=torch.optim.Adam([{"name": "logits", "params": [logits], "rate_scale": 1.0}]),
        schedule=lambda update, done: 0.2,
        normalizer=lambda batch: float(config.output_lens(batch.input_lens).sum()),
        config=LoopConfig(num_epochs=4, tensorboard=False, log_interval=1),
        exp_dir=folder,
        description={},
        before_update=[criterion.anneal()],
        encode=encode,
    )


def run(trainer: Trainer, epochs: int = 4) -> dict[str, float]:
    for epoch in range(1, epochs + 1):
        means = train_epoch(trainer, toy_batches(epoch), total=5)
        trainer.progress.epoch += 1
    return means


@pytest.mark.parametrize("config", MODELS, ids=lambda c: c.encoder.kind)
@pytest.mark.parametrize("quant", [None, QuantConfig.preset("lossless16", precisions=(4,))], ids=["float", "4 bits"])
def test_nothing_but_the_logits_moves(config: ModelConfig, quant: QuantConfig | None, tmp_path: Path) -> None:
    trainer = searcher(config, tmp_path, quant)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    run(trainer, 1)
    after = trainer.model.state_dict()
    changed = [name for name, tensor in after.items() if not torch.equal(tensor, before[name])]
    assert changed == [LOGITS]


def test_the_loss_is_the_tasks_and_the_penalty(tmp_path: Path) -> None:
    trainer = searcher(TDNNF, tmp_path, eta=3.0)
    criterion = trainer.criterion
    criterion.temperature = 0.4
    batch = trainer.with_targets(toy_batches(1)[0])
    trainer.model.train()
    out = criterion(trainer.model, batch, 9)
    weights = criterion.draw(9)
    penalty = 3.0 * float((weights.detach() * criterion.costs.millions()).sum())  # per frame
    criterion.supernet.mix(weights)
    task = CtcCriterion()(trainer.model, batch)
    assert out.loss.item() == pytest.approx(task.loss.item() + penalty * task.num_frames, rel=1e-5)
    assert float(out.parts["task"]) == pytest.approx(task.loss.item()) and out.num_frames == task.num_frames
    assert torch.equal(weights, criterion.draw(9)) and not torch.equal(weights, criterion.draw(10))


def test_warm_ups_of_the_task_are_over(tmp_path: Path) -> None:
    trainer = searcher(TDNNF, tmp_path)
    seen, inner = [], CtcCriterion()

    def task(model, batch, update, shared=None):
        seen.append(update)
        return inner(model, batch)

    criterion = trainer.criterion
    criterion.criterion, criterion.updates_before = task, 700
    criterion(trainer.model.train(), trainer.with_targets(toy_batches(1)[0]), 9)
    assert seen == [709]


def test_the_log_has_temperature_cost_and_entropy(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    trainer = searcher(TDNNF, tmp_path)
    run(trainer, 1)
    lines = [line for line in caplog.messages if "update 1:" in line]
    costs = trainer.criterion.costs
    even = (costs.fixed + sum(map(sum, costs.layers)) / 3) / 1e6
    assert f"temperature=1 cost={even:.4g} entropy=1.099" in lines[0] and "penalty_32=" in lines[0]
    assert trainer.criterion.temperature == pytest.approx(0.03 ** (4 / 20))  # at the fifth update of twenty


@pytest.mark.parametrize("config", MODELS, ids=lambda c: c.encoder.kind)
def test_a_huge_price_leaves_the_smallest(config: ModelConfig, tmp_path: Path) -> None:
    trainer = searcher(config, tmp_path, eta=1e5)
    run(trainer)
    assert getattr(trainer.model, LOGITS).argmax(dim=1).tolist() == [0] * config.num_layers


@pytest.mark.parametrize("config", MODELS, ids=lambda c: c.encoder.kind)
def test_without_a_price_width_is_worth_having(config: ModelConfig, tmp_path: Path) -> None:
    """Weights that were trained at the full width, whose narrow parts know nothing of the task."""
    trainer = searcher(config, tmp_path, eta=0.0)
    supernet, model = trainer.criterion.supernet, trainer.model
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    supernet.open()
    optimizer = torch.optim.Adam([p for n, p in model.named_parameters() if n != LOGITS], lr=0.01)
    batches = [trainer.with_targets(batch) for batch in toy_batches(1)]
    for _ in range(20):
        for batch in batches:
            optimizer.zero_grad()
            CtcCriterion()(model.train(), batch).loss.backward()
            optimizer.step()
    hold_weights(model)
    model.get_parameter(LOGITS).requires_grad_(True)
    for _ in range(6):
        train_epoch(trainer, toy_batches(1), total=5)
        trainer.progress.epoch += 1
    chosen = model.get_parameter(LOGITS).argmax(dim=1).tolist()
    assert chosen != [0] * config.num_layers and sum(chosen) >= config.num_layers * 1.5
