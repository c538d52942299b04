"""Allocation: which tensors run at how many bits, as plain data that can be stored, searched and passed to
`use_precision`.

    Allocation({"": 2, "encoder.layers.0": 1, "*.attention.*": 4})

A pattern is the name of a module or tensor, by whole components ("encoder.layers.1" does not cover
"encoder.layers.10"; "" covers all), or with one of `*?[` a glob on the plain name of a tensor, where `*` matches dots,
too. Of several that match a tensor the longest wins, and of equally long ones the last.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from lowbit_k2.core.grids import PRECISIONS
from lowbit_k2.errors import UserError

FORMAT = "lowbit_k2 allocation 1"


@dataclass(frozen=True)
class Allocation:
    """bits: pattern -> precision; name: free, for reports."""

    bits: Mapping[str, int] = field(default_factory=dict)
    name: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.bits, Mapping):
            raise UserError(f"an allocation maps patterns to bits, it is not {self.bits!r}")
        if not isinstance(self.name, str):
            raise UserError(f"the name of an allocation is text, not {self.name!r}")
        for pattern, bits in self.bits.items():
            if not isinstance(pattern, str):
                raise UserError(f"a pattern of an allocation is text, not {pattern!r}")
            if not isinstance(bits, int) or isinstance(bits, bool) or bits not in PRECISIONS:
                raise UserError(f"allocation: {bits!r} bits for {pattern!r}: choose one of {_spell(PRECISIONS)}")
        object.__setattr__(self, "bits", dict(self.bits))

    @classmethod
    def uniform(cls, bits: int, name: str = "") -> Allocation:
        """One precision for every switched tensor."""
        return cls({"": bits}, name)

    @classmethod
    def by_layer(cls, layer_prefix: str, bits_per_layer: Sequence[int], name: str = "") -> Allocation:
        """One precision per layer; layer i is the module f"{layer_prefix}.{i}"."""
        return cls({f"{layer_prefix}.{i}": bits for i, bits in enumerate(bits_per_layer)}, name)

    @classmethod
    def parse(cls, text: str, num_layers: int, layer_prefix: str) -> Allocation:
        """What a user writes: "2", "1.5", "1.5r", "1,1,2,2" (see `parse_precision`), or the path of a JSON file.

        Raises:
          UserError: anything else, or a list whose length is not the number of layers.
        """
        text = text.strip()
        if text.endswith(".json") or ("/" in text and Path(text).is_file()):
            return cls.load(text)
        bits = parse_precision(text, num_layers)
        return cls.uniform(bits, text) if isinstance(bits, int) else cls.by_layer(layer_prefix, bits, text)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `from_dict` reads it back."""
        return {"format": FORMAT, "name": self.name, "bits": dict(self.bits)}

    @classmethod
    def from_dict(cls, value: Any) -> Allocation:
        """Inverse of `to_dict`.

        Raises:
          UserError: another format, unknown fields, or wrong values.
        """
        if not isinstance(value, Mapping) or value.get("format") != FORMAT:
            found = value.get("format") if isinstance(value, Mapping) else value
            raise UserError(f"no allocation: its format must be {FORMAT!r}, not {found!r}"[:300])
        unknown = sorted(map(str, set(value) - {"format", "name", "bits"}))
        if unknown or "bits" not in value:
            raise UserError(f"allocation with {f'unknown fields {_spell(unknown)}' if unknown else 'no field bits'}")
        return cls(value["bits"], value.get("name", ""))

    def save(self, path: str | Path) -> None:
        """Write the JSON file that `load` reads.

        Raises:
          UserError: the file system refuses.
        """
        try:
            Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror or error}") from None

    @classmethod
    def load(cls, path: str | Path) -> Allocation:
        """Inverse of `save`.

        Raises:
          UserError: the file is missing, or holds no allocation.
        """
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8-sig")))
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
        except (ValueError, RecursionError):
            raise UserError(f"{path} is no JSON file: an allocation is written by Allocation.save") from None
        except UserError as error:
            raise UserError(f"{path}: {error}") from None

    def bits_of(self, names: Iterable[str]) -> dict[str, int]:
        """{name: bits} of the tensors that a pattern covers, by their plain names.

        Raises:
          UserError: a pattern that covers none of them.
        """
        return {name: self.bits[pattern] for name, pattern in self.winners(names).items()}

    def winners(self, names: Iterable[str]) -> dict[str, str]:
        """{name: the pattern that decides on it}; see `bits_of`."""
        names = list(names)
        chosen: dict[str, str] = {}
        for pattern in sorted(self.bits, key=len):  # stable: the longest comes last and wins
            covered = [name for name in names if covers(pattern, name)]
            if not covered and pattern:
                hint = "matches" if is_glob(pattern) else "has a name that starts with"
                raise UserError(
                    f"no quantized tensor {hint} {pattern!r}: the rules and schemes of the config say which are "
                    "quantized, its layer_prefix what layers are called"
                )
            chosen.update(dict.fromkeys(covered, pattern))
        return chosen


def is_glob(pattern: str) -> bool:
    return any(sign in pattern for sign in "*?[")


def covers(pattern: str, name: str) -> bool:
    """Whether a pattern covers the tensor of a plain name."""
    if is_glob(pattern):
        return fnmatchcase(name, pattern)
    return not pattern or name == pattern or name.startswith(pattern + ".")


def parse_precision(text: str, num_layers: int) -> int | list[int]:
    """Read a precision as users write it.

    "1", "2", "4", "16", "32"   one precision, returned as an int
    "1.5"                       the first floor(L/2) layers at 1 bit, the others at 2
    "1.5r"                      the same list reversed: the last floor(L/2) layers at 1 bit
    "1,1,2,2"                   one precision per layer

    Raises:
      UserError: anything else, or a list whose length is not the number of layers.
    """
    text = text.strip()
    if text in ("1.5", "1.5r"):
        bits = [1] * (num_layers // 2) + [2] * (num_layers - num_layers // 2)
        return bits if text == "1.5" else bits[::-1]
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) in PRECISIONS for part in parts):
        known = _spell(PRECISIONS)
        raise UserError(f"precision {text!r}: give one of {known}, 1.5, 1.5r, or one of them per layer, as 1,1,2,2")
    if len(parts) == 1:
        return int(parts[0])
    if len(parts) != num_layers:
        raise UserError(f"precision {text!r} names {len(parts)} layers, the model has {num_layers}")
    return [int(part) for part in parts]


def _spell(values: Iterable[object]) -> str:
    return ", ".join(str(value) for value in values)
