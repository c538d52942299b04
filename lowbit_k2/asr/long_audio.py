"""Audio that is longer than a chunk: through the network in overlapping chunks, through the searches pause by pause.

Attention takes memory by the square of the length, and lattices grow with it. So the network sees chunks, whose output
frames are put together to those of the whole (`core/chunks.py`), and searches get segments of these that end in
pauses, none longer than a chunk. Labels of the segments are joined before they are spelled, so that pieces of a word
stay together; an n-gram or a prediction network starts anew behind a pause, as it does with an utterance.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lowbit_k2.asr.recognizer import Recognizer, Search
from lowbit_k2.asr.results import Timing
from lowbit_k2.core import chunks
from lowbit_k2.data.features import normalize_features
from lowbit_k2.decode.hypothesis import Hypothesis
from lowbit_k2.decode.method import NetworkOutput

Words = dict[Search, list[str]]


def decode_long(
    recognizer: Recognizer, features: Tensor, reference: Sequence[str] | None = None, timing: Timing | None = None
) -> tuple[Words, set[Search]]:
    """Words by each search of the recognizer, within its precision.

    Args:
      features: (T, F) of one utterance.
      reference: its words, for methods that need them; these search the whole at once.
      timing: to be added to.

    Returns:
      Words, and the searches of which a segment had no path.
    """
    heard, without_path = search_long(recognizer, features, reference, timing)
    return {key: list(hypothesis.words) for key, hypothesis in heard.items()}, without_path


def search_long(
    recognizer: Recognizer, features: Tensor, reference: Sequence[str] | None = None, timing: Timing | None = None
) -> tuple[dict[Search, Hypothesis], set[Search]]:
    """As `decode_long`, but with labels and, where the search keeps them, output frames of the whole, too."""
    timing = timing or Timing(search=dict.fromkeys(recognizer.searches, 0.0))
    heard = dict.fromkeys(recognizer.searches, Hypothesis((), 0.0, frames=()))
    without_path: set[Search] = set()

    def search(key: Search, output: NetworkOutput, passed: int, references: list[Sequence[str]] | None = None) -> None:
        start = time.perf_counter()
        [nbest] = recognizer.searches[key].nbest(output, 1, references)
        timing.search[key] += time.perf_counter() - start + recognizer.searches[key].shared_seconds
        if nbest:
            heard[key] = behind(heard[key], nbest[0], passed)
        else:
            without_path.add(key)

    at_once = {key for key, method in recognizer.searches.items() if method.needs_references}
    kept: list[NetworkOutput] = []
    passed = 0
    for output in timed(segments(recognizer, features), timing):
        for key in recognizer.searches.keys() - at_once:
            search(key, output, passed)
        if at_once:
            kept.append(output)
        passed += int(output.lens)
    for key in at_once:
        search(key, joined(kept), 0, None if reference is None else [reference])
    found = {key: replace(h, words=tuple(recognizer.searches[key].words_of(h.labels))) for key, h in heard.items()}
    return found, without_path


def behind(first: Hypothesis, second: Hypothesis, passed: int) -> Hypothesis:
    """One hypothesis behind another, which begins `passed` frames later; words are left out."""
    frames = None
    if first.frames is not None and second.frames is not None:
        frames = (*first.frames, *(passed + frame for frame in second.frames))
    labels = (*first.labels, *second.labels)
    return Hypothesis(labels, first.acoustic + second.acoustic, first.lm + second.lm, frames=frames)


def timed(outputs: Iterator[NetworkOutput], timing: Timing) -> Iterator[NetworkOutput]:
    """The same, the time of their making added up."""
    while True:
        start = time.perf_counter()
        output = next(outputs, None)
        timing.network += time.perf_counter() - start
        if output is None:
            return
        yield output


def segments(recognizer: Recognizer, features: Tensor) -> Iterator[NetworkOutput]:
    """The network's output for (T, F) features in segments that end in pauses, each a batch of one."""
    pieces = network_pieces(recognizer, features)
    longest = max(2, int(recognizer.loaded.model_config.output_lens(recognizer.chunk_frames)))
    return cut_at_pauses(pieces, longest, recognizer.blank_scores)


def network_pieces(recognizer: Recognizer, features: Tensor) -> Iterator[NetworkOutput]:
    """What is kept of each chunk; together the output frames of the whole.

    A chunk is normalised by itself, as an utterance of its length would be: it is one as far as the network can tell.
    """
    config = recognizer.features
    overlap = round(recognizer.chunking.chunk_overlap / config.frame_shift)
    for chunk in chunks.chunks(
        len(features), recognizer.chunk_frames, overlap, recognizer.loaded.model_config.output_lens
    ):
        part = normalize_features(features[chunk.start : chunk.stop], config)[None]  # (1, size, F)
        output = recognizer.run(part, torch.tensor([part.size(1)]))
        yield frames_of(output, chunk.first, chunk.last)


def cut_at_pauses(
    pieces: Iterable[NetworkOutput], longest: int, blank_scores: Callable[[NetworkOutput], Tensor | None]
) -> Iterator[NetworkOutput]:
    """`chunks.cut_at_pauses`; blank_scores: (1, T) log-probabilities that a frame brings nothing, or None."""

    def scores(piece: NetworkOutput) -> list[float] | None:
        found = blank_scores(piece)
        return None if found is None else found[0].tolist()

    return chunks.cut_at_pauses(
        pieces, longest, lambda piece: int(piece.lens), lambda *two: joined(two), frames_of, scores
    )


def frames_of(output: NetworkOutput, first: int, last: int) -> NetworkOutput:
    """Some frames of a batch of one."""
    return _by_frame([output], lambda values: values[0][:, first:last], last - first)


def joined(outputs: Sequence[NetworkOutput]) -> NetworkOutput:
    """One behind the other, each a batch of one."""
    return _by_frame(outputs, lambda values: torch.cat(list(values), dim=1), sum(int(o.lens) for o in outputs))


def _by_frame(
    outputs: Sequence[NetworkOutput], change: Callable[[Sequence[Tensor]], Tensor], num_frames: int
) -> NetworkOutput:
    """Change all tensors that go frame by frame."""

    def of(values: Sequence[Tensor | None]) -> Tensor | None:
        return None if values[0] is None else change(values)

    return NetworkOutput(
        torch.tensor([num_frames]),
        of([output.log_probs for output in outputs]),
        of([output.encoder_out for output in outputs]),
        {name: change([output.more[name] for output in outputs]) for name in outputs[0].more},
    )
