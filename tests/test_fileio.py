"""Whole files or none, whatever happens in between."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lowbit_k2.errors import UserError
from lowbit_k2.fileio import atomic_write, read_json, write_json


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_file_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "model.pt"
    with atomic_write(path) as temporary:
        temporary.write_bytes(b"half")
        assert temporary.parent == path.parent
        assert not path.exists()
    assert path.read_bytes() == b"half"
    assert names(path.parent) == ["model.pt"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "cuts.jsonl.gz"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(path) as temporary:
        temporary.write_text("new")
        raise RuntimeError("disk full")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["cuts.jsonl.gz"]


def test_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), atomic_write(tmp_path / "x.txt") as temporary:
        temporary.write_text("new")
        raise KeyboardInterrupt
    assert names(tmp_path) == []


def test_the_temporary_name_keeps_the_suffixes(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "cuts.jsonl.gz") as temporary:
        assert temporary.name.endswith("cuts.jsonl.gz")


def test_a_replaced_file_has_the_rights_of_a_plain_one(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "a") as temporary:
            temporary.write_text("a")
        assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(mask)


def test_json_goes_round(tmp_path: Path) -> None:
    value = {"words": ["Grüße", "日本"], "alpha": 0.5, "none": None, "nested": {"n": 3}}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    assert names(tmp_path) == ["a.json"]


def test_what_is_no_json_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"path": Path()})
    assert names(tmp_path) == []


@pytest.mark.parametrize("content", [b"", b'{"a": ', b"\xff\xfe\x00", b"not json"])
def test_damaged_json_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match="a.json") as error:
        read_json(path)
    assert "\n" not in str(error.value)


def test_missing_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gone.json does not exist"):
        read_json(tmp_path / "gone.json")


def test_a_folder_is_no_json(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_json(tmp_path)
