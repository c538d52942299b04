"""A kind of model in a user's own file - settings, rules, loss, search - goes from train.py to `transcribe`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from lowbit_k2.core.models import MODEL_KINDS
from lowbit_k2.decode.method import METHODS
from lowbit_k2.losses.objectives import OBJECTIVES
from lowbit_k2.train.checkpoint import load_checkpoint
from tests.egs.scripts import AN4, ROOT, call, spawn
from tests.recipe.corpus import Corpus, make_corpus

PLUGIN = '''
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from lowbit_k2.core.config import Config, option
from lowbit_k2.core.models import ModelConfig, register_model
from lowbit_k2.decode.hypothesis import Hypothesis, best_first
from lowbit_k2.decode.method import Method, register_method
from lowbit_k2.losses.ctc import CtcCriterion
from lowbit_k2.losses.objectives import Objective, register_objective
from lowbit_k2.losses.output import PassOutput


class Pile(nn.Module):
    """Pairs of frames through linear layers to the classes."""

    def __init__(self, config, for_training=True):
        super().__init__()
        self.config = config
        widths = [2 * config.num_features, *[config.d_model] * config.num_layers]
        self.pile = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, widths[1:]))
        self.top = nn.Linear(config.d_model, config.vocab_size)

    def forward(self, inputs, input_lens):
        n, t, f = inputs.shape
        x = inputs[:, : t // 2 * 2].reshape(n, t // 2, 2 * f)  # (N, T', 2 F)
        for layer in self.pile:
            x = layer(x).tanh()
        return self.top(x).float().log_softmax(-1), self.config.output_lens(input_lens)

    def network_output(self, inputs, input_lens):
        log_probs, lens = self(inputs, input_lens)
        return {"lens": lens, "log_probs": log_probs, "energy": inputs.mean()}


@register_model
@dataclass(frozen=True)
class PileConfig(ModelConfig):
    kind: ClassVar[str] = "pile"
    build: ClassVar[type] = Pile
    rules: ClassVar[tuple] = (("pile.*.weight", "linear"), ("top.weight", "output"))
    presets: ClassVar[dict] = {"flat": {}}
    networks: ClassVar[tuple] = ("pile",)

    vocab_size: int = option(10, flag="", low=2)
    num_features: int = option(80, flag="", low=1)
    d_model: int = option(12, low=1)
    num_layers: int = option(2, low=1)

    def output_lens(self, lens):
        return lens // 2

    def shapes(self, for_training=True):
        widths = [2 * self.num_features, *[self.d_model] * self.num_layers]
        pairs = [(f"pile.{i}", b, a) for i, (a, b) in enumerate(zip(widths, widths[1:]))]
        for name, rows, columns in [*pairs, ("top", self.vocab_size, self.d_model)]:
            yield f"{name}.weight", (rows, columns)
            yield f"{name}.bias", (rows,)

    @classmethod
    def preset(cls, name, **overrides):
        return cls(**overrides)


@dataclass(frozen=True)
class ScaledConfig(Config):
    ctc_factor: float = option(2.0, "on the loss", above=0)


class Scaled(CtcCriterion):
    def __init__(self, config):
        self.config = config

    def __call__(self, model, batch, update=0, shared=None):
        out = super().__call__(model, batch, update, shared)
        return PassOutput(self.config.ctc_factor * out.loss, out.num_frames, out.terms)


register_objective("pile", Objective(PileConfig, Scaled, ScaledConfig))


@register_method("commonest-tokens")
class CommonestTokens(Method):
    """The tokens with the most probability over all frames, the shortest of equally good answers first."""

    network = "pile"

    def search(self, output, n, references):
        assert output.more["energy"].dim() == 0
        found = []
        for scores, length in zip(output.log_probs, output.lens.tolist()):
            mass, order = scores[:length, 3:].exp().sum(dim=0).sort(descending=True)
            found.append(best_first(
                Hypothesis(tuple((order[:k] + 3).tolist()), float(mass[:k].sum()) - 0.01 * k) for k in range(1, 4)
            ))
        return found
'''


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("corpus")
    made = make_corpus(folder)
    for split, cuts in (("train", made.cuts), ("dev", made.cuts.subset(first=3)), ("test", made.cuts.subset(first=4))):
        cuts.to_file(made.manifest_dir / f"an4_cuts_{split}.jsonl.gz")
    return made


@pytest.fixture
def plugin(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "pile.py"
    path.write_text(PLUGIN)
    yield path
    MODEL_KINDS.pop("pile", None)
    OBJECTIVES.pop("pile", None)
    METHODS.pop("commonest-tokens", None)


def test_from_training_to_transcription(corpus: Corpus, plugin: Path, tmp_path: Path) -> None:
    exp, file = tmp_path / "exp", tmp_path / "pile.safetensors"
    flags = ["--plugin", plugin, *corpus.where, "--exp-dir", exp, "--objective", "pile", "--model", "flat"]
    sizes = ["--ctc-factor", 3, "--d-model", 16, "--num-epochs", 1, "--max-duration", 4, "--num-buckets", 2]
    call(AN4 / "train.py", *flags, *sizes, "--precisions", "2,1", "--tensorboard", "false").good()
    checkpoint = load_checkpoint(exp / "epoch-1.pt")
    found = checkpoint.meta["model"]
    assert (found["kind"], found["d_model"], found["num_features"]) == ("pile", 16, 20)
    assert "pile.1.parametrizations.weight.0.alphas.1" in checkpoint.model, "the file's own rules"
    assert checkpoint.meta["settings"]["pile"] == {"ctc_factor": 3.0}
    where = ["--plugin", plugin, "--manifest-dir", corpus.manifest_dir]
    call(AN4 / "decode.py", *where, "--exp-dir", exp, "--quiet").good()
    call(AN4 / "export.py", *where, "--exp-dir", exp, "--precision", 2, "--output", file).good()
    call(AN4 / "decode.py", *where, "--packed", file, "--exp-dir", exp, "--quiet", "-j", 2).good()
    model, packed = (
        sorted(line for line in next((exp / "commonest-tokens").glob(f"recogs-test-{name}*")).read_text().splitlines())
        for name in ("epoch", "packed")
    )
    assert model == packed and all(line.count("', '") or "hyp=['" in line for line in model if "hyp=" in line)
    refused = call(AN4 / "decode.py", *where, "--exp-dir", exp, "--decoding-method", "greedy_search").error()
    assert "--decoding-method greedy_search does not fit this pile model: choose of commonest-tokens" in refused
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).normal(size=16000) * 0.1, 16000)
    command = ["-m", "lowbit_k2.cli", "transcribe", "--packed", file, tmp_path / "a.wav"]
    refused = spawn(sys.executable, *command, cwd=ROOT)
    assert "model kind 'pile' is unknown" in refused.error() and "load the file that registers it" in refused.err
    assert (
        spawn(sys.executable, *command, "--plugin", plugin, cwd=ROOT).good().out.startswith(f"{tmp_path / 'a.wav'}\t")
    )


def test_a_plugin_that_is_not_there(tmp_path: Path) -> None:
    line = call(AN4 / "train.py", "--plugin", tmp_path / "none.py").error()
    assert "none.py does not exist" in line
