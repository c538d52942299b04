"""One pass over a test set: the network once, every search on its output."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from lowbit_k2.asr.long_audio import decode_long
from lowbit_k2.asr.recognizer import Recognizer, Search
from lowbit_k2.asr.results import SetOutcome, best_words
from lowbit_k2.data.batch import Batch
from lowbit_k2.decode.hypothesis import Nbest
from lowbit_k2.errors import is_out_of_memory


def decode_set(
    recognizer: Recognizer,
    batches: Iterable[Batch],
    frame_shift: float,
    advance: Callable[[int], object] = lambda n: None,
) -> SetOutcome:
    """Run the network once over the batches and every search on its output.

    Args:
      frame_shift: seconds per feature frame, for the real-time factor.
      advance: called with the number of utterances done.
    """
    outcome = SetOutcome.empty(recognizer.searches)
    with recognizer.precision():
        for batch in batches:
            try:
                decode_batch(recognizer, batch, outcome)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                longest = float(batch.input_lens.max()) * frame_shift
                reason = f"too little memory for {longest:.0f} seconds: lower max_duration, chunk_seconds or the beams"
                outcome.lost |= {name: f"{name}: {reason}" for name in batch.ids}
            else:
                outcome.timing.audio += float(batch.input_lens.sum()) * frame_shift
            advance(len(batch.ids))
    return outcome


def decode_batch(recognizer: Recognizer, batch: Batch, outcome: SetOutcome) -> None:
    """Add what all searches find: in the utterances that are no longer than a chunk together, in others by chunks."""
    lens = batch.input_lens.tolist()
    long = [n for n, length in enumerate(lens) if recognizer.is_long(length)]
    for n in long:
        with recognizer.adapted([batch.ids[n]]):
            words, without_path = decode_long(
                recognizer, batch.inputs[n, : lens[n]], batch.texts[n].split(), outcome.timing
            )
        for key, found in words.items():
            outcome.found[key].append((batch.ids[n], batch.texts[n].split(), found))
            outcome.without_path[key] += key in without_path
    if not long:
        decode_together(recognizer, batch, outcome)
    elif len(long) < len(lens):
        rows = [n for n in range(len(lens)) if n not in long]
        decode_together(recognizer, batch.of(rows), outcome)


def decode_together(recognizer: Recognizer, batch: Batch, outcome: SetOutcome) -> None:
    """Add what all searches find in a batch."""
    start = time.perf_counter()
    with recognizer.adapted(batch.ids):
        output = recognizer.run(batch.inputs, batch.input_lens)
    outcome.timing.network += time.perf_counter() - start
    refs = [text.split() for text in batch.texts]
    hypotheses: dict[Search, list[Nbest]] = {}
    for key, method in recognizer.searches.items():
        start = time.perf_counter()
        hypotheses[key] = method.nbest(output, 1, refs)
        outcome.timing.search[key] += time.perf_counter() - start + method.shared_seconds
    for key, hyps in hypotheses.items():
        outcome.found[key] += zip(batch.ids, refs, map(best_words, hyps), strict=True)
        outcome.without_path[key] += sum(not nbest for nbest in hyps)
