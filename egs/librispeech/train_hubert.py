#!/usr/bin/env python3
"""Train speech representations: pre-train a HuBERT by masked prediction, or distil one into few bits. docs/hubert.md

python -m lowbit_k2.recipe.label_frames --splits "train-clean-100 dev-clean" --output-dir data/labels-mfcc
./train_hubert.py --labels-dir data/labels-mfcc --precisions 32 --exp-dir exp/hubert
./train_hubert.py --objective distillation --teacher exp/hubert/epoch-20.pt --quant-config bit-la --precisions 1
./train_hubert.py --objective distillation --teacher exp/hubert/epoch-20.pt --precisions 8,4,2,1,sp     # co-training
./train_hubert.py --model base --dry-run                   # MB, operations and run time by scheme and bits
./export.py --exp-dir exp/hubert-distilled --precision 1
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))
from lowbit_k2.launch import use_project_interpreter

use_project_interpreter()

from lowbit_k2.asr.hubert_training import describe_labels, hubert_config, load_labels, load_speech
from lowbit_k2.asr.teachers import outside_teacher
from lowbit_k2.asr.training import describe_run, output_frames, start_run
from lowbit_k2.data.tokenizer import NoUnits
from lowbit_k2.errors import run_main
from lowbit_k2.losses.co_training import CoTraining
from lowbit_k2.losses.objectives import make_criterion
from lowbit_k2.models import make_model
from lowbit_k2.quant import quantize_model
from lowbit_k2.recipe.hubert_costs import describe
from lowbit_k2.recipe.hubert_flags import hubert_errors, hubert_parser, read_hubert_flags
from lowbit_k2.train.drawing import drawn_weights
from lowbit_k2.train.epochs import remaining_epochs, save_epoch, train_epoch, validate
from lowbit_k2.train.initialise import InitialState, freeze
from lowbit_k2.train.optim import floor_of_alphas, learning_rate, make_optimizer, rising_hardness
from lowbit_k2.train.trainer import Trainer

DEFAULTS = {
    "exp_dir": HERE / "exp/hubert",
    "manifest_dir": HERE / "data/manifests",
    "precisions": "32",
    "max_duration": 100.0,
    "num_epochs": 20,
    "lr_schedule": "linear",
    "lr_factor": 1.0,
    "warm_step": 2000,
    "alpha_lr_scale": 0.1,
}


def main() -> None:
    args = hubert_parser(__doc__, **DEFAULTS).parse_args()
    if args.dry_run:
        return print("\n".join(describe(args.model)))
    config = read_hubert_flags(args)
    with hubert_errors(), start_run(config) as run:
        labels = load_labels(config)
        model_config = hubert_config(config, labels)
        speech = load_speech(config.data, model_config, labels, run.ranks)

        # the float model, and quantizers on its weights and activations
        model = make_model(model_config)
        initial = InitialState(config.run.init_from) if config.run.init_from else None
        if initial:
            initial.copy_weights(model)
        freeze(model, config.run.freeze)
        quant_config = config.quant_config()
        logging.info("\n%s", quantize_model(model, quant_config))
        if initial:
            initial.copy_scales(model)
        model.to(run.device)

        # what an update does: passes of the criterion at the precisions of its branches, a step, hooks
        layers = (model_config.num_layers, quant_config.layer_prefix)
        description = describe_run(config, model_config, quant_config, NoUnits())
        trainer = Trainer(
            model=model,
            criterion=make_criterion(config.objective, config.criterion),
            co_training=CoTraining(config.co_training, *layers, config.loop.seed),
            optimizer=make_optimizer(model, config.optim),
            schedule=learning_rate(config.optim, model_config.d_model),
            normalizer=output_frames(model_config),
            config=config.loop,
            exp_dir=config.run.exp_dir,
            description={**description, "labels": describe_labels(config)},
            clip_grad_norm=config.optim.clip_grad_norm,
            before_update=[rising_hardness(model, config.optim)],
            after_update=[floor_of_alphas(model, config.optim.alpha_floor)],
            teacher=outside_teacher(config, run, model, NoUnits()),
            drawn=drawn_weights(model, config.drawing, config.co_training),
            ranks=run.ranks,
        )

        run.begin(trainer, speech.largest_batches)
        for epoch in remaining_epochs(trainer):
            batches = speech.train_batches(epoch, skip=trainer.progress.batch)
            train = train_epoch(trainer, batches, speech.num_train_batches(epoch), speech.valid_batches)
            save_epoch(trainer, train, validate(trainer, speech.valid_batches()))
        trainer.board.close()


if __name__ == "__main__":
    run_main(main)
