"""Graphs on disk and grammars from files. What HLG accepts and scores is tested in tests/decode/test_lattice.py."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import torch

from lowbit_k2.errors import UserError
from lowbit_k2.graphs.fsa_io import load_fsa, save_fsa
from lowbit_k2.graphs.hlg import compile_lg, ctc_topology, read_grammar
from lowbit_k2.graphs.lexicon import lexicon_fsa, read_symbols, write_symbols
from lowbit_k2.graphs.ngram import estimate, write_arpa
from lowbit_k2.recipe.compile_hlg import compile_lang
from lowbit_k2.recipe.prepare_lang import prepare_lang

pytestmark = pytest.mark.k2
WORDS = {"<eps>": 0, "A": 1, "B": 2, "#0": 3, "<s>": 4, "</s>": 5}


@pytest.fixture
def lang(tmp_path: Path) -> Path:
    (tmp_path / "dict.txt").write_text("A x\nB y z\n")
    prepare_lang(tmp_path, tmp_path / "dict.txt", None, None)
    write_arpa(estimate([("A", "B"), ("B",)], 2, ["A", "B"]), tmp_path / "lm.arpa")
    return tmp_path


def test_graphs_come_back(tmp_path: Path) -> None:
    import k2

    graph = ctc_topology(4)
    save_fsa(tmp_path / "H.pt", graph)
    again = load_fsa(tmp_path / "H.pt")
    assert str(again) == str(graph)
    several = k2.RaggedTensor([[1, 2] if arc % 3 == 0 else [] for arc in range(graph.num_arcs)], dtype=torch.int32)
    graph.aux_labels = several
    save_fsa(tmp_path / "H.pt", graph)
    assert load_fsa(tmp_path / "H.pt").aux_labels == several


def test_one_word_per_arc_is_stored_as_icefall_reads_it(lang: Path) -> None:
    import k2

    compile_lang(lang, lang / "lm.arpa", None)
    stored = torch.load(lang / "HLG.pt", weights_only=True)
    graph = k2.Fsa.from_dict(stored)
    assert set(stored) == {"arcs", "aux_labels", "made_for"}
    assert set(graph.aux_labels.tolist()) == {-1, 0, 1, 2} or set(graph.aux_labels.tolist()) == {0, 1, 2}


def test_compilation_is_skipped_when_nothing_changed(lang: Path) -> None:
    assert compile_lang(lang, lang / "lm.arpa", None)
    assert not compile_lang(lang, lang / "lm.arpa", None)
    assert compile_lang(lang, lang / "lm.arpa", 1)  # another order
    write_arpa(estimate([("A",)], 1, ["A", "B"]), lang / "other.arpa")
    assert compile_lang(lang, lang / "other.arpa", 1)
    prepare_lang(lang, lang / "dict.txt", None, None)  # the same files again
    assert not compile_lang(lang, lang / "other.arpa", 1)


def test_lower_order_of_the_same_arpa_is_smaller(lang: Path) -> None:
    unigrams, bigrams = (read_grammar(lang / "lm.arpa", lang / "words.txt", n).num_arcs for n in (1, 2))
    assert unigrams < bigrams


def test_openfst_text_is_a_grammar(tmp_path: Path) -> None:
    write_symbols(tmp_path / "words.txt", WORDS)
    (tmp_path / "G.fst.txt").write_text("0 1 1 1 0.5\n1 0.25\n")
    grammar = read_grammar(tmp_path / "G.fst.txt", tmp_path / "words.txt")
    assert grammar.labels.tolist() == [1, -1]
    assert grammar.scores.tolist() == [-0.5, -0.25]


def test_bad_grammars(lang: Path) -> None:
    words = lang / "words.txt"
    for text, reason in [
        ("hello\n", "neither an ARPA"),
        ("", "neither an ARPA"),
        ("\\data\\\nngram 1=2\n", "no unigram </s>"),
    ]:
        (lang / "bad").write_text(text)
        with pytest.raises(UserError, match=reason):
            read_grammar(lang / "bad", words)
    with pytest.raises(UserError, match="does not exist"):
        compile_lang(lang, lang / "none.arpa", None)
    assert not (lang / "HLG.pt").exists()


def test_an_empty_composition_is_named() -> None:
    import k2

    tokens = {"<blk>": 0, "x": 1, "#0": 2}
    lexicon = lexicon_fsa([("A", ("x",))], tokens, WORDS, disambig_loop=True)
    only_b = k2.Fsa.from_openfst("0 1 2 2 0\n1 0\n", acceptor=False)
    with pytest.raises(UserError, match="share no sentence"):
        compile_lg(lexicon, only_b, tokens, WORDS)


def test_arpa_files_as_people_have_them(lang: Path) -> None:
    """CRLF, gzip and a byte-order mark change nothing."""
    words, whole = lang / "words.txt", (lang / "lm.arpa").read_bytes()
    expected = read_grammar(lang / "lm.arpa", words)
    variants = {"crlf": whole.replace(b"\n", b"\r\n"), "gz": gzip.compress(whole), "bom": b"\xef\xbb\xbf" + whole}
    for name, data in variants.items():
        (lang / name).write_bytes(data)
        assert read_grammar(lang / name, words).arcs.values().equal(expected.arcs.values()), name


def test_words_that_words_txt_lacks_are_counted(lang: Path) -> None:
    words, said = lang / "words.txt", []
    vocabulary = [word for word in read_symbols(words) if word.isalpha()]
    write_arpa(estimate([vocabulary, ["Other", vocabulary[0]]], 2, [*vocabulary, "Other"]), lang / "mixed.arpa")
    read_grammar(lang / "mixed.arpa", words, log=said.append)
    assert len(said) == 1 and f"1 of the {len(vocabulary) + 1} words of {lang / 'mixed.arpa'}" in said[0]
    assert "(first: Other); 3 of its" in said[0]
    write_arpa(estimate([["other", "words"]], 2, ["other", "words"]), lang / "foreign.arpa")
    with pytest.raises(UserError, match="foreign.arpa shares no word with .*words.txt, its first is other"):
        read_grammar(lang / "foreign.arpa", words)
    text = (lang / "lm.arpa").read_text().replace("</s>", "</x>")
    (lang / "endless.arpa").write_text(text)
    with pytest.raises(UserError, match="endless.arpa has no unigram </s>"):
        read_grammar(lang / "endless.arpa", words)
