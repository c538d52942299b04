"""Tables: cells where they belong, and nothing that drives a terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

from lowbit_k2.errors import UserError
from lowbit_k2.tables import fill_page, fill_sections, markdown_table, text_table


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


def test_sections_are_filled_and_the_rest_stays() -> None:
    page = "# A\n<!-- a -->\nold\n\nold\n<!-- end of a -->\ntext\n<!-- b -->\n<!-- end of b -->\n"
    found = fill_sections(page, {"a": "new", "b": "1\n2\n"})
    assert found == "# A\n<!-- a -->\nnew\n<!-- end of a -->\ntext\n<!-- b -->\n1\n2\n<!-- end of b -->\n"
    assert fill_sections(found, {"a": "new"}) == found
    for wrong in (page + page, page.replace("<!-- end of a -->", ""), "<!-- end of a -->\n<!-- a -->\n"):
        with pytest.raises(UserError, match="one section between <!-- a --> and <!-- end of a -->"):
            fill_sections(wrong, {"a": "new"})


def test_a_page_is_written_only_where_it_has_other_tables(tmp_path: Path) -> None:
    page, other = tmp_path / "RESULTS.md", "<!-- a -->\n1 \u1ecd\n<!-- end of a -->\n"
    page.write_text(other, encoding="utf-8")
    assert not fill_page(page, {"a": "1 \u1ecd"}, "./rows.py", check=True)
    with pytest.raises(UserError, match=r"RESULTS.md has other tables than its result files: run ./rows.py$"):
        fill_page(page, {"a": "2"}, "./rows.py", check=True)
    assert page.read_text(encoding="utf-8") == other
    assert fill_page(page, {"a": "2"}, "./rows.py") and page.read_text(encoding="utf-8") == other.replace(
        "1 \u1ecd", "2"
    )
