"""The training loop: it learns, it resumes bit for bit, it leaves evidence when it fails."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lowbit_k2.errors import UserError
from lowbit_k2.train import trainer as trainer_module
from lowbit_k2.train.checkpoint import load_checkpoint, save_checkpoint
from lowbit_k2.train.epochs import train_epoch
from lowbit_k2.train.trainer import LoopConfig, newest_checkpoint
from lowbit_k2.train.update import update
from tests.train.toy import run_epochs, toy_batches, toy_trainer


def same_state(a, b) -> None:
    for section in ("model", "optimizer", "model_avg"):
        first, second = getattr(a, section), getattr(b, section)
        assert first.keys() == second.keys() and first
        for name in first:
            assert torch.equal(first[name], second[name]), (section, name)


@pytest.mark.parametrize("precisions", [("32",), ("1",), ("2", "1", "sp")])
def test_two_epochs_equal_one_epoch_and_one_resumed(tmp_path, precisions):
    run_epochs(toy_trainer(tmp_path / "a", precisions), 2)
    run_epochs(toy_trainer(tmp_path / "b", precisions), 1)
    torch.manual_seed(123)  # whatever the generators held
    resumed = toy_trainer(tmp_path / "b", precisions)
    torch.rand(7)
    resumed.resume(tmp_path / "b" / "epoch-1.pt")
    run_epochs(resumed, 2)
    whole, parts = (load_checkpoint(tmp_path / x / "epoch-2.pt") for x in "ab")
    same_state(whole, parts)
    assert whole.meta["progress"]["update"] == parts.meta["progress"]["update"] == 10


def test_resume_inside_an_epoch(tmp_path):
    loop = LoopConfig(num_epochs=2, average_period=1, save_every_n=3, keep_last_k=2, tensorboard=False)
    run_epochs(toy_trainer(tmp_path, loop=loop), 2)
    # after 10 updates checkpoints 3, 6, 9 were written and the oldest was removed
    assert sorted(p.name for p in tmp_path.glob("checkpoint-*.pt")) == ["checkpoint-6.pt", "checkpoint-9.pt"]
    whole = load_checkpoint(tmp_path / "epoch-2.pt")
    resumed = toy_trainer(tmp_path, loop=loop)
    resumed.resume(tmp_path / "checkpoint-6.pt")
    assert (resumed.progress.epoch, resumed.progress.batch) == (2, 1)
    run_epochs(resumed, 2)
    same_state(whole, load_checkpoint(tmp_path / "epoch-2.pt"))
    assert newest_checkpoint(tmp_path).name == "epoch-2.pt"


def test_a_checkpoint_comes_within_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the clock as well as by updates: here a batch takes four minutes."""
    now = [0.0]
    monkeypatch.setattr(trainer_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    loop = LoopConfig(num_epochs=1, save_every_n=1000, save_every_minutes=10.0, keep_last_k=9, tensorboard=False)
    trainer = toy_trainer(tmp_path, loop=loop)

    def slow_batches():
        for batch in toy_batches(1):
            now[0] += 240.0
            yield batch

    train_epoch(trainer, slow_batches())
    assert trainer.progress.update == 5
    assert [path.name for path in tmp_path.glob("checkpoint-*.pt")] == ["checkpoint-3.pt"]


def test_training_lowers_the_loss(tmp_path):
    trainer = toy_trainer(tmp_path, augment=None)
    first = train_epoch(trainer, toy_batches(1))["loss"]
    for _ in range(15):
        last = train_epoch(trainer, toy_batches(1))["loss"]
    assert last < 0.7 * first


def test_accumulated_batches_equal_one_large_batch(tmp_path):
    """Two halves under accum_grad 2 give the gradients of their union (dropout and BatchNorm aside)."""
    gradients = []
    for accum in (1, 2):
        trainer = toy_trainer(
            tmp_path, ("32",), augment=None, loop=LoopConfig(accum_grad=accum, average_period=1, tensorboard=False)
        )
        trainer.model.eval()  # no dropout, fixed statistics
        whole = toy_batches(1, count=1)[0]
        halves = [
            replace(
                whole,
                inputs=whole.inputs[i : i + 1],
                input_lens=whole.input_lens[i : i + 1],
                texts=whole.texts[i : i + 1],
                ids=whole.ids[i : i + 1],
            )
            for i in range(2)
        ]
        update(trainer, [whole] if accum == 1 else halves)
        gradients.append({n: p.grad for n, p in trainer.model.named_parameters()})
    for name in gradients[0]:
        torch.testing.assert_close(gradients[0][name], gradients[1][name], rtol=1e-4, atol=1e-6, msg=name)


def test_failure_leaves_the_model_and_the_batch(tmp_path):
    trainer = toy_trainer(tmp_path)
    batches = toy_batches(1)
    batches[1].inputs[0, 0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="update 2"):
        train_epoch(trainer, batches)
    assert load_checkpoint(tmp_path / "bad-model.pt", finite=False).model
    bad = torch.load(tmp_path / "bad-batch.pt", weights_only=True)
    assert bad["ids"].split() == ["1a", "1b"] and torch.isnan(bad["features"][0][0, 0, 0])


def test_resume_from_another_configuration_is_refused(tmp_path):
    run_epochs(toy_trainer(tmp_path), 1)
    with pytest.raises(UserError, match="another quant configuration"):
        toy_trainer(tmp_path, quant="paper").resume(tmp_path / "epoch-1.pt")
    with pytest.raises(UserError, match="does not exist"):
        toy_trainer(tmp_path).resume(tmp_path / "epoch-7.pt")


def test_curves_and_best_model_are_written(tmp_path):
    trainer = toy_trainer(tmp_path, loop=LoopConfig(log_interval=2, average_period=2))
    run_epochs(trainer, 1)
    trainer.board.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    tags = set(events.Tags()["scalars"])
    assert {"train/current_loss_1", "train/tot_loss_sp", "train/current_kl_1", "train/valid_loss_2"} <= tags
    assert (tmp_path / "best-valid-loss.pt").is_file()


def test_fp16_on_a_cpu_is_refused():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UserError, match="use bfloat16 on a CPU"):
        LoopConfig(amp="float16")


