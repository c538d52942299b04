"""Language models through the scripts: train, resume, score, choose precisions, pack, rescore."""

from __future__ import annotations

import gzip
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from kaldialign import edit_distance

from lowbit_k2.asr.language_model import load_language_model
from lowbit_k2.asr.model_io import CheckpointChoice, describe_tokenizer, load_trained
from lowbit_k2.asr.pairs import NONE, evaluate_pairs, format_pairs, settings
from lowbit_k2.asr.recognizer import DecodeConfig
from lowbit_k2.cli import run as cli
from lowbit_k2.data.lm_text import TokenText
from lowbit_k2.data.text_config import TextConfig
from lowbit_k2.data.tokenizer import load_tokenizer
from lowbit_k2.errors import UserError
from lowbit_k2.models import TransducerConfig, make_model
from lowbit_k2.packed import PackedFileError, read_packed
from lowbit_k2.quant import QuantConfig, quantize_model, use_precision
from lowbit_k2.recipe.make_lm import make_token_lm
from lowbit_k2.train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from tests.asr.running import decode
from tests.egs.scripts import LIBRISPEECH, Flag, call, refused
from tests.recipe.corpus import FEATURES, TINY, Corpus, make_corpus

SCRIPT = LIBRISPEECH / "train_lm.py"
LINES = ["YES NO GO", "NO GO NO", "GO", "YES YES NO", "RARE NO", "GO GO GO GO GO"]
TRANSFORMER: list[Flag] = ["--model", "tiny", "--d-model", 16, "--num-heads", 2, "--ffn-dim", 16]
LSTM: list[Flag] = ["--model", "lstm-tiny", "--d-model", 16]
FIXED: list[Flag] = ["--tensorboard", "false", "--warm-step", 4, "--batch-tokens", 20, "--num-threads", 1]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("corpus"), number=6)


@pytest.fixture(scope="module")
def text(corpus: Corpus) -> Path:
    path = corpus.manifest_dir / "text.gz"
    path.write_bytes(gzip.compress("".join(f"utt-{i} {line}\n" for i, line in enumerate(LINES)).encode()))
    return path


def flags(text: Path, *sizes: Flag) -> list[Flag]:
    return [*FIXED, *(sizes or TRANSFORMER), "--train-text", text, "--valid-text", text, "--kaldi-text", "true"]


