"""AN4's tables of how models fail and of every byte, beside what was measured on the trained files."""

from __future__ import annotations

from pathlib import Path

import pytest

from lowbit_k2.fileio import read_json
from lowbit_k2.packed import read_packed, size_table
from tests.egs.scripts import AN4, local_module

LOCAL = AN4 / "local"


def test_untrained_files_are_as_large_as_trained_ones() -> None:
    """But for the name of a checkpoint in the header."""
    instruments = local_module(LOCAL, "instruments")
    known, compared = read_json(instruments.AUDIT), 0
    assert set(known) == {f"{name}-{bits}" for name, bits in instruments.AUDITED}
    for name, bits in instruments.AUDITED:
        total = known[f"{name}-{bits}"]["file"]["total"]
        result = read_json(instruments.result_path(instruments.Row(instruments.SYSTEMS[name], 1)))
        if result["date"] < "2026-11-26":
            continue  # of an earlier format, without steps per channel at 4 and 8 bits
        [measured] = [e["file_bytes"] for e in result["evaluations"] if e["precision"] == bits]
        assert 0 < measured - total < 120
        compared += 1
    assert compared == 5
    packed = size_table(read_packed(AN4 / "pretrained/an4-1bit.safetensors")).to_dict()
    assert packed["tensors"] == known["hand16-1"]["tensors"]


def test_every_byte_is_in_a_column() -> None:
    instruments = local_module(LOCAL, "instruments")
    roles = {role for own in instruments.PARTS.values() for role in own}
    assert {t["role"] for found in read_json(instruments.AUDIT).values() for t in found["tensors"]} <= roles
    for line in instruments.audit_table().splitlines()[2:]:
        *parts, total = (int(cell.replace(",", "")) for cell in line.split("|")[3:9])
        assert sum(parts) == total


def test_an_audit(an4_data: Path) -> None:
    """The file of a small model, from the flags of its training."""
    rows = local_module(LOCAL, "rows")
    flags = ["--lang-dir", str(an4_data / "lang_char"), "--num-layers", "1"]
    row = rows.Row(rows.SYSTEMS["cotrain-plain"], 1)
    one, two = (rows.audit(rows.training_config(row, further=flags), bits) for bits in ("1", "2"))
    for found in (one, two):
        assert sum(t["num_bytes"] for t in found["tensors"]) < found["file"]["total"]
        assert {t["encoding"] for t in found["tensors"]} >= {"int4", "int8", "float16"}
    assert one["file"]["total"] < two["file"]["total"]
    assert [step["to"] for step in two["next"] if step["role"] == "encoder_linear"] == ["binary"]


def test_systems_that_were_not_decoded_are_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    instruments, result_files = (local_module(LOCAL, name) for name in ("instruments", "result_files"))
    lines = instruments.failures_table().splitlines()
    assert lines[2].startswith("| Conformer, CTC | 32 | 1 | greedy | 8.80 | 2/10/56 | 0/0/0 | 1 | 10.92 (238) |")
    monkeypatch.setattr(result_files, "RESULTS", tmp_path)
    assert len(instruments.failures_table().splitlines()) == 2
