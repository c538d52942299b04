"""The AN4 recipe from audio to a packed recogniser, by its own scripts, on a few utterances of real speech."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread

from lowbit_k2.asr.model_io import CheckpointChoice, load_packed, load_trained, parse_allocation
from lowbit_k2.data.datamodule import AsrDataModule, DataConfig
from lowbit_k2.data.manifests import load_cuts
from lowbit_k2.errors import UserError
from lowbit_k2.k2_compat import has_k2
from lowbit_k2.quant import Allocation, use_precision
from lowbit_k2.recipe.training_flags import read_training_flags
from lowbit_k2.scoring.recogs import write_recogs
from lowbit_k2.tables import fill_sections
from lowbit_k2.train.checkpoint import load_checkpoint
from tests.egs.scripts import AN4, ROOT, Flag, call, files_of, local_module, spawn

GREEDY = "ctc-greedy-search"
LATTICE_METHODS = "ctc-decoding,1best,nbest,nbest-rescoring,whole-lattice-rescoring"
METHODS = f"{GREEDY},{LATTICE_METHODS}" if has_k2() else GREEDY
PRECISIONS = ("2", "1.5", "1")


def same_checkpoint(first: Path, second: Path) -> None:
    """Every tensor is equal to the last bit, and so are the counters."""
    a, b = load_checkpoint(first), load_checkpoint(second)
    for section in ("model", "optimizer", "model_avg", "teacher"):
        left, right = getattr(a, section), getattr(b, section)
        assert left.keys() == right.keys() and (left or section == "teacher")
        assert [name for name in left if not torch.equal(left[name], right[name])] == [], section
    counters = [{k: v for k, v in c.meta["progress"].items() if k != "seconds"} for c in (a, b)]
    assert counters[0] == counters[1] and counters[0]["update"] > 2


def decode(data: Path, exp: Path, *flags: Flag) -> str:
    """decode.py's screen."""
    where = ["--exp-dir", exp, "--manifest-dir", data / "fbank", "--lang-dir", data / "lang_char"]
    return call(AN4 / "decode.py", *where, "--quiet", "--num-threads", 1, *flags).good().out


def hypotheses(recogs: Path) -> dict[str, list[str]]:
    """Words by utterance."""
    found = re.findall(r"^(\S+):\s+hyp=(\[.*\])$", recogs.read_text(), flags=re.MULTILINE)
    return {name: json.loads(words.replace("'", '"')) for name, words in found}


# --- preparation ----------------------------------------------------------------------------------------------


def test_preparation_splits_speakers_and_makes_units(an4_data: Path, an4_flags: list[Flag]) -> None:
    speakers = {}
    for split, count in (("train", 3 * 24), ("dev", 4), ("test", 6)):
        cuts = load_cuts(an4_data / "fbank", "an4", split)
        assert len(cuts) == count and all(cut.has_features for cut in cuts)
        speakers[split] = {cut.supervisions[0].speaker for cut in cuts}
    assert [len(speakers[split]) for split in ("train", "dev", "test")] == [6, 1, 3]
    assert not speakers["train"] & speakers["dev"] and not speakers["test"] & (speakers["train"] | speakers["dev"])
    for lang in ("lang_char", "lang_phone", "lang_bpe_60"):
        assert (an4_data / lang / "tokens.txt").read_text().startswith("<blk> 0\n")
        words = {line.split()[0] for line in (an4_data / lang / "words.txt").read_text().splitlines()}
        assert {"RUBOUT", "ELEVEN"} <= words  # a training word, and one of the dictionary only
    assert "ngram 3=" in (an4_data / "lm/3gram.arpa").read_text()

    before = files_of(an4_data)
    again = spawn(AN4 / "prepare.sh", *an4_flags).good()
    assert files_of(an4_data) == before and again.out.count("Skipped") >= 7


