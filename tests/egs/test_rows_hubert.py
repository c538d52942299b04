"""The table of HuBERT's rows: flags of each, a whole run on short sounds, its comparisons, and a page that drifted."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from lowbit_k2.core.hubert import HubertConfig
from lowbit_k2.errors import UserError
from lowbit_k2.fileio import read_json, write_json
from lowbit_k2.k2_compat import has_k2
from lowbit_k2.packed import read_packed
from lowbit_k2.recipe.hubert_flags import hubert_parser, read_hubert_flags
from tests.egs.scripts import LIBRISPEECH, call, files_of, local_module
from tests.models.hubert_samples import BASE
from tests.recipe.corpus import make_lang
from tests.recipe.waves import make_waves

SCRIPT = LIBRISPEECH / "local/rows_hubert.py"
GREEDY = "ctc-greedy-search"


@pytest.fixture
def rows() -> ModuleType:
    return local_module(SCRIPT.parent, "rows_hubert")


@pytest.fixture
def page(rows: ModuleType) -> ModuleType:
    """What makes the tables."""
    return local_module(SCRIPT.parent, "hubert_table")


def table(rows: ModuleType, root: Path, *flags: object) -> Any:
    return rows.Table(rows.get_parser().parse_args(["make", "--exp-root", str(root), *map(str, flags)]))


def test_the_flags_of_every_row_are_those_of_training(
    rows: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, commands = table(rows, tmp_path), []
    monkeypatch.setattr(rows, "run_script", lambda *command: commands.append(list(map(str, command))))
    monkeypatch.setattr(made, "prepare", lambda: None)
    made.trained(rows.ROWS["float"])
    assert [command[0] for command in commands] == ["-m", "train_hubert.py"]
    made.pretrained.parent.mkdir()
    made.pretrained.touch()
    alike = []
    for name, row in rows.ROWS.items():
        if name in (rows.FLOAT, rows.FBANK):
            continue
        commands.clear()
        assert made.trained(row) == tmp_path / row.of / "epoch-1.pt"
        ((script, *flags),) = commands
        config = read_hubert_flags(hubert_parser(None).parse_args(flags))
        assert script == "train_hubert.py" and config.co_training.teacher == str(made.pretrained)
        alike.append((config.data, config.loop, config.optim))
        scheme = config.quant_config().schemes["feed_forward"]
        weights, inputs = row.bits[1:].split("a")
        assert weights == row.precision and int(weights) in scheme.bits
        assert {"same": weights, 0: "32"}.get(scheme.input_bits, str(scheme.input_bits)) == inputs
        assert row.counted[1] == (16 if inputs == "32" else int(weights))
    assert all(one == alike[0] for one in alike), "all rows see the same batches at the same rates"
    assert {row.of for name, row in rows.ROWS.items() if name.startswith("co-")} == {"co-trained", "co-trained-weights"}


@pytest.fixture
def small_size() -> Iterator[None]:
    HubertConfig.sizes["small"] = replace(BASE, conv_dims=(8,), d_model=16, num_layers=2, ffn_dim=16)
    yield
    del HubertConfig.sizes["small"]


def corpora(tmp_path: Path) -> list[object]:
    """Flags that name short sounds in the place of AN4, LibriSpeech and the keywords."""
    an4 = make_waves(tmp_path / "an4", "an4", train=10, dev=6)
    for path in an4.glob("*_dev.*"):
        shutil.copy(path, path.with_name(path.name.replace("_dev.", "_test.")))
    pieces = make_waves(tmp_path / "pieces", "librispeech", train=3, dev=3)
    for path in pieces.glob("*"):
        path.rename(path.with_name(path.name.replace("_train.", "_train-clean-100.").replace("_dev.", "_dev-clean.")))
    for path in pieces.glob("*"):  # ids are each corpus's own
        text = gzip.decompress(path.read_bytes()).decode()
        path.write_bytes(
            gzip.compress(text.replace('"train-', '"piece-train-').replace('"dev-', '"piece-dev-').encode())
        )
    for i, clip in enumerate(sorted((tmp_path / "an4/wav").glob("*.wav"))[:10]):
        folder = tmp_path / "keywords" / ("go", "no")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(clip, folder)
    lang = make_lang(an4.parent / "lang_char", "YES NO")
    if has_k2():
        (tmp_path / "text").write_text("YES NO\nNO YES\n")
        call("lowbit_k2.recipe.prepare_lang", "--lang-dir", lang, "--transcript", tmp_path / "text").good()
        arpa = ["--words", lang / "words.txt", "--order", 2, "--arpa", tmp_path / "lm.arpa"]
        call("lowbit_k2.recipe.make_lm", "--transcript", tmp_path / "text", *arpa).good()
        call("lowbit_k2.recipe.compile_hlg", "--lang-dir", lang, "--lm", tmp_path / "lm.arpa").good()
    where = ["--an4-data", an4.parent, "--librispeech-manifests", pieces, "--keywords-dir", tmp_path / "keywords"]
    quick = "--max-duration 3 --mask-length 3 --num-buckets 2 --tensorboard false"
    more = ["--float-epochs", 1, "--probe-epochs", 2, "--more", f"--model small {quick}"]
    return [*where, *more, "--more-later", quick, "--more-probe", "--max-duration 3 --num-buckets 2"]


def test_rows_are_made_once(
    rows: ModuleType, page: ModuleType, small_size: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From audio to the table: the float model, a co-training of four precisions, and filter banks."""
    pytest.importorskip("sklearn", reason="scikit-learn is not installed: pip install -r requirements-hubert.txt")
    if not has_k2():
        for module in (rows, page):  # there is no search with a lexicon
            monkeypatch.setattr(module, "SEARCHES", {GREEDY: "greedy"})
        monkeypatch.setattr(page, "HEADERS", tuple(name for name in page.HEADERS if name != "HLG"))
    commands: list[str] = []

    def run(script: object, *flags: object) -> None:
        commands.append(str(flags[0] if script == "-m" else script))
        if script == "-m":
            call(*flags).good()
        else:
            call((rows.RECIPE / str(script)).resolve(), *flags).good()

    monkeypatch.setattr(rows, "run_script", run)
    made = table(rows, tmp_path / "exp", *corpora(tmp_path))
    for name in ("filter-banks", "float", "co-trained-1", "co-trained-8"):
        made.make(name)
    assert commands.count("train_hubert.py") == 2, "pre-training, and one distillation for both precisions"
    before, number = files_of(tmp_path / "exp"), len(commands)
    made.make("co-trained-1")
    assert files_of(tmp_path / "exp") == before and len(commands) == number
    assert not list((tmp_path / "exp").glob("states-*"))
    found = made.summary()["rows"]
    assert list(found) == ["filter-banks", "float", "co-trained-8", "co-trained-1"]
    assert found["float"]["distance"] == 0 < found["co-trained-8"]["distance"] < found["co-trained-1"]["distance"]
    for name, own in found.items():
        counts = np.array(read_json(made.result(name))["asr"][GREEDY].pop("counts"))
        assert counts.shape == (6, 2) and counts[:, 1].sum() == 12
        assert own["asr"][GREEDY] == {"wer": counts[:, 0].sum() / 12}
    one = found["co-trained-1"]
    assert set(found["filter-banks"]["commits"]) == {"probe"}
    assert all(len(commits) == 1 and commits[0] for commits in one["commits"].values()) and len(one["commits"]) == 2
    assert one["keywords"]["tested"] == 2 and one["keywords"]["classes"] == 2
    assert one["speakers"]["tested"] == 2 and one["speakers"]["classes"] == 4
    packed = tmp_path / "exp/co-trained-1.safetensors"
    assert one["bytes"] == packed.stat().st_size < found["float"]["bytes"] and read_packed(packed).tensors
    assert one["updates"] == found["co-trained-8"]["updates"] > 0 and one["gbit"] > 0
    lines = page.format_rows(found).splitlines()
    assert lines[2].startswith("| filter-banks | - | - |") and lines[5].startswith("| co-trained-1 | w1a1 |")
    assert {line.count("|") for line in lines} == {lines[0].count("|")}


