"""NIST's global mapping files (GLM): rules that make spellings alike before reference and hypothesis are compared.

    ;; comment
    * case_sensitive = 'F'
    UH       => %HESITATION              / [ ] __ [ ] ;; only between spaces, that is, as a whole word
    COLOUR   => COLOR                    ;; anywhere, in COLOURS too
    [SHE'S]  => [{SHE IS / SHE HAS}]     / [ ] __ [ ] ;; brackets or quotes may bound a side; braces: alternatives
    ;; INPUT_DEPENDENT_APPLICATION = "hyp"
    OOPS     => []                       / [ ] __ [ ] ;; from here on for hypotheses only

A rule replaces a literal string; at each place of the text the first rule of the file fires that fits, contexts are
those of the text before any replacement, and what a rule has put out is not looked at again. As NIST's csrfilt.sh does
with the options of hubscr.pl for English, the text is put into upper case first; afterwards hyphens inside words become
spaces, and `(a b)` becomes `(a) (b)`, two optional words. The words of a hypothesis are filtered one by one, because
that is what csrfilt.sh does with the lines of a CTM file: rules that span words work on the reference only.
Source: what rfilter1 and csrfilt.sh of NIST's SCTK do, with which tests compare.
"""

from __future__ import annotations

import re
import string
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lowbit_k2.errors import UserError
from lowbit_k2.fileio import atomic_write
from lowbit_k2.scoring.ctm import CtmWord, share_out
from lowbit_k2.scoring.stm import StmSegment
from lowbit_k2.textfile import read_lines

COMMENT = ";;"
DEPENDENT = re.compile(r';;\s+INPUT_DEPENDENT_APPLICATION\s*=\s*"([^"]*)"')
QUOTED = re.compile(r"""["']([^"']*)["']""")
UPPER = str.maketrans(string.ascii_lowercase, string.ascii_uppercase)  # NIST's case is that of ASCII
INNER_HYPHEN = re.compile(r"([^( ])-(?=[^) ])")
OPTION = re.compile(r"\([^()]+\)")
LONG_OPTION = re.compile(r"(\(\s+[^()\s]+\s+)([^()\s]+)")
LETTER_DOT = re.compile(r"(?<![^ ({/])([A-Z])\.(?=[ )}/]|'S\b|$)")  # U. S. A.'S
NO_ALTERNATIVE = re.compile(r"\{[\s/]*\}")
MAX_WORD = 80  # characters: sclite's buffers hold 99, and a bad model can put out a longer "word"


@dataclass(frozen=True)
class Rule:
    """`source` becomes `target` where it stands between `left` and `right`."""

    source: str
    target: str
    left: str = ""
    right: str = ""


@dataclass(frozen=True)
class GlobalMap:
    """The rules of a GLM for one kind of text; `filter_text` applies them.

    Attributes:
      letter_dots: keep the dots of single letters; without them `U. S.` and `U S` are the same.
    """

    rules: tuple[Rule, ...]
    case_sensitive: bool = True
    copy_no_hit: bool = True
    letter_dots: bool = True

    def __post_init__(self) -> None:
        by_first: defaultdict[str, list[Rule]] = defaultdict(list)
        for rule in self.rules:
            if rule.source:
                fold = self._fold
                folded = Rule(fold(rule.source), rule.target, fold(rule.left), fold(rule.right))
                by_first[folded.source[0]].append(folded)
        object.__setattr__(self, "_by_first", dict(by_first))

    def _fold(self, text: str) -> str:
        return text if self.case_sensitive else text.translate(UPPER)

    def apply(self, text: str) -> str:
        """Replace what the rules say, and nothing else."""
        folded, out, i = self._fold(text), [], 0
        while i < len(text):
            rule = next((r for r in self._by_first.get(folded[i], ()) if _fits(r, folded, i)), None)
            if rule is not None:
                out.append(rule.target)
            elif self.copy_no_hit:
                out.append(text[i])
            i += len(rule.source) if rule is not None else 1
        return "".join(out)

    def filter_text(self, text: str) -> str:
        """A text as csrfilt.sh -dh leaves it.

        Raises:
          UserError: parentheses or braces that do not pair; the caller names the place.
        """
        _check_options(text)
        spaced = text.translate(UPPER).replace("(", "( ").replace(")", " )")
        text = self.apply(f" {spaced} ")
        text = text if self.letter_dots else LETTER_DOT.sub(r"\1", text)
        text = INNER_HYPHEN.sub(r"\1 ", text)
        text = OPTION.sub(_option_inside_alternatives, text)
        while (split := LONG_OPTION.sub(r"\1) ( \2", text)) != text:
            text = split
        text = " ".join(text.split()).replace("( ", "(").replace(" )", ")")
        _check_alternatives(text)
        return text


