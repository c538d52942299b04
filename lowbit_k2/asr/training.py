"""Flags and set-up shared by the recipes' train.py scripts."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

import torch
from lhotse import CutSet

from lowbit_k2.asr.model_io import build_model, describe_tokenizer
from lowbit_k2.data.augment import make_spec_augment
from lowbit_k2.data.datamodule import AsrDataModule, DataConfig, add_data_arguments
from lowbit_k2.data.features import FeatureConfig
from lowbit_k2.data.filter import FilterConfig, filter_cuts
from lowbit_k2.data.flags import str2bool
from lowbit_k2.data.tokenizer import Tokenizer, load_tokenizer
from lowbit_k2.errors import UserError
from lowbit_k2.fileio import remove_unfinished
from lowbit_k2.k2_compat import require_k2
from lowbit_k2.launch import CPU_INFO
from lowbit_k2.losses.co_training import CoTraining, CoTrainingConfig
from lowbit_k2.losses.ctc import CtcCriterion
from lowbit_k2.losses.rnnt import KINDS, RnntConfig, RnntCriterion
from lowbit_k2.models import ConformerConfig, ModelConfig, TransducerConfig
from lowbit_k2.models.conformer import PRESETS
from lowbit_k2.quant import QuantConfig
from lowbit_k2.recipe.flags import make_parser
from lowbit_k2.train.distributed import Ranks, joined, run_as_ranks
from lowbit_k2.train.loop import LoopConfig, Trainer, newest_checkpoint
from lowbit_k2.train.metrics import log_to_file, log_to_screen
from lowbit_k2.train.oom_scan import scan_for_oom
from lowbit_k2.train.optim import OptimConfig, make_optimizer

OBJECTIVES = ("ctc", "rnnt", "ctc-rnnt")
QUANT_PRESETS = ("float", "paper", "lossless16", "all-low")


def training_parser(description: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """All flags on training and data, with a recipe's defaults; the recipe may add its own."""
    parser = make_parser(description)
    add_training_arguments(parser)
    add_data_arguments(parser)
    parser.set_defaults(**defaults)
    return parser


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags on the model, the precisions, the optimiser and the loop; names as icefall's where it has them."""
    run = parser.add_argument_group("run")
    run.add_argument("--exp-dir", type=Path, default=Path("exp"), help="checkpoints, logs and results go here")
    run.add_argument(
        "--lang-dir", type=Path, default=Path("data/lang_bpe_500"), help="folder with tokens.txt and bpe.model"
    )
    run.add_argument("--bpe-model", type=Path, help="a sentencepiece model; takes the place of --lang-dir")
    run.add_argument("--world-size", type=int, default=1, help="processes on this machine, one per GPU")
    run.add_argument("--num-epochs", type=int, default=LoopConfig.num_epochs, help="last epoch, counted from 1")
    run.add_argument("--start-epoch", type=int, default=1, help="if over 1, continue from epoch-(N-1).pt")
    run.add_argument("--start-batch", type=int, default=0, help="if positive, continue from checkpoint-N.pt")
    run.add_argument("--resume", type=str2bool, default=False, help="continue from the newest checkpoint, if any")
    run.add_argument("--seed", type=int, default=LoopConfig.seed)
    run.add_argument("--num-threads", type=int, default=0, help="CPU threads; 0 leaves PyTorch's choice")
    run.add_argument("--use-fp16", type=str2bool, default=False, help="mixed precision in float16 (GPU)")
    run.add_argument("--use-bf16", type=str2bool, default=False, help="mixed precision in bfloat16 (CPU or GPU)")
    run.add_argument("--save-every-n", type=int, default=LoopConfig.save_every_n, help="in updates")
    run.add_argument("--keep-last-k", type=int, default=LoopConfig.keep_last_k)
    run.add_argument("--average-period", type=int, default=LoopConfig.average_period, help="in updates")
    run.add_argument("--accum-grad", type=int, default=LoopConfig.accum_grad, help="batches per update")
    run.add_argument("--scan-for-oom", type=str2bool, default=True, help="try the largest batches before epoch 1")
    run.add_argument("--tensorboard", type=str2bool, default=True)
    run.add_argument(
        "--dry-run",
        type=str2bool,
        nargs="?",
        const=True,
        default=False,
        help="print parameters, memory and the sizes of packed files by quantization, and stop; needs no data",
    )
    run.add_argument("--vocab-size", type=int, default=500, help="tokens, for --dry-run without a lang directory")

    model = parser.add_argument_group("model")
    model.add_argument("--model", default="tiny", choices=list(PRESETS), help="size preset")
    for name, kind in MODEL_FLAGS.items():
        model.add_argument("--" + name.replace("_", "-"), type=kind, default=None, help="replaces the preset's value")

    quant = parser.add_argument_group("quantization")
    quant.add_argument("--quant-config", default="lossless16", choices=QUANT_PRESETS, help="bits by role")
    quant.add_argument(
        "--precisions",
        default="2,1,sp",
        help="branches of an update: bits and 'sp' (stochastic); 32 is the float baseline, 1 naive 1-bit training",
    )
    quant.add_argument("--teacher", default="", help="bits of the teacher; default: the highest branch; 32 adds one")
    quant.add_argument("--lambda1", type=float, default=CoTrainingConfig.lambda1, help="weight of the other losses")
    quant.add_argument("--lambda2", type=float, default=CoTrainingConfig.lambda2, help="weight of the KL terms")
    quant.add_argument(
        "--kl-warm-step", type=int, default=CoTrainingConfig.kl_warm_step, help="updates in which lambda2 rises from 0"
    )
    quant.add_argument("--sp-schedule", default="log", choices=("log", "linear", "constant"))
    quant.add_argument("--sp-first", type=float, help="P(lowest bits) at the first layer; default: the schedule's own")
    quant.add_argument("--sp-last", type=float, help="the same at the last layer")
    for name, (choices, text) in QUANT_FLAGS.items():
        flag = "--" + name.replace("_", "-")
        quant.add_argument(flag, choices=choices, default=choices[0], help=text)

    rnnt = parser.add_argument_group("objective")
    rnnt.add_argument("--objective", default="ctc", choices=OBJECTIVES, help="ctc-rnnt: a transducer with a CTC head")
    rnnt.add_argument("--context-size", type=int, help="tokens that a transducer's prediction network sees")
    rnnt.add_argument("--decoder-dim", type=int, help="of the prediction network")
    rnnt.add_argument("--joiner-dim", type=int)
    rnnt.add_argument("--rnnt-loss", default=RnntConfig.loss, choices=KINDS, help="full needs no k2, but much memory")
    rnnt.add_argument("--prune-range", type=int, default=RnntConfig.prune_range, help="symbols kept at each frame")
    rnnt.add_argument("--simple-loss-scale", type=float, default=RnntConfig.simple_loss_scale)
    rnnt.add_argument("--lm-scale", type=float, default=RnntConfig.lm_scale, help="smoothing of the simple loss")
    rnnt.add_argument("--am-scale", type=float, default=RnntConfig.am_scale, help="smoothing of the simple loss")
    rnnt.add_argument("--ctc-loss-scale", type=float, default=RnntConfig.ctc_loss_scale, help="for ctc-rnnt")
    rnnt.add_argument("--rnnt-warm-step", type=int, default=RnntConfig.warm_step, help="updates until full scales")
    rnnt.add_argument("--delay-penalty", type=float, default=RnntConfig.delay_penalty)

    optim = parser.add_argument_group("optimiser")
    optim.add_argument("--lr-factor", type=float, default=OptimConfig.lr_factor, help="Noam's factor")
    optim.add_argument("--warm-step", type=int, default=OptimConfig.warm_step, help="updates of rising rate")
    optim.add_argument("--weight-decay", type=float, default=OptimConfig.weight_decay)
    optim.add_argument("--clip-grad-norm", type=float, default=OptimConfig.clip_grad_norm)
    optim.add_argument("--alpha-lr-scale", type=float, default=OptimConfig.alpha_lr_scale, help="rate of the alphas")
    optim.add_argument("--alpha-floor", type=float, default=OptimConfig.alpha_floor, help="smallest alpha allowed")


