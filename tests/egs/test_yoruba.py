"""The recipe of read Yoruba, from a few of its files to scores with and without tone marks."""

from __future__ import annotations

import shutil
import unicodedata
from pathlib import Path

import pytest

from lowbit_k2.data.manifests import load_cuts, read_split
from lowbit_k2.errors import UserError
from lowbit_k2.scoring.recogs import write_recogs
from lowbit_k2.textfile import read_lines
from tests.egs.scripts import ROOT, TINY, call, local_module, spawn

YORUBA = ROOT / "egs/yoruba"
MANIFESTS, SCORE = YORUBA / "local/prepare_manifests.py", YORUBA / "local/score_tones.py"


@pytest.fixture(scope="module")
def corpus(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three utterances of each folder, all with texts of train's letters: decomposed, capital and with a dash."""
    target = tmp_path_factory.mktemp("yoruba") / "records"
    texts = [line.partition(" ")[2] for line in read_lines(data_dir / "yoruba/train/text")]
    for part in ("train", "extra", "val", "test"):
        (target / part).mkdir(parents=True)
        names = [line.split()[0] for line in read_lines(data_dir / "yoruba" / part / "text")[:3]]
        for name in names:
            (target / part / f"{name}.ogg").symlink_to(data_dir / "yoruba" / part / f"{name}.ogg")
        typed = [unicodedata.normalize("NFD", text).capitalize().replace(" ", " \u2013 ", 1) for text in texts]
        typed = [f"{name} {text}" for name, text in zip(names, typed, strict=False)]
        (target / part / "text").write_text("\n".join(typed) + "\n", encoding="utf-8")
    return target


def test_from_the_corpus_to_scores(corpus: Path, tmp_path: Path) -> None:
    data, exp = tmp_path / "data", tmp_path / "exp"
    out = spawn(YORUBA / "prepare.sh", "--corpus-dir", corpus, "--data-dir", data, "--stop-stage", 3).good().out
    assert "\u2013" not in (data / "manifests/transcript_train.txt").read_text(encoding="utf-8")
    train = read_split(data / "fbank", "yoruba", "train")
    assert len(list(train)) == 6 and len(list(load_cuts(data / "fbank", "yoruba", "dev"))) == 3, out
    letters = set("".join(read_lines(data / "manifests/transcript_train.txt")))
    assert letters == {c for letter in letters for c in unicodedata.normalize("NFC", letter.lower())}
    assert {c for word in ("\u1ecdb\u1eb9", "\u00e1") for c in word} < letters  # dots below and tone marks

    where = ["--manifest-dir", data / "fbank", "--lang-dir", data / "lang_char", "--exp-dir", exp]
    flags = [*TINY.split(), "--num-epochs", 1, "--warm-step", 5, "--average-period", 2, "--precisions", "2,1"]
    call(YORUBA / "train.py", *where, *flags, "--num-threads", 1).good()
    decoded = call(YORUBA / "decode.py", *where, "--precision", 1, "--quiet").good().out
    assert "%WER" in decoded
    packed = tmp_path / "1bit.safetensors"
    call(YORUBA / "export.py", "--exp-dir", exp, "--precision", 1, "--output", packed).good()
    [recogs] = exp.glob("*/recogs-test-*.txt")
    table = call(SCORE, recogs).good().out.splitlines()
    assert "as written" in table[-2] and "without tones" in table[-1] and table[-1].count("%") == 4


def test_what_tones_are(tmp_path: Path) -> None:
    """Accents go, dots below stay; an error of tone alone is none without tones."""
    reference = ["àwọn", "ọ̀ró", "ḿ"]  # the second has a mark that Unicode composes not
    write_recogs(tmp_path / "recogs.txt", [("a", reference, ["awọn", "ọro", "m"]), ("b", ["o"], ["\u1ecd"])])
    written, toneless = call(SCORE, tmp_path / "recogs.txt").good().out.splitlines()[-2:]
    assert "%WER 100.00% [4 / 4, 0 ins, 0 del, 4 sub ]" in written
    assert "%WER 25.00% [1 / 4, 0 ins, 0 del, 1 sub ]" in toneless and "%CER 11.11% [1 / 9," in toneless


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a\n", "text line 1: expected an id and words"),
        ("a b\nnone b\n", "text line 2: {folder} has no audio of none"),
        (None, "text does not exist: give --corpus-dir"),
    ],
)
def test_bad_corpora(corpus: Path, tmp_path: Path, text: str | None, words: str) -> None:
    folder = Path(shutil.copytree(corpus, tmp_path / "records", symlinks=True)) / "test"
    next(folder.glob("*.ogg")).rename(folder / "a.ogg")
    (folder / "text").unlink()
    if text is not None:
        (folder / "text").write_text(text)
    line = call(MANIFESTS, "--corpus-dir", folder.parent, "--manifest-dir", tmp_path / "manifests").error()
    assert words.format(folder=folder) in line
    assert not (tmp_path / "manifests").exists()
    line = call(MANIFESTS, "--corpus-dir", tmp_path / "no", "--manifest-dir", tmp_path / "manifests").error()
    assert "no corpus at" in line


# --- the tables of results -------------------------------------------------------------------------------------


def test_the_tables_of_the_results_have_not_drifted() -> None:
    call(YORUBA / "local/rows.py", "results", "--check", "true").good()


def test_tables_of_result_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Float makes one error of tone in every fourth utterance, 1 bit in every second, and one of letters in each."""
    rows = local_module(YORUBA / "local", "rows")
    monkeypatch.setattr(rows, "RESULTS", tmp_path / "results")
    wrong = {"float": ("32", lambda n: ["\u00f2" if n % 4 == 0 else "\u00f3", "ba"])}
    wrong["naive1"] = ("1", lambda n: ["\u00f2" if n % 2 == 0 else "\u00f3", "bi"])
    for name, (precision, hypothesis) in wrong.items():
        recogs = f"{rows.GREEDY}/recogs-test.txt"
        write_recogs(tmp_path / recogs, [(f"u{n:02}", ["\u00f3", "ba"], hypothesis(n)) for n in range(40)])
        evaluation = rows.Evaluation(precision, "test", {}, {}, 100_000, 800_000, {rows.GREEDY: recogs})
        rows.keep(rows.RESULTS / f"{name}.json", {}, [evaluation], tmp_path)
    rates = rows.rates_table().splitlines()
    assert rates[2] == "| float | 32 | 12.50 | 8.33 | 0.00 | 0.00 | 0.100 | 8.0 |"
    assert rates[3] == "| naive 1-bit | 1 | 75.00 | 50.00 | 50.00 | 33.33 | 0.100 | 8.0 |"
    verdicts = [line.split(" | ") for line in rows.verdicts_table().splitlines()[2:]]
    assert [line[2] for line in verdicts] == [
        "words",
        "words without tone marks",
        "letters",
        "letters without tone marks",
    ]
    assert verdicts[0][3:6] == ["12.50", "75.00", "+500.0%"] and {line[-1] for line in verdicts} == {"worse |"}

    page = tmp_path / "RESULTS.md"
    page.write_text("<!-- rates -->\n<!-- end of rates -->\n<!-- verdicts -->\n<!-- end of verdicts -->\n")
    with pytest.raises(UserError, match="run ./local/rows.py results"):
        rows.write_results(page, check=True)
    rows.write_results(page, check=False)
    assert rates[3] in page.read_text(encoding="utf-8")
