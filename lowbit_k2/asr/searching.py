"""Architecture search as a program: a supernet, then its logits, each a training that can be stopped and continued.

EXP_DIR/supernet holds the first phase, EXP_DIR/LOGITS_DIR the second one and its result, architecture.json. Several
searches of one supernet (another eta, another cost) are so many folders of logits. The third phase, the chosen model
from fresh weights, is an ordinary training: `train.py --architecture FILE`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lowbit_k2.asr.training import Run, TrainingConfig, describe_run, find_start, output_frames
from lowbit_k2.core.config import Config, ConfigError, option
from lowbit_k2.core.grids import FLOAT_BITS
from lowbit_k2.core.models import ModelConfig
from lowbit_k2.data.augment import make_branch_masks, make_spec_augment
from lowbit_k2.data.batch import Batch
from lowbit_k2.data.datamodule import AsrDataModule
from lowbit_k2.data.tokenizer import Tokenizer
from lowbit_k2.errors import UserError
from lowbit_k2.losses.co_training import CoTraining
from lowbit_k2.losses.objectives import encoder_of, make_criterion
from lowbit_k2.losses.output import Criterion
from lowbit_k2.models import make_model
from lowbit_k2.quant import quantize_model
from lowbit_k2.search.architecture import Architecture
from lowbit_k2.search.config import BYTES, SearchConfig
from lowbit_k2.search.costs import CostTable, cost_table
from lowbit_k2.search.gumbel import GumbelCriterion, add_logits, hold_weights
from lowbit_k2.search.report import found_architecture
from lowbit_k2.search.space import SearchSpace
from lowbit_k2.search.supernet import SampledCriterion, Supernet
from lowbit_k2.tensorfile import tensors_checksum
from lowbit_k2.train.checkpoint import load_checkpoint, load_model_state, numbered
from lowbit_k2.train.epochs import remaining_epochs, save_epoch, train_epoch, validate
from lowbit_k2.train.metrics import describe
from lowbit_k2.train.optim import dropout_schedule, floor_of_alphas, learning_rate, make_optimizer, rising_hardness
from lowbit_k2.train.orthogonal import semi_orthogonal
from lowbit_k2.train.trainer import Trainer, check_same_run

if TYPE_CHECKING:
    from lhotse import CutSet

SUPERNET, ALL = "supernet", "all"
PHASES = (SUPERNET, "logits", ALL)
RESULT = "architecture.json"
LOGITS_SECTION = "logits"  # of the second phase's description


@dataclass(frozen=True)
class SearchRunConfig(Config):
    """Which phase, and where its files are."""

    phase: str = option(ALL, "the weights of the supernet, its logits, or both in turn", choices=PHASES)
    logits_dir: str = option("logits", "folder within --exp-dir of the second phase: one for each eta or cost")
    output: Path | None = option(None, f"the result; default: EXP_DIR/LOGITS_DIR/{RESULT}")

    def check(self) -> None:
        if Path(self.logits_dir).name != self.logits_dir or self.logits_dir in ("", "..", SUPERNET):
            raise ConfigError("logits_dir", f"'{self.logits_dir}': give the name of a folder, which is not {SUPERNET}")
        if self.output is not None and self.output.suffix != ".json":
            raise ConfigError("output", f"{self.output}: give a name that ends in .json")


@dataclass
class Search:
    """What both phases work with."""

    training: TrainingConfig
    config: SearchConfig
    files: SearchRunConfig
    run: Run
    tokenizer: Tokenizer
    data: AsrDataModule
    space: SearchSpace

    @property
    def model_config(self) -> ModelConfig:
        """The supernet's: the widest candidate in every layer."""
        sizes = (self.tokenizer.vocab_size, self.data.features.num_mel_bins)
        return self.space.apply(self.training.model_config(*sizes), self.space.largest)

    def make_model(self) -> tuple[nn.Module, Supernet]:
        """The supernet with fresh weights, quantized where the settings say so, on its device."""
        model = make_model(self.model_config)
        logging.info("\n%s", quantize_model(model, self.training.quant_config()))
        return model.to(self.run.device), Supernet(model, self.space)

    def costs(self) -> CostTable:
        return space_costs(self.training, self.config, self.space, self.model_config)

    def trainer(
        self, model: nn.Module, criterion: Criterion, folder: Path, about: Mapping[str, Any], **own: Any
    ) -> Trainer:
        """
        Args:
          about: sections of the checkpoints' description besides those that the phases have alike.
          own: arguments of Trainer that a phase decides.
        """
        config, quant = self.training, self.training.quant_config()
        layers = (model.config.num_layers, quant.layer_prefix)
        described = describe_run(config, model.config, quant, self.tokenizer, self.data.features)
        alike = {"candidates": list(self.space.candidates), "logits_share": self.config.logits_share}
        return Trainer(
            model=model,
            criterion=criterion,
            co_training=CoTraining(config.co_training, *layers, config.loop.seed),
            normalizer=output_frames(model.config),
            exp_dir=folder,
            description={**described, "search": alike, **about},
            clip_grad_norm=config.optim.clip_grad_norm,
            ranks=self.run.ranks,
            **own,
        )

    def criterion(self) -> Criterion:
        config = self.training
        return make_criterion(config.objective, config.criterion, self.tokenizer, config.run.lang_dir)

    def train(
        self,
        trainer: Trainer,
        cuts: CutSet,
        finish: Callable[[dict[str, float]], None],
        valid_batches: Callable[[], Iterator[Batch]] | None = None,
    ) -> None:
        """All epochs of a phase that are still to come; its folder is locked, its newest checkpoint taken up.

        Args:
          finish: what the end of an epoch is, given its means.
          valid_batches: for validations within an epoch.
        """
        config = replace(self.training, run=replace(self.training.run, exp_dir=trainer.exp_dir))
        run = Run(config, self.run.ranks, self.run.device, find_start(config.run))
        with run.held:
            run.begin(trainer, lambda: self.data.largest_batches(cuts))
            for epoch in remaining_epochs(trainer):
                batches = self.data.train_batches(cuts, epoch, skip=trainer.progress.batch)
                finish(train_epoch(trainer, batches, self.data.num_train_batches(cuts, epoch), valid_batches))
            trainer.board.close()


