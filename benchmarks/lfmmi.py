#!/usr/bin/env python3
"""What does LF-MMI cost: our dense forward-backward beside k2's lattices, and its share of a TDNN-F's update?

A bigram of made-up phones over made-up transcripts (3 words of 4 phones a second), an untrained network's output.

python benchmarks/lfmmi.py                                             # 41 phones, 16 utterances of 4.2 s
python benchmarks/lfmmi.py --model tdnnf-small --utterances 8 --repeats 5

Without k2 its columns stay empty. Seconds are medians; values of both are compared as well.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from lowbit_k2.launch import use_project_interpreter

use_project_interpreter()

import torch
from torch import Tensor

from lowbit_k2.core.models import CtcConfig
from lowbit_k2.core.topology import CTC
from lowbit_k2.data.batch import Batch
from lowbit_k2.errors import run_main
from lowbit_k2.graphs.unit_graphs import FrameGraph, expand, ngram_graph, unit_ngram
from lowbit_k2.k2_compat import has_k2, require_k2
from lowbit_k2.losses.forward_backward import log_total
from lowbit_k2.losses.lfmmi import LfMmiConfig, LfMmiCriterion
from lowbit_k2.models import make_model
from lowbit_k2.models.ctc import Heads
from lowbit_k2.tables import text_table
from lowbit_k2.train.optim import OptimConfig, clip_gradients, make_optimizer, set_rate
from lowbit_k2.train.orthogonal import semi_orthogonal

WORDS = 200


class Phones:
    """Words of four phones each."""

    def __init__(self, number: int) -> None:
        draw = random.Random(0)
        self.number = number
        self.words = {f"w{n}": [[draw.randrange(1, number) for _ in range(4)]] for n in range(WORDS)}

    def pronunciations(self, word: str) -> list[list[int]]:
        return self.words[word]

    def pieces(self) -> list[str]:
        return [str(n) for n in range(self.number)]

    def text(self, words: int, seed: int) -> str:
        return " ".join(random.Random(seed).choices(list(self.words), k=words))


def k2_total(outputs: Tensor, lens: Tensor, graph: FrameGraph) -> Tensor:
    """log Z of the whole batch by k2, (N,)."""
    k2 = require_k2()
    end = len(graph.labels) + 1
    arcs = [(0, s + 1, graph.labels[s], w) for s, w in graph.initial]
    arcs += [(a + 1, b + 1, graph.labels[b], w) for a, b, w in graph.arcs]
    arcs += [(s + 1, end, -1, w) for s, w in graph.final]
    text = "".join(f"{a} {b} {label} {w:.7f}\n" for a, b, label, w in sorted(arcs)) + f"{end}\n"
    fsas = k2.create_fsa_vec([k2.Fsa.from_str(text)] * len(lens))
    segments = torch.tensor([[n, 0, int(length)] for n, length in enumerate(lens)], dtype=torch.int32)
    lattice = k2.intersect_dense(fsas, k2.DenseFsaVec(outputs, segments), output_beam=10.0)
    return lattice.get_tot_scores(log_semiring=True, use_double_scores=True)


def timed(repeats: int, body: Callable[[], tuple[float, float]]) -> tuple[float, float]:
    """Medians of the two times that a body gives, the first run left out."""
    runs = [body() for _ in range(repeats + 1)][1:]
    return statistics.median(a for a, _ in runs), statistics.median(b for _, b in runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tdnnf-small")
    parser.add_argument("--phones", type=int, default=41, help="with the blank")
    parser.add_argument("--utterances", type=int, default=16)
    parser.add_argument("--frames", type=int, default=420, help="of 10 ms")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    torch.manual_seed(0)
    phones = Phones(args.phones)
    texts = [phones.text(30, seed) for seed in range(300)]
    spoken = [[phones.pronunciations(word) for word in text.split()] for text in texts]
    bigram = unit_ngram(spoken, args.phones, 2, CTC)
    graph = expand(ngram_graph(bigram, 20_000), CTC)
    criterion = LfMmiCriterion(LfMmiConfig())
    criterion.begin(bigram, phones)

    model = make_model(CtcConfig.preset(args.model, vocab_size=args.phones)).train()
    lens = torch.full((args.utterances,), args.frames)
    words = max(1, args.frames * 3 // 400)
    targets = [criterion.encode(phones.text(words, seed)) for seed in range(args.utterances)]
    names = [""] * args.utterances
    batch = Batch(torch.randn(args.utterances, args.frames, 80), lens, names, names, targets)
    with torch.no_grad():
        outputs, output_lens = model(batch.inputs, batch.input_lens)

    def both(total: Callable[[Tensor], Tensor]) -> tuple[float, float]:
        leaf = outputs.detach().clone().requires_grad_()
        start = time.perf_counter()
        value = total(leaf).sum()
        middle = time.perf_counter()
        value.backward()
        return middle - start, time.perf_counter() - middle

    ours = timed(args.repeats, lambda: both(lambda x: log_total(x, output_lens, criterion.denominator)))
    rows = [["denominator, dense", f"{ours[0]:.4f}", f"{ours[1]:.4f}", ""]]
    if has_k2():
        theirs = timed(args.repeats, lambda: both(lambda x: k2_total(x, output_lens, graph)))
        ratio = sum(theirs) / sum(ours)
        rows.append(["denominator, k2 (output beam 10)", f"{theirs[0]:.4f}", f"{theirs[1]:.4f}", f"{ratio:.0f}x"])
    optimizer, hook, count = make_optimizer(model, OptimConfig()), semi_orthogonal(model), 0
    set_rate(optimizer, 1e-4)

    def update(loss_alone: bool) -> tuple[float, float]:
        """Seconds of a whole update, or of the loss forward and backward on given outputs."""
        nonlocal count
        count += 1
        optimizer.zero_grad(set_to_none=True)
        leaf = outputs.detach().clone().requires_grad_()
        network = model if not loss_alone else SimpleNamespace(heads=lambda inputs, lens: Heads(leaf, output_lens))
        start = time.perf_counter()
        criterion(network, batch, 10_000).loss.backward()
        if not loss_alone:
            clip_gradients(optimizer, 5.0)
            optimizer.step()
            hook(model, count)
        return time.perf_counter() - start, 0.0

    loss, whole = (timed(args.repeats, lambda alone=alone: update(alone))[0] for alone in (True, False))
    rows += [["whole loss", f"{loss:.4f}", "", ""], [f"update of {args.model}", f"{whole:.4f}", "", ""]]
    states, arcs = len(graph.labels), len(graph.arcs)
    print(f"{states} states, {arcs} arcs; {args.utterances} utterances of {args.frames / 100:g} s, 1/3 of the frames")
    print(text_table(["", "forward s", "backward s", "over ours"], rows))
    print(f"the loss takes {loss / whole:.1%} of the update")
    if has_k2():
        with torch.no_grad():
            plain = criterion.denominator.__class__.of(graph)
            gap = (k2_total(outputs, output_lens, graph) - log_total(outputs, output_lens, plain)).abs().max().item()
        print(f"largest difference of a score from k2's (whose beam cuts paths off): {gap:.2g} nats")
        assert math.isfinite(gap)


if __name__ == "__main__":
    run_main(main)
