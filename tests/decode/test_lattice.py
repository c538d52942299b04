"""k2's lattices against exhaustive search, by hand, and against torch's CTC loss."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch.nn.functional import ctc_loss

from lowbit_k2.decode.greedy import ctc_greedy_search
from lowbit_k2.decode.hypothesis import Nbest
from lowbit_k2.decode.lattice import (
    SearchConfig,
    first_arcs,
    limit_arcs,
    make_lattice,
    one_best,
    scale_graph,
    search_with_retry,
)
from lowbit_k2.decode.method import NetworkOutput
from lowbit_k2.decode.methods import load_graph
from lowbit_k2.decode.nbest import keep_lm_scores
from lowbit_k2.errors import UserError
from lowbit_k2.graphs.ngram import BackoffModel
from tests.decode import toy
from tests.decode.toy import labels_of, make_method, words_of

pytestmark = pytest.mark.k2
WIDE = SearchConfig(search_beam=200.0, output_beam=200.0, min_active_states=9999)


@pytest.fixture(scope="module")
def lang(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BackoffModel]:
    path = tmp_path_factory.mktemp("toy") / "lang"
    return path, toy.make_lang(path)


@pytest.fixture(scope="module")
def topology():
    from lowbit_k2.graphs.hlg import ctc_topology

    return ctc_topology(toy.NUM_CLASSES)


def decode_lattice(log_probs, lens, graph, config: SearchConfig) -> list[Nbest]:
    return search_with_retry(
        lens, config, lambda rows, beams: one_best(make_lattice(log_probs[rows], lens[rows], graph, beams))
    )


def best_score(lattice) -> list[float]:
    return lattice.get_tot_scores(use_double_scores=True, log_semiring=False).tolist()


def test_score_by_hand(topology) -> None:
    # Frame 1: blank .5, x .3, y .2; frame 2: x .9, blank and y .05: best is blank x.
    log_probs = torch.tensor([[[0.5, 0.3, 0.2], [0.05, 0.9, 0.05]]]).log()  # (1, 2, 3)
    lattice = make_lattice(log_probs, torch.tensor([2]), topology, WIDE)
    [[best]] = one_best(lattice)
    assert best.labels == (1,) and best.total == best.acoustic == pytest.approx(math.log(0.5 * 0.9))
    assert best_score(lattice) == pytest.approx([math.log(0.5 * 0.9)])


def test_topology_against_all_paths(topology) -> None:
    log_probs, lens = toy.random_log_probs(0, 6, 5), torch.tensor([3, 5, 1, 4, 5, 2])
    lattice = make_lattice(log_probs, lens, topology, WIDE)
    expected = [
        max((s, k) for k, s in toy.best_alignments(x[:t]).items()) for x, t in zip(log_probs, lens, strict=True)
    ]
    assert labels_of(one_best(lattice)) == [list(tokens) for _, tokens in expected]
    assert [best.total for [best] in one_best(lattice)] == pytest.approx([score for score, _ in expected], abs=1e-5)
    assert best_score(lattice) == pytest.approx([score for score, _ in expected], abs=1e-5)
    # All 3^T paths are in the lattice and their probabilities sum to 1.
    total = lattice.get_tot_scores(use_double_scores=True, log_semiring=True)
    assert total.abs().max() < 1e-5


def test_ctc_decoding_is_greedy_search_through_k2(topology) -> None:
    log_probs, lens = toy.random_log_probs(1, 8, 40), torch.arange(1, 41, 5)
    found, greedy = decode_lattice(log_probs, lens, topology, SearchConfig()), ctc_greedy_search(log_probs, lens)
    assert labels_of(found) == [list(best.labels) for best in greedy]
    assert [best.total for [best] in found] == pytest.approx([best.total for best in greedy], abs=1e-4)


def test_topology_gives_torchs_ctc_loss(topology) -> None:
    import k2

    log_probs, lens = toy.random_log_probs(2, 3, 12), torch.tensor([12, 9, 7])
    targets = [[1, 1, 2], [2], [1, 2, 1]]
    graphs = k2.arc_sort(k2.compose(topology, k2.linear_fsa(targets)))
    segments = torch.tensor([[n, 0, t] for n, t in enumerate(lens.tolist())], dtype=torch.int32)
    lattice = k2.intersect_dense(graphs, k2.DenseFsaVec(log_probs, segments), output_beam=1000.0)
    scores = lattice.get_tot_scores(use_double_scores=True, log_semiring=True)
    loss = ctc_loss(
        log_probs.transpose(0, 1),  # (T, N, V)
        torch.tensor([k for target in targets for k in target]),
        lens,
        torch.tensor([len(target) for target in targets]),
        reduction="none",
    )
    torch.testing.assert_close(-scores.float(), loss, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("lm_scale", [1.0, 0.4])
def test_hlg_against_all_word_sequences(lang: tuple[Path, BackoffModel], lm_scale: float) -> None:
    path, model = lang
    graph = keep_lm_scores(load_graph(path / "HLG.pt", toy.NUM_CLASSES, lm_scale, "cpu"))
    words = {int(line.split()[1]): line.split()[0] for line in (path / "words.txt").read_text().splitlines()}
    log_probs, lens = toy.random_log_probs(3, 12, 5), torch.tensor([5, 4, 3, 5] * 3)
    lattice = make_lattice(log_probs, lens, graph, WIDE)
    found = one_best(lattice)
    for n, (x, frames) in enumerate(zip(log_probs, lens.tolist(), strict=True)):
        score, expected = toy.best_words(x[:frames], model, lm_scale)
        [best] = found[n]
        assert [words[i] for i in best.labels] == expected
        assert best.total == best_score(lattice)[n] == pytest.approx(score, abs=1e-4)
        assert best.lm == pytest.approx(lm_scale * toy.graph_score(expected, model), abs=1e-4)


def test_order_of_the_batch_does_not_matter(lang: tuple[Path, BackoffModel]) -> None:
    graph = load_graph(lang[0] / "HLG.pt", toy.NUM_CLASSES, 1.0, "cpu")
    log_probs, lens = toy.random_log_probs(4, 7, 20), torch.tensor([3, 20, 7, 20, 1, 11, 5])
    together = decode_lattice(log_probs, lens, graph, SearchConfig())
    alone = [
        decode_lattice(log_probs[n : n + 1, :t], lens[n : n + 1], graph, SearchConfig())[0]
        for n, t in enumerate(lens.tolist())
    ]
    assert labels_of(together) == labels_of(alone)


def only_xy():
    """CTC paths of the one token sequence x y."""
    import k2

    from lowbit_k2.graphs.hlg import ctc_topology

    return k2.arc_sort(k2.connect(k2.compose(ctc_topology(3), k2.linear_fsa([1, 2]))))


def test_empty_lattices_are_retried_then_counted() -> None:
    # Two frames leave x y only; the first frame prefers the blank, so a beam below 1 loses the one path.
    log_probs = torch.tensor([[0.0, -1.0, -9.0], [-9.0, -1.0, 0.0]]).log_softmax(-1).expand(3, 2, 3)
    narrow = SearchConfig(search_beam=0.5, output_beam=0.5, min_active_states=0, max_active_states=1)
    lens = torch.tensor([2, 1, 0])  # one frame, or none, cannot hold two tokens
    assert one_best(make_lattice(log_probs[:1], lens[:1], only_xy(), narrow)) == [[]]
    assert labels_of(decode_lattice(log_probs, lens, only_xy(), narrow)) == [[1, 2], None, None]


def test_scaling_leaves_the_graph_alone(topology) -> None:
    graph = only_xy()
    graph.scores = torch.ones_like(graph.scores)
    assert scale_graph(graph, 0.5).scores.tolist() == [0.5] * graph.num_arcs
    assert graph.scores.tolist() == [1.0] * graph.num_arcs


def test_methods_give_words(lang: tuple[Path, BackoffModel]) -> None:
    log_probs = toy.random_log_probs(5, 2, 6)
    found = make_method("1best", lang_dir=lang[0]).nbest(NetworkOutput(torch.tensor([6, 0]), log_probs))
    assert set(words_of(found)[0]) <= set(toy.ENTRIES) and found[1] == []


def test_methods_refuse_what_cannot_work(lang: tuple[Path, BackoffModel], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="spell no words"):
        make_method("ctc-decoding")
    with pytest.raises(UserError, match="lang_dir with HLG.pt .* is needed by 1best"):
        make_method("1best")
    (tmp_path / "words.txt").write_text((lang[0] / "words.txt").read_text())
    with pytest.raises(UserError, match="HLG.pt does not exist"):
        make_method("1best", lang_dir=tmp_path)
    with pytest.raises(UserError, match="HLG.pt was made for other symbols than the model's units"):
        make_method("1best", vocab_size=2, lang_dir=lang[0])
    (tmp_path / "HLG.pt").write_bytes(b"no graph")
    with pytest.raises(UserError, match="cannot be read as a graph"):
        make_method("1best", lang_dir=tmp_path)


def test_every_path_of_a_beam_search_is_scored_exactly(lang: tuple[Path, BackoffModel]) -> None:
    """A narrow beam may lose the best path but never misjudges the one it returns."""
    path, model = lang
    graph = load_graph(path / "HLG.pt", toy.NUM_CLASSES, 1.0, "cpu")
    log_probs, lens = toy.random_log_probs(6, 5, 5), torch.full((5,), 5)
    narrow = SearchConfig(search_beam=2.0, output_beam=1.0, min_active_states=1, max_active_states=3)
    for score, x in zip(best_score(make_lattice(log_probs, lens, graph, narrow)), log_probs, strict=True):
        assert score <= toy.best_words(x, model, 1.0)[0] + 1e-4


def paths_by_score(fsa) -> dict[tuple, float]:
    """Scores of all paths of one lattice, by the labels in, labels out and language model scores on their arcs."""
    arcs, scores = fsa.arcs.values()[:, :3].tolist(), fsa.scores.tolist()
    lm_scores, labels = fsa.lm_scores.tolist(), fsa.aux_labels.tolist()
    final = fsa.arcs.dim0() - 1
    found, pending = {}, [(0, (), 0.0)]
    while pending:
        state, path, score = pending.pop()
        if state == final:
            found[path] = max(score, found.get(path, -math.inf))
        for (start, end, label), own, out, lm in zip(arcs, scores, labels, lm_scores, strict=True):
            if start == state:
                pending.append((end, (*path, (label, str(out), round(lm, 3))), score + own))
    return found


@pytest.mark.parametrize("share", [0.9, 0.5, 0.2, 0.0])
@pytest.mark.parametrize("graph", ["tokens", "HLG", "HLG, ragged"])
def test_large_lattices_are_pruned(lang: tuple[Path, BackoffModel], topology, graph: str, share: float) -> None:
    import k2

    used = topology if graph == "tokens" else load_graph(lang[0] / "HLG.pt", toy.NUM_CLASSES, 1.0, "cpu")
    if graph == "HLG, ragged":
        used.aux_labels = k2.RaggedTensor([[x] if x else [] for x in used.aux_labels.tolist()])
    used = keep_lm_scores(used.clone())
    # The last utterance's lattice is small, and stays.
    lattice = make_lattice(toy.random_log_probs(7, 3, 4), torch.tensor([4, 4, 1]), used, WIDE)
    sizes = first_arcs(lattice).diff()
    most = max(int(share * sizes[0]), int(sizes[2]))
    pruned = limit_arcs(lattice, most)
    assert bool((first_arcs(pruned).diff() <= most).all()), "the best path has at most as many arcs as the last lattice"
    assert labels_of(one_best(pruned)) == labels_of(one_best(lattice)) and best_score(pruned) == pytest.approx(
        best_score(lattice)
    )
    for n in range(3):
        before, after = paths_by_score(lattice[n]), paths_by_score(pruned[n])
        assert after.items() <= before.items(), "paths that remain are as they were"
        dropped = [score for path, score in before.items() if path not in after]
        assert bool(dropped) == (n < 2)
        assert not dropped or max(dropped) < max(after.values())
    assert limit_arcs(lattice, int(sizes.max())) is lattice
