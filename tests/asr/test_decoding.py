"""decode.py: from a checkpoint and audio to icefall's files, and what is refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import torch

from lowbit_k2.asr import decoding
from lowbit_k2.asr.decoding import decode_set, shard
from lowbit_k2.asr.model_io import CheckpointChoice, LoadedModel, build_model, describe_tokenizer, load_trained
from lowbit_k2.asr.recognizer import Recognizer
from lowbit_k2.asr.results import report
from lowbit_k2.data.batch import Batch
from lowbit_k2.data.features import FeatureConfig, extract_wav
from lowbit_k2.data.tokenizer import SentencePieceTokenizer
from lowbit_k2.decode.greedy import ctc_greedy_search
from lowbit_k2.decode.method import Setup
from lowbit_k2.decode.methods import CtcGreedySearch
from lowbit_k2.errors import ReportedError, UserError
from lowbit_k2.k2_compat import has_k2
from lowbit_k2.models import ConformerConfig, CtcConfig
from lowbit_k2.quant import Allocation, QuantConfig, use_precision
from lowbit_k2.recipe.compile_hlg import compile_lang
from lowbit_k2.recipe.make_lm import make_lm
from lowbit_k2.recipe.prepare_lang import prepare_lang
from lowbit_k2.recipe.train_bpe import train_sentencepiece
from lowbit_k2.train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from tests.asr.running import decode

TOKENIZER = SentencePieceTokenizer(train_sentencepiece(["YES NO", "GO"], "char", 0))
TINY = CtcConfig(
    ConformerConfig(d_model=16, num_layers=2, num_heads=2, ffn_dim=16, conv_kernel=3, subsampling_channels=4),
    TOKENIZER.vocab_size,
)
MIN_FRAMES = TINY.min_frames


class Speller(torch.nn.Module):
    """A network whose features are its answer: feature k of a frame is the score of class k; no subsampling."""

    def network_output(self, inputs: torch.Tensor, lens: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"log_probs": inputs.log_softmax(-1), "lens": lens}


def spelled_batch(texts: list[str], refs: list[str]) -> Batch:
    """Features that `Speller` turns into `texts`, padded with blanks to at least MIN_FRAMES frames."""
    rows = [[f for i in TOKENIZER.encode(text) for f in (i, 0)] for text in texts]
    longest = max(MIN_FRAMES, *map(len, rows))
    tokens = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    features = 9.0 * torch.nn.functional.one_hot(tokens, TOKENIZER.vocab_size)  # (N, T, V)
    return Batch(features, torch.full((len(rows),), longest), refs, [f"u{n}" for n in range(len(rows))])


@pytest.fixture
def speller() -> Recognizer:
    searches = {("ctc-greedy-search", ""): CtcGreedySearch(Setup(TOKENIZER))}
    loaded = LoadedModel(Speller(), TINY, None, TOKENIZER, FeatureConfig().to_dict())
    return Recognizer(loaded, "epoch-3-avg-2-precision-1", None, torch.device("cpu"), searches)


@pytest.fixture
def exp_dir(tmp_path: Path) -> Path:
    """A checkpoint of an untrained 2-bit/1-bit model."""
    torch.manual_seed(0)
    quant = QuantConfig.preset("lossless16", precisions=(2, 1))
    model, _ = build_model(TINY, quant)
    meta = {"model": TINY.to_dict(), "quant": quant.to_dict(), "tokenizer": describe_tokenizer(TOKENIZER)}
    meta |= {"features": FeatureConfig().to_dict(), "update": 1, "average_period": 1}
    save_checkpoint(tmp_path / "exp/epoch-4.pt", Checkpoint(model.state_dict(), meta))
    return tmp_path / "exp"


def run_decode(exp_dir: Path, load_test_sets, *more: str) -> dict:
    return decode(load_test_sets, "--exp-dir", str(exp_dir), "--quiet", *more)


@pytest.fixture
def wavs(tmp_path: Path) -> list[Path]:
    """A second and half a second of noise, and 20 ms more than one frame, which the encoder cannot use."""
    generator = torch.Generator().manual_seed(1)
    paths = []
    for n, samples in enumerate((16000, 8000, 720)):
        paths.append(tmp_path / f"noise{n}.wav")
        soundfile.write(paths[-1], (0.1 * torch.randn(samples, generator=generator)).numpy(), 16000)
    return paths


def make_cuts(wavs: list[Path]):
    from lhotse import CutSet, Recording, SupervisionSegment

    cuts = []
    for path in wavs:
        cut = Recording.from_file(path).to_cut()
        cut.supervisions = [SupervisionSegment(path.stem, path.stem, 0, cut.duration, text="YES NO")]
        cuts.append(cut)
    return CutSet.from_cuts(cuts)


def test_files_of_a_test_set(speller: Recognizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    batches = [spelled_batch(["YES NO", "GO"], ["YES NO", "GO GO"]), spelled_batch(["NO"], ["YES"])]
    outcome = decode_set(speller, batches, 0.01)
    stats = report(tmp_path, "test", speller.label, outcome)
    [(key, value)] = stats.items()
    assert key == ("test", "ctc-greedy-search", "", "epoch-3-avg-2-precision-1")
    assert str(value.stats) == "%WER 40.00% [2 / 5, 0 ins, 1 del, 1 sub ]"
    printed = capsys.readouterr().out
    assert f"[test, ctc-greedy-search, epoch-3-avg-2-precision-1] {value.stats}" in printed
    assert "95% interval" in printed and "RTF" in printed
    name = "test-epoch-3-avg-2-precision-1.txt"
    folder = tmp_path / "ctc-greedy-search"
    assert sorted(p.name for p in folder.iterdir()) == [f"errs-{name}", f"recogs-{name}", f"wer-summary-{name}"]
    assert (folder / f"wer-summary-{name}").read_text() == "settings\tWER\nctc-greedy-search\t40.00\n"
    assert outcome.timing.audio == pytest.approx(0.01 * sum(int(b.input_lens.sum()) for b in batches))


def test_characters_and_speakers(exp_dir: Path, wavs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    cuts = make_cuts(wavs)
    for cut, speaker in zip(cuts, ("anna", "bob", None), strict=True):
        cut.supervisions[0].speaker = speaker
    more = ("--on-the-fly-feats", "true", "--cer", "true")
    for _ in range(2):  # the second time from what is finished
        [decoded] = run_decode(exp_dir, lambda: {"test": cuts}, *more).values()
        out = capsys.readouterr().out
        characters = sum(len("".join(ref)) for _, ref, _ in decoded.results)
        assert f" / {characters}, " in out.split("%CER")[1].splitlines()[0] and characters == 3 * len("YESNO")
    folder, name = decoded.recogs.parent, decoded.recogs.name.removeprefix("recogs-")
    assert (folder / f"errs-cer-{name}").read_text().startswith("%CER ")
    assert next(folder.glob("cer-summary-test-*")).read_text().startswith("settings\tCER\n")
    rows = [line.split()[:3] for line in (folder / f"speakers-{name}").read_text().splitlines()]
    assert sorted(rows[1:3]) == [["anna", "1", "2"], ["bob", "1", "2"]] and rows[3][:4] == ["mean", "over", "2"]


def test_audio_too_short_for_the_encoder_gives_no_words(speller: Recognizer) -> None:
    full = spelled_batch(["YES"], ["YES"])
    short = Batch(full.inputs[:, :2], torch.tensor([2]), ["YES"], ["short"])
    outcome = decode_set(speller, [short], 0.01)
    assert outcome.found["ctc-greedy-search", ""] == [("short", ["YES"], [])]


def test_every_precision_from_one_checkpoint(exp_dir: Path, wavs: list[Path]) -> None:
    methods = "ctc-greedy-search,ctc-decoding" if has_k2() else "ctc-greedy-search"
    flags = ["--precision", "2", "1.5", "1", "--on-the-fly-feats", "true", "--max-duration", "1.2"]
    results = run_decode(exp_dir, lambda: {"noise": make_cuts(wavs)}, *flags, "--decoding-method", methods)
    assert {key[1] for key in results} == set(methods.split(","))
    assert {key[3] for key in results} == {f"epoch-4-avg-1-precision-{p}" for p in ("2", "1.5", "1")}
    loaded, _ = load_trained(CheckpointChoice(exp_dir))
    mixed = Allocation.by_layer("encoder.layers", [1, 2])
    for name, assignment in (("2", 2), ("1.5", mixed), ("1", 1)):
        recogs = (exp_dir / f"ctc-greedy-search/recogs-noise-epoch-4-avg-1-precision-{name}.txt").read_text()
        for path in wavs[:2]:
            features = extract_wav(path, FeatureConfig())
            with torch.no_grad(), use_precision(loaded.model, assignment):
                [best] = ctc_greedy_search(*loaded.model(features[None], torch.tensor([len(features)])))
            hyp = [line for line in recogs.splitlines() if f"{path.stem}" in line and "hyp=" in line]
            assert len(hyp) == 1 and hyp[0].endswith(f"hyp={TOKENIZER.decode(best.labels).split()}")


def test_processes_share_a_test_set(exp_dir: Path, wavs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    """The same files, whatever the number of processes: 3 of them have 2, 1 and 0 of the utterances."""
    names = [
        f"{method}/recogs-noise-epoch-4-avg-1-precision-{p}.txt" for method in ("ctc-greedy-search",) for p in "21"
    ]
    texts, screens = [], []
    for jobs in ("1", "3"):
        flags = ["--precision", "2", "1", "--on-the-fly-feats", "true", "-j", jobs]
        results = run_decode(exp_dir, lambda: {"noise": make_cuts(wavs), "two": make_cuts(wavs[:2])}, *flags)
        assert {key[0] for key in results} == {"noise", "two"}
        texts.append([(exp_dir / name).read_text() for name in names])
        screens.append([line for line in capsys.readouterr().out.splitlines() if "%WER" in line])
    assert texts[0] == texts[1] and screens[0] == screens[1] and len(screens[0]) == 4


def test_parts_have_all_cuts_once_and_about_the_same_hours() -> None:
    from lhotse import CutSet
    from lhotse.testing.dummies import dummy_cut

    cuts = CutSet.from_cuts(dummy_cut(n, duration=1.0 + n % 7) for n in range(50))
    parts = [shard({"a": cuts}, part, 4)["a"] for part in range(4)]
    assert sorted(cut.id for part in parts for cut in part) == sorted(cut.id for cut in cuts)
    hours = [sum(cut.duration for cut in part) for part in parts]
    assert max(hours) - min(hours) <= 7
    assert len(shard({"a": cuts.subset(first=2)}, 3, 4)["a"]) == 0


def test_parts_of_whole_speakers() -> None:
    from lhotse import CutSet
    from lhotse.testing.dummies import dummy_cut, dummy_supervision

    cuts = [dummy_cut(n, duration=1.0 + n % 3, supervisions=[dummy_supervision(n)]) for n in range(20)]
    for n, cut in enumerate(cuts):
        cut.supervisions[0].speaker = f"s{n % 6}" if n < 18 else None  # the last two stand alone
    parts = [shard({"a": CutSet.from_cuts(cuts)}, part, 3, whole_speakers=True)["a"] for part in range(3)]
    assert sorted(cut.id for part in parts for cut in part) == sorted(cut.id for cut in cuts)
    owners = [{cut.supervisions[0].speaker or cut.id for cut in part} for part in parts]
    assert sum(map(len, owners)) == len(set.union(*owners)) == 8
    hours = [sum(cut.duration for cut in part) for part in parts]
    assert max(hours) - min(hours) <= 9  # a speaker's


def test_an_error_in_one_of_the_processes(exp_dir: Path, wavs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ["--on-the-fly-feats", "true", "--num-jobs", "2", "--precision"]
    with pytest.raises(UserError, match="never trained at 4 bits"):
        run_decode(exp_dir, lambda: {"noise": make_cuts(wavs)}, *flags, "4")
    monkeypatch.setattr(decoding, "decode_part", killed)
    with pytest.raises(UserError, match="one of 2 processes ended early, by signal 9"):
        run_decode(exp_dir, lambda: {"noise": make_cuts(wavs)}, *flags, "1")


def killed(*args: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.k2
def test_language_model_scales_share_one_pass(exp_dir: Path, wavs: list[Path], tmp_path: Path) -> None:
    lang, text = tmp_path / "lang", tmp_path / "train.txt"
    text.write_text("YES NO\nGO\n")
    lang.mkdir()
    (lang / "bpe.model").write_bytes(TOKENIZER.to_bytes())
    prepare_lang(lang, None, None, text)
    make_lm(text, 2, lang / "words.txt", lang / "lm.arpa")
    compile_lang(lang, lang / "lm.arpa", None)
    flags = ["--decoding-method", "1best", "--lm-scale", "0.5,1", "--on-the-fly-feats", "true"]
    results = run_decode(exp_dir, lambda: {"noise": make_cuts(wavs)}, *flags, "--lang-dir", str(lang))
    assert [key[2] for key in results] == ["lm_scale_0.5", "lm_scale_1"]
    summary = (exp_dir / "1best/wer-summary-noise-epoch-4-avg-1-precision-2.txt").read_text()
    assert {line.split("\t")[0] for line in summary.splitlines()} == {"settings", "lm_scale_0.5", "lm_scale_1"}
    assert (exp_dir / "1best/errs-noise-lm_scale_0.5-epoch-4-avg-1-precision-2.txt").is_file()


def test_wav_files(exp_dir: Path, wavs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_decode(exp_dir, dict, "--precision", "1", "--wav", *map(str, wavs)) == {}
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[0] for line in lines] == [str(path) for path in wavs]
    assert lines[2].endswith("\t")


@pytest.mark.parametrize(
    "more, reason",
    [
        (["--precision", "32"], "never trained at 32 bits, only at 2, 1"),
        (["--precision", "1,2,1"], "names 3 layers, the model has 2"),
        (["--decoding-method", "greedy"], "--decoding-method 'greedy' is unknown"),
        (["--epoch", "9"], "epoch-9.pt does not exist"),
        (["--packed", "m.packed", "--precision", "1"], "--precision is fixed"),
        (["--precision", "1", "2", "--wav", "x.wav"], "transcribed at one precision"),
        (["--search-beam", "0"], "--search-beam"),
        (["--num-jobs", "0"], "--num-jobs must be at least 1"),
    ],
)
def test_refusals(exp_dir: Path, more: list[str], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        run_decode(exp_dir, dict, *more)


def test_stored_features_must_be_the_models(exp_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "features.json").write_text('{"num_mel_bins": 40}')
    with pytest.raises(UserError, match="other features than those that the model was trained on"):
        run_decode(exp_dir, dict, "--manifest-dir", str(tmp_path))


def test_the_an4_script_says_what_is_missing(repo_root: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(repo_root / "egs/an4/decode.py"), "--exp-dir", str(tmp_path / "none")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 1
    remedy = "give the folder that train.py wrote"
    assert done.stderr.splitlines() == [f"error: --exp-dir {tmp_path / 'none'} does not exist: {remedy}"]


FLAGS = ["--precision", "2", "1", "--on-the-fly-feats", "true"]


@pytest.mark.parametrize("more", [[], ["-j", "2"], ["--num-workers", "1"]])
def test_a_cut_that_cannot_be_read_costs_the_others_nothing(
    exp_dir: Path, wavs: list[Path], more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    cuts = make_cuts(wavs)
    wavs[1].write_bytes(wavs[1].read_bytes()[:30])
    with pytest.raises(ReportedError):
        run_decode(exp_dir, lambda: {"noise": cuts}, *FLAGS, *more)
    printed = capsys.readouterr()
    assert printed.out.count("1 utterances could not be decoded and are not counted") == 2  # at two precisions
    [line] = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: noise: the audio of cut noise1 cannot be read") and str(wavs[1]) in line
    for precision in "21":
        recogs = (exp_dir / f"ctc-greedy-search/recogs-noise-epoch-4-avg-1-precision-{precision}.txt").read_text()
        assert [line.split(":")[0] for line in recogs.splitlines()[::2]] == ["noise0", "noise2"]
    assert not list(exp_dir.glob("*/finished-*"))  # to be tried again


def decoded_sets(monkeypatch: pytest.MonkeyPatch, stop_at: int = 0) -> list[list[str]]:
    """Grows by the searches of every pass over a test set; the pass of that number is interrupted."""
    passes: list[list[str]] = []
    original = decode_set

    def counted(recognizer: Recognizer, *rest):
        passes.append([method for method, _ in recognizer.searches])
        if len(passes) == stop_at:
            raise KeyboardInterrupt
        return original(recognizer, *rest)

    monkeypatch.setattr(decoding, "decode_set", counted)
    return passes


def test_a_stopped_run_goes_on_behind_what_is_finished(
    exp_dir: Path, wavs: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = {"noise": make_cuts(wavs), "two": make_cuts(wavs[:2])}
    whole = run_decode(exp_dir, lambda: sets, *FLAGS)
    files = {path.name: path.read_text() for path in exp_dir.glob("*/*.txt")}
    for path in exp_dir.glob("*/*"):
        path.unlink()
    capsys.readouterr()
    passes = decoded_sets(monkeypatch, stop_at=3)
    with pytest.raises(KeyboardInterrupt):
        run_decode(exp_dir, lambda: sets, *FLAGS)
    printed = capsys.readouterr().out
    assert printed.count("%WER") == 2 and len(list(exp_dir.glob("*/recogs-*"))) == 2  # at the first precision
    again = run_decode(exp_dir, lambda: sets, *FLAGS)
    assert len(passes) == 5  # two before the interrupt, two behind it
    assert capsys.readouterr().out.count("of an earlier call") == 2
    assert {path.name: path.read_text() for path in exp_dir.glob("*/*.txt")} == files
    assert {k: (d.results, d.stats, d.interval) for k, d in again.items()} == {
        k: (d.results, d.stats, d.interval) for k, d in whole.items()
    }


def test_what_has_changed_is_decoded_again(exp_dir: Path, wavs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    passes = decoded_sets(monkeypatch)

    def new_passes(*more: str) -> int:
        before = len(passes)
        run_decode(exp_dir, lambda: {"noise": make_cuts(wavs)}, "--on-the-fly-feats", "true", *more)
        return len(passes) - before

    assert new_passes() == 1 and new_passes() == 0
    assert new_passes("--max-duration", "1", "--num-threads", "1") == 0  # of no influence
    assert new_passes("--search-beam", "7") == 1 and new_passes() == 1
    recogs = exp_dir / "ctc-greedy-search/recogs-noise-epoch-4-avg-1-precision-2.txt"
    recogs.write_text(recogs.read_text().replace("hyp=[", "hyp=['GO', "))
    assert new_passes() == 1 and "'GO'" not in recogs.read_text()
    soundfile.write(wavs[0], 0.1 * torch.randn(16000).numpy(), 16000)  # other audio in the same place
    assert new_passes() == 1 and new_passes() == 0
    checkpoint = exp_dir / "epoch-4.pt"
    loaded = load_checkpoint(checkpoint)
    next(value for name, value in loaded.model.items() if "ctc_head" in name and value.is_floating_point()).add_(1e-3)
    save_checkpoint(checkpoint, loaded)
    assert new_passes() == 1 and new_passes() == 0
    next(exp_dir.glob("*/finished-*")).write_text("{")
    assert new_passes() == 1
    models = [exp_dir.parent / folder / "lm.pt" for folder in ("a", "b")]  # two files of one name
    for model in models:
        model.parent.mkdir()
        model.write_text("1")
    monkeypatch.setattr(CtcGreedySearch, "files", lambda setup: models)
    assert new_passes() == 1 and new_passes() == 0
    models[0].write_text("2")
    assert new_passes() == 1 and new_passes() == 0


@pytest.mark.k2
def test_another_method_runs_alone(exp_dir: Path, wavs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    passes = decoded_sets(monkeypatch)
    for methods in ("ctc-decoding", "ctc-greedy-search,ctc-decoding"):
        flags = ["--on-the-fly-feats", "true", "--decoding-method", methods]
        results = run_decode(exp_dir, lambda: {"noise": make_cuts(wavs)}, *flags)
        assert [key[1] for key in results] == methods.split(",")
    assert passes == [["ctc-decoding"], ["ctc-greedy-search"]]


def test_results_of_a_packed_file_lie_beside_it(exp_dir: Path, wavs: list[Path], tmp_path: Path) -> None:
    from tests.asr.running import export

    packed = tmp_path / "models/one.safetensors"
    export(lambda: None, "--exp-dir", str(exp_dir), "--precision", "1", "--output", str(packed))
    flags = ["--packed", str(packed), "--on-the-fly-feats", "true", "--quiet"]
    decode(lambda: {"noise": make_cuts(wavs)}, *flags)
    assert (packed.parent / "ctc-greedy-search/recogs-noise-packed-one.txt").is_file()
    decode(lambda: {"noise": make_cuts(wavs)}, *flags, "--exp-dir", str(tmp_path / "there"))
    assert (tmp_path / "there/ctc-greedy-search/recogs-noise-packed-one.txt").is_file()
