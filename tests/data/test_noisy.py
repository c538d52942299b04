"""Noisy copies of a test set: levels, telephone, rooms, and the command."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment

from lowbit_k2.data.manifests import load_cuts, read_cuts, snrs_of
from lowbit_k2.data.noisy import Condition, degrade, draw_noise, mix, mu_law, reverberate, stretch_of, telephone
from lowbit_k2.errors import UserError
from tests.egs.scripts import call

RATE = 16000
RNG = np.random.default_rng(0)


def tone(hertz: float, seconds: float = 0.5, level: float = 0.3) -> np.ndarray:
    return (level * np.sin(2 * np.pi * hertz * np.arange(int(RATE * seconds)) / RATE)).astype(np.float32)


def decibels(signal: np.ndarray, noise: np.ndarray) -> float:
    return 10 * np.log10(np.mean(np.square(signal, dtype=float)) / np.mean(np.square(noise, dtype=float)))


@pytest.mark.parametrize("snr", [20.0, 0.0, -5.0])
def test_the_level_is_the_one_that_was_asked_for(snr: float) -> None:
    speech, noise = tone(300), RNG.normal(0, 0.01, 8000).astype(np.float32)
    mixed = mix(speech, noise, snr)
    assert decibels(speech, mixed - speech) == pytest.approx(snr, abs=1e-3)
    assert mix(np.zeros_like(noise), noise, snr).sum() == 0 and mix(speech, 0 * noise, snr) is speech


def test_mixing_is_lhotses(tmp_path: Path) -> None:
    cuts = []
    for name, samples in (("speech", tone(300)), ("noise", RNG.normal(0, 0.01, 8000).astype(np.float32))):
        soundfile.write(tmp_path / f"{name}.wav", samples, RATE, "FLOAT")
        cuts.append(Recording.from_file(tmp_path / f"{name}.wav").to_cut())
    expected = CutSet.from_cuts(cuts[:1]).mix(CutSet.from_cuts(cuts[1:]), snr=7.0, mix_prob=1.0)[0].load_audio()[0]
    assert np.allclose(mix(cuts[0].load_audio()[0], cuts[1].load_audio()[0], 7.0), expected, atol=1e-5)


def test_noises_are_drawn_by_the_key_alone() -> None:
    noises = {f"{n}.wav": RNG.normal(size=n) for n in (50, 400, 1000)}

    def stretch(key: str) -> np.ndarray:
        name, rng = draw_noise(noises, key)
        return stretch_of(noises[name], 300, rng)

    stretches = [stretch(f"0/u{n}") for n in range(20)]
    assert all(np.array_equal(s, stretch(f"0/u{n}")) for n, s in enumerate(stretches))
    assert len({float(s[0]) for s in stretches}) > 5 and all(s.shape == (300,) for s in stretches)
    for n, found in enumerate(stretches):
        noise = noises[draw_noise(noises, f"0/u{n}")[0]]
        repeated = np.concatenate([noise, np.resize(noise, 300)]) if len(noise) < 300 else noise
        assert any(np.array_equal(found, repeated[start : start + 300]) for start in range(len(repeated) - 299))


def test_mu_law_against_the_formula() -> None:
    """G.711 approximates the logarithmic law by segments: steps relative to the sample stay below 1 / 16."""
    samples = np.concatenate([-np.geomspace(0.01, 0.95, 500), np.geomspace(0.01, 0.95, 500)]).astype(np.float32)
    found = mu_law(samples)
    assert np.all(np.abs(found - samples) <= np.abs(samples) / 32 + 1 / 4096) and len(set(found.tolist())) <= 256
    positive = np.array(sorted(set(found[found > 0].tolist())))
    compressed = np.log1p(255 * positive) / np.log1p(255)  # the law that it stands for: near-equal steps
    assert np.diff(compressed).max() < 2.2 * np.median(np.diff(compressed))


def test_a_telephone_passes_low_tones_only() -> None:
    low, high = tone(1000), tone(6000)
    assert telephone(low + high, RATE).shape == low.shape
    passed = telephone(low + high, RATE)[1000:-1000]
    assert decibels(low[1000:-1000], passed - low[1000:-1000]) > 25


def test_echoes_keep_time_length_and_loudness() -> None:
    speech = RNG.normal(size=2000).astype(np.float32)
    response = np.zeros(400)
    response[[37, 90, 300]] = 1.0, 0.4, 0.1
    heard = reverberate(speech, response)
    by_hand = np.convolve(speech, response)[37 : 37 + 2000]
    gain = np.sqrt(np.mean(speech**2, dtype=float) / np.mean(by_hand**2))
    assert np.allclose(heard, gain * by_hand, atol=1e-5)
    assert decibels(speech, heard) == pytest.approx(0, abs=1e-6)
    assert reverberate(0 * speech, response).sum() == 0


def test_rooms() -> None:
    pytest.importorskip(
        "pyroomacoustics", reason="pyroomacoustics is not installed: pip install -r requirements-rooms.txt"
    )
    speech, room = tone(500), Condition.parse("room")
    first, again, other = (degrade(speech, RATE, room, {}, key) for key in ("a", "a", "b"))
    assert np.array_equal(first, again) and not np.array_equal(first, other) and first.shape == speech.shape
    assert decibels(speech, first) == pytest.approx(0, abs=1e-3)


def test_rooms_need_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyroomacoustics", None)
    with pytest.raises(UserError, match="pip install -r requirements-rooms.txt"):
        degrade(tone(500), RATE, Condition.parse("room"), {}, "a")


def test_conditions() -> None:
    assert Condition.parse("snr-2.5").snr == -2.5 and Condition.parse("mulaw").snr is None
    both = Condition.parse("snr10+mulaw")
    noise = RNG.normal(0, 0.1, 20000).astype(np.float32)
    by_hand = telephone(mix(tone(300), stretch_of(noise, 8000, draw_noise(["n"], "k")[1]), 10.0), RATE)
    assert np.allclose(degrade(tone(300), RATE, both, {"n": noise}, "k"), by_hand, atol=1e-6)
    for name in ("", "loud", "snr10+snr5", "room+room", "snr"):
        with pytest.raises(UserError, match=r"snr10 \(any dB\)"):
            Condition.parse(name)


# --- the command --------------------------------------------------------------------------------------------------


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A test set of three utterances, one of them from the middle of a recording, and two noises of other rates."""
    cuts = []
    for n in range(3):
        path = tmp_path / f"u{n}.wav"
        soundfile.write(path, tone(200 + 100 * n, 1.0), RATE)
        supervision = SupervisionSegment(f"u{n}", f"u{n}", 0.0, 0.7, text="GO HOME", speaker=f"s{n}")
        start = 0.2 if n == 2 else 0.0
        cuts.append(MonoCut(f"u{n}", start, 0.7, 0, [supervision], recording=Recording.from_file(path)))
    (tmp_path / "fbank").mkdir()
    CutSet.from_cuts(cuts).to_file(tmp_path / "fbank/toy_cuts_test.jsonl.gz")
    for name, rate in (("rain/a.wav", 44100), ("b.ogg", 8000)):
        (tmp_path / "noise" / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(tmp_path / "noise" / name, RNG.normal(0, 0.1, rate), rate)
    return tmp_path


def test_the_command(corpus: Path) -> None:
    fbank = corpus / "fbank"
    flags = ["--corpus", "toy", "--manifest-dir", fbank, "--noise-dir", corpus / "noise"]
    main = "lowbit_k2.recipe.add_noise"
    call(main, *flags, "--conditions", "snr20 snr0 mulaw").good()
    clean = read_cuts(fbank / "toy_cuts_test.jsonl.gz")
    copies = {name: load_cuts(fbank, "toy", f"test-{name}") for name in ("snr20", "snr0", "mulaw")}
    for name, cuts in copies.items():
        assert [cut.id for cut in cuts] == [cut.id for cut in clean] and all(cut.has_features for cut in cuts)
        assert [cut.supervisions[0].text for cut in cuts] == ["GO HOME"] * 3 and cuts[2].supervisions[0].speaker == "s2"
        assert [cut.num_frames for cut in cuts] == [70] * 3 and cuts[0].custom["condition"] == name
    assert snrs_of(copies["snr0"]) == dict.fromkeys(("u0", "u1", "u2"), 0.0) and snrs_of(copies["mulaw"]) == {}
    noises = {name: [cut.custom.get("noise") for cut in cuts] for name, cuts in copies.items()}
    assert set(noises["snr0"]) == {"b.ogg", "rain/a.wav"} and noises["snr0"] == noises["snr20"]
    assert noises["mulaw"] == [None] * 3
    for snr in (20, 0):
        for noisy, plain in zip(copies[f"snr{snr}"], clean, strict=True):
            heard, speech = noisy.load_audio()[0].astype(float), plain.load_audio()[0].astype(float)
            gain = heard @ speech / (speech @ speech)  # whole copies are turned down where they would clip
            assert decibels(gain * speech, heard - gain * speech) == pytest.approx(snr, abs=0.6)
    before = (fbank / "toy_cuts_test-snr0.jsonl.gz").stat().st_mtime_ns
    call(main, *flags, "--conditions", "snr0").good()
    assert (fbank / "toy_cuts_test-snr0.jsonl.gz").stat().st_mtime_ns == before
    assert "seed 0 -> 1" in call(main, *flags, "--conditions", "snr0", "--seed", 1).error()


def test_what_the_command_refuses(corpus: Path) -> None:
    flags = ["lowbit_k2.recipe.add_noise", "--corpus", "toy", "--manifest-dir", corpus / "fbank"]
    assert "--noise-dir is missing" in call(*flags).error()
    assert f"{corpus / 'fbank'} holds no audio" in call(*flags, "--noise-dir", corpus / "fbank").error()
    assert "condition 'snow'" in call(*flags, "--conditions", "snow").error()
    (corpus / "u1.wav").unlink()
    line = call(*flags, "--conditions", "mulaw").error()
    assert "u1" in line and not (corpus / "fbank/toy_cuts_test-mulaw.jsonl.gz").exists()