def _fits(rule: Rule, text: str, i: int) -> bool:
    return (
        text.startswith(rule.source, i)
        and text.startswith(rule.right, i + len(rule.source))
        and i >= len(rule.left)
        and text.startswith(rule.left, i - len(rule.left))
    )


def _option_inside_alternatives(option: re.Match[str]) -> str:
    """`({a / b c})`, which a rule can make of `(x)`, as `{(a) / (b) (c)}`: csrfilt.sh would tear the braces apart."""
    if "{" not in option[0]:
        return option[0]
    words = re.sub(r"([{}/])", r" \1 ", option[0][1:-1]).split()
    return " ".join(word if word in ("{", "}", "/", "@") else f"( {word} )" for word in words)


def _check_options(text: str) -> None:
    if any(sign in OPTION.sub(" ", text) for sign in "()"):
        raise UserError(f"parentheses that do not pair, or hold nothing: {text[:80]!r}")


def _check_alternatives(text: str) -> None:
    depth = 0
    for before, sign in zip(" " + text, text, strict=False):
        depth += (sign == "{") - (sign == "}")
        if depth < 0 or (sign == "{" and before not in " {/"):
            break
    else:
        if depth == 0 and not NO_ALTERNATIVE.search(text):
            return
    raise UserError(f"braces that do not pair, or hold nothing, perhaps by a broken rule of the GLM: {text[:80]!r}")


def read_glm(path: str | Path, kind: str) -> GlobalMap:
    """The rules of a GLM file.

    Args:
      kind: "ref" or "hyp": files may have parts for one of them; the parts for "stm" and "ctm" go with them.

    Raises:
      UserError: missing file, or one that is no GLM, with the line.
    """
    path, rules, switches = Path(path), [], {}
    lines = read_lines(path, "give the test set's GLM", legacy=True)
    if not lines or not lines[0].startswith(COMMENT):
        raise UserError(f"{path} is no global mapping file: its first line should be a comment, {COMMENT} ...")
    for number, line in _lines_for({"ref": "stm ref", "hyp": "ctm hyp"}[kind].split(), lines, path):
        where = f"{path} line {number}"
        if line.startswith("*"):
            switches.update(_parse_switch(line, where))
        else:
            rules.append(_parse_rule(line, where))
    if not rules:
        raise UserError(f"{path} holds no rules")
    return GlobalMap(tuple(rules), switches.get("case_sensitive", True), switches.get("copy_no_hit", True))


def _lines_for(kinds: Sequence[str], lines: Sequence[str], path: Path) -> Iterator[tuple[int, str]]:
    """Rules and switches that apply to any of `kinds`, without comments, with their numbers."""
    applies = True
    for number, line in enumerate(lines, start=1):
        found = DEPENDENT.match(line)
        if found is not None:
            try:
                applies = any(re.search(found[1].lower(), kind) for kind in kinds)
            except re.error:
                raise UserError(f"{path} line {number}: {found[1]!r} is no regular expression") from None
        line = line.split(COMMENT)[0].rstrip()
        if applies and line:
            yield number, line


def _parse_switch(line: str, where: str) -> dict[str, bool]:
    value = QUOTED.search(line)
    if value is None:
        raise UserError(f"{where}: expected `* name = 'value'`, found {line[:80]!r}")
    if "FORMAT" in line.upper() and value[1] != "NIST1":
        raise UserError(f"{where}: rules of format {value[1]!r}, only NIST1 is known")
    is_true = value[1].upper().startswith("T")
    return {name: is_true for name in ("case_sensitive", "copy_no_hit") if name in line.lower()}