def test_bfloat16_training_runs(tmp_path):
    """Its losses are those of float32 to bfloat16's two or three digits."""
    losses = []
    for amp in ("float32", "bfloat16"):
        trainer = toy_trainer(tmp_path, loop=LoopConfig(amp=amp, tensorboard=False, average_period=2))
        losses.append(train_epoch(trainer, toy_batches(1)))
    assert losses[0]["loss"] != losses[1]["loss"] and losses[1]["loss"] == pytest.approx(losses[0]["loss"], rel=0.02)


def test_runs_of_two_seeds_draw_different_masks(tmp_path):
    [batch] = toy_batches(1, count=1)
    masked = [
        toy_trainer(tmp_path, loop=LoopConfig(seed=seed, tensorboard=False)).prepare(batch, 7) for seed in (1, 1, 2)
    ]
    assert torch.equal(masked[0].inputs, masked[1].inputs)
    assert not torch.equal(masked[0].inputs, masked[2].inputs)


def test_overflow_of_float16_gradients_skips_the_update(tmp_path):
    if not hasattr(torch.amp, "GradScaler"):
        pytest.skip("torch 1.13 has gradient scalers for GPUs only")
    trainer = toy_trainer(tmp_path)
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    head = trainer.model.ctc_head.parametrizations.bias.original
    overflow = head.register_hook(lambda grad: torch.full_like(grad, float("inf")))
    before = head.detach().clone()
    update(trainer, toy_batches(1, count=1))
    assert trainer.scaler.get_scale() == 512.0 and torch.equal(head, before)
    overflow.remove()
    update(trainer, toy_batches(1, count=1))
    assert trainer.scaler.get_scale() == 512.0 and not torch.equal(head, before)
    trainer.save("scaled.pt")
    again = toy_trainer(tmp_path)
    again.scaler = torch.amp.GradScaler("cpu")
    again.resume(tmp_path / "scaled.pt")
    assert again.scaler.get_scale() == 512.0


def test_a_run_that_an_older_version_began_goes_on(tmp_path):
    """Its quantization has neither rules by class nor roles for other models, its co-training fewer fields."""
    run_epochs(toy_trainer(tmp_path / "whole"), 2)
    trainer = toy_trainer(tmp_path / "parts")
    run_epochs(trainer, 1)
    checkpoint = load_checkpoint(tmp_path / "parts/epoch-1.pt")
    quant = checkpoint.meta["quant"]
    quant["rules"] = [rule for rule in quant["rules"] if not rule[0].startswith("class:")]
    newer = ("linear", "feed_forward", "lstm")
    quant["schemes"] = {role: scheme for role, scheme in quant["schemes"].items() if role not in newer}
    quant["switched_roles"] = ["encoder_linear", "attention"]
    del checkpoint.meta["co_training"]["term_weights"]
    save_checkpoint(tmp_path / "parts/epoch-1.pt", checkpoint)
    resumed = toy_trainer(tmp_path / "parts")
    resumed.resume(tmp_path / "parts/epoch-1.pt")
    run_epochs(resumed, 2)
    same_state(*(load_checkpoint(tmp_path / name / "epoch-2.pt") for name in ("whole", "parts")))
    quant["schemes"]["attention"]["granularity"] = "channel"
    save_checkpoint(tmp_path / "parts/epoch-1.pt", checkpoint)
    with pytest.raises(UserError, match="quant.schemes.attention.granularity channel -> tensor"):
        toy_trainer(tmp_path / "parts").resume(tmp_path / "parts/epoch-1.pt")
