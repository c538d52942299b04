"""Which engine runs a packed model on audio files: the packed runtime, or PyTorch. torch is imported where it is used.

auto takes the packed runtime where it has the parts of the model and its library could be built; where not, and where
PyTorch is installed, it takes that.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lowbit_k2.asr.transcripts import OutputConfig, find_audio, open_audio, print_transcripts
from lowbit_k2.core.chunks import ChunkConfig
from lowbit_k2.core.config import Config, ConfigError, option
from lowbit_k2.runtime import Recogniser, SearchConfig, Transcript, UnsupportedError, isa_in_use
from lowbit_k2.runtime.matrix import DEFAULT_MODE
from lowbit_k2.runtime.native import MODES, NUMPY

AUTO, NATIVE, TORCH = "auto", "native", "torch"


@dataclass(frozen=True)
class EngineConfig(Config):
    """What computes from what, and how exactly."""

    engine: str = option(
        AUTO, "native: the packed runtime; torch: PyTorch; auto: native where it can", choices=(AUTO, NATIVE, TORCH)
    )
    mode: str = option(
        DEFAULT_MODE,
        "activations of the native engine: exact as in PyTorch, or in integers of 16 or 8 bits",
        choices=tuple(MODES),
    )
    num_threads: int = option(0, "CPU threads; 0: one in the native engine, PyTorch's choice in the other", low=0)
    raw_rate: int = option(
        0, "Hz; stdin (-) is 16-bit PCM of one channel without a header; 0: WAV, FLAC or OGG", low=0, high=384000
    )


def transcribe_packed(
    packed: Path,
    paths: Sequence[Path],
    engine: EngineConfig,
    search: SearchConfig,
    chunking: ChunkConfig,
    output: OutputConfig,
) -> None:
    """What is said in audio files, all of folders, or stdin (`-`): see `find_audio` and `print_transcripts`.

    Raises:
      UserError: a model or settings that the engine cannot run.
    """
    files = find_audio(paths)
    recogniser = None if engine.engine == TORCH else native_recogniser(packed, engine, search, chunking)
    if recogniser is None:
        transcribe_by_torch(packed, files, engine, search, chunking, output)
        return

    def transcribe(file: Path) -> Transcript:
        return recogniser.transcribe(open_audio(file, recogniser.features.sampling_rate, engine.raw_rate))

    print_transcripts(files, transcribe, output)


def native_recogniser(
    packed: Path, engine: EngineConfig, search: SearchConfig, chunking: ChunkConfig
) -> Recogniser | None:
    """The packed runtime; None where PyTorch is to do it."""
    other = engine.engine == AUTO and has_torch()
    if other and isa_in_use() == NUMPY:
        return None
    try:
        return Recogniser.load(packed, engine.mode, max(1, engine.num_threads), search, chunking)
    except UnsupportedError:
        if not other:
            raise
        return None


def has_torch() -> bool:
    return importlib.util.find_spec("torch") is not None


def transcribe_by_torch(
    packed: Path,
    files: Mapping[Path, Path],
    engine: EngineConfig,
    search: SearchConfig,
    chunking: ChunkConfig,
    output: OutputConfig,
) -> None:
    """The same with PyTorch, for models of any kind."""
    if not has_torch():
        raise ConfigError("engine", f"{TORCH} needs PyTorch, which is not installed: choose {NATIVE}")
    import torch

    from lowbit_k2.asr.model_io import load_packed
    from lowbit_k2.asr.recognizer import packed_recognizer
    from lowbit_k2.asr.transcription import transcribe_files

    if engine.num_threads > 0:
        torch.set_num_threads(engine.num_threads)
    recognizers = [packed_recognizer(load_packed(packed), chunking, search)]
    transcribe_files(files, recognizers, output, engine.raw_rate)
