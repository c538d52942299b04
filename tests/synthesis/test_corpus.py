"""Making a corpus in many processes, whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lowbit_k2.errors import UserError
from lowbit_k2.synthesis.corpus import (
    README_NAME,
    check_hours,
    corpus_parser,
    holds_corpus,
    synthesize_all,
    whole_folder,
)

_calls = 0


def count_calls(item: int) -> tuple[int, int, int]:
    """The item, how often this process was called, and its id."""
    global _calls
    _calls += 1
    return item, _calls, os.getpid()


@pytest.mark.parametrize("num_jobs", [1, 3])
def test_results_are_in_order_and_processes_fresh(num_jobs: int) -> None:
    results = synthesize_all(count_calls, [5, 3, 9, 4], num_jobs, [1, 1, 1, 2], unit="turn")
    assert [item for item, _, _ in results] == [5, 3, 9, 4]
    assert {calls for _, calls, _ in results} == {1} and len({process for _, _, process in results}) == 4


def test_flags_out_of_range_are_user_errors():
    for hours in (0.0, 0.009, 20.1, float("nan")):
        with pytest.raises(UserError, match="hours"):
            check_hours(hours)
    check_hours(0.01), check_hours(20)


def test_whole_folder_appears_at_the_end(tmp_path: Path):
    target = tmp_path / "new" / "corpus"
    with whole_folder(target) as folder:
        (folder / "file").write_text("x")
        assert not target.exists()
    assert [p.name for p in target.parent.iterdir()] == ["corpus"] and (target / "file").read_text() == "x"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_whole_folder_leaves_nothing_after_an_error(tmp_path: Path, error: type[BaseException]):
    (tmp_path / ".corpus.partial").mkdir()  # of a run that was killed
    (tmp_path / ".corpus.partial" / "old").touch()
    with pytest.raises(error), whole_folder(tmp_path / "corpus") as folder:
        assert not list(folder.iterdir())
        raise error
    assert not list(tmp_path.iterdir())


def test_a_corpus_is_known_by_its_readme(tmp_path: Path):
    folder = tmp_path / "corpus"
    assert not holds_corpus(folder, "one\n")
    folder.mkdir()
    with pytest.raises(UserError, match="holds another corpus"):
        holds_corpus(folder, "one\n")
    (folder / README_NAME).write_text("one\n")
    assert holds_corpus(folder, "one\n")
    with pytest.raises(UserError, match="holds another corpus"):
        holds_corpus(folder, "two\n")


def test_parser_has_the_recipes_defaults():
    args = corpus_parser("Make it.\n\nMore.", 2.5, 7).parse_args(["--output-dir", "x"])
    assert (args.output_dir, args.hours, args.seed, args.num_jobs) == (Path("x"), 2.5, 7, 2)
