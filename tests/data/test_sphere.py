"""SPHERE files of every kind that LDC ships: headers, samples, channels, damage, shorten with and without a tool."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from lowbit_k2.data.sphere import (
    BACKEND_VARIABLE,
    SphereHeader,
    ToolMissingError,
    count_samples,
    is_cut,
    make_recording,
    parse_header,
    read_header,
    use_libsndfile,
)
from lowbit_k2.errors import UserError

CALL = "swbd_sim/LDC97S62/swb1_d1/data/sw03001.sph"
FIELDS = {
    "sample_count": "-i 3",
    "sample_n_bytes": "-i 2",
    "channel_count": "-i 2",
    "sample_byte_format": "-s2 01",
    "sample_rate": "-i 8000",
    "sample_coding": "-s3 pcm",
}
# file of $LOWBIT_K2_DATA/sph: coding, shorten, byte order, bytes, rate, channels, samples
KNOWN = {
    "123_1pcbe_shn": ("pcm", True, "big", 2, 20000, 1, 37120),
    "123_1pcle_shn": ("pcm", True, "little", 2, 20000, 1, 37120),
    "123_1ulaw_shn": ("ulaw", True, "", 1, 20000, 1, 37120),
    "123_2alaw": ("alaw", False, "", 1, 20000, 2, 37120),
    "123_2pcbe_shn": ("pcm", True, "big", 2, 20000, 2, 37120),
    "123_2pcle_shn": ("pcm", True, "little", 2, 20000, 2, 37120),
    "123_2ulaw_shn": ("ulaw", True, "", 1, 20000, 2, 37120),
    "chan3": ("pcm", False, "little", 2, 11025, 1, 230108),
    "stereo": ("pcm", False, "little", 2, 8000, 2, 8000),
}


def header(size: int = 1024, **changes: str | None) -> bytes:
    """A header with FIELDS; a change to None leaves the field out."""
    fields = {**FIELDS, **changes}
    text = f"NIST_1A\n{size:7d}\n" + "".join(f"{k} {v}\n" for k, v in fields.items() if v is not None) + "end_head\n"
    return text.encode().ljust(size)


def write_nist(path: Path, samples: np.ndarray, subtype: str, endian: str = "FILE", rate: int = 8000) -> Path:
    soundfile.write(path, samples, rate, subtype, endian, "NIST")
    return path


def samples_of(path: Path, **kwargs: float) -> np.ndarray:
    """What lhotse reads with the libsndfile backend: (channels, samples)."""
    from lhotse.audio import audio_backend

    with audio_backend("LibsndfileBackend"):
        return make_recording(path).load_audio(**kwargs)


def test_all_known_files(data_dir: Path) -> None:
    paths = sorted((data_dir / "sph").glob("*.sph"))
    assert [path.stem for path in paths] == sorted(KNOWN)
    for path in paths:
        h = read_header(path)
        found = (h.coding, h.shorten, h.byte_order, h.bytes_per_sample, h.sampling_rate, h.num_channels, h.num_samples)
        assert (path.stem, *found) == (path.stem, *KNOWN[path.stem])
        assert h.header_bytes == 1024 and not is_cut(h, count_samples(path, h))


def test_plain_files_are_read_whole_and_in_place(data_dir: Path) -> None:
    for name in ("123_2alaw", "chan3", "stereo"):
        path = data_dir / "sph" / f"{name}.sph"
        recording, audio = make_recording(path), samples_of(path)
        assert recording.id == name and recording.sources[0].type == "file"
        assert recording.sources[0].source == str(path.resolve())
        assert audio.shape == (KNOWN[name][5], KNOWN[name][6])
        np.testing.assert_array_equal(audio, soundfile.read(path, dtype="float32", always_2d=True)[0].T)
        assert np.abs(audio).max() > 0.01


def test_one_speech_in_all_encodings(tmp_path: Path, data_dir: Path) -> None:
    """PCM of both byte orders and mu-law agree to the last bit; A-law within its own step."""
    ulaw, _ = soundfile.read(data_dir / CALL, frames=40000, start=20000, dtype="int16")  # (N, 2)
    pcm = samples_of(write_nist(tmp_path / "le.sph", ulaw, "PCM_16", "LITTLE"))
    assert np.abs(pcm).max() > 0.1
    assert read_header(write_nist(tmp_path / "be.sph", ulaw, "PCM_16", "BIG")).byte_order == "big"
    np.testing.assert_array_equal(samples_of(tmp_path / "be.sph"), pcm)
    np.testing.assert_array_equal(samples_of(write_nist(tmp_path / "u.sph", ulaw, "ULAW")), pcm)
    alaw = samples_of(write_nist(tmp_path / "a.sph", ulaw, "ALAW"))
    assert np.abs(alaw - pcm).max() <= np.abs(pcm).max() / 32 and not np.array_equal(alaw, pcm)


def test_channels_are_not_swapped(data_dir: Path) -> None:
    """Where the transcript has only A speaking, channel 0 is the louder one, and the other way round."""
    path = data_dir / CALL
    raw = np.frombuffer(path.read_bytes()[1024:], np.uint8).reshape(-1, 2)
    audio = samples_of(path)
    for channel in (0, 1):  # mu-law 0xff and 0x7f are zero: the same samples are zero in both readings
        np.testing.assert_array_equal(audio[channel] == 0, (raw[:, channel] & 0x7F) == 0x7F)
    only_a, only_b = audio[:, 8 * 2000 : 8 * 5000], audio[:, 8 * 6500 : 8 * 9500]
    power = [np.square(part).mean(axis=1) for part in (only_a, only_b)]
    assert power[0][0] > 10 * power[0][1] and power[1][1] > 10 * power[1][0]


def test_a_part_of_a_channel_is_that_part(data_dir: Path) -> None:
    whole = samples_of(data_dir / CALL)
    part = samples_of(data_dir / CALL, channels=1, offset=6.0, duration=2.5)
    np.testing.assert_array_equal(part, whole[1:, 48000:68000])


def test_long_headers_odd_numbers_and_defaults() -> None:
    long = parse_header(header(2048, sample_rate="-r 8000.000", sample_coding=None, database_id="-s3 A B"), "x.sph")
    assert long == SphereHeader(8000, 2, 3, "pcm", False, "little", 2, 2048)
    law = parse_header(header(sample_coding="-s6 mu-law", sample_n_bytes=None, sample_byte_format=None), "x.sph")
    assert (law.coding, law.bytes_per_sample, law.byte_order) == ("ulaw", 1, "")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "x.sph is no NIST SPHERE file (it is empty)"),
        (b"RIFF\x00\n\x00\n", "it begins with b'RIFF"),
        (b"NIST_1A\n   abc\n", "of b'abc' bytes is none"),
        (b"NIST_1A\n   1000\n" + b" " * 1000, "of b'1000' bytes is none"),
        (header()[:700], "ends within its header, after 700 of 1024 bytes"),
        (header().replace(b"end_head", b"end_hand"), "no end_head"),
        (header(sample_rate=None), "has no sample_rate"),
        (header(sample_rate="-i zero"), "has sample_rate 'zero'"),
        (header(sample_rate="-i 0"), "has sample_rate '0'"),
        (header(sample_rate="-r 8000.5"), "has sample_rate '8000.5'"),
        (header(channel_count="-i -2"), "has channel_count '-2'"),
        (header(sample_count="-i " + "9" * 400), "has sample_count '999"),
        (header(sample_n_bytes=None), "has no sample_n_bytes"),
        (header(sample_byte_format="-s2 11"), "sample_byte_format '11' does not fit"),
        (header(sample_coding="-s5 adpcm"), "sample_coding 'adpcm' is not read here"),
        (header(sample_coding="-s17 pcm,embedded-wavp"), "sample_coding 'pcm,embedded-wavp' is not read"),
        (header(sample_coding="-s4 alaw"), "alaw samples have 1 byte, but the header says 2"),
    ],
)
def test_nonsense_is_named(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "x.sph"
    path.write_bytes(data)
    with pytest.raises(UserError) as error:
        read_header(path)
    assert words in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none.sph cannot be read: No such file"):
        make_recording(tmp_path / "none.sph")


@given(at=st.integers(0, 230), value=st.integers(0, 255))
def test_flipped_header_bytes_never_crash(at: int, value: int) -> None:
    data = bytearray(header())
    data[at] = value
    try:
        found = parse_header(bytes(data), "x.sph")
    except UserError as error:
        assert "x.sph" in str(error)
    else:
        assert found.sampling_rate > 0 and found.num_channels > 0 and found.coding in ("pcm", "ulaw", "alaw")


@given(st.binary(max_size=300))
def test_garbage_never_crashes(data: bytes) -> None:
    with pytest.raises(UserError, match="x.sph"):
        parse_header(b"NIST_1A\n   1024\n" + data, "x.sph")


@pytest.mark.parametrize("keep", [1024 + 2 * 700, 1024 + 2 * 700 + 1, 1024 + 1, 1024])
def test_cut_files_are_as_long_as_what_is_left(tmp_path: Path, data_dir: Path, keep: int) -> None:
    path = tmp_path / "sw03001.sph"
    path.write_bytes((data_dir / CALL).read_bytes()[:keep])
    h = read_header(path)
    left = count_samples(path, h)
    assert left == (keep - 1024) // 2 and is_cut(h, left)
    if left == 0:
        with pytest.raises(UserError, match="sw03001.sph holds no samples"):
            make_recording(path)
    else:
        assert make_recording(path).num_samples == left
        assert samples_of(path).shape == (2, left)


def test_the_first_pressing_counts_both_channels(tmp_path: Path) -> None:
    path = tmp_path / "sw02001.sph"
    path.write_bytes(header(sample_count="-i 16000") + bytes(4 * 8000))
    assert count_samples(path, read_header(path)) == 8000 and not is_cut(read_header(path), 8000)
    assert make_recording(path).num_samples == 8000 and is_cut(read_header(path), 7999)


def test_bytes_behind_the_samples_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.sph"
    path.write_bytes(header() + bytes(3 * 4) + b"junk")
    assert make_recording(path).num_samples == 3 and samples_of(path).shape == (2, 3)


# --- shorten ----------------------------------------------------------------------------------------------------

# What LDC's program does, as far as it is called here; the samples are a ramp, because shorten itself is not tested.
FAKE = """#!{python}
import os, sys
import numpy as np, soundfile
*flags, source, target = sys.argv[1:]
assert flags[:2] == ["-f", "wav"] and len(flags) == 3, flags
text = open(source, "rb").read(1024).decode("latin-1").splitlines()
fields = dict((line.split()[0], line.split()[2]) for line in text[2:text.index("end_head")])
behave = os.environ.get("FAKE_SPH2PIPE", "")
if behave == "fail":
    sys.exit("sph2pipe: bad checksum")
