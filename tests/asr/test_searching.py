"""A search from cuts to a file and a model trained from it; stopped and continued; what it refuses."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch

from lowbit_k2.errors import UserError
from lowbit_k2.recipe import search as script
from lowbit_k2.search.architecture import Architecture
from lowbit_k2.search.gumbel import LOGITS
from lowbit_k2.train.checkpoint import load_checkpoint, numbered
from tests.egs.scripts import ROOT, spawn
from tests.recipe.corpus import Corpus, make_corpus

TDNNF = "--model tdnnf-tiny --d-model 8 --num-layers 3 --hidden-dim 64 --strides 1,0,3 --candidates 2,4,8"
CONFORMER = "--d-model 8 --num-layers 2 --num-heads 2 --subsampling-channels 2 --conv-kernel 3 --candidates 4,16"
FIXED = "--max-duration 4 --num-buckets 2 --warm-step 5 --tensorboard false --num-epochs 2 --logits-epochs 3"
FIXED += " --logits-share 0.3 --log-interval 1 --corpus toy"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    made = make_corpus(tmp_path_factory.mktemp("corpus"), number=30)
    made.cuts.to_file(made.manifest_dir / "toy_cuts_train.jsonl.gz")
    made.cuts.subset(first=3).to_file(made.manifest_dir / "toy_cuts_dev.jsonl.gz")
    return made


def search(corpus: Corpus, exp_dir: Path, *more: str) -> None:
    flags = [
        *corpus.where,
        *FIXED.split(),
        "--exp-dir",
        str(exp_dir),
        *(word for text in more for word in text.split()),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["search.py", *flags])
        script.main()


@pytest.fixture(scope="module")
def finished(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both phases on a TDNN-F."""
    exp = tmp_path_factory.mktemp("search") / "exp"
    search(corpus, exp, TDNNF)
    torch.set_flush_denormal(False)
    return exp


def test_both_phases_and_their_result(finished: Path, corpus: Corpus) -> None:
    found = Architecture.load(finished / "logits/architecture.json")
    assert found.encoder == "tdnnf" and found.candidates == (2, 4, 8) and found.eta == 0.1
    [(field, widths)] = found.fields.items()
    assert field == "bottlenecks" and len(widths) == 3 and set(widths) <= {2, 4, 8}
    likeliest = [found.candidates[row.index(max(row))] for row in found.probabilities]
    assert list(widths) == likeliest and all(sum(row) == pytest.approx(1, abs=1e-3) for row in found.probabilities)
    assert found.cost["value"] <= found.cost["largest"] and found.cost["measure"] == "parameters"
    assert found.searched_on["objective"] == "ctc" and 0 < found.searched_on["utterances"] < 15
    weights, logits = (load_checkpoint(newest(finished / name)) for name in ("supernet", "logits"))
    assert weights.meta["model"]["encoder"]["bottlenecks"] == [8, 8, 8] and LOGITS not in weights.model
    for name, tensor in weights.model.items():
        assert torch.equal(tensor, logits.model[name]), name
    assert set(logits.model) == {*weights.model, LOGITS} and bool(logits.model[LOGITS].any())
    assert len(numbered(finished / "logits", "checkpoint")) <= 2 and not numbered(finished / "logits", "epoch")
    [log] = (finished / "supernet/log").iterdir()
    text = log.read_text()
    assert "temperature=1 cost=" in text and "entropy=" in text and "bottlenecks of 3 layers of a tdnnf" in text
    assert "parameters: " in text and "p(8)" in text


def newest(folder: Path) -> Path:
    name = "epoch" if numbered(folder, "epoch") else "checkpoint"
    return folder / f"{name}-{numbered(folder, name)[-1]}.pt"


def test_called_again_it_has_nothing_to_do(finished: Path, corpus: Corpus, tmp_path: Path) -> None:
    exp = Path(shutil.copytree(finished, tmp_path / "exp"))
    result = exp / "logits/architecture.json"
    before = result.read_text()
    result.unlink()
    search(corpus, exp, TDNNF)
    assert result.read_text() == before


