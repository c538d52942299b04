"""What can be searched: one width per layer of an encoder, out of a few candidates; without torch.

`SEARCHABLE` says of each kind of encoder which field holds the widths and which activations are that wide;
`register_searchable` adds one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from lowbit_k2.core.config import ConfigError
from lowbit_k2.core.encoders import EncoderConfig
from lowbit_k2.core.models import ModelConfig
from lowbit_k2.errors import UserError

# of the width of a preset: 25, 50, 80, 100, 120, 160, 200 and 240 of 160 in arXiv 2206.11643
PROPORTIONS = tuple(Fraction(width, 160) for width in (25, 50, 80, 100, 120, 160, 200, 240))


@dataclass(frozen=True)
class Searchable:
    """Where the widths of an encoder are.

    Attributes:
      field: of its settings: a tuple, one width per layer or one for all.
      outputs, inputs: modules within `encoder.layers.i` whose output, or whose input, is as wide as that in its last
        dimension.
    """

    field: str
    outputs: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()


SEARCHABLE: dict[str, Searchable] = {
    "tdnnf": Searchable("bottlenecks", outputs=("factor",)),
    "conformer": Searchable("ffn_dim", inputs=("ff1.w2", "ff2.w2")),
}


def register_searchable(kind: str, where: Searchable) -> None:
    """Make the widths of an encoder known to the search."""
    SEARCHABLE[kind] = where


def searchable(kind: str) -> Searchable:
    """Where the widths of an encoder of this kind are.

    Raises:
      UserError: nothing in it can be searched.
    """
    if kind not in SEARCHABLE:
        raise UserError(f"a {kind} has no widths to search: choose one of {', '.join(SEARCHABLE)}")
    return SEARCHABLE[kind]


def check_candidates(candidates: Sequence[int]) -> None:
    """Two or more different widths, from small to large.

    Raises:
      ConfigError: anything else.
    """
    spelled = ",".join(map(str, candidates))
    whole = all(type(width) is int for width in candidates)
    if not whole or len(candidates) < 2 or list(candidates) != sorted(set(candidates)) or candidates[0] < 1:
        raise ConfigError("candidates", f"'{spelled}': give two or more different widths, from small to large")


@dataclass(frozen=True)
class SearchSpace:
    """One of the same candidates in every layer. A choice is a place among the candidates per layer.

    Attributes:
      kind: of the encoder.
      candidates: widths, ascending; the supernet has the last one everywhere.
      num_layers: L.
    """

    kind: str
    candidates: tuple[int, ...]
    num_layers: int

    def __post_init__(self) -> None:
        check_candidates(self.candidates)

    @classmethod
    def of(cls, encoder: EncoderConfig, candidates: tuple[int, ...] | None = None) -> SearchSpace:
        """
        Args:
          encoder: the preset; its widest layer decides about the default candidates.

        Raises:
          UserError: nothing in it can be searched, or a candidate is larger than its field may be.
        """
        field = searchable(encoder.kind).field
        width = max(getattr(encoder, field))
        if candidates is None:
            candidates = tuple(sorted({max(1, round(share * width)) for share in PROPORTIONS}))
        space = cls(encoder.kind, candidates, encoder.num_layers)
        try:
            replace(encoder, **{field: candidates[-1:]})
        except ConfigError as error:
            raise ConfigError("candidates", f"{candidates[-1]} is too large: {error}") from None
        return space

    @property
    def field(self) -> str:
        """Of the encoder's settings."""
        return searchable(self.kind).field

    @property
    def largest(self) -> tuple[int, ...]:
        """The choice that the supernet's matrices have room for."""
        return (len(self.candidates) - 1,) * self.num_layers

    def widths(self, choice: Sequence[int]) -> tuple[int, ...]:
        """Of each layer."""
        assert len(choice) == self.num_layers, (len(choice), self.num_layers)
        return tuple(self.candidates[place] for place in choice)

    def apply(self, model: ModelConfig, choice: Sequence[int]) -> ModelConfig:
        """The model of a choice."""
        return replace(model, encoder=replace(model.encoder, **{self.field: self.widths(choice)}))
