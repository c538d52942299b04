"""The page of `lowbit-k2 report`: what folders hold, that nothing is fetched or left open, and what is missing."""

from __future__ import annotations

import gzip
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from lowbit_k2.packed import PackedModel, PackedTensor, write_packed
from lowbit_k2.report.experiments import RECOGS, read_experiment
from lowbit_k2.report.figures import COLOURS, STYLE_VARIABLES, published
from lowbit_k2.report.noise import condition_of, format_noise, noise_cells, noise_rows, runs_of
from lowbit_k2.report.text import alignment
from lowbit_k2.scoring.recogs import write_recogs
from lowbit_k2.scoring.wer import aligned
from tests.egs.scripts import call

MAIN = "lowbit_k2.cli"
REF = ["one", "two", "three", "four", "five", "six", "seven"]
LOG = """\
2026-11-26 16:36:37,746 INFO epoch 1, update 20: loss=3.1 loss_2=1.5 loss_1=1.6 ctc_2=9 grad_norm=3.2
2026-11-26 16:37:29,875 INFO epoch 1, valid at update 25: loss_2=0.7 loss_1=0.8 loss=1.5
2026-11-26 16:37:29,875 INFO epoch 1, 25 updates: loss=1.418 loss_2=1.418
2026-11-26 16:38:29,875 INFO epoch 2, valid at update 50: loss_2=0.5 loss_1=inf loss=1.1
"""
VOID = {"meta", "br"}


def recogs(folder: Path, name: str, hyp: list[str], first: int = 0) -> None:
    """Of thirty utterances every third has `hyp`, from the first on; the others are right."""
    results = [(f"u{n}", REF, REF if (n - first) % 3 else hyp) for n in range(30)]
    write_recogs(folder / f"recogs-{name}.txt", results)


def packed(path: Path, precision: str, encoding: str) -> None:
    rng = np.random.default_rng(0)
    tensors = []
    for layer in range(3):
        for name in ("ff.w1.weight", "attention.query.weight"):
            codes = np.where(rng.random((6, 10)) < 0.5, -1, 1).astype(np.int8)
            step = np.float32(0.1 + layer)
            full = f"encoder.layers.{layer}.{name}"
            tensors.append(
                PackedTensor.from_values(full, "linear", encoding, codes * step)
                if encoding == "float32"
                else PackedTensor.from_codes(full, "linear", encoding, codes, step)
            )
    tensors.append(PackedTensor.from_values("ctc_head.bias", "bias", "float32", np.ones(4, np.float32)))
    write_packed(path, PackedModel(tensors, {}, extra={"precision": precision}))