QUANT_FLAGS = {  # options of QuantConfig.preset; the first choice is the default
    "scale": (("2std-clipped", "absmean", "lsq", "running-absmax"), "statistic of the switched tensors"),
    "granularity": (("tensor", "channel", "block64"), "weights that share a step, in the switched tensors"),
    "alpha_grad": (("chain", "authors"), "gradient of alpha: with the factor s, or as the authors' code has it"),
    "weight_grad": (("identity", "clipped"), "gradient of the latent weights: straight through, or LSQ's mask"),
    "alpha_grad_scale": (("none", "lsq"), "LSQ's gradient scale on the alphas"),
}
MODEL_FLAGS = {
    "d_model": int,
    "num_layers": int,
    "num_heads": int,
    "ffn_dim": int,
    "conv_kernel": int,
    "subsampling_channels": int,
    "dropout": float,
    "ffn_dropout": float,
    "attention_dropout": float,
    "conv_norm": str,
}


def model_config(args: argparse.Namespace, vocab_size: int, num_features: int) -> ModelConfig:
    """The preset with the flags' replacements."""
    replaced = {name: getattr(args, name) for name in MODEL_FLAGS if getattr(args, name) is not None}
    replaced |= {"vocab_size": vocab_size, "num_features": num_features}
    if args.objective == "ctc":
        return ConformerConfig.preset(args.model, **replaced)
    own = {name: getattr(args, name) for name in ("context_size", "decoder_dim", "joiner_dim")}
    replaced |= {name: value for name, value in own.items() if value is not None}
    return TransducerConfig.preset(args.model, ctc_head=args.objective == "ctc-rnnt", **replaced)


