"""One line and exit status 1 for what the user can mend, a traceback for what is a bug."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from lowbit_k2.errors import EXIT_USER_ERROR, UserError, is_one_line_error, run_main


def raising(error: BaseException):
    def main() -> None:
        raise error

    return main


def test_a_main_that_ends_well_does_not_exit(capsys: pytest.CaptureFixture[str]) -> None:
    run_main(lambda: print("done"))
    assert capsys.readouterr() == ("done\n", "")


def test_user_error_is_one_line_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        run_main(raising(UserError("wav.scp: line 3 is empty;\n  remove it")))
    assert exit_.value.code == EXIT_USER_ERROR == 1
    assert capsys.readouterr() == ("", "error: wav.scp: line 3 is empty; remove it\n")


def test_errors_of_packages_that_import_nothing_of_ours_are_known_by_their_mark(
    capsys: pytest.CaptureFixture[str],
) -> None:
    class PackedFileError(ValueError):
        one_line = True

    assert is_one_line_error(PackedFileError("x"))
    with pytest.raises(SystemExit):
        run_main(raising(PackedFileError("model.safetensors is truncated")))
    assert capsys.readouterr().err == "error: model.safetensors is truncated\n"


def test_a_path_that_cannot_be_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as exit_:
        run_main(lambda: (tmp_path / "file/folder").mkdir())
    assert exit_.value.code == 1
    refusal = f"error: {tmp_path / 'file/folder'}: Not a directory: choose another path, or put it right\n"
    assert capsys.readouterr().err == refusal
    with pytest.raises(FileNotFoundError):  # a missing file that nobody looked for is a bug
        run_main(lambda: (tmp_path / "none").read_text())


def test_a_bug_keeps_its_traceback() -> None:
    assert not is_one_line_error(ValueError("x"))
    with pytest.raises(ZeroDivisionError):
        run_main(lambda: 1 // 0)


def test_an_interrupt_exits_as_shells_expect(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        run_main(raising(KeyboardInterrupt()))
    assert exit_.value.code == 130
    assert capsys.readouterr().err == "error: interrupted\n"


def test_argparse_keeps_its_own_status(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser(prog="train.py")
    with pytest.raises(SystemExit) as exit_:
        run_main(lambda: parser.parse_args(["--no-such-flag"]))
    assert exit_.value.code == 2
    assert "--no-such-flag" in capsys.readouterr().err
