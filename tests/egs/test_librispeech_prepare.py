"""prepare.sh of the LibriSpeech recipe, on real speech in the real layout; and its local/ scripts."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from lowbit_k2.errors import UserError
from tests.egs import scripts

RECIPE = Path(__file__).resolve().parents[2] / "egs" / "librispeech"
ARPA_TEXT = "\\data\\\nngram 1=1\n\n\\1-grams:\n-1\t</s>\n\n\\end\\\n"


def local_module(name: str) -> ModuleType:
    return scripts.local_module(RECIPE / "local", name)


def prepare(*flags: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": sys.executable}
    command = [str(RECIPE / "prepare.sh"), *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=cwd)


def one_line(result: subprocess.CompletedProcess[str], status: int = 1) -> str:
    """The error of a run that must have failed with a single line on stderr."""
    assert result.returncode == status, result.stderr
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1, result.stderr
    return result.stderr


def files_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of every file."""
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}


def test_stages_make_features_and_units(prepared: tuple[Path, list[str | Path]]):
    from lhotse import load_manifest

    path, _ = prepared
    counts = {"train-clean-100": 132, "dev-clean": 40, "test-other": 100}
    for part, count in counts.items():
        cuts = list(load_manifest(path / "fbank" / f"librispeech_cuts_{part}.jsonl.gz"))
        assert len(cuts) == count
        assert all(c.has_features and c.features.num_features == 80 for c in cuts)
    features = cuts[0].load_features()
    assert features.shape[1] == 80 and abs(len(features) - 100 * cuts[0].duration) <= 2
    assert np.isfinite(features).all()
    assert len((path / "transcript_words.txt").read_text().splitlines()) == 132
    lang = path / "lang_bpe_80"
    tokens = (lang / "tokens.txt").read_text().splitlines()
    assert tokens[0] == "<blk> 0" and not tokens[79].startswith("#") and tokens[80].startswith("#0")
    words = {line.split()[0] for line in (lang / "words.txt").read_text().splitlines()}
    assert {w for line in (path / "transcript_words.txt").read_text().splitlines() for w in line.split()} <= words


def test_musan_stages(prepared: tuple[Path, list[str | Path]]):
    from lhotse import load_manifest

    for part in ("music", "speech", "noise"):
        cuts = list(load_manifest(prepared[0] / "fbank" / f"musan_cuts_{part}.jsonl.gz"))
        assert sorted(round(c.duration) for c in cuts) == [5, 10, 10] and all(c.has_features for c in cuts)


@pytest.mark.k2
def test_graph_stages(prepared: tuple[Path, list[str | Path]]):
    import k2
    import torch

    path, _ = prepared
    hlg = k2.Fsa.from_dict(torch.load(path / "lang_bpe_80" / "HLG.pt", map_location="cpu"))
    assert hlg.num_arcs > 1000
    assert int(hlg.labels.max()) < 80  # no disambiguation symbol is left
    assert (path / "lang_bpe_80" / "LG.pt").is_file() and (path / "lang_bpe_80" / "G_4_gram.pt").is_file()


@pytest.mark.k2
def test_graph_of_openslr_11(prepared: tuple[Path, list[str | Path]], tmp_path: Path):
    """The stages after the download: words from the list, G from the ARPA file; stand-ins for both files."""
    path, flags = prepared
    data, download = tmp_path / "data", tmp_path / "download"
    shutil.copytree(path, data, ignore=shutil.ignore_patterns("fbank", "HLG.pt", "lm"))
    (download / "lm").mkdir(parents=True)
    shutil.copy(path / "lm" / "3-gram.arpa", download / "lm" / "3-gram.pruned.1e-7.arpa")
    (download / "lm" / "librispeech-vocab.txt").write_text("HELLO\nTHERE\n")
    changed = {path: data, "transcripts": "openslr11"}
    flags = [changed.get(flag, flag) for flag in flags] + ["--download-dir", download, "--stage", "6"]
    result = prepare(*flags)
    assert result.returncode == 0, result.stderr
    words = (data / "lang_bpe_80" / "words.txt").read_text().splitlines()
    assert any(line.startswith("HELLO ") for line in words)
    assert (data / "lang_bpe_80" / "HLG.pt").is_file()
    assert "stage 0 (download)" in one_line(prepare(*flags, "--stage", "8", "--rescoring", "true"))
    shutil.copy(path / "lm" / "4-gram.arpa", download / "lm")
    (data / "lang_bpe_80" / "G_4_gram.pt").unlink()
    assert prepare(*flags, "--stage", "8", "--rescoring", "true").returncode == 0
    assert (data / "lang_bpe_80" / "G_4_gram.pt").is_file()
    (download / "lm" / "3-gram.pruned.1e-7.arpa").unlink()
    assert "--stage 0" in one_line(prepare(*flags, "--stage", "7"))


