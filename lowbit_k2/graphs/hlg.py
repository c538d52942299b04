"""Decoding graphs: a topology H alone, and HLG = H o det(L o G), as k2's recipes compile it.

L has disambiguation symbols, so that L o G can be determinized; they are removed before H is composed. The labels
of a graph are classes of the network (0: blank), its `aux_labels` tokens (H) or words (HLG), its scores those of G.

In the chain topology silence is a unit, which L gets before and behind words (`with_silence`). Its label in LG is the
number of units, since 0 means nothing there.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lowbit_k2.core.topology import CHAIN, CTC, num_classes
from lowbit_k2.errors import UserError
from lowbit_k2.graphs.lexicon import BLANK, WORD_DISAMBIG, read_symbols
from lowbit_k2.graphs.ngram import BOS, EOS, arpa_fields
from lowbit_k2.k2_compat import forget_properties, require_k2
from lowbit_k2.textfile import read_lines

if TYPE_CHECKING:
    import k2


NO_WORDS = {BOS, EOS, "<unk>", "<UNK>"}  # of an ARPA file, whatever words.txt holds


def ctc_topology(num_units: int, device: str = "cpu") -> k2.Fsa:
    """The standard CTC topology over classes 0..num_units-1 (a blank is required between equal tokens).

    It has num_units^2 arcs: 250 thousand for 500 classes.
    """
    k2 = require_k2()
    return k2.arc_sort(k2.ctc_topo(max_token=num_units - 1, modified=False, device=device))


def chain_topology(num_units: int, silence: int = 0, device: str = "cpu") -> k2.Fsa:
    """The chain topology over units 0 (silence) to num_units - 1: one frame in the entry class, then any in the loop's.

    Args:
      silence: label that silence puts out; 0: none.
    """
    k2 = require_k2()
    final, arcs = num_units + 1, []
    for state in range(num_units + 1):  # 0: before the first unit; u + 1: in unit u
        arcs += [(state, u + 1, 2 * u, u or silence) for u in range(num_units)]
        arcs += [(state, state, 2 * state - 1, 0), (state, final, -1, -1)] if state else []
    lines = sorted(f"{a} {b} {label} {aux} 0.0" for a, b, label, aux in arcs)
    lines.sort(key=lambda line: int(line.split()[0]))
    text = "\n".join([*lines, str(final)])
    return k2.arc_sort(k2.Fsa.from_str(text, acceptor=False)).to(device)


def topology_graph(topology: str, num_units: int, silence: int = 0) -> k2.Fsa:
    """H: classes of the network in, units out."""
    return ctc_topology(num_units) if topology == CTC else chain_topology(num_units, silence)


def with_silence(lexicon: k2.Fsa, backoff: int) -> k2.Fsa:
    """L with at most one silence before each word and at the end.

    Silence takes the label `backoff`, the first that is no unit, and all disambiguation symbols move up by one. It
    leads to a copy of the state between words that has no loop for back-offs: these come before it, so that no sequence
    of labels has two paths.

    Args:
      lexicon: with its loop `#0`, state 0 between words.
      backoff: label of `#0`.
    """
    k2 = require_k2()
    source, target, label, score = lexicon.as_dict()["arcs"].long().unbind(dim=1)
    aux, final = lexicon.aux_labels.long(), int(target.max())
    target = torch.where(target == final, final + 1, target)  # the copy takes the place of the final state
    copied = torch.nonzero((source == 0) & ~((label == backoff) & (target == 0))).flatten()
    label = torch.where(label >= backoff, label + 1, label)
    columns = (
        torch.cat([source, torch.full_like(copied, final), torch.tensor([0])]),
        torch.cat([target, target[copied], torch.tensor([final])]),
        torch.cat([label, label[copied], torch.tensor([backoff])]),
        torch.cat([score, score[copied], torch.tensor([0])]),  # bits of float32
    )
    order = torch.argsort(columns[0], stable=True)
    made = k2.Fsa(torch.stack([column[order].int() for column in columns], dim=1))
    made.aux_labels = torch.cat([aux, aux[copied], torch.tensor([0])])[order].int()
    return k2.arc_sort(made)


def read_grammar(
    path: str | Path, words: Path, order: int | None = None, log: Callable[[str], None] = lambda line: None
) -> k2.Fsa:
    """G from an ARPA file (through kaldilm), or from its text form in OpenFst's format (`G_3_gram.fst.txt`).

    Args:
      path: ARPA or OpenFst text.
      words: words.txt; n-grams with other words are left out.
      order: highest order of n-grams taken from the ARPA file; all by default.
      log: called with a line that says how much was left out.

    Raises:
      UserError: the file is missing or is neither, none of its words is in words.txt, or no sentence can end.
    """
    k2 = require_k2()
    lines = read_lines(path, "make it with make_lm, or give the path of an n-gram")
    text = "\n".join(lines) + "\n"
    if any(line.strip() == "\\data\\" for line in lines[:1000]):
        check_vocabulary(path, lines, words, log)
        text = _arpa_to_fst(Path(path), text, words, order)
    elif not lines or not lines[0].split() or not all(field.isdigit() for field in lines[0].split()[:4]):
        raise UserError(f"{path} is neither an ARPA file nor a grammar in OpenFst's text format")
    try:
        fsa = k2.Fsa.from_openfst(text, acceptor=False)
    except (RuntimeError, ValueError):
        raise UserError(f"{path} is no valid grammar in OpenFst's text format: make it again") from None
    if fsa.num_arcs == 0:
        raise UserError(f"{path} shares no n-gram with {words}: are letter cases equal?")
    return fsa


def check_vocabulary(path: str | Path, lines: Sequence[str], words: Path, log: Callable[[str], None]) -> None:
    """Say how many words and n-grams of an ARPA file are not in words.txt, and so are left out.

    Raises:
      UserError: none of its words is in words.txt, or it has no `</s>`.
    """
    known, unigrams, ngrams, left_out = set(read_symbols(words)), set(), 0, 0
    for _, order, (_, *ngram) in arpa_fields(lines):
        if order == 1:
            unigrams.update(ngram[:1])
        if order > 0:
            ngrams, left_out = ngrams + 1, left_out + (not known.issuperset(ngram[:order]))
    if EOS not in unigrams:
        raise UserError(f"{path} has no unigram {EOS}, so no sentence could end: make it again with sentence ends")
    own = {word for word in unigrams if word not in NO_WORDS}
    missing = sorted(own - known)
    if own and len(missing) == len(own):
        raise UserError(f"{path} shares no word with {words}, its first is {missing[0]}: are letter cases equal?")
    if left_out:
        log(
            f"warning: {len(missing)} of the {len(own)} words of {path} are not in {words} (first: "
            f"{', '.join(missing[:3])}); {left_out} of its {ngrams} n-grams are left out"
        )


def _arpa_to_fst(path: Path, text: str, words: Path, order: int | None) -> str:
    """kaldilm's OpenFst text of an ARPA file; in a process of its own, because it aborts on damaged files.

    Args:
      path: what the user gave.
      text: what it holds, as `textfile` reads it: kaldilm takes neither gzip nor CRLF.
    """
    with tempfile.TemporaryDirectory() as folder:
        arpa = Path(folder) / "lm.arpa"
        arpa.write_text(text, encoding="utf-8")
        command = [sys.executable, "-m", "kaldilm", f"--read-symbol-table={words}"]
        command += [f"--disambig-symbol={WORD_DISAMBIG}", f"--max-order={order or -1}", str(arpa)]
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    if done.returncode != 0 or not done.stdout:
        raise UserError(f"{path} cannot be turned into a grammar{_reason(done.stderr)}: is it a complete ARPA file?")
    return done.stdout


def _reason(stderr: str) -> str:
    """kaldilm's own complaint in brackets, where it made one (lines of level E or F)."""
    complaints = [line.split("] ", 1)[1] for line in stderr.splitlines() if line.startswith(("[E] ", "[F] "))]
    return f" ({complaints[0].strip()})" if complaints else ""


