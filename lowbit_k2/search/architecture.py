"""What a search has found, as a JSON file for `train.py --architecture`; without torch.

    {"format": "lowbit_k2 architecture 1", "encoder": "tdnnf", "fields": {"bottlenecks": [100, 160, ...]}, ...}

`encoder` and `fields` are all that training reads; the rest tells where it comes from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from lowbit_k2.core.config import ConfigError
from lowbit_k2.core.encoders import EncoderConfig
from lowbit_k2.errors import UserError
from lowbit_k2.fileio import read_json, write_json

FORMAT = "lowbit_k2 architecture 1"


@dataclass(frozen=True)
class Architecture:
    """Widths of the layers of an encoder.

    Attributes:
      encoder: its kind.
      fields: of its settings: one width per layer.
      candidates: that were chosen from.
      probabilities: of each of them, a row per layer.
      cost: `measure` ("parameters" or "bytes"), `bits`, `value` of this model, `largest` of the supernet.
      eta: weight of the cost.
      searched_on: objective, model and checksum of the supernet, number of utterances and updates.
    """

    encoder: str
    fields: Mapping[str, tuple[int, ...]]
    candidates: tuple[int, ...] = ()
    probabilities: tuple[tuple[float, ...], ...] = ()
    cost: Mapping[str, Any] = field(default_factory=dict)
    eta: float = 0.0
    searched_on: Mapping[str, Any] = field(default_factory=dict)

    def save(self, path: str | Path) -> None:
        """Write the JSON file that `load` reads."""
        write_json(path, {"format": FORMAT, **asdict(self)})

    @classmethod
    def load(cls, path: str | Path) -> Architecture:
        """Inverse of `save`.

        Raises:
          UserError: missing, damaged, or no architecture of this version.
        """
        value = read_json(path)
        if not isinstance(value, dict) or value.pop("format", None) != FORMAT:
            raise UserError(f"{path} is no architecture: make it with lowbit_k2.recipe.search")
        try:
            value["fields"] = {name: tuple(widths) for name, widths in value["fields"].items()}
            value["candidates"] = tuple(value.get("candidates", ()))
            value["probabilities"] = tuple(tuple(row) for row in value.get("probabilities", ()))
            found = cls(**value)
            whole = all(type(width) is int for widths in found.fields.values() for width in widths)
            if not isinstance(found.encoder, str) or not found.fields or not whole:
                raise ValueError("fields are lists of whole numbers")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{path} is damaged ({type(error).__name__}: {error}): make it again") from None
        return found

    def fields_for(self, encoder: EncoderConfig) -> dict[str, tuple[int, ...]]:
        """The fields, if they are those of this encoder.

        Raises:
          UserError: it is of another kind, has another number of layers, or cannot have these widths.
        """
        if encoder.kind != self.encoder:
            raise UserError(f"is of a {self.encoder}, the model is a {encoder.kind}: give a --model of that kind")
        for name, widths in self.fields.items():
            if len(widths) != encoder.num_layers:
                raise UserError(
                    f"has {name} of {len(widths)} layers, the model has {encoder.num_layers}: give the --model and "
                    "--num-layers that it was searched with"
                )
        try:
            replace(encoder, **self.fields)
        except ConfigError as error:
            raise UserError(f"does not fit the model: {error}") from None
        except TypeError:
            raise UserError(f"has fields that a {self.encoder} lacks: {', '.join(self.fields)}") from None
        return dict(self.fields)
