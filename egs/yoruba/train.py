#!/usr/bin/env python3
"""Train a low-bit Conformer with CTC on read Yoruba.

./prepare.sh --corpus-dir /path/to/records
./train.py --exp-dir exp/cotrain --precisions 2,1,sp          # co-training, the method of arXiv 2505.21245
./train.py --exp-dir exp/float --precisions 32                # float baseline
./train.py --exp-dir exp/naive1 --precisions 1                # naive 1-bit training
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))
from lowbit_k2.launch import use_project_interpreter

use_project_interpreter()

from lowbit_k2.asr.dry_run import dry_run
from lowbit_k2.asr.teachers import outside_teacher
from lowbit_k2.asr.training import describe_run, output_frames, start_run, usable_cuts
from lowbit_k2.data.augment import make_branch_masks, make_spec_augment
from lowbit_k2.data.datamodule import AsrDataModule
from lowbit_k2.data.manifests import load_cuts
from lowbit_k2.data.tokenizer import load_tokenizer
from lowbit_k2.errors import run_main
from lowbit_k2.losses.co_training import CoTraining
from lowbit_k2.losses.objectives import encoder_of, make_criterion
from lowbit_k2.models import make_model
from lowbit_k2.quant import quantize_model
from lowbit_k2.recipe.training_flags import read_training_flags, training_errors, training_parser
from lowbit_k2.train.drawing import drawn_weights
from lowbit_k2.train.epochs import remaining_epochs, save_epoch, train_epoch, validate
from lowbit_k2.train.initialise import InitialState, freeze
from lowbit_k2.train.optim import dropout_schedule, floor_of_alphas, learning_rate, make_optimizer, rising_hardness
from lowbit_k2.train.orthogonal import semi_orthogonal
from lowbit_k2.train.trainer import Trainer

DEFAULTS = {
    "exp_dir": HERE / "exp/tiny",
    "lang_dir": HERE / "data/lang_char",
    "manifest_dir": HERE / "data/fbank",
    "model": "tiny",
    "dropout": 0.05,
    "max_duration": 30.0,
    "cache_features": True,
    "spec_aug_max_freq_width": 18,
    "spec_aug_max_time_fraction": 0.15,
    "num_epochs": 20,
    "lr_factor": 0.5,
    "warm_step": 400,
}


def main() -> None:
    args = training_parser(__doc__, **DEFAULTS).parse_args()
    config = read_training_flags(args)
    if args.dry_run:
        return dry_run(config)
    train_cuts = load_cuts(config.data.manifest_dir, "yoruba", "train")
    valid_cuts = load_cuts(config.data.manifest_dir, "yoruba", "dev")
    with training_errors(), start_run(config) as run:
        tokenizer = load_tokenizer(config.run.tokens)
        data = AsrDataModule(config.data, world_size=run.ranks.world_size, rank=run.ranks.rank)

        # the float model, and quantizers on its weights
        model_config = config.model_config(tokenizer.vocab_size, data.features.num_mel_bins)
        model = make_model(model_config)
        initial = InitialState(config.run.init_from) if config.run.init_from else None
        if initial:
            initial.copy_weights(model)
        freeze(model, config.run.freeze)
        quant_config = config.quant_config()
        report = quantize_model(model, quant_config)
        logging.info("\n%s", report)
        if initial:
            initial.copy_scales(model)
        model.to(run.device)

        # what an update does: passes of the criterion at the precisions of its branches, a step, hooks
        seed, layers = config.loop.seed, (model_config.num_layers, quant_config.layer_prefix)
        criterion = make_criterion(config.objective, config.criterion, tokenizer, config.run.lang_dir)
        trainer = Trainer(
            model=model,
            criterion=criterion,
            co_training=CoTraining(config.co_training, *layers, seed),
            optimizer=make_optimizer(model, config.optim),
            schedule=learning_rate(config.optim, model_config.d_model),
            normalizer=output_frames(model_config),
            config=config.loop,
            exp_dir=config.run.exp_dir,
            description=describe_run(config, model_config, quant_config, tokenizer, data.features),
            clip_grad_norm=config.optim.clip_grad_norm,
            before_update=[rising_hardness(model, config.optim), dropout_schedule(model)],
            after_update=[floor_of_alphas(model, config.optim.alpha_floor), semi_orthogonal(model)],
            encode=encoder_of(criterion, tokenizer),
            augment=make_spec_augment(config.data.spec_augment),
            mask=make_branch_masks(config.data.spec_augment),
            teacher=outside_teacher(config, run, model, tokenizer, data),
            drawn=drawn_weights(model, config.drawing, config.co_training),
            ranks=run.ranks,
        )

        train_cuts, valid_cuts = usable_cuts(data, tokenizer, model_config, train_cuts, valid_cuts)
        run.begin(trainer, lambda: data.largest_batches(train_cuts))
        for epoch in remaining_epochs(trainer):
            batches = data.train_batches(train_cuts, epoch, skip=trainer.progress.batch)
            num_batches = data.num_train_batches(train_cuts, epoch)
            train = train_epoch(trainer, batches, num_batches, lambda: data.valid_batches(valid_cuts))
            valid = validate(trainer, data.valid_batches(valid_cuts))
            save_epoch(trainer, train, valid)
        trainer.board.close()


if __name__ == "__main__":
    run_main(main)
