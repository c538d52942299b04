"""Audio files to words with a packed model, without torch.

recogniser = Recogniser.load("model.safetensors")
result = recogniser.transcribe("speech.flac")
print(result.text, [(word.text, word.start) for word in result.words])
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lowbit_k2.core.chunks import Chunk, ChunkConfig, chunks, cut_at_pauses, output_step
from lowbit_k2.core.config import ConfigError
from lowbit_k2.core.features import FeatureConfig
from lowbit_k2.core.models import CTC as CTC_KIND
from lowbit_k2.core.topology import CTC
from lowbit_k2.data.audio import AudioFile
from lowbit_k2.errors import UserError
from lowbit_k2.packed import read_packed
from lowbit_k2.runtime.encoder import NETWORKS, PackedCtc, PackedNetwork
from lowbit_k2.runtime.errors import UnsupportedError, errors_name
from lowbit_k2.runtime.features import FeatureStream, make_fbank, normalize, num_frames
from lowbit_k2.runtime.matrix import DEFAULT_MODE
from lowbit_k2.runtime.search import (
    BEAM,
    CTC_GREEDY,
    GREEDY,
    Hypothesis,
    Labels,
    SearchConfig,
    ctc_greedy_search,
    greedy_search,
    modified_beam_search,
)
from lowbit_k2.runtime.transcript import Transcript, make_transcript
from lowbit_k2.runtime.units import read_units


class Recogniser:
    """A packed network with its features, tokens and search.

    Several threads of Python may use one at a time each: nothing of what was heard is kept.
    """

    def __init__(
        self, network: PackedNetwork, search: SearchConfig | None = None, chunking: ChunkConfig | None = None
    ) -> None:
        """Raises:
        UnsupportedError: units of another topology than CTC's, or kaldi-native-fbank is missing.
        UserError: damaged tokens or features, or a search that the model does not fit.
        """
        packed = network.packed
        if network.config.topology != CTC:
            raise UnsupportedError(f"the runtime has no search of the topology {network.config.topology}")
        self.network, self.features = network, FeatureConfig.from_dict(packed.features)
        self.units = read_units(packed.tokens_kind, packed.tokens)
        if len(self.units.pieces) != network.config.vocab_size:
            found = f"{len(self.units.pieces)} tokens, but {network.config.vocab_size} classes"
            raise UserError(f"it has {found}: make it again")
        if self.features.num_mel_bins != network.config.num_features:
            found = f"features of {self.features.num_mel_bins} bins, but a network for {network.config.num_features}"
            raise UserError(f"it has {found}: make it again")
        make_fbank(self.features)  # if that cannot be done, it is to be known now
        self.search, self.chunking = search or SearchConfig(), chunking or ChunkConfig()
        self.method = choose_method(self.search.decoding_method, network)

    @classmethod
    def load(
        cls,
        path: str | Path,
        mode: str = DEFAULT_MODE,
        threads: int = 1,
        search: SearchConfig | None = None,
        chunking: ChunkConfig | None = None,
    ) -> Recogniser:
        """The model of a packed file.

        Args:
          mode: "exact", as the torch model computes; "a16", "a8": activations in integers of so many bits.
          threads: that work on one recording.
        Raises:
          PackedFileError: the file is missing, damaged, foreign, or of another version.
          UnsupportedError: the runtime has no parts for the model.
          UserError: it does not fit together, or the settings do not fit it.
        """
        packed = read_packed(path)
        with errors_name(path):
            kind = NETWORKS.get(str(packed.model_config.get("kind", CTC_KIND)), PackedCtc)
            network = kind(packed, mode, threads)
        choose_method((search or SearchConfig()).decoding_method, network)  # what it raises is not about the file
        with errors_name(path):
            return cls(network, search, chunking)

    @property
    def frame_seconds(self) -> float:
        """From an output frame of the network to the next."""
        return output_step(self.network.config.output_lens) * self.features.shift_seconds

    def transcribe(self, audio: str | Path | AudioFile | np.ndarray) -> Transcript:
        """Tokens and words of a recording with their times.

        Args:
          audio: an audio file of any sampling rate, whose first channel is taken, or samples (n,) in -1 .. 1 at
            `features.sampling_rate`. What is longer than a chunk is run in overlapping chunks, in bounded memory.
        Raises:
          UserError: audio that is missing, damaged, too short, or not finite.
        """
        source = self._open(audio)
        labels, frames, passed = [], [], 0
        for part in self._segments(source):
            found = self._search(part)
            labels += found.labels
            frames += [passed + frame for frame in found.frames]
            passed += len(part)
        seconds = source.num_samples / self.features.sampling_rate
        return make_transcript(self.units, labels, frames, self.frame_seconds, seconds)

    def labels(self, audio: str | Path | AudioFile | np.ndarray) -> Iterator[Labels]:
        """As `transcribe`, but token ids of each segment as soon as they are known; long audio has several."""
        return (self._search(part).labels for part in self._segments(self._open(audio)))

    def _open(self, audio: str | Path | AudioFile | np.ndarray) -> AudioFile | _Samples:
        if isinstance(audio, np.ndarray):
            return _Samples(audio)
        return audio if isinstance(audio, AudioFile) else AudioFile(audio, self.features.sampling_rate)

    def _segments(self, audio: AudioFile | _Samples) -> Iterator[np.ndarray]:
        """What the network puts out, in segments that end in pauses, none longer than a chunk."""
        config, output_lens = self.features, self.network.config.output_lens
        if audio.num_samples < config.frame_length * config.sampling_rate:
            raise UserError(f"{audio.path} is too short: {audio.num_samples} samples are less than one frame")
        total, size = num_frames(config, audio.num_samples), self.chunking.frames(config.frame_shift)
        stream = FeatureStream(config, audio.blocks(), str(audio.path))
        if not 0 < size < total:
            yield from self._run(stream, Chunk(0, total, 0, output_lens(total)))
            return
        overlap = round(self.chunking.chunk_overlap / config.frame_shift)
        pieces = (part for chunk in chunks(total, size, overlap, output_lens) for part in self._run(stream, chunk))
        longest, blank_scores = max(2, output_lens(size)), self.network.blank_scores
        yield from cut_at_pauses(
            pieces,
            longest,
            length=len,
            join=lambda a, b: np.concatenate([a, b]),
            cut=lambda piece, first, last: piece[first:last],
            blank_scores=lambda piece: blank_scores(piece).tolist(),
        )

    def _run(self, stream: FeatureStream, chunk: Chunk) -> Iterator[np.ndarray]:
        """What is kept of the network's output for a chunk; nothing for audio that is too short for a frame of it.

        A chunk is normalised by itself, as an utterance of its length would be.
        """
        if chunk.stop - chunk.start >= self.network.config.min_frames:
            features = normalize(stream.take(chunk.start, chunk.stop), self.features)
            yield self.network(features)[chunk.first : chunk.last]

    def _search(self, output: np.ndarray) -> Hypothesis:
        """output: (T', V) log-probabilities of CTC, or (T', C) of a transducer's encoder."""
        if self.method == GREEDY:
            return greedy_search(self.network, output, self.search.blank_penalty)
        if self.method == BEAM:
            return modified_beam_search(self.network, output, self.search.beam_size, self.search.blank_penalty)[0]
        return ctc_greedy_search(output if isinstance(self.network, PackedCtc) else self.network.log_probs(output))


class _Samples:
    """Samples in memory, as `AudioFile` has those of a file."""

    path = "the audio"

    def __init__(self, samples: np.ndarray) -> None:
        self._samples = np.asarray(samples, dtype=np.float32).ravel()
        self.num_samples = len(self._samples)

    def blocks(self) -> Iterator[np.ndarray]:
        yield self._samples


def choose_method(name: str, network: PackedNetwork) -> str:
    """The search of that name, or the model's first: the greedy one.

    Raises:
      ConfigError: it does not fit the model.
    """
    possible = [CTC_GREEDY] if isinstance(network, PackedCtc) else [GREEDY, BEAM]
    if not isinstance(network, PackedCtc) and network.head is not None:
        possible.append(CTC_GREEDY)
    if name and name not in possible:
        fits = ", ".join(possible)
        kind = network.config.kind
        raise ConfigError("decoding_method", f"{name} does not fit this {kind} model: choose of {fits}")
    return name or possible[0]