def compile_lg(
    lexicon: k2.Fsa,
    grammar: k2.Fsa,
    tokens: Mapping[str, int],
    words: Mapping[str, int],
    log: Callable[[str], None] = lambda line: None,
    topology: str = CTC,
) -> k2.Fsa:
    """Compile LG = det(L o G): tokens in, words out, the graph of transducer search.

    Args:
      lexicon: L with disambiguation symbols, `#0` loop included.
      grammar: G with `#0` on its back-off arcs.
      tokens: tokens.txt; `#0` and all ids above it are disambiguation symbols.
      words: words.txt; `#0` and all ids above it are no words.
      log: called with one line per step.
      topology: with chain, silence has the label of `#0`.

    Returns:
      An arc-sorted graph without epsilons and disambiguation symbols.

    Raises:
      UserError: the composition is empty.
    """
    k2 = require_k2()
    assert tokens[BLANK] == 0, tokens[BLANK]
    first_disambig = tokens[WORD_DISAMBIG]
    if topology == CHAIN:
        lexicon, first_disambig = with_silence(lexicon, first_disambig), first_disambig + 1
    lg = k2.connect(k2.compose(k2.arc_sort(lexicon), k2.arc_sort(grammar)))
    _check(lg, "L o G")
    log(f"L o G: {lg.shape[0]} states, {lg.num_arcs} arcs")
    lg = k2.connect(k2.determinize(lg))
    log(f"determinized: {lg.shape[0]} states, {lg.num_arcs} arcs")
    lg = _remove_disambig(lg, first_disambig, words[WORD_DISAMBIG])
    log(f"LG: {lg.shape[0]} states, {lg.num_arcs} arcs")
    return lg