@pytest.fixture(scope="module")
def float_lm(corpus: Corpus, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float model over the recogniser's characters, of the kind that has states: an LSTM."""
    exp = tmp_path_factory.mktemp("lm") / "float"
    own = ["--units", "pieces", "--lang-dir", corpus.lang_dir, "--precisions", 32]
    call(SCRIPT, *flags(text, *LSTM), *own, "--exp-dir", exp, "--num-epochs", 2).good()
    return exp


@pytest.fixture(scope="module")
def low_lm(text: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A co-trained model of words, and its log."""
    exp = tmp_path_factory.mktemp("lm") / "low"
    done = call(SCRIPT, *flags(text), "--precisions", "2,1,sp", "--exp-dir", exp, "--num-epochs", 4).good()
    return exp, done.err


def by_hand(path: Path, precision: str, lines: list[str]) -> tuple[float, float]:
    """log P of all units and ends, and that of `<unk>`, unit by unit from the definition, summed in float64."""
    lm = load_language_model(path, precision)
    model, total, of_unknown = lm.model, 0.0, 0.0
    for line in lines:
        units = [lm.boundary, *lm.tokenizer.encode(line), lm.boundary]
        for place in range(1, len(units)):
            with torch.no_grad():
                hidden = model.hidden(torch.tensor([units[:place]]))[0, -1].double()
                logits = model.embedding.weight.double() @ hidden + model.output.bias.double()
            score = float(logits[units[place]]) - math.log(sum(map(math.exp, logits.tolist())))
            total += score
            of_unknown += score if units[place] == lm.unknown else 0.0
    return total, of_unknown


def scored(capsys: pytest.CaptureFixture[str], *arguments: Flag) -> dict:
    capsys.readouterr()
    cli(["perplexity", *map(str, arguments), "--kaldi-text", "true", "--json"])
    return json.loads(capsys.readouterr().out)


def test_training_says_what_it_reads_and_learns(low_lm: tuple[Path, str]) -> None:
    exp, log = low_lm
    assert "training text: 17 words in 6 lines, 23 units to tell, 1 (4.3%) of them <unk>; 6 different units" in log
    assert "rows of up to 6 units" in log
    per_word = [float(line.split(": ")[1].split()[0]) for line in log.splitlines() if "valid perplexity at 2" in line]
    assert len(per_word) == 4 and per_word[-1] < per_word[0] < 7
    meta = load_checkpoint(exp / "epoch-4.pt").meta
    assert (
        meta["model"]["kind"] == "transformer-lm"
        and meta["features"] == {}
        and meta["quant"]["layer_prefix"] == "layers"
    )


@pytest.mark.parametrize("precision", ["2", "1"])
def test_perplexity_by_hand(
    low_lm: tuple[Path, str], text: Path, precision: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = scored(capsys, low_lm[0] / "epoch-4.pt", text, "--precision", precision)
    total, of_unknown = by_hand(low_lm[0], precision, LINES)
    assert (found["words"], found["sentences"], found["units"], found["unknown"]) == (17, 6, 23, 1)
    assert found["log_prob"] == pytest.approx(total, rel=1e-5)
    assert found["per_word"] == found["per_unit"] == pytest.approx(math.exp(-total / 23), rel=1e-5)
    assert found["per_word_known"] == pytest.approx(math.exp(-(total - of_unknown) / 22), rel=1e-5)


def test_perplexity_of_pieces_by_hand(
    float_lm: Path, corpus: Corpus, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = scored(capsys, float_lm, text)
    total, _ = by_hand(float_lm, "", LINES)
    tokenizer = load_tokenizer(corpus.lang_dir)
    units = sum(len(tokenizer.encode(line)) + 1 for line in LINES)
    assert found["units"] == units and found["per_word_known"] is None and found["unknown"] > 0
    assert found["per_word"] == pytest.approx(math.exp(-total / 23), rel=1e-4)
    assert found["per_unit"] == pytest.approx(math.exp(-total / units), rel=1e-4)
    cli(["perplexity", str(float_lm / "epoch-2.pt"), str(text), "--kaldi-text", "true"])
    assert "<unk>: 1 units are <unk>, which stands for letters that no unit has" in capsys.readouterr().out


def test_a_packed_file_scores_as_the_checkpoint(
    low_lm: tuple[Path, str], text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exp, _ = low_lm
    for precision in ("2", "1", "1.5"):
        packed = tmp_path / f"{precision}.safetensors"
        call(LIBRISPEECH / "export.py", "--exp-dir", exp, "--precision", precision, "--output", packed).good()
        own = scored(capsys, exp, text, "--precision", precision)
        assert scored(capsys, packed, text)["per_word"] == pytest.approx(own["per_word"], rel=1e-5)
    cli(["inspect", str(tmp_path / "2.safetensors")])
    out = capsys.readouterr().out
    for word in ("feed_forward", "attention", "embedding", "ternary", "kind transformer-lm", "tokens: words"):
        assert word in out
    assert read_packed(packed).features == {}


def test_a_stopped_run_goes_on_where_it_was(low_lm: tuple[Path, str], text: Path, tmp_path: Path) -> None:
    common = [*flags(text), "--precisions", "2,1,sp", "--exp-dir", tmp_path / "exp"]
    call(SCRIPT, *common, "--num-epochs", 2, "--save-every-n", 3, "--lr-schedule", "noam").good()
    call(SCRIPT, *common, "--num-epochs", 4, "--start-batch", 3, "--lr-schedule", "noam").good()
    call(SCRIPT, *common[:-1], tmp_path / "whole", "--num-epochs", 4, "--lr-schedule", "noam").good()
    one, two = (load_checkpoint(tmp_path / name / "epoch-4.pt").model for name in ("exp", "whole"))
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    assert (
        "another tokenizer configuration"
        in call(SCRIPT, *common, "--resume", "true", "--normalize-text", "lower").error()
    )


def test_bfloat16_teachers_and_other_schemes(float_lm: Path, corpus: Corpus, text: Path, tmp_path: Path) -> None:
    start = float_lm / "epoch-2.pt"
    own = [*flags(text, *LSTM), "--units", "pieces", "--lang-dir", corpus.lang_dir]
    own += ["--num-epochs", 1, "--init-from", start]
    log = call(SCRIPT, *own, "--precisions", "1", "--teacher", start, "--use-bf16", "true", "--exp-dir", tmp_path / "a")
    assert "kl_1=" in log.good().err
    log = call(SCRIPT, *own, "--precisions", "2", "--admm-every", 2, "--exp-dir", tmp_path / "b")
    assert "admm_residual" in log.good().err
    log = call(SCRIPT, *own, "--precisions", "4", "--quantizer", "gq", "--gq-every", 2, "--exp-dir", tmp_path / "c")
    assert load_checkpoint(tmp_path / "c/epoch-1.pt").meta["quant"]["schemes"]["lstm"]["quantizer"] == "gq"


@pytest.mark.parametrize("measure", ["kl", "sigmoid", "hessian", "nas"])
def test_precisions_are_chosen_at_two_bits(
    measure: str, float_lm: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, chosen = tmp_path / "table.json", tmp_path / "chosen.json"
    own = ["--exp-dir", float_lm, "--text", text, "--kaldi-text", "true", "--probes", 1, "--nas-updates", 4]
    wanted = ["--average-bits", 2, "--output", chosen, "--quantized", tmp_path / "quantized.pt"]
    call("lowbit_k2.recipe.allocate", *own, "--measure", measure, "--table", table, *wanted).good()
    found = json.loads(table.read_text())
    assert found["note"] == "6 rows of text.gz" and "layers.0.lstm.weight_hh_l0" in found["loss"]
    assert "embedding.weight" in json.loads(chosen.read_text())["bits"]
    if measure == "kl":
        packed = tmp_path / "packed"
        export = ["--checkpoint", tmp_path / "quantized.pt", "--precision", "quantized", "--output", packed]
        call(LIBRISPEECH / "export.py", *export).good()
        own = scored(capsys, tmp_path / "quantized.pt", text)
        assert scored(capsys, packed, text)["per_word"] == pytest.approx(own["per_word"], rel=1e-5)


def test_admm_on_a_few_batches(float_lm: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = ["--exp-dir", float_lm, "--text", text, "--kaldi-text", "true", "--precision", 2, "--outer", 2]
    call("lowbit_k2.recipe.admm", *own, "--output", tmp_path / "admm.pt").good()
    assert scored(capsys, tmp_path / "admm.pt", text)["per_word"] > 1
    line = call("lowbit_k2.recipe.admm", *own[:2], *own[6:], "--cuts", text, "--output", tmp_path / "a.pt").error()
    assert "--text is needed for a language model" in line


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--train-text", "TMP/gone"], "TMP/gone does not exist: give a text file"),
        (["--train-text", "TMP/empty"], "no word occurs 2 times: lower the cut-off, or give more text"),
        (["--valid-text", "TMP/empty"], "TMP/empty: no line has words"),
        (["--valid-text", ""], "--valid-text is needed"),
        (["--train-text", "TMP/long"], "TMP/long line 1 has 100000 words, over --max-length 1000"),
        (["--num-heads", "3"], "--d-model 16 must be even and a multiple of --num-heads 3"),
        (["--model", "lstm-tiny"], "not all of these are settings of a lstm-lm"),
        (["--units", "pieces", "--lang-dir", "TMP"], "holds neither bpe.model nor lexicon.txt"),
        (["--precisions", "2", "--quant-config", "float"], "--quant-config float has no tensors for the precisions 2"),
    ],
)
def test_bad_input_is_one_line(text: Path, tmp_path: Path, more: list[str], words: str) -> None:
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "long").write_text("NO " * 100_000)
    own = [*flags(text), "--exp-dir", tmp_path / "exp", "--kaldi-text", "false"]
    assert words.replace("TMP", str(tmp_path)) in refused(tmp_path, SCRIPT, *own, *more)


def test_what_perplexity_refuses(low_lm: tuple[Path, str], text: Path, tmp_path: Path) -> None:
    exp, _ = low_lm
    (tmp_path / "small").write_text("yes no go\n")
    (tmp_path / "garbage").write_text("no model")
    call(LIBRISPEECH / "export.py", "--exp-dir", exp, "--precision", 1, "--output", tmp_path / "packed").good()
    for arguments, words in [
        ([exp, tmp_path / "small"], "the model knows none of its words, of 6 units: are letter cases"),
        ([tmp_path / "garbage", text], "is not a safetensors file"),
        ([tmp_path / "gone", text], "does not exist"),
        ([tmp_path / "packed", text, "--precision", "1"], "is fixed in .*packed, a packed file: leave it out"),
        ([exp, text, "--precision", "4"], "the model was never trained at 4 bits"),
        ([exp, text, "--max-length", "2"], "line 1 has 3 words, over --max-length 2"),
    ]:
        with pytest.raises((UserError, PackedFileError), match=words):
            cli(
                [
                    "perplexity",
                    *map(str, arguments),
                    *([] if "small" in str(arguments[1]) else ["--kaldi-text", "true"]),
                ]
            )
    with pytest.raises(UserError, match="a transformer-lm reads text, no speech: give it as --rescore-lm"):
        cli(["transcribe", "--packed", str(tmp_path / "packed"), str(text)])


@pytest.fixture(scope="module")
def recogniser(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transducer that has learnt nothing, and so finds many things."""
    torch.manual_seed(3)
    tokenizer = load_tokenizer(corpus.lang_dir)
    fields = {flag[2:].split("=")[0].replace("-", "_"): int(flag.split("=")[1]) for flag in TINY}
    sizes = {"vocab_size": tokenizer.vocab_size, "decoder_dim": 8, "joiner_dim": 8}
    config = TransducerConfig.preset("tiny", num_features=20, **fields, **sizes)
    model, quant = make_model(config), QuantConfig.preset("lossless16", precisions=(2,))
    torch.nn.init.normal_(model.joiner.output.weight, std=3.0)
    quantize_model(model, quant)
    meta = {"model": config.to_dict(), "quant": quant.to_dict(), "tokenizer": describe_tokenizer(tokenizer)}
    meta |= {"features": FEATURES.to_dict(), "update": 1, "average_period": 1}
    exp = tmp_path_factory.mktemp("asr") / "exp"
    save_checkpoint(exp / "epoch-1.pt", Checkpoint(model.state_dict(), meta))
    return exp


def decoded(recogniser: Path, corpus: Corpus, *more: Flag) -> dict[str, list]:
    """Hypotheses by the setting."""
    common = ["--exp-dir", recogniser, *corpus.where[:2], "--decoding-method", "modified_beam_search", "--quiet"]
    found = decode(lambda: {"dev": corpus.cuts}, *map(str, [*common, *more]))
    return {setting: result.results for (_, _, setting, _), result in found.items()}


def test_lists_are_rescored_at_all_scales_in_one_run(
    recogniser: Path, corpus: Corpus, float_lm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = decoded(recogniser, corpus)[""]
    own = ["--rescore-lm", float_lm / "epoch-2.pt", "--lm-precision", 32, "--rescore-lm-scale", "0,30"]
    found = decoded(recogniser, corpus, *own)
    assert list(found) == ["rescore_0_ngram_1", "rescore_30_ngram_1"]
    assert found["rescore_0_ngram_1"] == plain != found["rescore_30_ngram_1"]
    assert "of an earlier call" not in capsys.readouterr().out
    assert decoded(recogniser, corpus, *own) == found
    assert capsys.readouterr().out.count("of an earlier call") == 2
    call(LIBRISPEECH / "export.py", "--exp-dir", float_lm, "--precision", 32, "--output", tmp_path / "packed").good()
    packed = decoded(recogniser, corpus, "--rescore-lm", tmp_path / "packed", "--rescore-lm-scale", "30")
    assert "of an earlier call" not in capsys.readouterr().out
    assert packed["rescore_30_ngram_1"] == found["rescore_30_ngram_1"]


def test_pairs_of_recognisers_and_language_models(
    recogniser: Path, corpus: Corpus, float_lm: Path, low_lm: tuple[Path, str], tmp_path: Path
) -> None:
    """Both by their packed files; scales are those with the fewest errors on dev, found by decoding at each alone."""
    files = {name: tmp_path / f"{name}.packed" for name in ("asr", "lm32", "lm1")}
    export = LIBRISPEECH / "export.py"
    call(export, "--exp-dir", recogniser, "--epoch", 1, "--precision", 2, "--output", files["asr"]).good()
    call(export, "--exp-dir", float_lm, "--precision", 32, "--output", files["lm32"]).good()
    call(export, "--exp-dir", low_lm[0], "--precision", 1, "--output", files["lm1"]).good()
    config = DecodeConfig(
        CheckpointChoice(tmp_path),
        lang_dir=corpus.lang_dir,
        manifest_dir=corpus.where[1],
        decoding_method="modified_beam_search",
        rescore_lm_scale=(0.0, 30.0),
        quiet=True,
    )
    lms = {"32": files["lm32"], "1": files["lm1"]}
    sets = {"dev": corpus.cuts, "test": corpus.cuts}
    pairs = evaluate_pairs(config, {"2": files["asr"]}, lms, "dev", "test", sets.get, tmp_path / "pairs")
    assert [(pair.recogniser, pair.lm) for pair in pairs] == [("2", "32"), ("2", "1"), ("2", NONE)]
    for pair, lm in zip(pairs, (*lms.values(), None), strict=True):
        more = ["--packed", files["asr"], *(["--rescore-lm", lm, "--rescore-lm-scale", "0,30"] if lm else [])]
        errors = {
            setting: sum(edit_distance(list(ref), list(hyp))["total"] for _, ref, hyp in results)
            for setting, results in decoded(tmp_path / f"alone-{pair.lm}", corpus, *more).items()
        }
        assert pair.dev_errors == min(errors.values()) == errors[pair.setting]
        assert pair.errors["ins"] + pair.errors["dels"] + pair.errors["sub"] == pair.dev_errors  # the same cuts
        assert pair.bytes == files["asr"].stat().st_size + (lm.stat().st_size if lm else 0)
    assert pairs[0].interval is None and pairs[1].interval is not None
    *_, first, second, third = format_pairs(pairs).splitlines()
    assert (
        first.startswith("| 2 | 32 | rescore")
        and "| 1.0 | - | - | - | - |" in first
        and third.startswith("| 2 | none |")
    )
    for change, line in [
        ({"decoding_method": "greedy_search"}, "needs lists of hypotheses"),
        ({"decoding_method": "greedy_search,modified_beam_search", "rescore_lm": None}, "give one method"),
    ]:
        with pytest.raises(UserError, match=line):
            list(settings(replace(config, packed=files["asr"], **{"rescore_lm": files["lm1"], **change})))
    with pytest.raises(UserError, match="gone is no file: give packed files of export.py"):
        evaluate_pairs(config, {"2": tmp_path / "gone"}, lms, "dev", "test", sets.get, tmp_path / "pairs")


def test_shallow_fusion_by_a_language_model(recogniser: Path, corpus: Corpus, float_lm: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("\n".join(LINES))
    lm = ["--token-lm", float_lm / "epoch-2.pt"]
    found = decoded(recogniser, corpus, *lm, "--lm-scale", "0,5")
    assert found["lm_scale_0"] == decoded(recogniser, corpus)[""] != found["lm_scale_5"]
    make_token_lm(tmp_path / "text", 2, corpus.lang_dir, tmp_path / "low.arpa")
    low = ["--lodr-lm", tmp_path / "low.arpa", "--lodr-scale", "0,2"]
    taken_off = decoded(recogniser, corpus, *lm, *low, "--lm-scale", "0,5")
    assert list(taken_off) == [f"lm_scale_{a}_lodr_{b}" for a in (0, 5) for b in (0, 2)]
    assert taken_off["lm_scale_5_lodr_0"] == found["lm_scale_5"] != taken_off["lm_scale_5_lodr_2"]
    both = decoded(
        recogniser, corpus, *lm, "--rescore-lm", lm[1], "--rescore-lm-scale", 1, "--rescore-ngram-scale", "0,1"
    )
    assert list(both) == ["lm_scale_1_rescore_1_ngram_0", "lm_scale_1_rescore_1_ngram_1"]


def test_language_models_that_do_not_fit(
    recogniser: Path, corpus: Corpus, low_lm: tuple[Path, str], text: Path, tmp_path: Path
) -> None:
    words = low_lm[0] / "epoch-4.pt"
    (tmp_path / "lower.txt").write_text("yes no\nno yes\n")
    lower = ["--train-text", tmp_path / "lower.txt", "--valid-text", tmp_path / "lower.txt", "--precisions", "32"]
    call(SCRIPT, *FIXED, *TRANSFORMER, *lower, "--num-epochs", 1, "--exp-dir", tmp_path / "lower").good()
    for more, line in [
        (["--rescore-lm", recogniser / "epoch-1.pt"], "--rescore-lm .*epoch-1.pt is a transducer model of speech"),
        (["--rescore-lm", tmp_path / "gone"], "--rescore-lm .*gone is no file"),
        (["--rescore-lm", text], "--rescore-lm .*text.gz is not a safetensors file"),
        (["--rescore-lm", tmp_path / "lower/epoch-1.pt"], "--rescore-lm .* knows nothing of what modified_beam_search"),
        (["--rescore-lm", words, "--lm-precision", "4"], "--.*precision 4: the model was never trained at 4 bits"),
        (["--rescore-lm", words, "--rescore-lm-scale", "-1"], "--rescore-lm-scale takes numbers from 0"),
        (
            ["--rescore-lm", words, "--decoding-method", "greedy_search"],
            "--rescore-lm needs lists .* choose of ctc-decoding",
        ),
        (["--lodr-lm", text], "--lodr-lm is taken off a language model: name that with --token-lm"),
        (["--token-lm", recogniser / "gone", "--lodr-lm", text], "--token-lm .*gone"),
        (["--token-lm", words], "--token-lm .*epoch-4.pt: it was trained on other units than the recogniser has"),
    ]:
        with pytest.raises(UserError, match=line):
            decoded(recogniser, corpus, *more)


def test_the_running_precision_is_that_of_the_file(low_lm: tuple[Path, str], text: Path) -> None:
    """What decoding computes with is bitwise what training validates."""
    exp, _ = low_lm
    loaded, _ = load_trained(CheckpointChoice(exp_dir=exp))
    own = TokenText.read([text], loaded.tokenizer, TextConfig(kaldi_text=True))
    tokens = torch.from_numpy(own.tokens.astype("int64"))[None]
    for bits in (2, 1):
        with torch.no_grad(), use_precision(loaded.model, bits):
            assert torch.equal(load_language_model(exp, str(bits)).model(tokens), loaded.model(tokens))