def make_criterion(args: argparse.Namespace) -> CtcCriterion | RnntCriterion:
    """What `--objective` trains with.

    Raises:
      UserError: impossible flags, or k2 is missing where the loss needs it.
    """
    if args.objective == "ctc":
        return CtcCriterion()
    names = ("prune_range", "simple_loss_scale", "lm_scale", "am_scale", "ctc_loss_scale", "delay_penalty")
    values = {name: getattr(args, name) for name in names}
    config = RnntConfig(loss=args.rnnt_loss, warm_step=args.rnnt_warm_step, **values)
    if config.loss == "pruned":
        require_k2()  # now, not after minutes of preparation
    return RnntCriterion(config)


def co_training_config(args: argparse.Namespace) -> CoTrainingConfig:
    return CoTrainingConfig(
        precisions=tuple(p.strip() for p in args.precisions.split(",")),
        teacher=args.teacher,
        lambda1=args.lambda1,
        lambda2=args.lambda2,
        kl_warm_step=args.kl_warm_step,
        sp_schedule=args.sp_schedule,
        sp_first=args.sp_first,
        sp_last=args.sp_last,
    )


def quant_config(args: argparse.Namespace, co_training: CoTrainingConfig) -> QuantConfig:
    """The preset, holding the precisions that will be trained; float training quantizes nothing."""
    if co_training.trained_precisions == (32,):
        return QuantConfig.preset("float")
    if args.quant_config == "float":
        raise UserError(f"--quant-config float has no tensors for --precisions {args.precisions}: use 32")
    options = {name: getattr(args, name) for name in QUANT_FLAGS}
    try:
        return QuantConfig.preset(args.quant_config, precisions=co_training.trained_precisions, **options)
    except UserError as error:
        raise UserError(f"--precisions {args.precisions}: {error}") from None


