"""Foreign and damaged .pt files: nothing in them runs, no wrong number is taken, every refusal is one line."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import random
import zipfile
from pathlib import Path

import pytest
import torch

from lowbit_k2.tensorfile import DamagedError, load_tensors, save_tensors, tensors_in
from lowbit_k2.train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from tests.attacks.trials import trials

pytestmark = pytest.mark.attack

CONTENT = {"model": {f"w{n}": torch.arange(40.0).view(5, 8) + n for n in range(6)}, "meta": '{"a": [1, 2.5, true]}'}


def rewritten(path: Path, changes: dict[str, bytes | None], **options) -> None:
    """The archive with records replaced (None: left out) and with right checksums."""
    with zipfile.ZipFile(path) as archive:
        records = {record.filename: archive.read(record) for record in archive.infolist()}
        root = next(iter(records)).split("/")[0]
    records |= {f"{root}/{name}": data for name, data in changes.items()}
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, data in records.items():
            if data is not None:
                archive.writestr(zipfile.ZipInfo(name), data, options.get("compression"))


class Runs:
    """Unpickled, it leaves a file behind."""

    def __init__(self, function, *arguments) -> None:
        self.called = function, arguments

    def __reduce__(self):
        return self.called


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    save_tensors(tmp_path / "whole.pt", CONTENT)
    return tmp_path / "whole.pt"


def same(found: object) -> bool:
    pairs = zip(tensors_in(found), tensors_in(CONTENT), strict=True)
    return found["meta"] == CONTENT["meta"] and all(torch.equal(a, b) for a, b in pairs)


def test_what_is_written_is_read(whole: Path) -> None:
    assert same(load_tensors(whole))
    state = torch.nn.BatchNorm1d(3).state_dict()  # an OrderedDict with an attribute of its own
    save_tensors(whole, {"model": state, "half": torch.ones(2, dtype=torch.bfloat16), "none": None, "list": [1, (2,)]})
    assert torch.equal(load_tensors(whole)["model"]["running_var"], torch.ones(3))


def test_pickles_that_run_something(whole: Path, tmp_path: Path) -> None:
    mark, victim = tmp_path / "mark", tmp_path / "victim"
    victim.write_text("precious")
    loads = [
        Runs(os.system, f"touch {mark}"),
        Runs(eval, f"open({str(mark)!r}, 'w')"),
        Runs(open, str(mark), "w"),
        Runs(torch.from_file, str(victim), True, 100),
        Runs(getattr, str, "join"),
        Runs(torch.load, str(whole)),
    ]
    for protocol in (0, 2, 4, 5):
        for load in loads:
            rewritten(whole, {"data.pkl": pickle.dumps({"model": load}, protocol=protocol)})
            with pytest.raises(DamagedError):
                load_tensors(whole)
            with whole.open("wb") as file:  # a bare pickle, as torch wrote before 1.6
                file.write(pickle.dumps(load, protocol=protocol))
            with pytest.raises(DamagedError):
                load_tensors(whole)
            save_tensors(whole, CONTENT)
    assert not mark.exists() and victim.read_text() == "precious"


def test_torchscript_is_not_read(tmp_path: Path) -> None:
    class Module(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1

    torch.jit.script(Module()).save(str(tmp_path / "script.pt"))
    with pytest.raises(DamagedError, match="no record of tensors"):
        load_tensors(tmp_path / "script.pt")
    save_tensors(tmp_path / "mixed.pt", CONTENT)
    for name in ("constants.pkl", "code/__torch__.py", "extra/x", "../outside", "data/x"):
        rewritten(tmp_path / "mixed.pt", {name: b"x"})
        with pytest.raises(DamagedError, match="no record of tensors"):
            load_tensors(tmp_path / "mixed.pt")
        save_tensors(tmp_path / "mixed.pt", CONTENT)


def test_archives_that_claim_more_than_they_hold(whole: Path) -> None:
    rewritten(whole, {}, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(DamagedError, match="no record of tensors"):
        load_tensors(whole)
    wide = torch.as_strided(torch.ones(4), (1000, 1000), (0, 0))
    save_tensors(whole, {"model": {"wide": wide}})
    with pytest.raises(DamagedError, match="names a tensor"):
        load_tensors(whole)
    save_tensors(whole, CONTENT)
    rewritten(whole, {"data/0": b""})
    with pytest.raises(DamagedError):
        load_tensors(whole)
    rewritten(whole, {"data.pkl": None})
    with pytest.raises(DamagedError, match="no pickle"):
        load_tensors(whole)


def test_no_flipped_bit_is_taken(whole: Path) -> None:
    data, generator = whole.read_bytes(), random.Random(0)
    taken = wrong = 0
    for _ in trials(300):
        damaged = bytearray(data)
        damaged[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        whole.write_bytes(damaged)
        try:
            found = load_tensors(whole)
        except DamagedError as error:
            assert "\n" not in str(error)
            continue
        taken += 1
        wrong += not same(found)
    assert wrong == 0, f"{wrong} of {taken} files that were taken hold other numbers"


def test_no_cut_or_random_file_is_taken(whole: Path) -> None:
    data, generator = whole.read_bytes(), random.Random(1)
    for number in trials(100):
        part = data[: generator.randrange(len(data))] if number % 2 else generator.randbytes(generator.randrange(400))
        whole.write_bytes(part)
        with pytest.raises(DamagedError):
            load_tensors(whole)


def test_foreign_pickles_of_every_kind(whole: Path) -> None:
    """Random instructions in the place of the pickle: a line, or plain data."""
    with zipfile.ZipFile(whole) as archive:
        good = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    generator = random.Random(2)
    for _ in trials(200):
        bad = bytearray(good)
        for _ in range(generator.randrange(1, 4)):
            bad[generator.randrange(len(bad))] = generator.randrange(256)
        rewritten(whole, {"data.pkl": bytes(bad)})
        with contextlib.suppress(DamagedError):
            load_tensors(whole)
        save_tensors(whole, CONTENT)


def test_checkpoints_say_which_file(tmp_path: Path) -> None:
    path = tmp_path / "epoch-3.pt"
    save_checkpoint(path, Checkpoint({"w": torch.ones(3)}, {"update": 1}))
    assert load_checkpoint(path).meta == {"update": 1}
    buffer = io.BytesIO()
    pickle.dump({"model": Runs(print, "gotcha")}, buffer)
    path.write_bytes(buffer.getvalue())
    from lowbit_k2.errors import UserError

    with pytest.raises(UserError, match="epoch-3.pt is damaged, or no archive of tensors .*: use another checkpoint"):
        load_checkpoint(path)