count, channels = int(fields["sample_count"]), int(fields["channel_count"])
count = count // 2 if behave == "short" else count
channels = 1 if behave == "mono" else channels
ramp = np.arange(count * channels, dtype=np.int16).reshape(count, channels)
subtype = {{"-p": "PCM_16", "-u": "ULAW", "-a": "ALAW"}}[flags[2]]
if behave != "nothing":
    soundfile.write(target, ramp, int(float(fields["sample_rate"])), subtype, format="WAV")
with open(os.environ["FAKE_LOG"], "a") as log:
    log.write(source + "\\n")
"""


@pytest.fixture
def fake_sph2pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sph2pipe on the PATH; returns the log of its calls."""
    program = tmp_path / "bin" / "sph2pipe"
    program.parent.mkdir()
    program.write_text(FAKE.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "log"))
    return tmp_path / "log"


@pytest.mark.parametrize("name", ["123_1pcbe_shn", "123_2ulaw_shn"])
def test_compressed_files_are_converted_once(tmp_path: Path, data_dir: Path, fake_sph2pipe: Path, name: str) -> None:
    path = data_dir / "sph" / f"{name}.sph"
    recordings = [make_recording(path, cache_dir=tmp_path / "wav") for _ in range(2)]
    assert recordings[0] == recordings[1] and fake_sph2pipe.read_text() == f"{path.resolve()}\n"
    source = recordings[0].sources[0]
    assert source.type == "file" and Path(source.source).parent == tmp_path / "wav"
    assert [p.name for p in (tmp_path / "wav").iterdir()] == [Path(source.source).name]
    info = soundfile.info(source.source)
    assert (info.channels, info.frames) == (KNOWN[name][5], 37120)
    assert info.subtype == ("ULAW" if "ulaw" in name else "PCM_16")
    assert recordings[0].id == name and recordings[0].load_audio().shape == (KNOWN[name][5], 37120)