@pytest.fixture(scope="module")
def experiments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float and a co-trained experiment, and one that has only a log."""
    root = tmp_path_factory.mktemp("exps")
    greedy = "ctc-greedy-search"
    substituted, lost = [*REF[:-1], "<b>&"], REF[:2]
    for name, bits, hyps in (
        ("float", {"32": "float32"}, {"32": substituted}),
        ("cotrain", {"2": "ternary", "1": "binary"}, {"2": substituted, "1": lost}),
    ):
        folder = root / name
        (folder / "log").mkdir(parents=True)
        (folder / "log/log-train-2026-11-26").write_text(LOG)
        for precision, encoding in bits.items():
            first = int(name == "float")  # others err where float does not
            packed(folder / f"packed/{precision}bit.safetensors", precision, encoding)
            recogs(folder / greedy, f"test-epoch-2-avg-1-precision-{precision}", hyps[precision], first)
            recogs(folder / greedy, f"test-snr5-epoch-2-avg-1-precision-{precision}", lost, first)
            recogs(folder / greedy, f"test-packed-{precision}bit", hyps[precision], first)
    (root / "begun/log").mkdir(parents=True)
    (root / "begun/log/log-train-2026").write_text(LOG)
    return root


# --- reading ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "test_set", "setting", "precision"),
    [
        ("recogs-test-epoch-20-avg-5-use-averaged-model-precision-1", "test", None, "1"),
        ("recogs-test-clean-lm_scale_0.6-epoch-20-avg-5-precision-kl20", "test-clean", "lm_scale_0.6", "kl20"),
        ("recogs-test-snr-5-iter-4000-avg-1-precision-1_2", "test-snr-5", None, "1_2"),
        ("recogs-dev-packed-pretrained-1bit", "dev", None, None),
    ],
)
def test_names_of_results(name: str, test_set: str, setting: str | None, precision: str | None) -> None:
    match = RECOGS.fullmatch(name)
    assert (match["test_set"], match["setting"], match["precision"]) == (test_set, setting, precision)


def test_an_experiment(experiments: Path) -> None:
    [found] = read_experiment(experiments / "cotrain")
    assert {(s.test_set, s.precision, s.stats.errors) for s in found.scores} == {
        ("test", "2", 10),
        ("test", "1", 50),
        ("test-snr5", "2", 50),
        ("test-snr5", "1", 50),
    }
    [score] = [s for s in found.scores if (s.test_set, s.precision) == ("test", "1")]
    file = experiments / "cotrain/packed/1bit.safetensors"
    assert score.num_bytes == file.stat().st_size and score.runs() == {3: 10, 5: 10, 11: 0}
    assert found.valid["2"] == [(25, 0.7), (50, 0.5)] and found.train["1"] == [(20, 1.6)] and not found.missing
    [begun] = read_experiment(experiments / "begun")
    assert begun.valid["1"] == [(25, 0.8)] and [line.split(":")[0] for line in begun.missing] == [
        "no recogs-*.txt",
        "no packed file",
    ]


def test_result_files(tmp_path: Path) -> None:
    errors = {"1best": {"ins": 0, "dels": 5, "sub": 0, "ref_words": 210}}
    evaluation = {"precision": "1", "test_set": "test", "errors": errors, "intervals": {"1best": [0.01, 0.04]}}
    evaluation |= {"file_bytes": 100, "float_bytes": 1700, "recogs": {}}
    value = {"label": "naive", "seed": 3, "evaluations": [evaluation]}
    (tmp_path / "naive-s3.json").write_text(json.dumps(value))
    [found] = read_experiment(tmp_path)
    assert found.name == "naive, seed 3" and found.scores[0].ratio == 17 and found.scores[0].runs() is None
    assert "was not kept" in found.missing[0]
    recogs(tmp_path / "recogs", "x", REF[:2])
    text = (tmp_path / "recogs/recogs-x.txt").read_bytes()
    (tmp_path / "recogs/naive-s3-1-1best.txt.gz").write_bytes(gzip.compress(text))
    assert read_experiment(tmp_path)[0].scores[0].runs() == {3: 10, 5: 10, 11: 0}
    value["evaluations"].append(evaluation | {"test_set": "test-snr5"})
    (tmp_path / "naive-s3.json").write_text(json.dumps(value))
    recogs(tmp_path / "recogs", "y", REF[:4])
    text = (tmp_path / "recogs/recogs-y.txt").read_bytes()
    (tmp_path / "recogs/naive-s3-test-snr5-1-1best.txt.gz").write_bytes(gzip.compress(text))
    runs = {s.test_set: s.runs() for s in read_experiment(tmp_path)[0].scores}
    assert runs == {"test": {3: 10, 5: 10, 11: 0}, "test-snr5": {3: 10, 5: 0, 11: 0}}
    (tmp_path / "naive-s3.json").write_text(json.dumps({"evaluations": [{"errors": {"a": {}}}]}))
    assert "is no result file" in call(MAIN, "report", tmp_path, "--output", tmp_path / "r.html").error()


# --- the page -----------------------------------------------------------------------------------------------------


class Reader(HTMLParser):
    """Open elements, all ids and addresses, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.words: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(scope="module")
def page(experiments: Path) -> Path:
    output = experiments / "out/report.html"
    folders = [experiments / name for name in ("float", "cotrain", "begun")]
    run = call(MAIN, "report", *folders, "--output", output, "--title", "A <title>").good()
    assert run.out.startswith(f"{output}: ") and "figures in" in run.out
    return output


def test_the_page_is_whole_and_fetches_nothing(page: Path) -> None:
    text = page.read_text()
    found = Reader(text)
    assert all(address.startswith(("#", "data:")) for address in found.addresses)
    rest = text.replace("http://www.w3.org/2000/svg", "").replace("http://www.w3.org/1999/xlink", "")
    assert "http:" not in rest and "https:" not in rest and "@import" not in rest and "<script" not in rest
    assert "&lt;b&gt;&amp;" in text and "<b>&" not in text and "A &lt;title&gt;" in text
    used = set(re.findall(r"var\(--([\w-]+)\)", text))
    defined = set(re.findall(r"--([\w-]+):", text))
    assert used <= defined and set(COLOURS) <= defined
    dark = text[text.index("prefers-color-scheme: dark") :]
    assert set(STYLE_VARIABLES) <= set(re.findall(r"--([\w-]+):", dark[: dark.index("</style>")]))