def test_stopped_in_either_phase_it_comes_to_the_same(
    finished: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lowbit_k2.train import epochs

    update, calls = epochs.update, []

    def stopping(trainer, batches):
        calls.append(trainer.exp_dir.name)
        if len(calls) in (4, 9) or (calls.count("logits") == 3 and calls[-1] == "logits"):
            raise KeyboardInterrupt
        return update(trainer, batches)

    monkeypatch.setattr(epochs, "update", stopping)
    exp, stops = tmp_path / "exp", 0
    for _ in range(9):
        try:
            search(corpus, exp, TDNNF, "--save-every-n 1")
            break
        except KeyboardInterrupt:
            stops += 1
    assert stops >= 3
    first, second = (Architecture.load(folder / "logits/architecture.json") for folder in (finished, exp))
    assert first == second
    for phase in ("supernet", "logits"):
        states = [load_checkpoint(newest(folder / phase)).model for folder in (finished, exp)]
        assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_another_price_on_the_same_supernet(finished: Path, corpus: Corpus, tmp_path: Path) -> None:
    exp = Path(shutil.copytree(finished, tmp_path / "exp"))
    with pytest.raises(UserError, match=r"another logits configuration \(logits.eta 0.1 -> 1000000"):
        search(corpus, exp, TDNNF, "--eta 1e6")
    cheap = "--phase logits --eta 1e6 --logits-dir cheap --logits-lr 1"
    search(corpus, exp, TDNNF, cheap, f"--output {tmp_path}/small.json")
    assert Architecture.load(tmp_path / "small.json").fields == {"bottlenecks": (2, 2, 2)}
    for more in ("--logits-share 0.2", "--logits-share 0.4 --eta 1"):
        with pytest.raises(
            UserError, match=r"supernet/epoch-2.pt .*another search configuration \(search.logits_share"
        ):
            search(corpus, exp, TDNNF, "--phase logits --logits-dir other", more)
    with pytest.raises(UserError, match=r"another search configuration \(search.candidates"):
        search(corpus, exp, TDNNF.replace("2,4,8", "2,6,8"), "--phase supernet")


def test_the_logits_need_a_finished_supernet(finished: Path, corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="supernet lacks epoch 2, its last one is none: train it with --phase supernet"):
        search(corpus, tmp_path / "new", TDNNF, "--phase logits")
    assert not (tmp_path / "new").exists()
    exp = Path(shutil.copytree(finished, tmp_path / "exp"))
    with pytest.raises(UserError, match="lacks epoch 5, its last one is epoch 2"):
        search(corpus, exp, TDNNF, "--phase logits --num-epochs 5")


@pytest.mark.parametrize("more", ["", "--precisions 4 --cost bytes --bits 4", "--use-bf16 true --accum-grad 2"])
def test_a_conformer(corpus: Corpus, tmp_path: Path, more: str) -> None:
    search(corpus, tmp_path, CONFORMER, "--num-epochs 1 --logits-epochs 1", more)
    found = Architecture.load(tmp_path / "logits/architecture.json")
    assert found.encoder == "conformer" and len(found.fields["ffn_dim"]) == 2
    assert found.cost.get("bits", 0) == (4 if "bytes" in more else 0)


@pytest.mark.k2
def test_the_encoder_of_a_transducer(corpus: Corpus, tmp_path: Path) -> None:
    sizes = "--decoder-dim 8 --joiner-dim 8 --objective ctc-rnnt --num-epochs 1 --logits-epochs 1"
    search(corpus, tmp_path, CONFORMER, sizes)
    assert len(Architecture.load(tmp_path / "logits/architecture.json").fields["ffn_dim"]) == 2


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("--eta -1", "--eta must not be negative"),
        ("--candidates 4", "--candidates '4': give two or more different widths, from small to large"),
        ("--candidates 4,4", "--candidates '4,4': give two or more"),
        ("--candidates 4,70", "--candidates 70 is too large: bottlenecks 70: give one, or 3, from 1 to 64"),
        ("--final-temperature 3", "--final-temperature 3 must not be above --start-temperature"),
        ("--start-temperature 0", "--start-temperature must be at least 0.001"),
        ("--logits-share 0.0001", "--logits-share 0.0001 of the training utterances leaves one part empty"),
        ("--logits-dir supernet", "--logits-dir 'supernet': give the name of a folder, which is not supernet"),
        ("--output x.txt", "--output x.txt: give a name that ends in .json"),
        ("--bottlenecks 8", "--bottlenecks is what the search finds"),
        ("--precisions 2,1", "--precisions of a search is one"),
        ("--teacher mean", "--precisions of a search is one, without a teacher"),
        ("--start-epoch 2", "--start-epoch is for train.py"),
        ("--init-from x.pt", "--init-from is for train.py"),
        ("--corpus nothing", "nothing_cuts_train.jsonl.gz does not exist"),
    ],
)
def test_what_a_search_refuses(more: str, words: str, corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        search(corpus, tmp_path / "exp", TDNNF, more)
    assert words in str(error.value) and not (tmp_path / "exp").exists()


def test_two_processes(corpus: Corpus, tmp_path: Path) -> None:
    """Started by `-m`, they are so again; the second phase of each reads what the first one's main process wrote."""
    flags = [*corpus.where, *FIXED.split(), *TDNNF.split(), "--exp-dir", tmp_path, "--world-size", 2]
    spawn(sys.executable, "-m", "lowbit_k2.recipe.search", *flags, PYTHONPATH=str(ROOT)).good()
    assert len(Architecture.load(tmp_path / "logits/architecture.json").fields["bottlenecks"]) == 3
    for phase in ("supernet", "logits"):
        assert load_checkpoint(newest(tmp_path / phase)).meta["update"] >= 2


def test_a_folder_of_a_training_is_left_alone(finished: Path, corpus: Corpus) -> None:
    with pytest.raises(UserError, match=r"--exp-dir .*supernet holds a training \(epoch-2\.pt\): give another"):
        search(corpus, finished / "supernet", TDNNF)


def test_a_look_at_the_costs(corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    search(corpus, tmp_path / "exp", TDNNF, "--dry-run true --cost bytes --bits 2")
    out = capsys.readouterr().out
    assert "bottlenecks of 3 layers of a tdnnf, bytes at 2 bits" in out and not (tmp_path / "exp").exists()
