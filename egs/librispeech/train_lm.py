#!/usr/bin/env python3
"""Train a low-bit language model on LibriSpeech's transcripts, or on any text: a Transformer or an LSTM.

./train_lm.py --train-text train.txt.gz --valid-text dev.txt.gz --precisions 32 --exp-dir exp/lm-float
./train_lm.py --train-text train.txt.gz --valid-text dev.txt.gz --precisions 2,1,sp --exp-dir exp/lm-cotrain
./train_lm.py --units pieces --lang-dir data/lang_bpe_500 --model lstm-small ...     # the recogniser's own pieces
./export.py --exp-dir exp/lm-cotrain --precision 2
lowbit-k2 perplexity exp/lm-cotrain/pretrained-2bit.safetensors dev.txt.gz
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))
from lowbit_k2.launch import use_project_interpreter

use_project_interpreter()

from lowbit_k2.asr.lm_training import load_text, load_units, log_perplexity
from lowbit_k2.asr.teachers import outside_teacher
from lowbit_k2.asr.training import describe_run, output_frames, start_run
from lowbit_k2.errors import run_main
from lowbit_k2.losses.co_training import CoTraining
from lowbit_k2.losses.objectives import make_criterion
from lowbit_k2.models import make_model
from lowbit_k2.quant import quantize_model
from lowbit_k2.recipe.lm_flags import lm_training_errors, lm_training_parser, read_lm_training_flags
from lowbit_k2.train.drawing import drawn_weights
from lowbit_k2.train.epochs import remaining_epochs, save_epoch, train_epoch, validate
from lowbit_k2.train.initialise import InitialState, freeze
from lowbit_k2.train.optim import floor_of_alphas, learning_rate, make_optimizer, rising_hardness
from lowbit_k2.train.trainer import Trainer

DEFAULTS = {
    "exp_dir": HERE / "exp/lm",
    "lang_dir": HERE / "data/lang_bpe_500",
    "train_text": str(HERE / "data/transcript_words.txt"),
    "model": "small",
    "num_epochs": 10,
    "lr_schedule": "linear",
    "lr_factor": 0.7,
    "warm_step": 400,
    "alpha_lr_scale": 0.1,
}


def main() -> None:
    args = lm_training_parser(__doc__, **DEFAULTS).parse_args()
    config = read_lm_training_flags(args)
    with lm_training_errors(), start_run(config) as run:
        tokenizer = load_units(config.data, config.run)
        text = load_text(config.data, tokenizer, run.ranks)

        # the float model, and quantizers on its weights
        model_config = config.model_config(tokenizer.vocab_size)
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
        trainer = Trainer(
            model=model,
            criterion=make_criterion(config.objective),
            co_training=CoTraining(config.co_training, *layers, config.loop.seed),
            optimizer=make_optimizer(model, config.optim),
            schedule=learning_rate(config.optim, model_config.d_model),
            normalizer=output_frames(model_config),
            config=config.loop,
            exp_dir=config.run.exp_dir,
            description=describe_run(config, model_config, quant_config, tokenizer),
            clip_grad_norm=config.optim.clip_grad_norm,
            before_update=[rising_hardness(model, config.optim)],
            after_update=[floor_of_alphas(model, config.optim.alpha_floor)],
            teacher=outside_teacher(config, run, model, tokenizer),
            drawn=drawn_weights(model, config.drawing, config.co_training),
            ranks=run.ranks,
        )

        run.begin(trainer, text.train.largest_batches)
        for epoch in remaining_epochs(trainer):
            batches = text.train.train_batches(epoch, skip=trainer.progress.batch)
            train = train_epoch(trainer, batches, text.train.num_train_batches(epoch), text.valid.valid_batches)
            valid = validate(trainer, text.valid.valid_batches())
            log_perplexity(valid, text.valid.text)
            save_epoch(trainer, train, valid)
        trainer.board.close()


if __name__ == "__main__":
    run_main(main)