def test_what_the_page_says(page: Path) -> None:
    words = " ".join(" ".join(Reader(page.read_text()).words).split())
    for part in (
        "float",
        "cotrain",
        "Word error rate against size",
        "Bits and scales by layer",
        "Runs of deleted words, and errors by length",
        "0.004 worse",  # ten segments with five errors more, ten with one fewer
        "10/10/0",
        "No run of three or more deleted words: test, ctc-greedy-search: 2 of 3 systems.",
        "u0: 5 errors, 7 words",
        "begun: no packed file",
        "Kea-B 0.1",
        "5 dB",
    ):
        assert part in words, part


def test_figures_are_pictures(page: Path) -> None:
    images = sorted(page.with_name("report-png").iterdir())
    names = {path.stem for path in images}
    assert {"wer-mb-test-ctc-greedy-search", "bits-2", "scales-2", "training-1", "published-test-clean"} <= names
    assert "noise-test-ctc-greedy-search" in names and "wer-mb-test-snr5-ctc-greedy-search" not in names
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in images)
    assert page.read_text().count("<svg") == len(images)


def test_alignments() -> None:
    html = alignment("u<1>", 3, aligned(["a", "b", "c"], ["x", "b", "c", "d"]))
    kinds = re.findall(r'class="pair ?(\w*)"', html)
    assert kinds == ["sub", "", "", "ins"] and "u&lt;1&gt;: 3 errors, 3 words" in html


def test_published_points_have_sources() -> None:
    for point in published():
        assert point["source"] and point["origin"] in ("makers", "others") and point["mb"] > 0
        assert all(0 < wer < 100 for wer in point["wer"].values())


def test_what_cannot_be_reported(tmp_path: Path) -> None:
    assert f"{tmp_path / 'no'} is no folder" in call(MAIN, "report", tmp_path / "no").error()
    assert "is a folder: name a file" in call(MAIN, "report", tmp_path, "--output", tmp_path).error()


def test_an_empty_folder_gives_a_page(tmp_path: Path) -> None:
    (tmp_path / "exp").mkdir()
    call(MAIN, "report", tmp_path / "exp", "--output", tmp_path / "r.html").good()
    assert "no losses in log/" in " ".join(Reader((tmp_path / "r.html").read_text()).words)


# --- noise --------------------------------------------------------------------------------------------------------


def test_conditions_of_test_sets() -> None:
    found = [condition_of(f"test{rest}", "test") for rest in ("", "-snr-5", "-room+snr10+mulaw", "-other", "-snr")]
    assert found == ["clean", "snr-5", "room+snr10+mulaw", None, None]


def test_the_table_of_noise(experiments: Path) -> None:
    folders = [experiments / "float", experiments / "cotrain"]
    scores = [s for folder in folders for e in read_experiment(folder) for s in e.scores]
    cells = noise_cells(scores, "test", "ctc-greedy-search")
    assert [(c.condition, c.snr) for c in cells] == [("clean", None)] * 3 + [("snr5", 5.0)] * 3
    found = {(c.condition, c.system, c.precision): c for c in cells}
    assert found["clean", "float", "32"].p is None and found["snr5", "float", "32"].lost == pytest.approx(5)
    assert str(found["clean", "cotrain", "1"]) == "23.81 **" and str(found["clean", "cotrain", "2"]) == "4.76"
    assert found["snr5", "cotrain", "1"].p == 1 and found["snr5", "cotrain", "1"].lost == pytest.approx(1)
    lines = format_noise(cells).splitlines()
    assert lines[2] == "| system | bits | clean | 5 dB |"
    assert lines[4:6] == ["| float | 32 | 4.76 | 23.81 |", "| cotrain | 1 | 23.81 ** | 23.81 |"]
    assert noise_rows(cells, runs_of)[1][0] == ["float", "32", "0/0/0", "10/10/0"]
    only_clean = [replace(s, system="new") for s in scores if s.test_set == "test"]
    assert noise_cells([*scores, *only_clean], "test", "ctc-greedy-search") == cells
    out = call(MAIN, "noise", *folders, "--json").good().out
    assert [cell["errors"] for cell in json.loads(out)] == [c.errors for c in cells]


def test_results_that_are_not_there(experiments: Path) -> None:
    flags = ["noise", experiments / "float"]
    assert "no results of dev by ctc-greedy-search, only" in call(MAIN, *flags, "--test-set", "dev").error()
    assert "no results of noisy copies of test-snr5" in call(MAIN, *flags, "--test-set", "test-snr5").error()
