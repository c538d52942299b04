"""The binding of espeak-ng. Only one may live in a process, so each test runs a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAD = "import json\nfrom lowbit_k2.synthesis.espeak import Espeak, Prosody\nfrom lowbit_k2.errors import run_main\n"


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", HEAD + code], capture_output=True, text=True, check=False, cwd=ROOT)


@pytest.mark.parametrize("call", ["synthesize('hello', 'nowhere+nobody', Prosody())", "phonemes('hello', 'nowhere')"])
def test_unknown_voice_is_a_user_error(call: str):
    result = run(f"run_main(lambda: Espeak().{call})")
    assert result.returncode == 1 and "nowhere" in result.stderr and result.stderr.count("\n") == 1


def test_longer_and_slower_texts_take_longer():
    code = """
espeak = Espeak()
espeak.seed(1)
texts = [("yes", 150), ("yes we can go now", 150), ("yes we can go now", 100)]
samples = [espeak.synthesize(text, "en-us+f1", Prosody(rate)) for text, rate in texts]
print(json.dumps([espeak.sampling_rate, *[(len(s), str(s.dtype), s.ndim, int(abs(s).max())) for s in samples]]))
"""
    rate, *shapes = json.loads(run(code).stdout)
    assert rate == 22050
    assert all(dtype == "int16" and ndim == 1 and 1000 < loudest < 32767 for _, dtype, ndim, loudest in shapes)
    short, long, slow = (length for length, *_ in shapes)
    assert 1.5 * short < long < slow / 1.2


def test_phonemes_are_mnemonics_without_stress():
    code = "e = Espeak()\nprint(json.dumps([e.phonemes(w, 'en-us') for w in ('water', 'yeah', 'radio', 'going to')]))"
    water, yeah, radio, two_words = json.loads(run(code).stdout)
    assert water == ["w", "O:", "t#", "3"] and yeah == ["j", "E", "h"]
    assert radio[0] == "r" and not any(set(m) & set("',;_ ") or not m for m in radio + two_words)
