from __future__ import annotations

import math

import pytest
import torch

from lowbit_k2.data.features import FeatureConfig
from lowbit_k2.data.filter import FilterConfig, cut_text, filter_cuts, required_frames
from lowbit_k2.errors import UserError
from lowbit_k2.models import ConformerConfig

from .conftest import WORDS, ToyCorpus, lhotse

OUTPUT_LENS = ConformerConfig().output_lens
FEW = FilterConfig(OUTPUT_LENS)
ALL = FilterConfig(OUTPUT_LENS, max_dropped=1.0)


def encode(text: str) -> list[int]:
    """Letters as ids; a word that is not in the lexicon is refused, as phone tokenizers do."""
    for word in text.split():
        if not set(word) <= set("".join(WORDS)) and not cyrillic(word):
            raise UserError(f"word {word} is not in the lexicon")
    return [ord(letter) for letter in text]


def cyrillic(text: str) -> str:
    """Characters that the units lack."""
    return "".join(dict.fromkeys(letter for letter in text if letter > "А"))


def altered(toy_corpus: ToyCorpus, **texts: str) -> lhotse.CutSet:
    """The corpus with some transcripts replaced."""
    cuts = []
    for cut in toy_corpus.cuts:
        if cut.id in texts:
            cut = cut.map_supervisions(lambda s, text=texts[cut.id]: lhotse.utils.fastcopy(s, text=text))
        cuts.append(cut)
    return lhotse.CutSet.from_cuts(cuts)


def test_frames_that_ctc_needs() -> None:
    assert required_frames([]) == 0
    assert required_frames([1, 2, 1]) == 3
    assert required_frames([1, 1, 2, 2, 2]) == 8


def test_required_frames_are_what_ctc_can_align() -> None:
    """With one frame less, torch's loss is infinite."""
    for ids in ([1, 2, 3], [1, 1], [2, 2, 2, 1]):
        for frames, finite in ((required_frames(ids), True), (required_frames(ids) - 1, False)):
            log_probs = torch.zeros(frames, 1, 5).log_softmax(-1)
            loss = torch.nn.functional.ctc_loss(
                log_probs, torch.tensor([ids]), torch.tensor([frames]), torch.tensor([len(ids)]), reduction="sum"
            )
            assert math.isfinite(float(loss)) is finite


def test_good_cuts_all_stay(toy_corpus: ToyCorpus) -> None:
    cuts, report = filter_cuts(toy_corpus.cuts, encode, FEW)
    assert [cut.id for cut in cuts] == [cut.id for cut in toy_corpus.cuts]
    assert report.total == report.kept == 30 and report.dropped == {}
    assert str(report) == "all 30 cuts kept"


def test_every_reason_is_counted(toy_corpus: ToyCorpus) -> None:
    cuts = altered(toy_corpus, utt03="", utt04="  ", utt05="ZEBRA?", utt06="ONE " * 30, utt09="ONE ТWO Ж ТWO")
    cuts = lhotse.CutSet.from_cuts(cut.drop_features().resample(8000) if cut.id == "utt07" else cut for cut in cuts)

    def is_finite(cut) -> bool:
        return cut.id != "utt08"

    config = FilterConfig(
        OUTPUT_LENS, max_dropped=1.0, is_finite=is_finite, min_seconds=0.62, max_seconds=2.02, unknown=cyrillic
    )
    kept, report = filter_cuts(cuts, encode, config)
    assert report.dropped == {
        "empty-text": 2,
        "not-in-lexicon": 1,
        "unknown-characters": 1,
        "sampling-rate": 1,
        "too-short": 1,
        "over-max-cut-duration": 1,
        "under-min-cut-duration": 1,
        "non-finite": 1,
    }
    assert report.examples["non-finite"] == "utt08" and report.examples["over-max-cut-duration"] == "utt29"
    assert len(kept) == report.kept == 21 and report.num_dropped == 9 and report.num_faults == 7
    assert "21 of 30 cuts kept" in str(report) and "2 empty-text" in str(report)
    assert str(report).endswith("; the units lack: Т Ж")


