"""A transducer through the scripts' own functions: train, decode, pack, decode from the file."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from lowbit_k2.asr.evaluation import evaluate
from lowbit_k2.asr.model_io import CheckpointChoice
from lowbit_k2.asr.recognizer import DecodeConfig
from lowbit_k2.decode.lattice import SearchConfig
from lowbit_k2.errors import UserError
from lowbit_k2.k2_compat import has_k2
from lowbit_k2.packed import read_packed
from lowbit_k2.recipe.make_lm import make_token_lm
from lowbit_k2.recipe.training_flags import training_parser
from lowbit_k2.train.checkpoint import load_checkpoint
from tests.asr import running
from tests.asr.running import run_training
from tests.recipe.corpus import TINY, Corpus, make_corpus

LOSSES = [
    pytest.param("pruned", marks=pytest.mark.k2),
    pytest.param(
        "full",
        marks=pytest.mark.skipif(
            importlib.util.find_spec("torchaudio") is None, reason="torchaudio is not installed (modern lane)"
        ),
    ),
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("corpus"), number=9)


def train(corpus: Corpus, exp_dir: Path, *more: str) -> None:
    fixed = ["--max-duration", "4", "--num-buckets", "2", "--warm-step", "5", "--tensorboard", "false"]
    fixed += ["--decoder-dim", "8", "--joiner-dim", "8", "--num-epochs", "1", "--rnnt-warm-step", "2"]
    args = training_parser(None).parse_args([*corpus.where, *TINY, *fixed, "--exp-dir", str(exp_dir), *more])
    run_training(args, corpus.cuts, corpus.cuts.subset(first=3))


def decode(corpus: Corpus, exp_dir: Path, *more: str) -> set[str]:
    """The methods that were run."""
    where = ["--exp-dir", str(exp_dir), "--manifest-dir", str(corpus.manifest_dir), "--quiet"]
    return {key[1] for key in running.decode(lambda: {"test": corpus.cuts}, *where, *more)}


@pytest.mark.parametrize("loss", LOSSES)
def test_from_training_to_the_packed_file(loss: str, corpus: Corpus, tmp_path: Path) -> None:
    train(corpus, tmp_path, "--objective", "ctc-rnnt", "--rnnt-loss", loss, "--prune-range", "3")
    meta = load_checkpoint(tmp_path / "epoch-1.pt").meta
    assert meta["model"]["kind"] == "transducer" and meta["model"]["ctc_head"] is True
    config = DecodeConfig(
        CheckpointChoice(tmp_path),
        decoding_method="greedy_search,ctc-greedy-search",
        search=SearchConfig(blank_penalty=2.0),
        manifest_dir=corpus.manifest_dir,
        quiet=True,
    )
    found = evaluate(config, ("2", "1.5", "1"), "test", lambda: corpus.cuts)
    assert [set(e.errors) for e in found] == [{"greedy_search", "ctc-greedy-search"}] * 3
    names = {tensor.name for tensor in read_packed(tmp_path / "packed/1bit.safetensors").tensors}
    assert "joiner.output.weight" in names and "ctc_head.weight" in names
    assert not any(name.startswith("simple.") for name in names)
    assert decode(corpus, tmp_path) == {"greedy_search"}, "the default method of a transducer"
    decode_with_token_lm(corpus, tmp_path)


def decode_with_token_lm(corpus: Corpus, exp_dir: Path) -> None:
    text, arpa = exp_dir / "text", exp_dir / "units.arpa"
    text.write_text("\n".join(cut.supervisions[0].text for cut in corpus.cuts))
    make_token_lm(text, 3, corpus.lang_dir, arpa)
    flags = ["--decoding-method", "greedy_search,modified_beam_search", "--token-lm", str(arpa)]
    decode(corpus, exp_dir, *flags, "--lm-scale", "0,0.5")
    found = [path.name for path in (exp_dir / "modified_beam_search").glob("recogs-*")]
    assert sorted(name.split("-")[2] for name in found) == ["lm_scale_0", "lm_scale_0.5"]
    with pytest.raises(UserError, match="--token-lm is used by modified_beam_search alone"):
        decode(corpus, exp_dir, "--token-lm", str(arpa))


@pytest.mark.parametrize("loss", LOSSES)
def test_methods_that_do_not_fit(loss: str, corpus: Corpus, tmp_path: Path) -> None:
    train(corpus, tmp_path / "rnnt", "--objective", "rnnt", "--rnnt-loss", loss, "--precisions", "32")
    with pytest.raises(UserError, match="does not fit this transducer model: choose of greedy_search"):
        decode(corpus, tmp_path / "rnnt", "--decoding-method", "ctc-greedy-search")


def test_greedy_search_needs_a_transducer(corpus: Corpus, tmp_path: Path) -> None:
    train(corpus, tmp_path, "--precisions", "1")
    with pytest.raises(UserError, match="greedy_search does not fit this ctc model: choose of ctc-greedy-search"):
        decode(corpus, tmp_path, "--decoding-method", "greedy_search")
    assert decode(corpus, tmp_path) == {"ctc-greedy-search"}


def test_the_pruned_loss_asks_for_k2_at_once(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if has_k2():
        from lowbit_k2.losses import rnnt

        def missing() -> None:
            raise UserError("k2 is not installed: ...")

        monkeypatch.setattr(rnnt, "require_k2", missing)
    with pytest.raises(UserError, match="k2 is not installed"):
        train(corpus, tmp_path / "exp", "--objective", "rnnt")
    assert not (tmp_path / "exp").exists()