def compile_hlg(
    lg: k2.Fsa, num_units: int, log: Callable[[str], None] = lambda line: None, topology: str = CTC
) -> k2.Fsa:
    """Compile HLG from `compile_lg`'s graph of the same topology.

    Args:
      num_units: of the model, the blank or silence included.

    Returns:
      An arc-sorted graph, its labels below the number of classes.

    Raises:
      UserError: the composition is empty.
    """
    k2 = require_k2()
    hlg = k2.compose(topology_graph(topology, num_units, silence=num_units), lg, inner_labels="inner_labels")
    hlg = k2.arc_sort(k2.connect(hlg))
    del hlg.inner_labels  # the tokens between H and L: no decoder reads them, and they would double the file
    _check(hlg, "HLG")
    classes = num_classes(topology, num_units)
    assert int(hlg.labels.max()) < classes, (int(hlg.labels.max()), classes)
    log(f"HLG: {hlg.shape[0]} states, {hlg.num_arcs} arcs")
    return hlg


def _remove_disambig(lg: k2.Fsa, first_token: int, first_word: int) -> k2.Fsa:
    """Turn disambiguation symbols into epsilons, then remove epsilons; `aux_labels` become ragged.

    Determinization puts the words of homophones on the arcs of their disambiguation symbols. Of several epsilon paths
    between two states k2 keeps the best, whatever the words on it, so that of homophones before a back-off only the
    likeliest would be left; arcs with words are therefore not removed but joined with the arcs before them.
    """
    k2 = require_k2()
    if not isinstance(lg.aux_labels, k2.RaggedTensor):
        lg.aux_labels = k2.RaggedTensor(lg.aux_labels[:, None].tolist(), dtype=torch.int32)
    values = lg.aux_labels.values
    values[values >= first_word] = 0
    lg.aux_labels = lg.aux_labels.remove_values_eq(0)
    labels, marker = lg.labels.clone(), first_token
    with_words = lg.aux_labels.shape.row_splits(1).diff() > 0  # (arcs,)
    labels[labels >= first_token] = torch.where(with_words, marker, 0)[labels >= first_token].to(labels.dtype)
    lg.labels = labels
    forget_properties(lg)
    lg = k2.connect(k2.remove_epsilon(lg))
    lg.aux_labels = lg.aux_labels.remove_values_eq(0)
    return k2.arc_sort(k2.connect(_join_marked(lg, marker)))


def _join_marked(lg: k2.Fsa, marker: int) -> k2.Fsa:
    """Replace arcs labelled `marker`, none of which follows another, by their concatenations with all arcs before."""
    k2 = require_k2()
    arcs, scores, aux = lg.as_dict()["arcs"].long(), lg.scores, lg.aux_labels
    source, target, label = arcs[:, 0], arcs[:, 1], arcs[:, 2]
    marked = torch.nonzero(label == marker).flatten()  # in the order of their sources, as all arcs are
    plain = torch.nonzero(label != marker).flatten()
    per_state = torch.bincount(source[marked], minlength=lg.shape[0])
    begins = per_state.cumsum(0) - per_state
    assert not per_state[0] and not per_state[target[marked]].any(), "words without a token before them"
    times = per_state[target[plain]]  # marked arcs behind each plain one
    first = plain.repeat_interleave(times)
    within = torch.arange(len(first)) - (times.cumsum(0) - times).repeat_interleave(times)
    second = marked[begins[target[first]] + within]

    sources = torch.cat([source[plain], source[first]])
    order = torch.argsort(sources, stable=True)
    new_scores = torch.cat([scores[plain], scores[first] + scores[second]])[order]
    columns = (sources, torch.cat([target[plain], target[second]]), torch.cat([label[plain], label[first]]))
    new_arcs = torch.stack([column[order].int() for column in columns] + [new_scores.view(torch.int32)], dim=1)
    of_plain, of_first, of_second = (aux.index(rows.int(), axis=0)[0] for rows in (plain, first, second))
    of_all = k2.ragged.cat([of_plain, k2.ragged.cat([of_first, of_second], axis=1)], axis=0)
    joined = k2.Fsa(new_arcs)
    joined.aux_labels = of_all.index(order.int(), axis=0)[0]
    return joined


def _check(fsa: k2.Fsa, name: str) -> None:
    if fsa.num_arcs == 0:
        raise UserError(f"{name} is empty: the lexicon and the grammar share no sentence")