@pytest.mark.k2
def test_preparation_makes_graphs(an4_data: Path) -> None:
    from lowbit_k2.graphs.fsa_io import load_fsa

    for lang in ("lang_char", "lang_phone", "lang_bpe_60"):
        assert load_fsa(an4_data / lang / "HLG.pt").num_arcs > load_fsa(an4_data / lang / "LG.pt").num_arcs > 1000
        assert load_fsa(an4_data / lang / "G_4_gram.pt").num_arcs > 500


# --- training -------------------------------------------------------------------------------------------------


def test_training_leaves_checkpoints_a_log_and_curves(an4_exp: Path, an4_data: Path) -> None:
    names = {path.name for path in an4_exp.iterdir()}
    assert {"epoch-1.pt", "epoch-2.pt", "best-valid-loss.pt", "checkpoint-3.pt", "log", "tensorboard"} <= names
    [log] = (an4_exp / "log").iterdir()
    text = log.read_text()
    assert "encoder_linear" in text and "training: all 72 cuts kept" in text
    losses = [float(loss) for loss in re.findall(r"updates: loss=(\S+)", text)]
    assert len(losses) == 2 and losses[1] < losses[0]
    meta = load_checkpoint(an4_exp / "epoch-2.pt").meta
    assert meta["settings"]["data"]["manifest_dir"] == str(an4_data / "fbank")
    assert meta["settings"]["optim"]["warm_step"] == 20 and meta["settings"]["loop"]["save_every_n"] == 3
    assert meta["co_training"]["precisions"] == ["2", "1", "sp"] and meta["progress"]["epoch"] == 3


def test_an_epoch_and_a_resumed_one_equal_two_epochs(an4_exp: Path, an4_training: list[Flag], tmp_path: Path) -> None:
    command = [sys.executable, AN4 / "train.py", *an4_training, "--exp-dir", tmp_path / "exp"]
    spawn(*command, "--num-epochs", 1).good()
    same_checkpoint(tmp_path / "exp/epoch-1.pt", an4_exp / "epoch-1.pt")
    second = spawn(*command, "--num-epochs", 2, "--resume", "true").good()
    assert "continuing from" in second.err
    same_checkpoint(tmp_path / "exp/epoch-2.pt", an4_exp / "epoch-2.pt")


@pytest.mark.parametrize(
    "flags",
    [
        "--precisions 2,1 --teacher mean --teacher-decay 0.9 --lr-schedule linear",
        "--precisions 1 --teacher EXP/pretrained.pt --init-from EXP/pretrained.pt --relax parq",
        "--precisions 1,1 --spec-aug-own-masks true --relax blend --lr-schedule cosine",
        "--precisions 2,1,sp --students 1 --accum-grad 2",
    ],
)
def test_ways_to_train_can_be_continued(
    flags: str, an4_exp: Path, an4_training: list[Flag], an4_data: Path, tmp_path: Path
) -> None:
    """Every one of them trains, decodes, and goes on behind epoch 1 as if nothing had happened."""
    call(AN4 / "export.py", "--exp-dir", an4_exp, "--epoch", 1, "--precision", 1, "--save-pretrained", "true").good()
    flags = flags.replace("EXP", str(an4_exp)).split()
    command = [AN4 / "train.py", *an4_training[:-2], *flags, "--num-epochs", 2, "--tensorboard", "false"]
    call(*command, "--exp-dir", tmp_path / "whole").good()
    (tmp_path / "parts").mkdir()
    shutil.copy(tmp_path / "whole/epoch-1.pt", tmp_path / "parts")
    call(*command, "--exp-dir", tmp_path / "parts", "--start-epoch", 2).good()
    same_checkpoint(tmp_path / "whole/epoch-2.pt", tmp_path / "parts/epoch-2.pt")
    assert "%WER" in decode(an4_data, tmp_path / "whole", "--epoch", 2, "--precision", 1)


