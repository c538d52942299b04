"""Allocations: patterns, what users write, JSON, and their way into use_precision."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lowbit_k2.errors import UserError
from lowbit_k2.quant import (
    Allocation,
    QuantConfig,
    TensorScheme,
    current_assignment,
    quantize_model,
    use_precision,
)
from lowbit_k2.quant.allocation import parse_precision

NAMES = ["a.0.ff.weight", "a.1.ff.weight", "a.1.att.weight", "a.10.ff.weight", "head.weight"]


def test_patterns_by_hand() -> None:
    allocation = Allocation({"": 8, "a.1": 1, "*.att.*": 4, "a.?.ff.weight": 2})
    assert allocation.bits_of(NAMES) == dict(zip(NAMES, [2, 2, 4, 8, 8], strict=True))
    assert Allocation({"a.1": 1}).bits_of(NAMES) == {"a.1.ff.weight": 1, "a.1.att.weight": 1}
    assert Allocation({"*.weight": 2, "a.1.ff.weight": 4}).bits_of(NAMES)["a.1.ff.weight"] == 4


PATTERNS = ["", "a", "a.1", "a.10", "a.1.ff", "a.1.ff.weight", "head", "*.weight", "a.*", "*ff*", "a.[01].*", "*"]


@given(st.lists(st.tuples(st.sampled_from(PATTERNS), st.sampled_from([1, 2, 4, 8])), unique_by=lambda pair: pair[0]))
def test_the_longest_pattern_wins(pairs: list[tuple[str, int]]) -> None:
    def matches(pattern: str, name: str) -> bool:
        if set(pattern) & set("*?["):
            return fnmatchcase(name, pattern)
        parts = pattern.split(".") if pattern else []
        return name.split(".")[: len(parts)] == parts

    expected = {}
    for name in NAMES:
        fitting = [(len(pattern), place, bits) for place, (pattern, bits) in enumerate(pairs) if matches(pattern, name)]
        if fitting:
            expected[name] = max(fitting)[2]
    assert Allocation(dict(pairs)).bits_of(NAMES) == expected


def test_parse() -> None:
    assert Allocation.parse("2", 4, "enc").bits == {"": 2} == Allocation.uniform(2).bits
    assert Allocation.parse("1.5", 3, "enc").bits == {"enc.0": 1, "enc.1": 2, "enc.2": 2}
    assert Allocation.parse("1.5r", 3, "enc").bits == {"enc.0": 2, "enc.1": 2, "enc.2": 1}
    assert Allocation.parse("1, 4", 2, "enc") == Allocation.by_layer("enc", [1, 4], "1, 4")
    assert parse_precision("1", 12) == 1 and parse_precision("32", 12) == 32 and parse_precision(" 16 ", 3) == 16
    assert parse_precision("1.5", 5) == [1, 1, 2, 2, 2] and parse_precision("1.5r", 5) == [2, 2, 2, 1, 1]
    assert parse_precision("1, 1,2,2", 4) == [1, 1, 2, 2]


@pytest.mark.parametrize("text", ["", "0", "9", "x", "1.6", "1,1", "1,1,2,9", "-1", "1;1;2;2", "²"])
def test_parse_refuses(text: str) -> None:
    for parse in (lambda: parse_precision(text, 4), lambda: Allocation.parse(text, 4, "enc")):
        with pytest.raises(UserError, match="precision"):
            parse()


def test_json_round_trip(tmp_path) -> None:
    allocation = Allocation({"": 2, "*.att.*": 4}, "mine")
    path = tmp_path / "mine.json"
    allocation.save(path)
    assert Allocation.load(path) == Allocation.parse(str(path), 4, "enc") == allocation
    assert json.loads(path.read_text()) == {
        "format": "lowbit_k2 allocation 1",
        "name": "mine",
        "bits": {"": 2, "*.att.*": 4},
    }
    assert Allocation.from_dict(allocation.to_dict()) == allocation


GOOD = {"format": "lowbit_k2 allocation 1", "bits": {}}


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: Allocation({"a": 9}), "9 bits for 'a'"),
        (lambda: Allocation({"a": True}), "True bits"),
        (lambda: Allocation({"a": "2"}), "'2' bits"),
        (lambda: Allocation({3: 2}), "pattern"),
        (lambda: Allocation([1, 2]), "maps patterns"),
        (lambda: Allocation({}, 3), "name"),
        (lambda: Allocation.from_dict({"bits": {}}), "format"),
        (lambda: Allocation.from_dict({**GOOD, "format": "lowbit_k2 allocation 2"}), "allocation 2"),
        (lambda: Allocation.from_dict([1]), "format"),
        (lambda: Allocation.from_dict({**GOOD, "colour": 1}), "colour"),
        (lambda: Allocation.from_dict({"format": GOOD["format"]}), "no field bits"),
        (lambda: Allocation.load("/nowhere/at/all.json"), "cannot be read"),
        (lambda: Allocation.parse("/nowhere/at/all.json", 3, "enc"), "cannot be read"),
        (lambda: Allocation().save("/nowhere/at/all.json"), "cannot be written"),
        (lambda: Allocation({"b": 2}).bits_of(NAMES), "no quantized tensor has a name that starts with 'b'"),
        (lambda: Allocation({"*b": 2}).bits_of(NAMES), r"no quantized tensor matches '\*b'"),
    ],
)
def test_refusals(make, word: str) -> None:
    with pytest.raises(UserError, match=word) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_files_that_hold_none(tmp_path) -> None:
    for content in ("{", "[]", "3", '{"format": "x"}'):
        (tmp_path / "a.json").write_text(content)
        with pytest.raises(UserError, match=r"a\.json") as caught:
            Allocation.load(tmp_path / "a.json")
        assert "\n" not in str(caught.value)


def mixed_model() -> nn.Module:
    """FFN of 4 bits alone, attention of 2 or 1, a head fixed at 8."""
    torch.manual_seed(0)
    layer = lambda: nn.ModuleDict({"ff": nn.Linear(4, 4, bias=False), "att": nn.Linear(4, 4, bias=False)})  # noqa: E731
    model = nn.ModuleDict({"a": nn.ModuleList([layer(), layer()]), "head": nn.Linear(4, 4, bias=False)})
    schemes = {"ff": TensorScheme((4,)), "att": TensorScheme((2, 1)), "head": TensorScheme((8,))}
    rules = (("*.ff.*", "ff"), ("*.att.*", "att"), ("head.*", "head"))
    quantize_model(model, QuantConfig("mixed", schemes, rules, ("ff", "att"), layer_prefix="a"))
    return model


def bits_in_use(model: nn.Module, assignment) -> list[int]:
    with use_precision(model, assignment):
        return list(current_assignment(model).values())


def test_tensors_of_different_precisions() -> None:
    model = mixed_model()  # a.0.ff, a.0.att, a.1.ff, a.1.att, head
    assert bits_in_use(model, 2) == [4, 2, 4, 2, 8] and bits_in_use(model, 1) == [4, 1, 4, 1, 8]
    assert bits_in_use(model, Allocation({"a.1": 1})) == [4, 2, 4, 1, 8]
    assert bits_in_use(model, {"*.att.weight": 1, "a.0": 32, "head": 8}) == [32, 1, 4, 1, 8]
    assert bits_in_use(model, {"": 1, "a.0.ff": 4, "head": 32}) == [4, 1, 4, 1, 32]
    with use_precision(model, {"a.0": 1, "head": 32}):
        kept = Allocation(current_assignment(model))
    assert bits_in_use(model, kept) == [4, 1, 4, 2, 32]
    for wrong, choice in ((4, "2, 1, 32"), ({"a.0": 8}, "2, 1, 32"), ({"head": 2}, "8, 32"), ({"*.ff.*": 2}, "4, 32")):
        message = f"not available in .*: choose one of {choice}$"
        with pytest.raises(UserError, match=message), use_precision(model, wrong):
            pass


def test_a_float_model_speaks_of_rules() -> None:
    model = nn.Linear(3, 3)
    for assignment in (2, {"": 2}, {"weight": 2}):
        with pytest.raises(UserError, match="rules"), use_precision(model, assignment):
            pass