def _parse_rule(line: str, where: str) -> Rule:
    """A line without its comment. The last slash begins the context, unless brackets close and open again after it."""
    arrow = line.find("=>")
    if arrow < 0:
        raise UserError(f"{where}: expected `WORDS => WORDS / [left] __ [right]`, found {line[:80]!r}")
    slash = line.rfind("/")
    if slash >= 0 and line.find("]", slash) < line.find("[", slash):
        slash = -1
    source = _bare(line[:arrow])
    if slash < 0:
        return Rule(source, _bare(_after_first(line[arrow:])))
    target = _bare(_after_first(line[arrow:slash]))
    slot = line.find("_", slash)
    if slot < 0:
        return Rule(source, target)
    return Rule(source, target, _bare(_after_first(line[slash:slot])), _bare(_after_first(line[slot:])))


def _after_first(text: str) -> str:
    """All but the first token: the arrow, the slash or the slot."""
    return " ".join(text.split(maxsplit=1)[1:])


def _bare(text: str) -> str:
    """Without the blanks around it and then without the brackets or quotes that bound it."""
    text = text.strip()
    return text[1:-1] if text[:1] + text[-1:] in ("[]", '""') else text


def filter_reference(segments: Iterable[StmSegment], glm: GlobalMap, path: str | Path) -> list[StmSegment]:
    """Reference segments with filtered words.

    In a segment without labels, a first word in angle brackets is dropped: sclite reads labels there.

    Raises:
      UserError: words that cannot be read, with the file `path` and the segment.
    """
    done = []
    for segment in segments:
        text = segment.text
        if not segment.labels and text.startswith("<"):
            text = " ".join(text.split()[1:])
        try:
            done.append(replace(segment, text=glm.filter_text(text)))
        except UserError as error:
            where = f"{segment.recording} {segment.channel} {segment.start:.2f}"
            raise UserError(f"{path}, segment {where}: {error}") from None
    return done


@dataclass(frozen=True)
class HypothesisItem:
    """A word of the hypothesis, or alternatives of which the one that fits best counts."""

    alternatives: tuple[tuple[CtmWord, ...], ...]

    @property
    def place(self) -> tuple[str, str]:
        """Recording and channel."""
        first = next(words[0] for words in self.alternatives if words)
        return first.recording, first.channel

    @property
    def middle(self) -> float:
        """Seconds; of alternatives the latest."""
        return max(word.middle for words in self.alternatives for word in words)

    def lines(self) -> Iterator[str]:
        """As a CTM file has it."""
        if len(self.alternatives) == 1:
            yield from (word.line() for word in self.alternatives[0])
            return
        mark = " ".join([*self.place, "* *"])
        for i, words in enumerate(self.alternatives):
            yield f"{mark} <ALT>" if i else f"{mark} <ALT_BEGIN>"
            yield from (word.line() for word in words)
        yield f"{mark} <ALT_END>"


def filter_hypothesis(words: Iterable[CtmWord], glm: GlobalMap) -> list[HypothesisItem]:
    """The words of a CTM, each filtered for itself; words of which nothing is left are gone.

    Raises:
      UserError: a word with parentheses or braces that do not pair.
    """
    seen: dict[str, list[list[str]]] = {}
    items = []
    for word in words:
        if word.word not in seen:
            seen[word.word] = _alternatives(glm.filter_text(word.word))
        timed = [share_out(word.recording, word.channel, word.start, word.duration, a) for a in seen[word.word]]
        if len(timed) == 1:
            items += [HypothesisItem(((single,),)) for single in timed[0]]
        elif any(timed):
            items.append(HypothesisItem(tuple(map(tuple, timed))))
    return items


def _alternatives(text: str) -> list[list[str]]:
    """The word sequences of a filtered hypothesis word; as in csrfilt.sh, braces do not nest."""
    words = text.replace("{", " { ").replace("}", " } ").split()
    if len(words) == 1:
        return [[words[0][:MAX_WORD]]]
    bare = " ".join(word for word in words if word not in "{}")
    return [[word[:MAX_WORD] for word in part.split()] for part in bare.split("/")]


def write_filtered_ctm(path: str | Path, items: Iterable[HypothesisItem]) -> None:
    """Write a filtered hypothesis, whole or not at all."""
    with atomic_write(path) as temporary:
        lines = (line for item in items for line in item.lines())
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