def test_second_run_does_nothing(prepared: tuple[Path, list[str | Path]]):
    path, flags = prepared
    before = files_of(path)
    result = prepare(*flags)
    assert result.returncode == 0, result.stderr
    assert files_of(path) == before
    assert result.stdout.count("Skipped, done before") >= 8


def test_other_settings_are_refused(prepared: tuple[Path, list[str | Path]]):
    path, flags = prepared
    before = files_of(path)
    changed = [
        "true" if flag == "false" and flags[i - 1] == "--perturb-speed" else flag for i, flag in enumerate(flags)
    ]
    assert "perturb" in one_line(prepare(*changed, "--stage", "3"))
    assert files_of(path) == before


def test_stage_selection(data_dir: Path, tmp_path: Path):
    flags = ["--librispeech-dir", data_dir / "LibriSpeech", "--data-dir", "d", "--use-musan", "false"]
    result = prepare(*flags, "--stage=1", "--stop-stage", "1", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert re.findall(r"Stage (\d+)", result.stdout) == ["1"]
    names = {p.name for p in (tmp_path / "d" / "manifests").glob("*.gz")}  # a relative path of the caller's
    assert names == {
        f"librispeech_{kind}_{part}.jsonl.gz"
        for kind in ("recordings", "supervisions")
        for part in ("train-clean-100", "dev-clean", "test-other")
    }


@pytest.mark.parametrize(
    "flags",
    [
        ["--no-such-flag", "1"],
        ["--stage"],
        ["--stage", "x"],
        ["--mini", "maybe"],
        ["mini"],
        ["--lm-source", "internet"],
        ["--use-musan", "x"],
        ["--vocab-size", "many"],
        ["--mini", "true", "--mini-libri", "true"],
        ["--mini", "true", "--librispeech-dir", "x"],
    ],
)
def test_bad_flags(flags: list[str], tmp_path: Path):
    one_line(prepare("--data-dir", tmp_path / "d", "--download-dir", tmp_path / "c", *flags), status=2)
    assert not list(tmp_path.iterdir())


def test_missing_corpus(tmp_path: Path):
    flags = ["--data-dir", tmp_path / "d", "--use-musan", "false", "--librispeech-dir", tmp_path / "nowhere"]
    assert "nowhere" in one_line(prepare(*flags))
    (tmp_path / "nowhere").mkdir()
    assert "no train part" in one_line(prepare(*flags))
    musan = ["--use-musan", "true", "--musan-dir", tmp_path / "no-musan", "--stage", "2"]
    assert "no-musan" in one_line(prepare(*flags, *musan))
    assert "run stage 1" in one_line(prepare(*flags, "--stage", "3"))
    assert not (tmp_path / "d").exists()


def make_part(root: Path, part: str, audio: bytes = b"not audio") -> Path:
    """One utterance; returns its audio file."""
    chapter = root / part / "1" / "2"
    chapter.mkdir(parents=True)
    (chapter / "1-2.trans.txt").write_text("1-2-0000 HELLO\n")
    (chapter / "1-2-0000.flac").write_bytes(audio)
    return chapter / "1-2-0000.flac"


def test_damaged_corpus(tmp_path: Path):
    corpus, data = tmp_path / "LibriSpeech", tmp_path / "d"
    flags = ["--data-dir", data, "--librispeech-dir", corpus, "--full-libri", "false"]
    flags += ["--use-musan", "false", "--lm-source", "transcripts"]
    audio = make_part(corpus, "train-clean-100")
    assert "no dev part" in one_line(prepare(*flags))
    make_part(corpus, "dev-clean")
    result = prepare(*flags)  # a file that is no FLAC
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "unpack it again" in result.stderr.splitlines()[-1]
    audio.unlink()
    assert "1-2-0000.flac is missing" in one_line(prepare(*flags))
    (audio.parent / "1-2.trans.txt").write_text("1-2-0000\n")
    assert "1-2.trans.txt line 1" in one_line(prepare(*flags))
    assert not list(data.rglob("*.*"))


def test_mini_corpus_is_made_once(tmp_path: Path):
    flags = ["--mini", "true", "--hours", "0.01", "--data-dir", tmp_path / "d", "--download-dir", tmp_path / "c"]
    assert prepare(*flags, "--stop-stage", "1").returncode == 0
    before = files_of(tmp_path)
    assert (tmp_path / "c" / "LibriSpeech" / "SPEAKERS.TXT").is_file() and (tmp_path / "d" / "manifests").is_dir()
    assert prepare(*flags, "--stop-stage", "1").returncode == 0
    assert files_of(tmp_path) == before
    assert "hours" in one_line(prepare(*flags[:2], "--hours", "0.02", *flags[4:]))


def test_every_script_that_prepare_names_exists():
    text = (RECIPE / "prepare.sh").read_text()
    scripts = set(re.findall(r"local/\w+\.(?:py|sh)", text))
    assert len(scripts) >= 5 and all((RECIPE / s).is_file() for s in scripts)
    modules = set(re.findall(r"-m (lowbit_k2[.\w]+)", text))
    assert modules and all((RECIPE.parents[1] / (m.replace(".", "/") + ".py")).is_file() for m in modules)


class LmServer(BaseHTTPRequestHandler):
    """Serves OpenSLR 11's files from memory, with ranges; `cut` bytes are sent of what is promised, if set."""

    files: dict[str, bytes] = {}
    cut: int | None = None
    starts: list[int] = []

    def do_GET(self) -> None:
        data = self.files.get(self.path.rsplit("/", 1)[-1])
        if data is None:
            self.send_error(404)
            return
        start = int((re.match(r"bytes=(\d+)-", self.headers.get("Range", "")) or ["", "0"])[1])
        type(self).starts.append(start)
        if start >= len(data):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start:][: self.cut])

    def log_message(self, *_: object) -> None:
        """Be silent."""