def loop_config(args: argparse.Namespace) -> LoopConfig:
    if args.use_fp16 and args.use_bf16:
        raise UserError("--use-fp16 and --use-bf16 exclude each other")
    amp = "float16" if args.use_fp16 else "bfloat16" if args.use_bf16 else "float32"
    names = ("num_epochs", "seed", "average_period", "save_every_n", "keep_last_k", "accum_grad", "tensorboard")
    return LoopConfig(amp=amp, **{name: getattr(args, name) for name in names})


def optim_config(args: argparse.Namespace) -> OptimConfig:
    return OptimConfig(
        lr_factor=args.lr_factor,
        warm_step=args.warm_step,
        weight_decay=args.weight_decay,
        clip_grad_norm=args.clip_grad_norm,
        alpha_lr_scale=args.alpha_lr_scale,
        alpha_floor=args.alpha_floor,
    )


def set_up_device(args: argparse.Namespace, ranks: Ranks) -> torch.device:
    """Seed, threads and device."""
    if args.num_threads > 0:
        torch.set_num_threads(args.num_threads)
    torch.manual_seed(args.seed)
    torch.set_flush_denormal(True)  # posteriors near zero make denormal numbers, which CPUs handle slowly
    if torch.cuda.is_available():
        return torch.device("cuda", ranks.local_rank)
    if args.use_bf16 and not has_bfloat16_arithmetic():
        logging.warning("--use-bf16 true: this CPU has no bfloat16 instructions; float32 will be many times faster")
    return torch.device("cpu")


def has_bfloat16_arithmetic() -> bool:
    """Whether the CPU computes in bfloat16 itself; where it is not known, it is taken to."""
    try:
        flags = CPU_INFO.read_text()
    except OSError:
        return True
    return any(name in flags for name in ("avx512_bf16", "amx_bf16", " bf16 "))


def describe_run(
    model: ModelConfig,
    quant: QuantConfig,
    co_training: CoTrainingConfig,
    tokenizer: Tokenizer,
    features: FeatureConfig,
    args: argparse.Namespace,
) -> dict[str, Any]:
    """The part of a checkpoint's JSON that decode.py and export.py rebuild everything from."""
    return {
        "model": model.to_dict(),
        "quant": quant.to_dict(),
        "co_training": co_training.to_dict(),
        "tokenizer": describe_tokenizer(tokenizer),
        "features": features.to_dict(),
        "flags": {name: str(value) for name, value in sorted(vars(args).items())},
    }


def find_start(args: argparse.Namespace) -> Path | None:
    """The checkpoint that the flags say to continue from, None for a new run; never writes over an older run.

    Raises:
      UserError: that checkpoint is missing, or a new run is asked for where there is one already.
    """
    if args.exp_dir.exists() and not args.exp_dir.is_dir():
        raise UserError(f"--exp-dir {args.exp_dir} is a file: give a folder, which is made where it is missing")
    if args.start_batch > 0 or args.start_epoch > 1:
        name = f"checkpoint-{args.start_batch}" if args.start_batch > 0 else f"epoch-{args.start_epoch - 1}"
        if not (args.exp_dir / f"{name}.pt").is_file():
            raise UserError(f"{args.exp_dir / name}.pt does not exist: see what {args.exp_dir} holds")
        return args.exp_dir / f"{name}.pt"
    newest = newest_checkpoint(args.exp_dir)
    if newest is not None and not args.resume:
        raise UserError(f"{newest} is there already: use --resume true to continue it, or another --exp-dir")
    return newest


def usable_cuts(
    args: argparse.Namespace, data: AsrDataModule, tokenizer: Tokenizer, train_cuts: CutSet, valid_cuts: CutSet
) -> tuple[CutSet, CutSet]:
    """Both sets without the cuts that cannot be used; logs how many these are."""
    config = FilterConfig(features=data.features, load=None if args.on_the_fly_feats else data.load)
    train_cuts, counts = filter_cuts(train_cuts, tokenizer.encode, config)
    logging.info("training: %s", counts)
    valid_cuts, counts = filter_cuts(valid_cuts, tokenizer.encode, config)
    logging.info("validation: %s", counts)
    return train_cuts, valid_cuts


