"""Tables: cells where they belong, and nothing that drives a terminal."""

from __future__ import annotations

from lowbit_k2.tables import markdown_table, text_table


def test_text_is_aligned() -> None:
    table = text_table(("name", "MB"), [("a", "1.50"), ("longer", "12.25")])
    assert table.splitlines() == ["name       MB", "a        1.50", "longer  12.25"]


def test_markdown_is_not_padded() -> None:
    assert markdown_table(("a", "b"), [(1, "long"), (22, "")]).splitlines() == [
        "| a | b |",
        "| --- | --- |",
        "| 1 | long |",
        "| 22 |  |",
    ]


def test_control_characters_are_shown() -> None:
    for table in (text_table(("x",), [("\x1b[31m\n",)]), markdown_table(("x",), [("\x1b[31m\n",)])):
        assert "\x1b" not in table and r"\x1b[31m" in table