@pytest.mark.parametrize(
    ("behave", "words"),
    [
        ("fail", "sph2pipe failed on .*123_2ulaw_shn.sph with status 1 .sph2pipe: bad checksum"),
        ("nothing", "sph2pipe made no audio of .*123_2ulaw_shn.sph"),
        ("mono", "sph2pipe made 1 channels at 20000 Hz of .*123_2ulaw_shn.sph"),
    ],
)
def test_a_failing_sph2pipe(
    tmp_path: Path, data_dir: Path, fake_sph2pipe: Path, monkeypatch: pytest.MonkeyPatch, behave: str, words: str
) -> None:
    monkeypatch.setenv("FAKE_SPH2PIPE", behave)
    with pytest.raises(UserError, match=words):
        make_recording(data_dir / "sph" / "123_2ulaw_shn.sph", cache_dir=tmp_path / "wav")
    assert list((tmp_path / "wav").iterdir()) == []


def test_a_cut_compressed_file_is_noticed(
    tmp_path: Path, data_dir: Path, fake_sph2pipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_SPH2PIPE", "short")
    path = data_dir / "sph" / "123_1ulaw_shn.sph"
    recording = make_recording(path, cache_dir=tmp_path / "wav")
    assert recording.num_samples == 18560 and is_cut(read_header(path), recording.num_samples)


def test_files_that_libsndfile_refuses_are_converted_too(tmp_path: Path, fake_sph2pipe: Path) -> None:
    path = tmp_path / "x.sph"
    path.write_bytes(header(sample_rate="-r 8000.000") + bytes(12))
    assert make_recording(path, cache_dir=tmp_path / "wav").num_samples == 3
    assert fake_sph2pipe.is_file()
    with pytest.raises(UserError, match="not read by libsndfile: a folder for converted audio is needed"):
        make_recording(path)


def test_without_sph2pipe_the_line_says_how_to_get_it(
    tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lhotse  # noqa: F401  here, because it adds its own tools to the PATH

    monkeypatch.setenv("PATH", str(tmp_path))
    compressed = [name for name, values in KNOWN.items() if values[1]]
    assert len(compressed) == 6
    for name in compressed:
        with pytest.raises(ToolMissingError) as error:
            make_recording(data_dir / "sph" / f"{name}.sph", cache_dir=Path("unused"))
        line = str(error.value)
        assert f"{name}.sph is compressed with shorten: install sph2pipe" in line and "PATH" in line


# --- lhotse -----------------------------------------------------------------------------------------------------


def test_the_backend_is_chosen_unless_somebody_chose(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import lhotse.audio.backend as backend

    monkeypatch.setattr(backend, "CURRENT_AUDIO_BACKEND", None)
    monkeypatch.setenv(BACKEND_VARIABLE, "AudioreadBackend")
    use_libsndfile()
    assert backend.CURRENT_AUDIO_BACKEND is None and os.environ[BACKEND_VARIABLE] == "AudioreadBackend"
    monkeypatch.setenv(BACKEND_VARIABLE, "")  # so that monkeypatch takes away what use_libsndfile sets
    monkeypatch.delenv(BACKEND_VARIABLE)
    use_libsndfile()
    assert os.environ[BACKEND_VARIABLE] == "LibsndfileBackend"
    assert make_recording(data_dir / CALL).load_audio(duration=1.0).shape == (2, 8000)


def test_the_module_loads_no_lhotse(repo_root: Path) -> None:
    code = "import lowbit_k2.data.sphere, sys; print('lhotse' in sys.modules or 'soundfile' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=repo_root, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
