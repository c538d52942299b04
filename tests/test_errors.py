"""One line and exit status 1 for what the user can mend, a traceback for what is a bug."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from lowbit_k2.errors import EXIT_USER_ERROR, UserError, is_one_line_error, run_main

ROOT = Path(__file__).resolve().parents[1]


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


def test_an_error_line_never_drives_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_main(raising(UserError("token \x1b[31mred\x1b[0m\r\u202e of \ud800x.wav")))
    assert capsys.readouterr().err == "error: token \\x1b[31mred\\x1b[0m \\u202e of \\ud800x.wav\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full: not Linux")
@pytest.mark.parametrize(("shell", "line"), [("> /dev/full", "No space left on device"), ("| true", "Broken pipe")])
def test_output_that_cannot_be_written(shell: str, line: str) -> None:
    program = "import time; from lowbit_k2.errors import run_main; time.sleep(0.3); "
    program += "run_main(lambda: print('x' * 100000))"
    command = f'set -o pipefail; "{sys.executable}" -c "{program}" {shell}'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stderr) == (1, f"error: the output cannot be written: {line}\n")


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
