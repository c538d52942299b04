"""All that a packed file holds, in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lowbit_k2.core.grids import ACTIVATION
from lowbit_k2.packed.errors import PackedFileError
from lowbit_k2.packed.tensors import PackedTensor


@dataclass(frozen=True)
class FileSizes:
    """Bytes of the parts of a file; with the tensors' own they add up to `total`, the size on disk.

    In a file of version 1 tables are a part of the index, and are counted again with their tensors.
    """

    total: int
    header: int  # of safetensors, with its 8 bytes of length
    index: int  # descriptions of tensors, model and features, compressed
    tokens: int  # compressed

    @property
    def parts(self) -> dict[str, int]:
        """What is no tensor, by name."""
        return {"header": self.header, "index": self.index, "tokens": self.tokens}


@dataclass(frozen=True, eq=False)
class PackedModel:
    """All that inference needs.

    tensors: in any order; names and aliases are unique.
    model_config, features: plain data for JSON, e.g. `config.to_dict()` of a model of any kind and of its features.
    tokens, tokens_kind: bytes of the tokenizer and the name of their reader ("sentencepiece", "lexicon").
    extra: plain data for JSON, free: precision, origin.
    sizes: of the file that the model was read from, else None.
    """

    tensors: Sequence[PackedTensor]
    model_config: Mapping[str, Any]
    tokens: bytes = b""
    tokens_kind: str = ""
    features: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    sizes: FileSizes | None = None

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for tensor in self.tensors:
            for name in tensor.names:
                if name in seen:
                    raise PackedFileError(f"tensor {name} is there twice")
                seen.add(name)

    @property
    def weights(self) -> list[PackedTensor]:
        """The tensors that are parameters or buffers, and not grids of activations."""
        return [tensor for tensor in self.tensors if tensor.role != ACTIVATION]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the weights by all their names."""
        return {name: tensor.shape for tensor in self.weights for name in tensor.names}
