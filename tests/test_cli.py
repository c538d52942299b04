"""The command lowbit-k2: what it prints, what it refuses, what it imports."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lowbit_k2.cli import run
from lowbit_k2.errors import ReportedError, UserError
from lowbit_k2.packed import PackedFileError, PackedTensor, write_packed
from tests.packed.samples import sample_model


@pytest.fixture()
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A packed file and its float32 version."""
    model = sample_model()
    floats = [
        PackedTensor.from_values(t.name, t.role, "float32", t.dequantize(), aliases=t.aliases) for t in model.tensors
    ]
    write_packed(tmp_path / "packed", model)
    write_packed(tmp_path / "float", replace(model, tensors=floats))
    return tmp_path / "packed", tmp_path / "float"


def cli(*arguments: object, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "lowbit_k2.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def test_inspect_prints_all_bytes_of_the_file(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    run(["inspect", str(files[0])])
    lines = capsys.readouterr().out.splitlines()
    sizes = [int(line.split()[-2].replace(",", "")) for line in lines if line.endswith("%")]
    total = files[0].stat().st_size
    assert sum(sizes[:-1]) == sizes[-1] == total and f"{total:,} bytes" in lines[0]
    text = "\n".join(lines)
    for word in (
        "encoder_linear",
        "ternary",
        "(tokens)",
        "(index)",
        "(header)",
        "d_model 16",
        "type fbank",
        "precision 1",
    ):
        assert word in text
    assert "ratio" not in text


def test_inspect_gives_the_ratio_of_two_files(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    run(["inspect", str(files[0]), "--float", str(files[1])])
    small, large = (path.stat().st_size for path in files)
    expected = f"ratio: {large:,} / {small:,} bytes = {large / small:.2f}x"
    assert capsys.readouterr().out.splitlines()[-1] == expected


def test_inspect_for_programs(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    run(["inspect", str(files[0]), "--float", str(files[1]), "--json"])
    value = json.loads(capsys.readouterr().out)
    sizes = value["sizes"]
    assert value["model_config"] == sample_model().model_config and value["tokens"]["kind"] == "sentencepiece"
    parts = sum(row["num_bytes"] for row in sizes["tensors"]) + sum(
        sizes["file"][p] for p in ("header", "index", "tokens")
    )
    assert parts == sizes["file"]["total"] == files[0].stat().st_size
    assert sizes["ratio"] == files[1].stat().st_size / files[0].stat().st_size


def test_inspect_needs_numpy_only(files: tuple[Path, Path], repo_root: Path) -> None:
    code = (
        "import sys; from lowbit_k2.cli import run; run(['inspect', sys.argv[1]]);"
        "print(*{name.split('.')[0] for name in sys.modules}, file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, str(files[0])]
    done = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, check=True)
    assert not set(done.stderr.split()) & {"torch", "k2", "lhotse", "sentencepiece", "tqdm", "soundfile"}


def test_one_line_for_a_damaged_file(files: tuple[Path, Path], repo_root: Path) -> None:
    content = bytearray(files[0].read_bytes())
    content[-1] ^= 1
    files[0].write_bytes(content)
    done = cli("inspect", files[0], cwd=repo_root)
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.startswith(f"error: {files[0]} is altered or damaged") and done.stderr.count("\n") == 1
    with pytest.raises(PackedFileError, match="does not exist"):
        run(["inspect", str(files[0].with_name("missing"))])


def test_a_reader_that_stops_is_no_error(files: tuple[Path, Path], repo_root: Path) -> None:
    command = [sys.executable, "-m", "lowbit_k2.cli", "inspect", str(files[0])]
    process = subprocess.Popen(command, cwd=repo_root, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 0
    process.stderr.close()


@pytest.mark.parametrize("arguments", [[], ["melt"], ["inspect"], ["transcribe", "a.wav"], ["inspect", "a", "--xml"]])
def test_wrong_flags_are_argparse_errors(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run(arguments)
    assert caught.value.code == 2 and "usage: lowbit-k2" in capsys.readouterr().err


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The packed runtime installs without what other commands need."""
    monkeypatch.setitem(sys.modules, "lowbit_k2.scoring.comparison_table", None)
    with pytest.raises(ModuleNotFoundError):
        run(["compare", "a", "b"])
    monkeypatch.undo()
    monkeypatch.delitem(sys.modules, "lowbit_k2.scoring.significance", raising=False)
    monkeypatch.delitem(sys.modules, "lowbit_k2.scoring.comparison_table", raising=False)
    monkeypatch.setitem(sys.modules, "kaldialign", None)
    with pytest.raises(
        UserError, match=r"compare needs kaldialign, which is not installed here: pip install 'lowbit_k2"
    ):
        run(["compare", "a", "b"])


def test_a_file_cannot_drive_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = sample_model()
    tensors = [replace(tensor, role="bad\x1b[31m\n") for tensor in model.tensors]
    write_packed(tmp_path / "a", replace(model, tensors=tensors, extra={"note": "\x1b]0;title\x07"}))
    run(["inspect", str(tmp_path / "a")])
    assert not set(capsys.readouterr().out) & {"\x1b", "\x07"}


@pytest.fixture(scope="module")
def toy_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from lowbit_k2.data.features import FeatureConfig
    from lowbit_k2.export import pack_model
    from tests.export.toy import toy_model

    toy = toy_model()
    toy.features = FeatureConfig(num_mel_bins=23).to_dict()
    path = tmp_path_factory.mktemp("toy") / "toy.safetensors"
    pack_model(toy, path)
    return path


def write_wav(path: Path, seconds: float, sampling_rate: int = 16000) -> Path:
    import numpy as np
    import soundfile

    samples = 0.1 * np.random.default_rng(0).normal(size=round(seconds * sampling_rate))
    soundfile.write(str(path), samples.astype(np.float32), sampling_rate)
    return path


@pytest.mark.parametrize("flags", [[], ["--engine", "torch"], ["--mode", "exact"]])
def test_transcribe(flags: list[str], toy_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    from lowbit_k2.asr.model_io import load_packed
    from lowbit_k2.data.features import FeatureConfig, extract_wav
    from lowbit_k2.decode.greedy import ctc_greedy_search

    long, short = write_wav(tmp_path / "long.wav", 1.3, 22050), write_wav(tmp_path / "short.wav", 0.05)
    run(["transcribe", "--packed", str(toy_file), str(long), str(short), *flags])
    loaded = load_packed(toy_file)
    features = extract_wav(long, FeatureConfig.from_dict(loaded.features))
    with torch.no_grad():
        [best] = ctc_greedy_search(*loaded.model(features[None], torch.tensor([len(features)])))
    expected = loaded.tokenizer.decode(best.labels)
    assert expected, "a random model that says nothing tests nothing: choose another seed"
    assert capsys.readouterr().out.splitlines() == [f"{long}\t{expected}", f"{short}\t"]


@pytest.mark.parametrize("engine", ["native", "torch"])
def test_transcribe_with_times(engine: str, toy_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Equal times by both engines, into a folder; subtitles of one file on stdout."""
    folder = tmp_path / "talks"
    folder.mkdir()
    write_wav(folder / "a.wav", 1.3)
    command = ["transcribe", "--packed", str(toy_file), "--engine", engine, "--mode", "exact", "--output-format"]
    run([*command, "json", str(folder), "--output", str(tmp_path / "out")])
    found = json.loads((tmp_path / "out" / "a.json").read_text())
    assert found["duration"] == 1.3 and found["text"] == " ".join(word["text"] for word in found["words"])
    starts = [token["start"] for token in found["tokens"]]
    assert len(starts) > 3 and starts == sorted(starts) and all(round(25 * start, 6) % 1 == 0 for start in starts)
    run([*command, "vtt", str(folder)])
    assert capsys.readouterr().out.startswith(f"WEBVTT\n\n00:00:0{found['words'][0]['start']:.3f} --> ")


def wav_bytes(path: Path, length: int | None) -> bytes:
    """A WAV file as a program writes it that does not know how much will follow."""
    data = bytearray(path.read_bytes())
    place = data.index(b"data") + 4
    data[place : place + 4] = (len(data) - place - 4 if length is None else length).to_bytes(4, "little")
    return bytes(data)


@pytest.mark.parametrize("length", [None, 0, 0x7FFFF000, 0xFFFFFFFF])
def test_transcribe_stdin(length: int | None, toy_file: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    from types import SimpleNamespace

    audio = write_wav(tmp_path / "a.wav", 1.3, 22050)
    raw = audio.read_bytes()[audio.read_bytes().index(b"data") + 8 :]
    command = ["transcribe", "--packed", str(toy_file)]
    run([*command, str(audio)])
    expected = capsys.readouterr().out.split("\t")[1]
    for data, flags in ((wav_bytes(audio, length), []), (raw + b"\0", ["--raw-rate", "22050"])):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data), isatty=lambda: False))
        run([*command, "-", *flags])
        assert capsys.readouterr().out == f"-\t{expected}"


def test_stdin_that_is_no_audio(toy_file: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    from types import SimpleNamespace

    whole = write_wav(tmp_path / "a.wav", 1.3).read_bytes()
    for data, reason in (
        (b"", "stdin gives no audio"),
        (b"no audio", "stdin cannot be read as audio"),
        (whole[:-100], "stdin is cut short"),
    ):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data), isatty=lambda: False))
        with pytest.raises(ReportedError):
            run(["transcribe", "--packed", str(toy_file), "-"])
        assert capsys.readouterr().err.startswith(f"error: {reason}")
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    with pytest.raises(ReportedError):
        run(["transcribe", "--packed", str(toy_file), "-"])
    assert "stdin, which is a terminal" in capsys.readouterr().err


@pytest.mark.parametrize("engine", ["auto", "torch"])
def test_the_real_time_factor(engine: str, toy_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    audio = write_wav(tmp_path / "a.wav", 1.5)
    run(["transcribe", "--packed", str(toy_file), str(audio), "--engine", engine, "--rtf", "--threads", "1"])
    [line] = capsys.readouterr().err.splitlines()
    found = re.fullmatch(rf"{audio}: 1\.50 s of audio in (\d+\.\d\d) s, RTF (\d\.\d+)", line)
    assert found and abs(float(found[1]) - 1.5 * float(found[2])) < 0.01


def test_engines_that_cannot(toy_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """auto takes PyTorch where the packed runtime lacks something; each engine by itself says what it lacks."""
    from lowbit_k2.asr import engines
    from lowbit_k2.runtime import UnsupportedError

    audio, used = write_wav(tmp_path / "a.wav", 0.5), []
    monkeypatch.setattr(engines, "transcribe_by_torch", lambda *args: used.append("torch"))
    command = ["transcribe", "--packed", str(toy_file), str(audio), "--engine"]
    monkeypatch.setitem(sys.modules, "kaldi_native_fbank", None)
    run([*command, "auto"])
    with pytest.raises(UnsupportedError, match="toy.safetensors: kaldi-native-fbank, .* is not installed: pip install"):
        run([*command, "native"])
    monkeypatch.setattr(engines, "isa_in_use", lambda: "numpy")
    run([*command, "auto"])
    monkeypatch.undo()
    monkeypatch.setattr(engines, "has_torch", lambda: False)
    with pytest.raises(UserError, match="engine torch needs PyTorch, which is not installed: choose native"):
        run([*command, "torch"])
    assert used == ["torch"] * 2


def test_transcribe_refuses_what_is_no_audio(toy_file: Path, tmp_path: Path, repo_root: Path) -> None:
    (tmp_path / "a.wav").write_text("no audio")
    for path, reason in ((tmp_path / "a.wav", "cannot be read as audio"), (tmp_path / "b.wav", "does not exist")):
        done = cli("transcribe", "--packed", toy_file, path, cwd=repo_root)
        assert done.returncode == 1 and reason in done.stderr and done.stderr.count("\n") == 1


def test_one_bad_file_costs_the_others_nothing(toy_file: Path, tmp_path: Path, repo_root: Path) -> None:
    good = [write_wav(tmp_path / f"{name}.wav", 0.8) for name in "ac"]
    (tmp_path / "bad.wav").write_text("no audio")
    done = cli("transcribe", "--packed", toy_file, good[0], tmp_path / "bad.wav", good[1], cwd=repo_root)
    assert done.returncode == 1
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == list(map(str, good))
    [line] = done.stderr.splitlines()
    assert line.startswith(f"error: {tmp_path / 'bad.wav'} cannot be read as audio")


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to ...")],
)
def test_a_file_that_needs_too_much_memory(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    from lowbit_k2.asr.transcripts import PlainText, find_audio, print_transcripts
    from lowbit_k2.errors import ReportedError

    def transcribe(file: Path):
        if file.name == "long.wav":
            raise error
        return PlainText(["yes"], 0.8)

    with pytest.raises(ReportedError):
        print_transcripts(find_audio([Path("long.wav"), Path("short.wav")]), transcribe)
    printed = capsys.readouterr()
    assert printed.out == "short.wav\tyes\n" and printed.err.count("\n") == 1
    assert "long.wav needs more memory than there is" in printed.err


def test_align(toy_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], repo_root: Path) -> None:
    """A toy's times are any; their order, the files that cannot be aligned and the format are not."""
    audio = write_wav(tmp_path / "a b.wav", 2.0)
    write_wav(tmp_path / "short.wav", 0.1)
    text = "word b b word"
    run(["align", "--packed", str(toy_file), "--wav", str(audio), "--text", text])
    rows = [line.rsplit(maxsplit=5) for line in capsys.readouterr().out.splitlines()]
    assert [row[4] for row in rows] == text.split() and {(row[0], row[1]) for row in rows} == {("a b", "1")}
    starts = [float(row[2]) for row in rows]
    ends = [start + float(row[3]) for start, row in zip(starts, rows, strict=True)]
    assert all(end <= start + 1e-6 for end, start in zip(ends, starts[1:], strict=False)) and ends[-1] <= 2.0
    assert all(0 < float(row[5]) <= 1 for row in rows)
    lines = [f"{tmp_path}/short.wav\t{text}", f"{tmp_path}/none.wav\t{text}", f"{audio}\t{text} other"]
    (tmp_path / "list").write_text("\n".join([f"{audio}\t{text}", *lines]))
    done = cli("align", "--packed", toy_file, "--transcripts", tmp_path / "list", "--level", "token", cwd=repo_root)
    assert done.returncode == 1
    assert [line.rsplit(maxsplit=5)[4] for line in done.stdout.splitlines()] == ["a", "b", "b", "b", "a", "b"]
    said = done.stderr.splitlines()
    wanted = ("cannot hold the transcript", "none.wav does not exist", "word other is not in the lexicon")
    assert len(said) == 3
    for line, words in zip(said, wanted, strict=True):
        assert line.startswith(f"error: {tmp_path}") and words in line
    (tmp_path / "list").write_text(f"{audio}\t{text}\nalone\n")
    for arguments, message in (
        (["--wav", "a.wav"], "give --wav with --text, or --transcripts"),
        (["--transcripts", tmp_path / "list"], "list line 2: expected FILE<tab>transcript, found 'alone'"),
    ):
        done = cli("align", "--packed", toy_file, *arguments, cwd=repo_root)
        assert done.returncode == 1 and message in done.stderr and len(done.stderr.splitlines()) == 1
