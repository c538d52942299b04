"""What RESULTS.md compares: systems, their flags, and the training runs that they are tried in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowbit_k2.asr.evaluation import GREEDY, HLG
from lowbit_k2.asr.model_io import PRETRAINED, CheckpointChoice

RECIPE = Path(__file__).resolve().parents[1]
EPOCHS = 20
NUM_FOLDS = 5
CO_TRAINED = ("2", "1.5", "1.5r", "1")
CTC, LATTICE = (GREEDY, HLG), (HLG,)
RNNT = ("greedy_search", "modified_beam_search", "fast_beam_search", "fast_beam_search_LG")
AS_AUTHORS = "--alpha-init one"
LOSSLESS16 = 496_400  # bytes of the packed tensors of `tiny` at 1 bit by that preset: train.py --dry-run true
REFERENCE, TDNNF = "float-linear", "tdnnf-float"  # what the others are compared with, and what FLOAT stands for
# of the tables of noise: trained without it and with it, float first
NOISY_SYSTEMS, TRAINED_IN_NOISE = (REFERENCE, "hand16"), ("float-noise", "hand16-noise")
LSTMS = (("lstm-float", "32"), ("lstm-cotrain", "2"), ("lstm-cotrain", "1"))  # name, bits
# of the one by bits: a family each, float first, all of one seed, and its searches without a language model
BY_BITS_SEED = 2
BY_BITS = (
    ((REFERENCE, "32"), ("hand2", "2")),
    LSTMS,
)
NOISY_SETS, CONDITIONS, ROOMS = ("dev", "test"), ("snr20", "snr10", "snr5", "snr0", "mulaw"), ("room", "room+snr10")
DEMO = "hand16"  # whose packed file is in pretrained/
LINEAR, SLOW_ALPHAS = "--lr-schedule linear", "--alpha-lr-scale 0.1"
IN_NOISE = "--enable-musan true --cache-features false"  # of `local/rows.py train --noise-dir`
TRANSDUCER = "--objective ctc-rnnt --rnnt-warm-step 1000"  # a CTC head, for two hours of speech
STREAMED, LSTM = ("greedy_search", "modified_beam_search"), "lstm-float"
FAMILIES = {  # by what decodes them: name, marker in the picture, search of the headlines
    CTC: ("Conformer, CTC", "o", HLG),
    LATTICE: ("TDNN-F, LF-MMI", "s", HLG),
    RNNT: ("Conformer, transducer", "^", "modified_beam_search"),
    STREAMED: ("LSTM, transducer", "D", "modified_beam_search"),
}
LSTM_FLAGS = "--model lstm-tiny --objective ctc-rnnt"
COLUMNS = {
    GREEDY: "greedy",
    HLG: "HLG",
    "greedy_search": "greedy",
    "modified_beam_search": "beam",
    "fast_beam_search": "fast beam",
    "fast_beam_search_LG": "fast beam, LG",
}


@dataclass(frozen=True)
class Search:
    """Precisions per tensor, chosen on a float model by lowbit_k2.recipe.allocate.

    Attributes:
      name: of the allocation, which is its precision's.
      measure, budget: flags of the search.
    """

    name: str
    measure: str
    budget: str


@dataclass(frozen=True)
class System:
    """How a model is trained and decoded.

    Attributes:
      flags: of train.py; FLOAT is the averaged checkpoint of the float row of the same seed and fold, ALLOCATION the
        precisions per tensor that were chosen on it, ARCHITECTURE the widths that SEARCH_FLAGS find, RECIPE its folder.
      precisions: that are decoded and packed.
      lm_scale: of the graph, chosen on dev for this system.
      compared: precision that takes part in the cross-validation; "" for none.
      epochs: of training; the last quarter of them is averaged, up to five.
      lang: its units.
      reference: the float system that FLOAT stands for, and that it is compared with.
      search: how ALLOCATION is found.
      averaged: the mean over the last epochs is decoded, not the last update.
    """

    name: str
    label: str
    flags: str
    precisions: tuple[str, ...]
    methods: tuple[str, ...] = CTC
    lm_scale: float = 0.6
    seeds: tuple[int, ...] = (1,)
    compared: str = ""
    epochs: int = EPOCHS
    lang: str = "lang_char"
    reference: str = REFERENCE
    search: Search | None = None
    averaged: bool = True

    @property
    def base(self) -> str:
        """The row whose seconds per update are the unit."""
        return {CTC: "float", RNNT: "rnnt-float", LATTICE: TDNNF, STREAMED: LSTM}[self.methods]


@dataclass(frozen=True)
class Row:
    """One training run: a system, a seed, and the corpus's own test set (fold 0) or a fold of the cross-validation."""

    system: System
    seed: int
    fold: int = 0

    @property
    def key(self) -> str:
        return f"{self.system.name}{f'-f{self.fold}' if self.fold else ''}-s{self.seed}"

    @property
    def data(self) -> Path:
        return RECIPE / (f"data/fold-{self.fold}" if self.fold else "data")

    @property
    def lang_dir(self) -> Path:
        return self.data / self.system.lang

    def started_from(self) -> Row | None:
        """The float row that must be there first."""
        begins = "FLOAT" in self.system.flags or self.system.search
        return Row(SYSTEMS[self.system.reference], self.seed, self.fold) if begins else None

    def allocation(self, exp_root: Path) -> Path | None:
        """Where the searched precisions are, if the system has some."""
        search, first = self.system.search, self.started_from()
        return exp_root / first.key / f"{search.name}.json" if search and first else None

    def architecture(self, exp_root: Path) -> Path | None:
        """Where the searched widths are, if the system has some."""
        if "ARCHITECTURE" not in self.system.flags:
            return None
        return exp_root / f"search{f'-f{self.fold}' if self.fold else ''}-s{self.seed}/logits/architecture.json"

    def flags(self, exp_root: Path) -> list[str]:
        """Of train.py, but for --exp-dir."""
        first = self.started_from()
        text = self.system.flags.replace("FLOAT", str(exp_root / first.key / PRETRAINED) if first else "")
        text = text.replace("ALLOCATION", str(self.allocation(exp_root)))
        text = text.replace("ARCHITECTURE", str(self.architecture(exp_root))).replace("RECIPE", str(RECIPE))
        flags = ["--seed", str(self.seed), "--num-epochs", str(self.system.epochs), *text.split()]
        return [*flags, "--manifest-dir", str(self.data / "fbank"), "--lang-dir", str(self.lang_dir)]

    def choice(self, exp_root: Path) -> CheckpointChoice:
        """The checkpoints that are decoded."""
        epochs, folder = self.system.epochs, exp_root / self.key
        if not self.system.averaged:
            return CheckpointChoice(folder, epoch=epochs)
        return CheckpointChoice(folder, epoch=epochs, avg=max(1, epochs // 4), use_averaged_model=True)


PLAIN, KL = f"--precisions 2,1 --lambda2 0 {AS_AUTHORS}", f"--precisions 2,1 {AS_AUTHORS}"
KL_SP = f"--precisions 2,1,sp {AS_AUTHORS}"
PHONES = "--model tdnnf-tiny --objective lfmmi --lfmmi-topology chain --xent-regularize 0.1"
# the recipe's own settings, which lowbit_k2.recipe.search does not know
SEARCH_FLAGS = f"{PHONES} {LINEAR} --num-epochs 20 --lr-factor 0.5 --warm-step 400 --max-duration 30 --dropout 0.05"
SEARCH_FLAGS += " --spec-aug-max-freq-width 18 --spec-aug-max-time-fraction 0.15 --cache-features true --eta 0.1"
AFTER_FLOAT = f"--init-from FLOAT --teacher FLOAT {LINEAR}"
FROM_FLOAT = f"{AFTER_FLOAT} {SLOW_ALPHAS}"
FROM_FLOAT_SEARCHED = f"--quant-config mixed --precisions ALLOCATION {FROM_FLOAT}"


def hand(name: str, bits: str, reference: str = REFERENCE) -> System:
    """A Conformer by `lossless16` that begins with a float one, which also teaches, and is trained as that one was."""
    noisy = reference != REFERENCE
    source = "it, all in noise" if noisy else "float, which teaches"
    flags = f"--precisions {bits} {FROM_FLOAT}{f' {IN_NOISE}' * noisy}"
    label = f"{in_words(bits)} by `lossless16`, 8 epochs from {source}"
    return System(name, label, flags, (bits,), epochs=8, reference=reference, seeds=(1, 2))


OF_TDNNF = {"methods": LATTICE, "lm_scale": 0.8, "lang": "lang_phone", "reference": TDNNF, "seeds": (1, 2)}


def tdnnf(name: str, label: str, flags: str, precision: str, **more: Any) -> System:
    """A TDNN-F that begins with the float one and is trained for a few epochs more at other precisions."""
    flags = f"{PHONES} --lfmmi-warm-step 0 --quant-config mixed --init-from FLOAT {LINEAR} {flags}"
    return System(f"tdnnf-{name}", label, flags, (precision,), epochs=4, **OF_TDNNF, **more)


GQ = "--quantizer gq --gq-every 20 --gq-scale absmax"
GENERAL = (  # the papers' methods, and what they are compared with
    ("linear", "linear QAT", SLOW_ALPHAS, ("8", "6", "5", "4")),
    ("cosine", "linear QAT and a cosine", f"{SLOW_ALPHAS} --cosine-lambda 5e-4", ("8", "5")),
    ("gq", "General Quantizer", GQ, ("8", "6", "5", "4")),
    ("s8bqat", "S8BQAT", "--quantizer codebook --cosine-lambda 5e-4 --snap-every 250", ("5", "4")),
    ("kmeans", "learned tables", f"--quantizer codebook {SLOW_ALPHAS}", ("4",)),
)
ON_TABLES = ("gq", "s8bqat")  # at the last update only
OF_LSTM = {"methods": STREAMED, "reference": LSTM, "seeds": (1, 2)}


def lstm(name: str, label: str, flags: str, precisions: tuple[str, ...], **more: Any) -> System:
    """An LSTM transducer that begins with the float one, and is trained on with every matrix quantized."""
    flags = f"{LSTM_FLAGS} --rnnt-warm-step 1 --quant-config mixed --init-from FLOAT {LINEAR} {flags}"
    return System(f"lstm-{name}", label, flags, precisions, epochs=6, **OF_LSTM, **more)


def conformer(name: str, label: str, flags: str, precisions: tuple[str, ...], **more: Any) -> System:
    """The same of a Conformer with CTC."""
    flags = f"--quant-config mixed --init-from FLOAT {LINEAR} {flags}"
    return System(f"conformer-{name}", label, flags, precisions, epochs=6, **more)


def general(make: Callable[..., System]) -> Iterator[System]:
    """The rows of the General Quantizer's table for one kind of model, but for its float row."""
    yield make("more", "float, for as many epochs more", "--precisions 32", ("32",))
    for name, label, flags, bits in GENERAL:
        for b in bits:
            words, precision = f"{in_words(b)}, {label}", f"--precisions {b}"
            yield make(f"{name}{b}", words, f"{precision} {flags}", (b,), averaged=name not in ON_TABLES)
    yield make("cotrain", "co-trained, plain", f"--precisions 2,1 --lambda2 0 {SLOW_ALPHAS}", ("2", "1"))


def in_words(bits: str) -> str:
    return f"{bits} bit{'s' * (bits != '1')}"


BITS, ADMM = ("8", "4", "2", "1"), "--admm-every 25 --admm-gamma 0.1"
SYSTEMS = {
    system.name: system
    for system in (
        System("float", "float", "--precisions 32", ("32",), seeds=(1, 2)),
        System("naive1", "naive 1-bit", f"--precisions 1 {AS_AUTHORS}", ("1",), seeds=(1, 2)),
        System("cotrain-kl-sp", "co-trained, (c) + KL + SP", KL_SP, CO_TRAINED, seeds=(1, 2)),
        System("naive2", "naive 2-bit", f"--precisions 2 {AS_AUTHORS}", ("2",)),
        System("cotrain-plain", "co-trained, (a) plain", PLAIN, CO_TRAINED),
        System("cotrain-kl", "co-trained, (b) + KL", KL, CO_TRAINED),
        System("cotrain-kl-warm", "(b) with a KL that rises", f"{KL} --kl-warm-step 1000", CO_TRAINED),
        System("cotrain-kl-sp-paper", "(c) with `paper`", f"{KL_SP} --quant-config paper", CO_TRAINED),
        System(
            REFERENCE,
            "float, rate to zero",
            f"--precisions 32 {LINEAR}",
            ("32",),
            lm_scale=0.2,
            seeds=(1, 2),
            compared="32",
        ),
        System("naive1-l2", "naive 1-bit", f"--precisions 1 {LINEAR} {SLOW_ALPHAS}", ("1",), compared="1"),
        System("from-float", "1 bit from float, which teaches", f"--precisions 1 {FROM_FLOAT}", ("1",), compared="1"),
        System(
            "searched",
            "searched bits, from float, which teaches",
            FROM_FLOAT_SEARCHED,
            ("kl20",),
            compared="kl20",
            search=Search("kl20", "kl", "--ratio 20.5"),  # of the tensors: with header, tokens and settings over 20
        ),
        hand("hand16", "1"),
        hand("hand2", "2"),
        System("float-noise", "float, trained in noise", f"--precisions 32 {LINEAR} {IN_NOISE}", ("32",), seeds=(1, 2)),
        hand("hand16-noise", "1", "float-noise"),
        hand("hand2-noise", "2", "float-noise"),
        System(
            "searched16",
            "its bytes by descent, 8 epochs from float, which teaches",
            FROM_FLOAT_SEARCHED,
            ("descent16",),
            epochs=8,
            search=Search("descent16", "kl", f"--bytes {LOSSLESS16} --descend 300 --num-batches 4"),
        ),
        System(
            "float-twice", "float from float, which teaches", f"--precisions 32 {AFTER_FLOAT}", ("32",), compared="32"
        ),
        System("rnnt-float", "float", f"{TRANSDUCER} --precisions 32", ("32",), RNNT, 0.4, (1, 2)),
        System(TDNNF, "float", f"{PHONES} --precisions 32 {LINEAR}", ("32",), **OF_TDNNF),
        System(
            "tdnnf-searched",
            "float, bottlenecks by PipeGumbel",
            f"{PHONES} --precisions 32 {LINEAR} --architecture ARCHITECTURE",
            ("32",),
            **OF_TDNNF,
        ),
        tdnnf("more", "float, for as many epochs more", "--precisions 32", "32"),
        *(tdnnf(f"bp{b}", f"{in_words(b)}, steps held", f"--precisions {b} --alpha-lr-scale 0", b) for b in BITS),
        *(tdnnf(f"qat{b}", in_words(b), f"--precisions {b} {SLOW_ALPHAS}", b) for b in BITS),
        *(
            tdnnf(
                f"{measure}{b}",
                f"{b} bits a weight, by {measure}",
                f"--precisions ALLOCATION {SLOW_ALPHAS}",
                f"{measure}-{b}bit",
                search=Search(f"{measure}-{b}bit", measure, f"--average-bits {b}"),
            )
            for measure in ("kl", "hessian", "nas")
            for b in ("4", "2")
        ),
        tdnnf(
            "descent2",
            "2 bits a weight, by descent",
            f"--precisions ALLOCATION {SLOW_ALPHAS}",
            "descent-2bit",
            search=Search("descent-2bit", "kl", "--average-bits 2 --descend 1000 --num-batches 4"),
        ),
        *(
            tdnnf(f"admm{b}", f"{in_words(b)}, ADMM", f"--precisions {b} {ADMM}", b, averaged=False)
            for b in ("4", "2", "1")
        ),
        System(LSTM, "float", f"{LSTM_FLAGS} --rnnt-warm-step 1000 --precisions 32 {LINEAR}", ("32",), **OF_LSTM),
        *general(lstm),
        lstm(
            "gq-s5b",
            "5 bits, 1 in the first layer, General Quantizer",
            f"--precisions RECIPE/local/s5b.json {GQ}",
            ("s5b",),
            averaged=False,
        ),
        *general(conformer),
        System("rnnt-cotrain-plain", "co-trained, plain", f"{TRANSDUCER} {PLAIN}", ("2", "1"), RNNT, 0.4, (1, 2)),
    )
}
FOLD_SEEDS = (1, 2)
ROWS = [Row(system, seed) for system in SYSTEMS.values() for seed in system.seeds]
# by seed and fold, so that whatever is there can be compared
FOLD_ROWS = [
    Row(system, seed, fold)
    for seed in FOLD_SEEDS
    for fold in range(1, NUM_FOLDS + 1)
    for system in SYSTEMS.values()
    if system.compared
]