def test_the_limit_of_length_is_sharp(toy_corpus: ToyCorpus) -> None:
    cut = next(iter(toy_corpus.cuts))
    frames = OUTPUT_LENS(cut.num_frames)
    one = lhotse.CutSet.from_cuts([cut])
    assert filter_cuts(one, lambda _: [1, 2] * 100, ALL)[1].dropped == {"too-short": 1}
    assert filter_cuts(one, lambda _: list(range(frames)), ALL)[1].dropped == {}
    assert filter_cuts(one, lambda _: list(range(frames + 1)), ALL)[1].dropped == {"too-short": 1}
    assert filter_cuts(one, lambda _: [0, *range(frames - 1)], ALL)[1].dropped == {"too-short": 1}, "0 is repeated"


def test_too_many_bad_cuts_are_an_error(toy_corpus: ToyCorpus) -> None:
    one = altered(toy_corpus, utt03="")
    assert filter_cuts(one, encode, FEW)[1].num_dropped == 1  # 3.3%
    with pytest.raises(UserError, match="cuts of the set cannot be used: 28 of 30 cuts kept, dropped: 2 empty-text"):
        filter_cuts(altered(toy_corpus, utt03="", utt04=""), encode, FEW)
    with pytest.raises(UserError, match="no cuts"):
        filter_cuts(lhotse.CutSet.from_cuts([]), encode, FEW)


def test_what_the_user_leaves_out_is_no_fault(toy_corpus: ToyCorpus) -> None:
    """Half of the cuts may be left out by their length; all of them may not."""
    kept, report = filter_cuts(toy_corpus.cuts, encode, FilterConfig(OUTPUT_LENS, max_seconds=1.3))
    assert report.dropped == {"over-max-cut-duration": 15} and all(cut.duration <= 1.3 for cut in kept)
    with pytest.raises(UserError, match="0 of 30 cuts kept, dropped: 30 under-min-cut-duration"):
        filter_cuts(toy_corpus.cuts, encode, FilterConfig(OUTPUT_LENS, min_seconds=10.0))


def test_one_bad_cut_of_a_small_set_is_no_error(toy_corpus: ToyCorpus) -> None:
    names = [cut.id for cut in toy_corpus.cuts][:3]

    def with_empty(number: int, total: int) -> lhotse.CutSet:
        return lhotse.CutSet.from_cuts(list(altered(toy_corpus, **dict.fromkeys(names[:number], "")))[:total])

    assert filter_cuts(with_empty(1, 3), encode, FEW)[1].num_dropped == 1
    for number, total in ((2, 3), (1, 1)):
        with pytest.raises(UserError, match=r"too many cuts of the validation set \(dev\) cannot be used"):
            filter_cuts(with_empty(number, total), encode, FEW, "the validation set (dev)")


def test_all_unknown_is_an_error_that_shows_some(toy_corpus: ToyCorpus) -> None:
    lacks = FilterConfig(OUTPUT_LENS, unknown=lambda text: "".join(sorted(set(text) - {" "})))
    with pytest.raises(UserError, match=r"0 of 30 cuts kept, dropped: 30 unknown-characters .*the units lack: [A-Z] "):
        filter_cuts(toy_corpus.cuts, encode, lacks)


def test_a_lazy_set_stays_lazy(toy_corpus: ToyCorpus, tmp_path) -> None:
    path = tmp_path / "cuts.jsonl.gz"
    altered(toy_corpus, utt03="").to_file(path)
    lazy, report = filter_cuts(lhotse.CutSet.from_jsonl_lazy(path), encode, FEW)
    assert lazy.is_lazy and report.kept == 29
    for _ in range(2):
        assert [cut.id for cut in lazy] == [cut.id for cut in toy_corpus.cuts if cut.id != "utt03"]


def test_without_stored_features_frames_come_from_the_duration(toy_corpus: ToyCorpus) -> None:
    plain = toy_corpus.cuts.drop_features().to_eager()
    assert filter_cuts(plain, encode, FEW)[1].dropped == filter_cuts(toy_corpus.cuts, encode, FEW)[1].dropped
    assert FEW.features == FeatureConfig()


def test_text_of_a_cut(toy_corpus: ToyCorpus) -> None:
    cut = next(iter(altered(toy_corpus, **{next(iter(toy_corpus.cuts)).id: "  A\tB "})))
    assert cut_text(cut) == "A B"
    assert cut_text(cut.append(cut)) == "A B A B"