@pytest.fixture
def lm_server() -> Iterator[str]:
    download_lm = local_module("download_lm")
    LmServer.files = {
        f"{download_lm.ARPA}.gz": gzip.compress(ARPA_TEXT.encode()),
        f"{download_lm.RESCORING_ARPA}.gz": gzip.compress(ARPA_TEXT.encode()),
        download_lm.WORDS: b"A\nHELLO\n",
    }
    LmServer.cut, LmServer.starts = None, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), LmServer)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_download_lm(lm_server: str, tmp_path: Path):
    download_lm = local_module("download_lm")
    download_lm.download_lm(tmp_path, lm_server)
    assert (tmp_path / download_lm.ARPA).read_text() == ARPA_TEXT
    assert (tmp_path / download_lm.WORDS).read_text() == "A\nHELLO\n"
    requests = len(LmServer.starts)
    download_lm.download_lm(tmp_path, lm_server)
    assert len(LmServer.starts) == requests  # nothing is fetched twice
    assert not (tmp_path / download_lm.RESCORING_ARPA).exists()
    download_lm.download_lm(tmp_path, lm_server, rescoring=True)
    assert (tmp_path / download_lm.RESCORING_ARPA).read_text() == ARPA_TEXT


def test_download_lm_goes_on(lm_server: str, tmp_path: Path):
    download_lm = local_module("download_lm")
    LmServer.cut = 5
    for _ in range(2):
        with pytest.raises(UserError, match="run the stage again"):
            download_lm.download(f"{lm_server}/{download_lm.WORDS}", tmp_path / "words")
        assert not (tmp_path / "words").exists()
        LmServer.cut = 2
    LmServer.cut = None
    download_lm.download(f"{lm_server}/{download_lm.WORDS}", tmp_path / "words")
    assert (tmp_path / "words").read_text() == "A\nHELLO\n" and LmServer.starts == [0, 5, 7]


