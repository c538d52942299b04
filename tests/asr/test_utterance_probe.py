"""The classifier of utterances: written out with the mean behind the layers, and what it tells apart."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from lhotse import CutSet, NumpyFilesWriter
from lhotse.utils import fastcopy

from lowbit_k2.asr.utterance_probe import ProbeConfig, UtteranceProbe, held_out, probe, state_means
from lowbit_k2.core.features import FeatureConfig
from lowbit_k2.data.features import write_feature_config
from lowbit_k2.errors import UserError
from lowbit_k2.fileio import atomic_write
from tests.egs.scripts import call
from tests.recipe.corpus import make_cut

STATES = FeatureConfig(type="states", num_mel_bins=6, normalize="none")
CONFIG = ProbeConfig(num_states=3, num_epochs=60, learning_rate=0.05, projection_dim=4)


@pytest.fixture(scope="module")
def cuts(tmp_path_factory: pytest.TempPathFactory) -> CutSet:
    """Two layers of noise, and one that says which of two words it is."""
    generator, made = np.random.default_rng(0), []
    with NumpyFilesWriter(tmp_path_factory.mktemp("states")) as writer:
        for i in range(40):
            word = ("GO", "NO")[i % 2]
            cut = make_cut(f"c{i:02}", 30, word, writer)
            states = generator.standard_normal((30, 3, 2)).astype(np.float32)
            states[:, 1, 0] += 1.0 if word == "GO" else -1.0
            key = writer.write(f"states-{cut.id}", states.reshape(30, 6))
            made.append(fastcopy(cut, features=fastcopy(cut.features, num_features=6, storage_key=key)))
    return CutSet.from_cuts(made)


def test_the_mean_may_come_first(cuts: CutSet) -> None:
    torch.manual_seed(0)
    model, means = UtteranceProbe(3, 2, 4, 5).double(), state_means(list(cuts)[:3], STATES, 3).double()
    with torch.no_grad():
        model.state_weights.copy_(torch.tensor([0.3, -2.0, 1.0]))
        found = model(means)
        for cut, logits in zip(list(cuts)[:3], found, strict=True):
            frames = torch.as_tensor(cut.load_features()).double().view(30, 3, 2)
            mixed = sum(w * frames[:, i] for i, w in enumerate(model.state_weights.softmax(0)))
            expected = model.output(torch.stack([model.projection(frame) for frame in mixed]).mean(0))
            torch.testing.assert_close(logits, expected)


def test_it_finds_the_layer_that_knows(cuts: CutSet) -> None:
    train, test = held_out(list(cuts), "text", 5)
    assert len(train) == 32 and [cut.id for cut in test] == ["c08", "c09", "c18", "c19", "c28", "c29", "c38", "c39"]
    found = probe(train, test, STATES, CONFIG)
    assert (found.right, found.tested, found.trained, found.classes) == (8, 8, 32, 2)
    assert max(found.weights) == found.weights[1] and sum(found.weights) == pytest.approx(1)
    assert probe(train, test, STATES, CONFIG) == found


def test_the_command(cuts: CutSet, tmp_path: Path) -> None:
    write_feature_config(tmp_path, STATES)
    with atomic_write(tmp_path / "mine_cuts_all.jsonl.gz") as temporary:
        cuts.to_file(temporary)
    own = ["--manifest-dir", tmp_path, "--corpus", "mine", "--splits", "all", "--num-states", 3, "--num-epochs", 60]
    done = call("lowbit_k2.recipe.probe_utterances", *own, "--learning-rate", 0.05).good().out.splitlines()
    assert done[0] == "0.00% errors [ 0 / 8 ], 2 classes, 32 utterances to train on"
    assert json.loads(done[1])["right"] == 8
    line = call("lowbit_k2.recipe.probe_utterances", *own[:-4], "--num-states", 4).error()
    assert "--num-states 4 does not divide the 6 features" in line


def test_what_cannot_be_told_apart(cuts: CutSet) -> None:
    go, no = (list(cuts)[i::2] for i in (0, 1))
    for train, test, label, words in [
        (go, no, "text", "'NO' is tested, but not trained"),
        (go, go, "text", "1 classes, 20 to test"),
        (go, no, "speaker", "40 utterances have no speaker, first c00"),
    ]:
        with pytest.raises(UserError, match=words):
            probe(train, test, STATES, ProbeConfig(num_states=3, label=label))