def scored(errors: np.ndarray, words: np.ndarray) -> dict[str, Any]:
    counts = np.stack([errors, words], axis=1).tolist()
    return {"asr": {search: {"wer": errors.sum() / words.sum(), "counts": counts} for search in (GREEDY, "1best")}}


def test_claims_are_tested_by_a_paired_bootstrap(page: ModuleType) -> None:
    random = np.random.default_rng(1)
    words = random.integers(2, 12, size=130)
    errors = random.binomial(words, 0.4)
    more = np.minimum(words, errors + random.binomial(1, 0.5, size=130))
    made = {"weights-1": scored(more, words), "co-trained-weights-1": scored(errors, words)}
    lines = page.format_claims(page.compared(made)).splitlines()
    assert [line.split(" | ")[:3] for line in lines[2:]] == [
        ["| co-trained-weights-1", "weights-1", name] for name in ("greedy", "HLG")
    ]
    found = page.against(made["weights-1"], made["co-trained-weights-1"])[GREEDY]
    assert found["absolute"] == pytest.approx((errors.sum() - more.sum()) / words.sum()) and found["p"] < 0.01
    low, high = found["interval"]
    assert low < found["absolute"] < high < 0
    assert page.against(made["weights-1"], made["weights-1"])[GREEDY]["p"] == 1
    with pytest.raises(UserError, match="scored on different words"):
        page.against(made["weights-1"], scored(errors, words[::-1]))