def test_download_lm_restarts_a_part_that_is_too_long(lm_server: str, tmp_path: Path):
    download_lm = local_module("download_lm")
    (tmp_path / "words.part").write_bytes(b"x" * 100)
    download_lm.download(f"{lm_server}/{download_lm.WORDS}", tmp_path / "words")
    assert (tmp_path / "words").read_text() == "A\nHELLO\n"


@pytest.mark.parametrize("damage", ["truncated", "foreign", "no-end"])
def test_download_lm_refuses_damage(lm_server: str, tmp_path: Path, damage: str):
    download_lm = local_module("download_lm")
    whole = LmServer.files[f"{download_lm.ARPA}.gz"]
    bad = {"truncated": whole[:-10], "foreign": b"<html>", "no-end": gzip.compress(b"\\data\\\n")}
    LmServer.files[f"{download_lm.ARPA}.gz"] = bad[damage]
    with pytest.raises(UserError, match="is damaged"):
        download_lm.download_lm(tmp_path, lm_server)
    assert {p.name for p in tmp_path.iterdir()} == {download_lm.WORDS}


def test_download_lm_without_a_server(tmp_path: Path):
    download_lm = local_module("download_lm")
    with pytest.raises(UserError, match="cannot be downloaded"):
        download_lm.download_lm(tmp_path, "http://127.0.0.1:9")


def test_download_corpus_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    download_corpus = local_module("download_corpus")

    def fail() -> None:
        raise OSError("no route to host")

    with pytest.raises(UserError, match="no route to host.*openslr"):
        download_corpus.fetch("LibriSpeech", "https://www.openslr.org/12", fail)
    monkeypatch.setattr(sys, "argv", ["download_corpus.py", "--download-dir", str(tmp_path), "--parts", "train-500"])
    with pytest.raises(UserError, match="no part train-500"):
        download_corpus.main()
    assert not list(tmp_path.iterdir())


def test_download_corpus_asks_lhotse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from lhotse.recipes import librispeech, musan

    calls = []
    monkeypatch.setattr(librispeech, "download_librispeech", lambda *args, **kwargs: calls.append((args, kwargs)))
    monkeypatch.setattr(musan, "download_musan", lambda *args, **kwargs: calls.append((args, kwargs)))
    flags = ["--download-dir", str(tmp_path), "--parts", "train-clean-5 dev-clean-2", "--musan"]
    monkeypatch.setattr(sys, "argv", ["download_corpus.py", *flags])
    local_module("download_corpus").main()
    assert calls == [((tmp_path,), {"dataset_parts": ["train-clean-5", "dev-clean-2"]}), ((tmp_path,), {})]


def test_transcript_of_a_damaged_manifest(tmp_path: Path):
    read_texts = local_module("write_transcript").read_texts
    manifest = tmp_path / "librispeech_supervisions_dev-clean.jsonl.gz"
    with pytest.raises(UserError, match="run stage 1"):
        list(read_texts(manifest))
    manifest.write_bytes(gzip.compress(b'{"text": " A  B "}\n{"text": ""}\n')[:-4])
    with pytest.raises(UserError, match="cannot be read"):
        list(read_texts(manifest))
    manifest.write_bytes(gzip.compress(b'{"text": " A  B "}\n{"text": ""}\n{"text": "C"}\n'))
    assert list(read_texts(manifest)) == ["A B", "C"]
    shutil.rmtree(tmp_path)