def test_a_teacher_that_does_not_fit(an4_exp: Path, an4_training: list[Flag], an4_data: Path, tmp_path: Path) -> None:
    call(AN4 / "export.py", "--exp-dir", an4_exp, "--epoch", 1, "--precision", 1, "--save-pretrained", "true").good()
    base = [AN4 / "train.py", *an4_training, "--exp-dir", tmp_path / "new", "--teacher", an4_exp / "pretrained.pt"]
    phones = ["--lang-dir", an4_data / "lang_phone"]
    assert "--teacher was trained with other units" in call(*base, *phones).error()
    chain = ["--objective", "lfmmi", "--lfmmi-topology", "chain"]
    assert "--teacher was trained with other topology" in call(*base, *chain).error()
    if has_k2():
        assert "--teacher was trained with other objective" in call(*base, "--objective", "ctc-rnnt").error()
    assert not (tmp_path / "new").exists()


def test_a_killed_run_goes_on(an4_exp: Path, an4_training: list[Flag], tmp_path: Path) -> None:
    """Killed in the second epoch, between two checkpoints: the batches since the last one come once more."""
    command = [sys.executable, AN4 / "train.py", *an4_training, "--exp-dir", tmp_path / "exp", "--num-epochs", 2]
    process = subprocess.Popen(
        list(map(str, command)), stderr=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    while not (tmp_path / "exp/epoch-1.pt").is_file():
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (tmp_path / "exp/epoch-2.pt").is_file()
    (tmp_path / "exp/.tmp-0-checkpoint-9.pt").write_bytes(b"half")  # as if it had been writing
    call(AN4 / "train.py", *command[2:], "--resume", "true").good()
    same_checkpoint(tmp_path / "exp/epoch-2.pt", an4_exp / "epoch-2.pt")
    assert not list((tmp_path / "exp").glob(".tmp-*"))


def test_two_processes_share_an_epoch(an4_exp: Path, an4_training: list[Flag], tmp_path: Path) -> None:
    flags = [*an4_training, "--exp-dir", tmp_path / "exp", "--num-epochs", 1, "--world-size", 2]
    done = spawn(sys.executable, AN4 / "train.py", *flags).good()
    assert done.err.count("all 72 cuts kept") == 1, "one rank reports"
    alone, both = (load_checkpoint(exp / "epoch-1.pt").meta["update"] for exp in (an4_exp, tmp_path / "exp"))
    assert abs(both - alone / 2) <= 1  # the sampler evens out what is left at the end
    assert len(list((tmp_path / "exp/log").iterdir())) == 1
    again = spawn(sys.executable, AN4 / "train.py", *flags)
    assert again.status == 1 and "Traceback" not in again.err
    (line,) = again.err.splitlines()
    assert line.startswith("error: ") and "--exp-dir" in line and "resume" in line


def test_a_run_broken_off_inside_an_epoch(an4_exp: Path, an4_training: list[Flag], tmp_path: Path) -> None:
    ends = {n: load_checkpoint(an4_exp / f"epoch-{n}.pt").meta["update"] for n in (1, 2)}
    inside = next(n for n in range(3, ends[2], 3) if n > ends[1] + 1)  # --save-every-n 3
    shutil.copy(an4_exp / f"checkpoint-{inside}.pt", tmp_path)
    flags = [*an4_training, "--exp-dir", tmp_path, "--num-epochs", 2]
    assert f"checkpoint-{inside}.pt: epoch 2" in call(AN4 / "train.py", *flags, "--resume", "true").good().err
    same_checkpoint(tmp_path / "epoch-2.pt", an4_exp / "epoch-2.pt")
    before = files_of(tmp_path).keys()
    done = call(AN4 / "train.py", *flags, "--start-epoch", 3).good()
    assert "nothing to do" in done.err
    assert {Path(p).parent.name for p in files_of(tmp_path).keys() - before} == {"log"}


@pytest.mark.k2
def test_phones(an4_data: Path, an4_training: list[Flag], tmp_path: Path) -> None:
    phones = ["--lang-dir", an4_data / "lang_phone"]
    call(AN4 / "train.py", *an4_training, *phones, "--exp-dir", tmp_path, "--num-epochs", 1).good()
    assert "%WER" in decode(an4_data, tmp_path, *phones, "--decoding-method", "1best")
    where = ["--exp-dir", tmp_path, "--manifest-dir", an4_data / "fbank"]
    refused = call(AN4 / "decode.py", *where, *phones, "--decoding-method", GREEDY)
    assert "--decoding-method ctc-greedy-search gives phones, which spell no words: choose 1best" in refused.error()


# --- decoding and packing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("topology", ["ctc", "chain --xent-regularize 0.1 --lfmmi-output-l2 5e-5"])
def test_lfmmi_of_a_tdnnf(an4_data: Path, tmp_path: Path, topology: str) -> None:
    """Phones, a bigram of them, two precisions of a small TDNN-F: it trains, packs and, with k2, decodes."""
    sizes = "--model tdnnf-tiny --d-model 16 --hidden-dim 24 --num-layers 4 --bottlenecks 8 --strides 1,0,3"
    where = ["--manifest-dir", an4_data / "fbank", "--lang-dir", an4_data / "lang_phone"]
    rest = "--objective lfmmi --lfmmi-warm-step 10 --max-duration 20 --num-buckets 4 --warm-step 20 --precisions 4,1"
    settings = f"{sizes} {rest} --lfmmi-topology {topology}"
    command = [AN4 / "train.py", *settings.split(), *where, "--num-threads", 1, "--num-epochs", 2]
    err = call(*command, "--exp-dir", tmp_path / "exp").good().err
    assert "orthogonality=" in err and "kl_1=" in err and "denominator_1=" in err
    spoken = [float(value) for value in re.findall(r"numerator_4=([0-9.]+)", err)]
    assert spoken[-1] < spoken[0]
    assert ("xent_1=" in err) == ("output_l2_4=" in err) == (topology != "ctc")
    call(AN4 / "export.py", "--exp-dir", tmp_path / "exp", "--precision", 1, "--output", tmp_path / "packed").good()
    if has_k2():
        flags = [*where, "--decoding-method", "1best", "--quiet"]
        out = call(AN4 / "decode.py", "--exp-dir", tmp_path / "exp", "--precision", 4, 1, *flags).good().out
        assert out.count("%WER") == 2
        assert "%WER" in call(AN4 / "decode.py", "--packed", tmp_path / "packed", *flags).good().out


def test_every_method_at_every_precision(an4_data: Path, talkative_exp: Path) -> None:
    screen = decode(
        an4_data,
        talkative_exp,
        "--avg",
        2,
        "--precision",
        *PRECISIONS,
        "1.5r",
        "1,2",
        "--decoding-method",
        METHODS,
        "--num-paths",
        20,
    )
    assert screen.count("%WER") == 5 * len(METHODS.split(","))
    for method in METHODS.split(","):
        setting = "" if method in (GREEDY, "ctc-decoding") else "lm_scale_1-"
        found = {}
        for name in (*PRECISIONS, "1.5r", "1_2"):
            stem = f"test-{setting}epoch-2-avg-2-precision-{name}.txt"
            found[name] = hypotheses(talkative_exp / method / f"recogs-{stem}")
            assert (talkative_exp / method / f"errs-{stem}").read_text().startswith("%WER")
        assert all(len(hyps) == 6 and sum(map(len, hyps.values())) for hyps in found.values())
        assert found["1.5"] == found["1_2"]  # of two layers, the first at 1 bit
        assert method != GREEDY or len({str(hyps) for hyps in found.values()}) > 1


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_packed_file_gives_the_same_logits_and_words(
    an4_data: Path, talkative_exp: Path, tmp_path: Path, precision: str
) -> None:
    exp = tmp_path / "exp"
    shutil.copytree(talkative_exp, exp)
    export = ["--exp-dir", exp, "--avg", 2, "--use-averaged-model", "true", "--precision", precision]
    screen = call(AN4 / "export.py", *export).good().out
    file = exp / f"pretrained-{precision}bit.safetensors"
    assert str(file) in screen and f"{file.stat().st_size:,}" in screen

    method = ["--decoding-method", METHODS]
    decode(an4_data, exp, "--packed", file, *method)
    decode(an4_data, exp, "--avg", 2, "--use-averaged-model", "true", "--precision", precision, *method)
    for folder in (exp / name for name in METHODS.split(",")):
        [packed] = folder.glob("recogs-*packed*.txt")
        [model] = folder.glob(f"recogs-*use-averaged-model-precision-{precision}.txt")
        assert packed.read_text() == model.read_text()
        assert len({str(words) for words in hypotheses(packed).values()}) > 3  # not all the same, or nothing

    loaded, packed = load_trained(CheckpointChoice(exp, avg=2, use_averaged_model=True))[0], load_packed(file)
    data = AsrDataModule(DataConfig(manifest_dir=an4_data / "fbank", max_duration=8.0))
    with torch.no_grad(), use_precision(loaded.model, parse_allocation(precision, loaded)):
        for batch in data.test_batches(load_cuts(an4_data / "fbank", "an4", "test")):
            expected, lens = loaded.model(batch.inputs, batch.input_lens)
            found, found_lens = packed.model(batch.inputs, batch.input_lens)
            assert torch.equal(found, expected) and torch.equal(found_lens, lens)
            assert expected.isfinite().all()


@pytest.mark.filterwarnings("ignore:The first cut drawn in batch collection violates")
def test_a_packed_file_transcribes_audio_and_tells_its_sizes(
    an4_corpus: Path, an4_data: Path, talkative_exp: Path, tmp_path: Path
) -> None:
    file = tmp_path / "model.safetensors"
    call(AN4 / "export.py", "--exp-dir", talkative_exp, "--precision", 1, "--output", file).good()

    told = spawn(sys.executable, "-m", "lowbit_k2.cli", "inspect", file, "--json", cwd=AN4.parents[1]).good()
    value = json.loads(told.out)
    assert value["extra"]["precision"] == "1" and value["model_config"]["encoder"]["d_model"] == 16
    assert value["sizes"]["file"]["total"] == file.stat().st_size

    audio = sorted((an4_corpus / "wav/an4test_clstk").rglob("*.wav"))
    screen = decode(an4_data, tmp_path, "--packed", file, "--wav", *audio)
    assert screen == call("lowbit_k2.cli", "transcribe", "--packed", file, *audio).good().out
    said = {Path(path).stem: words.split() for path, words in (line.split("\t") for line in screen.splitlines())}
    assert len(said) == 6 and all(said.values())
    # the test set, its features computed from the same audio, one utterance a batch
    decode(an4_data, tmp_path, "--packed", file, "--on-the-fly-feats", "true", "--max-duration", 0.1)
    assert hypotheses(tmp_path / GREEDY / "recogs-test-packed-model.txt") == said


def test_adaptation_to_the_test_sets_speakers(an4_data: Path, talkative_exp: Path, tmp_path: Path) -> None:
    """A second pass by every search, and the same from the packed file; the first pass is as without it."""
    exp = tmp_path / "exp"
    exp.mkdir()
    for checkpoint in talkative_exp.glob("*.pt"):
        shutil.copy(checkpoint, exp)
    call(AN4 / "export.py", "--exp-dir", exp, "--precision", 1, "--output", tmp_path / "packed").good()
    flags = ["--precision", 1, "--decoding-method", f"{GREEDY},1best" if has_k2() else GREEDY, "--max-duration", 8]
    decode(an4_data, exp, *flags)
    plain = {path: path.read_text() for path in exp.glob("*/recogs-*")}
    lhuc = ["--lhuc-epochs", 2, "--lhuc-lr", 0.1]
    screen = decode(an4_data, exp, *flags, *lhuc)
    adapted = re.findall(r"LHUC: 3 speakers by (\d) hypotheses.* per frame (\S+) before, (\S+) after", screen)
    assert len(adapted) == len(plain) and all(float(after) < float(before) for _, before, after in adapted)
    assert screen.count("of an earlier call") == len(plain)
    assert all(path.read_text() == text for path, text in plain.items())
    for path in plain:
        second = path.with_name(f"{path.stem}-lhuc.txt")
        assert hypotheses(second).keys() == hypotheses(path).keys()
        assert (path.parent / second.name.replace("recogs", "errs")).read_text().startswith("%WER")
    assert any(hypotheses(path.with_name(f"{path.stem}-lhuc.txt")) != hypotheses(path) for path in plain)
    decode(an4_data, exp, "--packed", tmp_path / "packed", *lhuc, "--max-duration", 8)
    [from_packed], [from_model] = (exp.glob(f"{GREEDY}/recogs-test-{name}-lhuc.txt") for name in ("packed*", "*-1"))
    assert from_packed.read_text() == from_model.read_text()


@pytest.mark.parametrize("recipe", ["an4", "librispeech", "switchboard"])
def test_lhuc_flags_that_make_no_sense(recipe: str, tmp_path: Path) -> None:
    for flags, line in (
        (["--lhuc-epochs", -1], "--lhuc-epochs must not be negative"),
        (["--lhuc-epochs", 1, "--lhuc-lr", "nan"], "--lhuc-lr must be a finite number"),
        (["--lhuc-epochs", 1, "--lhuc-lr", 0], "--lhuc-lr must be positive"),
        (["--lhuc-epochs", 1, "--wav", "a.wav"], "--lhuc-epochs adapts to the speakers of test sets"),
    ):
        assert line in call(AN4.parent / recipe / "decode.py", "--exp-dir", tmp_path / "exp", *flags).error()


# --- the table of results -------------------------------------------------------------------------------------


def test_train_takes_the_flags_of_all_rows(tmp_path: Path) -> None:
    """An error in a row would show only when the rows before it have been trained for hours."""
    rows = local_module(AN4 / "local", "rows")

    assert len({row.key for row in [*rows.ROWS, *rows.FOLD_ROWS]}) == len(rows.ROWS) + len(rows.FOLD_ROWS)
    for row in [*rows.ROWS, *rows.FOLD_ROWS]:
        for searched in (row.allocation(tmp_path), row.architecture(tmp_path)):
            if searched is not None:
                searched.parent.mkdir(parents=True, exist_ok=True)
                Allocation.uniform(4).save(searched)
        args = rows.make_training_parser().parse_args(["--exp-dir", str(tmp_path / row.key), *row.flags(tmp_path)])
        precisions = args.precisions
        if row.architecture(tmp_path) is None:  # what a search writes is not made up here
            assert read_training_flags(args).loop.num_epochs == row.system.epochs
        assert {p for p in row.system.precisions if p.isdigit()} <= set(precisions) - {"sp"}
        assert str(ROOT) not in row.system.flags, "results would name a folder of the machine"
        assert not row.fold or row.system.compared in row.system.precisions
    assert "choose of" in call(AN4 / "local/rows.py", "results", "--only", "nobody").error()


def test_the_tables_of_the_results_have_not_drifted() -> None:
    call(AN4 / "local/rows.py", "results", "--check", "true").good()


def test_a_table_that_has_drifted_is_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A figure that was changed by hand: refused by the check, and put right by the command."""
    tables = local_module(AN4 / "local", "tables")

    # one table is enough, and quick
    monkeypatch.setattr(tables, "ROWS", [row for row in tables.ROWS if row.system.methods == tables.RNNT])
    monkeypatch.setattr(tables, "FOLD_ROWS", [])
    monkeypatch.setattr(tables, "noise_table", lambda: "none")
    for name in ("trained_in_noise_table", "by_bits_table", "failures_table", "audit_table"):
        monkeypatch.setattr(tables, name, lambda: "")
    text, page = (AN4 / "RESULTS.md").read_text(), tmp_path / "RESULTS.md"
    text = fill_sections(text, {"verdicts": tables.verdicts(), "noise": "none", "failures": "", "audit": ""})
    page.write_text(text)
    tables.write_results(page, check=True)
    page.write_text(text.replace("| 4/6/42 |", "| 4/6/41 |"))
    with pytest.raises(UserError, match="other tables than"):
        tables.write_results(page, check=True)
    tables.write_results(page, check=False)
    assert page.read_text() == text


def test_the_readme_s_table_comes_with_its_picture(tmp_path: Path) -> None:
    rows = local_module(AN4 / "local", "rows")

    text, page, picture = (AN4.parents[1] / "README.md").read_text(), tmp_path / "README.md", tmp_path / "sizes.png"
    page.write_text(text)
    rows.write_headlines(page, picture, check=False)
    assert not picture.exists()
    page.write_text(text.replace("| 49, 44 |", "| 49, 43 |"))
    with pytest.raises(UserError, match="README.md has other tables than"):
        rows.write_headlines(page, picture, check=True)
    rows.write_headlines(page, picture, check=False)
    assert page.read_text() == text
    drawn, kept = imread(picture), imread(AN4 / "results/sizes.png")
    assert drawn.shape == kept.shape and abs(drawn - kept).mean() < 0.02  # letters differ by versions


def test_no_generated_table_goes_unchecked() -> None:
    """A recipe whose RESULTS.md has sections for generated tables needs a test like the ones above."""
    tables = local_module(AN4 / "local", "tables")

    generated = {
        page.parent.name: set(re.findall(r"^<!-- (?!end of)(\S+) -->$", page.read_text(), flags=re.MULTILINE))
        for page in AN4.parent.glob("*/RESULTS.md")
    }
    noise = {"noise", "trained-in-noise", "noise-by-bits"}
    known = {*tables.SECTIONS.values(), *noise, "verdicts", "failures", "audit", "pairs"}
    assert {"ctc", "transducer", "verdicts"} <= generated["an4"] <= known
    assert generated["librispeech"] == {"language-models"}  # test_rows_lm.py
    assert generated["yoruba"] == {"rates", "verdicts"}  # test_yoruba.py
    for recipe in ("an4", "librispeech", "yoruba", "switchboard"):  # the last: test_switchboard_results.py
        del generated[recipe]
    assert {recipe: names for recipe, names in generated.items() if names} == {}


def test_verdicts_of_the_folds_that_are_done(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tables, result_files = (local_module(AN4 / "local", name) for name in ("tables", "result_files"))

    monkeypatch.setattr(result_files, "RESULTS", tmp_path)
    for row in tables.FOLD_ROWS:
        if row.seed == 1 and row.fold <= 2 and row.system.name in (tables.REFERENCE, "naive1-l2"):
            right, wrong = ["GO", "HOME", "NOW"], ["GO", "HOME", "ON"]
            names = [f"an1-s{row.fold}{n % 12}-{n}" for n in range(48)]
            bad = 6 if row.system.name == tables.REFERENCE else 1
            found = [(name, right, wrong if n % bad == 0 else right) for n, name in enumerate(names)]
            path = tables.kept_recogs(tables.result_path(row), row.system.compared, "ctc-greedy-search")
            write_recogs(path, found)
    lines = tables.verdicts().splitlines()
    assert len(lines) == 3 and lines[2].startswith("| naive 1-bit | greedy | 2 | 5.56 | 33.33 | +500.0% |")
    assert lines[2].endswith("| worse |")
