"""A tiny model, random batches and a trainer, for the tests of the loop."""

from __future__ import annotations

import torch

from lowbit_k2.data.batch import Batch
from lowbit_k2.losses.co_training import CoTraining, CoTrainingConfig
from lowbit_k2.models import ConformerConfig, ConformerCtc
from lowbit_k2.quant import QuantConfig, quantize_model
from lowbit_k2.train.loop import LoopConfig, Trainer
from lowbit_k2.train.optim import OptimConfig, make_optimizer

CONFIG = ConformerConfig(
    num_features=20, vocab_size=6, d_model=16, num_layers=2, ffn_dim=32, conv_kernel=5, subsampling_channels=4
)


def encode(text: str) -> list[int]:
    return [ord(c) - ord("a") + 1 for c in text]


def toy_batches(epoch: int, skip: int = 0, count: int = 5) -> list[Batch]:
    generator = torch.Generator().manual_seed(epoch)
    batches = []
    for index in range(count):
        lens = torch.tensor([40 + index, 31])
        features = torch.randn(2, 40 + index, 20, generator=generator)
        batches.append(
            Batch(features=features, feature_lens=lens, texts=["abca", "ee"], ids=[f"{index}a", f"{index}b"])
        )
    return batches[skip:]


def zero_some(features: torch.Tensor, lens: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """An augmentation that depends on its generator."""
    return features * (torch.rand(features.shape, generator=generator) > 0.1)


def toy_trainer(
    exp_dir, precisions=("2", "1", "sp"), quant="lossless16", loop=None, augment=zero_some, ranks=None
) -> Trainer:
    torch.manual_seed(0)
    co_training = CoTrainingConfig(precisions=precisions)
    bits = co_training.trained_precisions
    config = QuantConfig.preset("float") if bits == (32,) else QuantConfig.preset(quant, precisions=bits)
    model = ConformerCtc(CONFIG)
    quantize_model(model, config)
    optim = OptimConfig(lr_factor=0.5, warm_step=10)
    return Trainer(
        model=model,
        objective=CoTraining(co_training, config, CONFIG.num_layers, seed=1),
        optimizer=make_optimizer(model, optim),
        optim_config=optim,
        config=loop or LoopConfig(num_epochs=2, average_period=2, tensorboard=False),
        encode=encode,
        augment=augment,
        exp_dir=exp_dir,
        ranks=ranks,
        meta={"model": CONFIG.to_dict(), "quant": config.to_dict(), "co_training": co_training.to_dict()},
    )


def run_epochs(trainer: Trainer, last: int) -> None:
    for epoch in range(trainer.progress.epoch, last + 1):
        train = trainer.train_epoch(toy_batches(epoch, skip=trainer.progress.batch))
        trainer.finish_epoch(train, trainer.validate(toy_batches(99, count=1)))