def test_what_is_refused(tmp_path: Path) -> None:
    assert "--only nobody is no row: choose of filter-banks" in call(SCRIPT, "make", "--only", "nobody").error()
    root = ["--exp-root", tmp_path]
    assert "--librispeech-manifests is needed by the first make" in call(SCRIPT, "make", *root).error()
    assert "has no row yet: run make" in call(SCRIPT, "table", *root).error()


def test_keywords_are_clips_in_folders(rows: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "clips/go").mkdir(parents=True)
    with pytest.raises(UserError, match="clips holds no WORD/CLIP.ogg"):
        rows.write_keywords(tmp_path / "clips", tmp_path / "manifests")
    (tmp_path / "clips/go/1.wav").write_bytes(b"RIFF")
    with pytest.raises(UserError, match="1.wav"):
        rows.write_keywords(tmp_path / "clips", tmp_path / "manifests")


def test_a_page_that_has_drifted_is_seen(page: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A figure that was changed by hand: refused by the check, and put right by the command."""
    random = np.random.default_rng(2)
    words = random.integers(2, 12, size=30)
    made = {
        name: scored(random.binomial(words, 0.4), words)
        for name in ("filter-banks", "weights-1", "co-trained-weights-1")
    }
    kept = {"rows": {name: page.without_counts(own) for name, own in made.items()}, "claims": page.compared(made)}
    write_json(tmp_path / "hubert.json", kept)
    monkeypatch.setattr(page, "RESULTS", tmp_path / "hubert.json")
    sections = "".join(f"<!-- {name} -->\n<!-- end of {name} -->\n" for name in (page.SECTION, page.CLAIMS))
    target = tmp_path / "page.md"
    target.write_text(sections)
    with pytest.raises(UserError, match="has other tables than"):
        page.write_results(target, check=True)
    page.write_results(target, check=False)
    page.write_results(target, check=True)
    text = target.read_text()
    rate = f"{100 * made['weights-1']['asr'][GREEDY]['wer']:.1f}%"
    assert rate in text and "| co-trained-weights-1 | weights-1 | greedy |" in text
    target.write_text(text.replace(rate, "1.0%"))
    with pytest.raises(UserError, match="has other tables than"):
        page.write_results(target, check=True)
    page.write_results(target, check=False)
    assert target.read_text() == text
    assert read_json(tmp_path / "hubert.json") == kept


def test_the_tables_of_the_results_have_not_drifted() -> None:
    call(SCRIPT, "results", "--check", "true").good()