def run_training(args: argparse.Namespace, train_cuts: CutSet, valid_cuts: CutSet) -> None:
    """What every train.py does once its corpus is known: filter, build, train epoch by epoch.

    Flags and data are looked at before anything is written.

    Args:
      args: flags of `add_training_arguments` and `add_data_arguments`.
      train_cuts: with features or, for --on-the-fly-feats, with recordings.
      valid_cuts: for the validation loss of each epoch.

    Raises:
      UserError: flags that contradict each other, missing files, unusable data, another run in the same folder.
    """
    log_to_screen()
    start = find_start(args)  # before there are several processes that would each complain
    tokenizer = load_tokenizer(args.bpe_model or args.lang_dir)
    with joined(run_as_ranks(args.world_size)) as ranks:
        if not ranks.is_main:
            log_to_screen(quiet=True)
        data = AsrDataModule(DataConfig.from_args(args), world_size=ranks.world_size, rank=ranks.rank)
        trainer = make_trainer(args, tokenizer, data, ranks)
        train_cuts, valid_cuts = usable_cuts(args, data, tokenizer, train_cuts, valid_cuts)
        if start is not None:
            trainer.resume(start)
        if ranks.is_main:
            remove_unfinished(args.exp_dir)
            log_to_file(args.exp_dir)
        if start is None and args.scan_for_oom:
            scan_for_oom(trainer, data.largest_batches(train_cuts))
        train_epochs(trainer, data, train_cuts, valid_cuts)


def make_trainer(args: argparse.Namespace, tokenizer: Tokenizer, data: AsrDataModule, ranks: Ranks) -> Trainer:
    """The model that the flags describe, with all that trains it; nothing is written yet.

    Raises:
      UserError: flags that contradict each other.
    """
    loop, optim, co_training = loop_config(args), optim_config(args), co_training_config(args)
    quant, criterion = quant_config(args, co_training), make_criterion(args)
    device = set_up_device(args, ranks)
    conformer = model_config(args, tokenizer.vocab_size, data.features.num_mel_bins)
    model, report = build_model(conformer, quant)
    logging.info("\n%s", report)
    model = model.to(device)
    spec_augment = data.config.spec_augment
    return Trainer(
        model=model,
        objective=CoTraining(co_training, quant, conformer.num_layers, args.seed),
        optimizer=make_optimizer(model, optim),
        optim_config=optim,
        config=loop,
        encode=tokenizer.encode,
        augment=make_spec_augment(spec_augment) if spec_augment else None,
        exp_dir=args.exp_dir,
        meta=describe_run(conformer, quant, co_training, tokenizer, data.features, args),
        ranks=ranks,
        criterion=criterion,
    )


def train_epochs(trainer: Trainer, data: AsrDataModule, train_cuts: CutSet, valid_cuts: CutSet) -> None:
    """The epochs that are still to come."""
    if trainer.progress.epoch > trainer.config.num_epochs:
        logging.info("nothing to do: %d epochs are finished", trainer.progress.epoch - 1)
    for epoch in range(trainer.progress.epoch, trainer.config.num_epochs + 1):
        # counting the batches of a lazy manifest would read it once more in each epoch
        total = None if train_cuts.is_lazy else data.num_train_batches(train_cuts, epoch)
        if total == 0:
            raise UserError("the training set gives no batch: use --drop-last false, or fewer --num-buckets")
        means = trainer.train_epoch(data.train_batches(train_cuts, epoch, skip=trainer.progress.batch), total)
        valid = trainer.validate(data.valid_batches(valid_cuts)) if trainer.ranks.is_main else {}
        trainer.finish_epoch(means, valid)
    trainer.board.close()
