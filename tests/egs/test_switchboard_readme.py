"""egs/switchboard/README.md is true: its commands are understood, its files exist, its table of marks is ms98.py's."""

from __future__ import annotations

import argparse
import os
import re
import shlex
from typing import Any, NoReturn

import pytest

from lowbit_k2.asr.recognizer import METHODS
from lowbit_k2.scoring.sclite import VARIABLE
from tests.egs.scripts import ROOT, call, spawn
from tests.egs.swbd_discs import SWITCHBOARD, local_module

README = SWITCHBOARD / "README.md"
TEXT = README.read_text(encoding="utf-8")
PROSE = re.sub(r"^```.*?^```", "", TEXT, flags=re.MULTILINE | re.DOTALL)
SCRIPTS = {"demo.sh", "prepare.sh", "train.py", "decode.py", "export.py", "evaluate.py", "score.py"}


def commands() -> list[list[str]]:
    """Every call of a script in the code blocks: its name and its flags."""
    found: list[list[str]] = []
    for block in re.findall(r"^```\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if "./" not in line:
                continue
            lexer = shlex.shlex(line, posix=True, punctuation_chars=";")
            lexer.whitespace_split = True
            command: list[str] = []
            for word in lexer:
                if word == ";":
                    command = []
                elif word.startswith("./"):
                    command = [word]
                    found.append(command)
                elif command:
                    command.append(word)
    return found


COMMANDS = commands()


class UnderstoodError(Exception):
    """The command line was parsed."""


@pytest.fixture
def only_parse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts stop behind their flags."""
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(self: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> NoReturn:
        raise UnderstoodError(parse(self, *args, **kwargs))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)


def test_every_script_is_shown_and_can_be_run() -> None:
    assert {os.path.basename(command[0]) for command in COMMANDS} == SCRIPTS
    assert all(os.access(SWITCHBOARD / command[0], os.X_OK) for command in COMMANDS)


@pytest.mark.usefixtures("only_parse")
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_flags_and_their_values_are_known(command: list[str]) -> None:
    script, *flags = command
    if script.endswith(".sh"):
        assert "Usage:" in spawn(SWITCHBOARD / script, *flags, "--help").good().out
        return
    with pytest.raises(UnderstoodError):
        call(SWITCHBOARD / script, *flags).good()


def test_decoding_methods_are_known() -> None:
    pairs = [pair for command in COMMANDS for pair in zip(command, command[1:], strict=False)]
    named = {method for flag, value in pairs if flag == "--decoding-method" for method in value.split(",")}
    assert named and named <= set(METHODS)


def test_flags_in_the_text_belong_to_a_script() -> None:
    named = set(re.findall(r"`(--[a-z0-9-]+)", PROSE))
    known = "".join(spawn(SWITCHBOARD / name, "--help").good().out for name in ("prepare.sh", "demo.sh"))
    known += "".join(call(SWITCHBOARD / name, "--help").good().out for name in sorted(SCRIPTS) if name.endswith(".py"))
    assert "--swbd-dir" in named and not {flag for flag in named if not re.search(rf"{flag}\b(?!-)", known)}


def test_links_and_files_exist() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", TEXT):
        if target.startswith("#"):
            assert re.search(rf"^#+ {target[1:]}$", TEXT, flags=re.MULTILINE | re.IGNORECASE), target
        elif not target.startswith("https://"):
            assert (SWITCHBOARD / target).exists(), target
    for name in re.findall(r"(?<![\w/.-])((?:local/)?\w+\.(?:py|sh))\b", TEXT):
        assert (SWITCHBOARD / name).is_file(), name
    assert f"`{VARIABLE}`" in TEXT and (ROOT / "Makefile").read_text().count("\nvenv:") == 1


def test_the_marks_of_the_transcripts() -> None:
    """The left column, normalised, is the right one."""
    ms98 = local_module("ms98")
    [table] = re.findall(r"^\| ms98 has .*?\n\n", TEXT, flags=re.MULTILINE | re.DOTALL)
    options = ms98.TextOptions(acronyms=ms98.find_acronyms([("ibm", ("ay", "b", "iy", "eh", "m"))]))
    rows = [row.split("|")[1:3] for row in table.splitlines()[2:] if row]
    assert len(rows) > 8
    for left, right in rows:
        written, learned = re.findall(r"`([^`]+)`", left), re.findall(r"`([^`]+)`", right)
        assert learned or right.strip() == "nothing"
        expected = learned or [""] * len(written)
        assert [ms98.normalize(word, options) for word in written] == expected, (written, expected)
