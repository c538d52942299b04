"""A tiny model, random batches and a trainer, for the tests of the loop."""

from __future__ import annotations

import torch

from lowbit_k2.data.batch import Batch
from lowbit_k2.losses.co_training import CoTraining, CoTrainingConfig
from lowbit_k2.losses.ctc import CtcCriterion
from lowbit_k2.models import ConformerConfig, CtcConfig, make_model
from lowbit_k2.quant import QuantConfig, quantize_model
from lowbit_k2.quant.admm import with_fitted_steps
from lowbit_k2.train.drawing import DrawingConfig, drawn_weights
from lowbit_k2.train.epochs import save_epoch, train_epoch, validate
from lowbit_k2.train.optim import OptimConfig, floor_of_alphas, learning_rate, make_optimizer
from lowbit_k2.train.trainer import LoopConfig, Trainer

ENCODER = ConformerConfig(num_features=20, d_model=16, num_layers=2, ffn_dim=32, conv_kernel=5, subsampling_channels=4)
CONFIG = CtcConfig(ENCODER, vocab_size=6)


def encode(text: str) -> list[int]:
    return [ord(c) - ord("a") + 1 for c in text]


def toy_batches(epoch: int, skip: int = 0, count: int = 5) -> list[Batch]:
    generator = torch.Generator().manual_seed(epoch)
    batches = []
    for index in range(count):
        lens = torch.tensor([40 + index, 31])
        features = torch.randn(2, 40 + index, 20, generator=generator)
        batches.append(Batch(inputs=features, input_lens=lens, texts=["abca", "ee"], ids=[f"{index}a", f"{index}b"]))
    return batches[skip:]


def zero_some(features: torch.Tensor, lens: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """An augmentation that depends on its generator."""
    return features * (torch.rand(features.shape, generator=generator) > 0.1)


def toy_trainer(
    exp_dir,
    precisions=("2", "1", "sp"),
    quant="lossless16",
    loop=None,
    augment=zero_some,
    ranks=None,
    drawing=None,
) -> Trainer:
    torch.manual_seed(0)
    co_training = CoTrainingConfig(precisions=precisions)
    bits = co_training.trained_precisions
    drawing = drawing or DrawingConfig()
    loop = loop or LoopConfig(num_epochs=2, average_period=2, tensorboard=False)
    kind = {} if drawing.quantizer == "linear" else {"quantizer": drawing.quantizer}
    kind |= {"scale": drawing.gq.gq_scale} if drawing.quantizer == "gq" else {}
    config = QuantConfig.preset("float") if bits == (32,) else QuantConfig.preset(quant, precisions=bits, **kind)
    config = with_fitted_steps(config) if drawing.admm.every else config
    model = make_model(CONFIG)
    quantize_model(model, config)
    optim = OptimConfig(lr_factor=0.5, warm_step=10)
    return Trainer(
        model=model,
        criterion=CtcCriterion(),
        co_training=CoTraining(co_training, CONFIG.num_layers, config.layer_prefix, seed=1),
        optimizer=make_optimizer(model, optim),
        schedule=learning_rate(optim, CONFIG.d_model),
        normalizer=lambda batch: float(CONFIG.output_lens(batch.input_lens).sum()),
        config=loop,
        exp_dir=exp_dir,
        description={
            "model": CONFIG.to_dict(),
            "quant": config.to_dict(),
            "co_training": co_training.to_dict(),
            "schedule": drawing.schedule(loop.num_epochs),
        },
        clip_grad_norm=optim.clip_grad_norm,
        after_update=[floor_of_alphas(model, optim.alpha_floor)],
        encode=encode,
        augment=augment,
        drawn=drawn_weights(model, drawing, co_training),
        ranks=ranks,
    )


def run_epochs(trainer: Trainer, last: int) -> None:
    for epoch in range(trainer.progress.epoch, last + 1):
        train = train_epoch(trainer, toy_batches(epoch, skip=trainer.progress.batch))
        save_epoch(trainer, train, validate(trainer, toy_batches(99, count=1)))
