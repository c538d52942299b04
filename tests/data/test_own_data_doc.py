"""The commands of docs/own-data.md, run as they stand on a little real speech."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lowbit_k2.data.manifests import load_cuts
from lowbit_k2.k2_compat import has_k2

from .conftest import lhotse


@pytest.fixture
def repository(tmp_path: Path, repo_root: Path) -> Path:
    """A folder that looks like the repository, so that the real egs/ stays as it is."""
    (tmp_path / "egs").mkdir()
    (tmp_path / "lowbit_k2").symlink_to(repo_root / "lowbit_k2")
    (tmp_path / "egs/an4").symlink_to(repo_root / "egs/an4")
    return tmp_path


def write_speech(data_dir: Path, recipe: Path) -> None:
    """Three speakers of AN4: Kaldi directories train and dev, lhotse cuts test."""
    texts = {}
    for line in (data_dir / "an4/etc/an4_train.transcription").read_text().splitlines():
        words, name = line.rstrip(")").rsplit("(", 1)
        texts[name] = re.sub(r"</?s>", "", words).strip().title() + "."
    for split, speaker in (("train", "fash"), ("dev", "fbbh")):
        folder = recipe / "kaldi" / split
        folder.mkdir(parents=True)
        paths = sorted((data_dir / f"an4/wav/an4_clstk/{speaker}").glob("*.wav"))
        (folder / "wav.scp").write_text("".join(f"{path.stem} {path}\n" for path in paths))
        (folder / "text").write_text("".join(f"{path.stem} {texts[path.stem]}\n" for path in paths))
    cuts = []
    for path in sorted((data_dir / "an4/wav/an4_clstk/fclc").glob("*.wav")):
        cut = lhotse.Recording.from_file(path).to_cut()
        cut.supervisions.append(lhotse.SupervisionSegment(cut.id, cut.id, 0, cut.duration, text=texts[path.stem]))
        cuts.append(cut)
    lhotse.CutSet.from_cuts(cuts).to_file(recipe / "cuts_test.jsonl.gz")


def test_the_commands(repository: Path, repo_root: Path, data_dir: Path) -> None:
    recipe = repository / "egs/mine"
    write_speech(data_dir, recipe)
    blocks = re.findall(r"^```bash\n(.*?)^```$", (repo_root / "docs/own-data.md").read_text(), re.M | re.S)
    assert len(blocks) == 6
    script = f'set -e\npython() {{ {sys.executable} "$@"; }}\n'
    script += "\n".join(block for block in blocks if has_k2() or "compile_hlg" not in block)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PYTHONPATH": str(repository), "PATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", "-c", script], cwd=repository, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    counts = {split: len(load_cuts(recipe / "data/fbank", "mine", split)) for split in ("train", "dev", "test")}
    assert counts["train"] == 3 * len((recipe / "data/transcript_train.txt").read_text().splitlines()) > 0
    assert counts["dev"] > 0 and counts["test"] > 0
    text = load_cuts(recipe / "data/fbank", "mine", "dev")[0].supervisions[0].text
    assert text == text.upper() and "." not in text
    assert (recipe / "data/lang_char/HLG.pt").is_file() == has_k2()
    assert '"mine"' in (recipe / "train.py").read_text() and "an4" not in (recipe / "train.py").read_text()