def search_space(training: TrainingConfig, config: SearchConfig, num_features: int = 80) -> SearchSpace:
    """Of the model that the settings describe.

    Raises:
      UserError: its widths cannot be searched, or are given besides.
    """
    model = training.model_config(training.run.vocab_size, num_features)
    if not hasattr(model, "encoder"):
        raise UserError(f"a {model.kind} has no encoder whose widths could be searched")
    space = SearchSpace.of(model.encoder, config.candidates)
    if space.field in training.model_fields:
        raise ConfigError(space.field, "is what the search finds: give candidates in its place")
    return space


def space_costs(training: TrainingConfig, config: SearchConfig, space: SearchSpace, model: ModelConfig) -> CostTable:
    """Costs of all candidates; bytes by the preset of the quantization at the bits asked for."""
    quant = training.quant_config(precisions=(config.bits if config.cost == BYTES else FLOAT_BITS,))
    return cost_table(space, model, quant, config)


def train_supernet(search: Search, train_cuts: CutSet, valid_cuts: CutSet) -> None:
    """Phase (a): all weights, each update on an architecture drawn at random; validated as the widest."""
    config = search.training
    model, supernet = search.make_model()
    criterion = search.criterion()
    trainer = search.trainer(
        model,
        SampledCriterion(criterion, supernet, config.loop.seed),
        config.run.exp_dir / SUPERNET,
        {},
        optimizer=make_optimizer(model, config.optim),
        schedule=learning_rate(config.optim, model.config.d_model),
        config=config.loop,
        before_update=[rising_hardness(model, config.optim), dropout_schedule(model)],
        after_update=[floor_of_alphas(model, config.optim.alpha_floor), semi_orthogonal(model)],
        encode=encoder_of(criterion, search.tokenizer),
        augment=make_spec_augment(config.data.spec_augment),
        mask=make_branch_masks(config.data.spec_augment),
    )

    def valid_batches() -> Iterator[Batch]:
        return search.data.valid_batches(valid_cuts)

    search.train(
        trainer,
        train_cuts,
        lambda train: save_epoch(trainer, train, validate(trainer, valid_batches())),
        valid_batches,
    )


def train_logits(search: Search, cuts: CutSet) -> Architecture:
    """Phase (b): the logits alone, on cuts that the weights have not seen, without SpecAugment.

    Returns:
      The most probable width of each layer.

    Raises:
      UserError: the supernet's training has not come to its end, or had other settings.
    """
    training, config = search.training, search.config
    source = finished_supernet(training)
    model, supernet = search.make_model()
    weights = load_checkpoint(source)
    load_model_state(model, weights.model, source)
    hold_weights(model)
    logits, costs = add_logits(model, supernet), search.costs()
    inner = search.criterion()
    criterion = GumbelCriterion(
        inner, supernet, logits, costs, config, training.loop.seed, updates_before=weights.meta["update"]
    )
    supernet_sum = tensors_checksum(sorted(weights.model.items()))
    origin = {"objective": training.objective, "supernet": supernet_sum, "supernet_file": source.name}
    trainer = search.trainer(
        model,
        criterion,
        training.run.exp_dir / search.files.logits_dir,
        {LOGITS_SECTION: {**replace(config, candidates=None).to_dict(), **origin}},  # those: in the common section
        optimizer=torch.optim.Adam([{"name": "logits", "params": [logits], "rate_scale": 1.0}]),
        schedule=lambda update, done: config.logits_lr,
        config=replace(training.loop, num_epochs=config.logits_epochs),
        before_update=[criterion.anneal()],
        encode=encoder_of(inner, search.tokenizer),
    )
    alike = {name: value for name, value in trainer.description.items() if name != LOGITS_SECTION}
    check_same_run(weights.meta, alike, source)
    search.train(trainer, cuts, lambda train: save_logits(trainer, train))
    origin |= {"model": model.config.to_dict(), "utterances": sum(1 for _ in cuts), "updates": trainer.progress.update}
    return found_architecture(search.space, costs, logits.detach(), config, origin)


def save_logits(trainer: Trainer, train: dict[str, float]) -> None:
    """The end of an epoch of the second phase, of which the last checkpoints alone are kept: each holds all weights."""
    logging.info("epoch %d, %d updates: %s", trainer.progress.epoch, trainer.progress.update, describe(train))
    trainer.progress.epoch += 1
    trainer.save_numbered()


def finished_supernet(training: TrainingConfig) -> Path:
    """Its last epoch.

    Raises:
      UserError: it is not there yet.
    """
    folder, wanted = training.run.exp_dir / SUPERNET, training.loop.num_epochs
    done = numbered(folder, "epoch") if folder.is_dir() else []
    if not done or done[-1] < wanted:
        has = f"epoch {done[-1]}" if done else "none"
        raise UserError(
            f"{folder} lacks epoch {wanted}, its last one is {has}: train it with --phase {SUPERNET}, or give its "
            "--num-epochs"
        )
    return folder / f"epoch-{wanted}.pt"
