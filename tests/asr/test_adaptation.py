"""Adaptation to speakers by LHUC: what is estimated and on what, and decode.py --lhuc-epochs from flags to files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lhotse import CutSet
from torch import nn

from lowbit_k2.asr import decoding
from lowbit_k2.asr.adaptation import Adapter, check_adaptable, rounds, second_pass, targets_of
from lowbit_k2.asr.finished import model_digest
from lowbit_k2.asr.model_io import LoadedModel, build_model, describe_tokenizer, load_packed
from lowbit_k2.asr.one_pass import decode_set
from lowbit_k2.asr.recognizer import Recognizer
from lowbit_k2.asr.results import Adaptation, SetOutcome
from lowbit_k2.core.chunks import ChunkConfig
from lowbit_k2.core.encoders import ConformerConfig, EncoderConfig, TdnnfConfig
from lowbit_k2.core.lhuc import LhucConfig
from lowbit_k2.core.models import CtcConfig, ModelConfig, TransducerConfig
from lowbit_k2.core.topology import CHAIN
from lowbit_k2.data.datamodule import AsrDataModule, DataConfig
from lowbit_k2.data.tokenizer import LexiconTokenizer, SentencePieceTokenizer
from lowbit_k2.decode.method import Setup
from lowbit_k2.decode.methods import CtcGreedySearch
from lowbit_k2.errors import UserError
from lowbit_k2.export import pack_model
from lowbit_k2.losses.ctc import ctc_loss
from lowbit_k2.losses.lfmmi import LfMmiConfig, LfMmiCriterion
from lowbit_k2.models.lhuc import hidden_layers, scaled_units
from lowbit_k2.quant import Allocation, QuantConfig, use_precision
from lowbit_k2.recipe.make_lm import make_token_lm
from lowbit_k2.recipe.train_bpe import train_sentencepiece
from lowbit_k2.train.checkpoint import Checkpoint, save_checkpoint
from tests.asr.running import decode, export
from tests.recipe.corpus import FEATURES, Corpus, make_corpus

TOKENIZER = SentencePieceTokenizer(train_sentencepiece(["YES NO", "GO"], "char", 0))
SIZES = {"num_features": 20, "d_model": 16}
CONFORMER = ConformerConfig(**SIZES, num_layers=2, ffn_dim=24, conv_kernel=3, subsampling_channels=4)
TDNNF = TdnnfConfig(**SIZES, num_layers=3, hidden_dim=24, bottlenecks=(8,), strides=(1, 0, 3))
SPEAKERS = ("anna", "bob", None)  # in turn: of 9 cuts the last three stand alone
KEY = ("ctc-greedy-search", "")
both = pytest.mark.parametrize("encoder", [CONFORMER, TDNNF], ids=lambda config: config.kind)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """9 cuts of 0.6 to 0.9 s: three of either speaker, and three that nobody is known to have spoken."""
    made = make_corpus(tmp_path_factory.mktemp("lhuc"), number=9)
    for n, cut in enumerate(made.cuts):
        cut.supervisions[0].speaker = SPEAKERS[n % 3]
    return made


def load(encoder: EncoderConfig = CONFORMER, config: ModelConfig | None = None) -> LoadedModel:
    """A random model that is sure enough of itself to say something, at 2 and 1 bit or float."""
    torch.manual_seed(0)
    config = config or CtcConfig(encoder, TOKENIZER.vocab_size)
    quant = QuantConfig.preset("lossless16", precisions=(2, 1))
    model, report = build_model(config, quant)
    if getattr(model, "ctc_head", None) is not None:
        with torch.no_grad():
            model.ctc_head.parametrizations.weight.original.mul_(5.0)
            model.ctc_head.parametrizations.bias.original[:4] -= 6.0  # nothing that is not heard
    return LoadedModel(model.eval(), config, quant, TOKENIZER, FEATURES.to_dict(), report, {})


def recognizer_of(loaded: LoadedModel, bits: int | None = 2) -> Recognizer:
    searches = {KEY: CtcGreedySearch(Setup(TOKENIZER))}
    allocation = None if bits is None else Allocation.uniform(bits)
    return Recognizer(loaded, "m", allocation, torch.device("cpu"), searches)


def data_of(corpus: Corpus, max_duration: float = 200.0) -> AsrDataModule:
    return AsrDataModule(DataConfig(corpus.manifest_dir, max_duration=max_duration), FEATURES)


def spoken(cuts: CutSet) -> dict[str, list[str]]:
    """The transcripts, in the place of hypotheses."""
    return {cut.id: cut.supervisions[0].text.split() for cut in cuts}


def adapted(
    recognizer: Recognizer, corpus: Corpus, cuts: CutSet, lr: float = 0.02, max_duration: float = 200.0, epochs: int = 3
) -> tuple[Adapter, Adaptation]:
    adapter = Adapter.of(recognizer, cuts, spoken(cuts), lr)
    return adapter, adapter.adapt(data_of(corpus, max_duration), cuts, epochs)


# --- the estimation -----------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("bits", [32, 2, 1])
def test_the_loss_falls_and_only_the_vectors_change(encoder: EncoderConfig, bits: int, corpus: Corpus) -> None:
    loaded = load(encoder)
    before, flags = model_digest(loaded), [p.requires_grad for p in loaded.model.parameters()]
    recognizer = recognizer_of(loaded, bits)
    adapter, found = adapted(recognizer, corpus, corpus.cuts)
    assert (found.speakers, found.utterances, found.left_out) == (5, 9, {})
    assert 0 < found.after < found.before
    assert model_digest(loaded) == before and [p.requires_grad for p in loaded.model.parameters()] == flags
    assert all(p.grad is None for p in loaded.model.parameters()) and not loaded.model.training
    assert all(r.abs().amax(dim=1).min() > 0 for r in adapter.vectors.layers)  # of every speaker in every layer
    assert adapter.seconds > 0


def test_a_model_of_lfmmi_is_adapted_by_its_own_loss(corpus: Corpus, tmp_path: Path) -> None:
    (tmp_path / "bpe.model").write_bytes(TOKENIZER.to_bytes())
    (tmp_path / "text").write_text("YES NO\nGO\nNO GO YES\n")
    loaded = load(config=CtcConfig(TDNNF, TOKENIZER.vocab_size, topology=CHAIN))
    recognizer = recognizer_of(loaded, 1)
    with pytest.raises(UserError, match="give the --lang-dir that has it"):
        Adapter.of(recognizer, corpus.cuts, spoken(corpus.cuts), 0.8)
    with pytest.raises(UserError, match="units_2gram_chain.arpa does not exist"):
        check_adaptable(loaded, tmp_path)
    make_token_lm(tmp_path / "text", 2, tmp_path, tmp_path / "units_2gram_chain.arpa", topology=CHAIN)
    check_adaptable(loaded, tmp_path)
    adapter = Adapter.of(recognizer, corpus.cuts, spoken(corpus.cuts), 0.05, tmp_path)
    found = adapter.adapt(data_of(corpus), corpus.cuts, 3)
    assert (found.speakers, found.utterances, found.left_out) == (5, 9, {}) and 0 < found.after < found.before
    [batch] = list(data_of(corpus).test_batches(corpus.cuts.subset(first=1)))
    target, criterion = adapter.targets[batch.ids[0]], LfMmiCriterion(LfMmiConfig(topology=CHAIN, warm_step=0))
    criterion.load_units(TOKENIZER, tmp_path)
    with recognizer.precision():
        loss, _ = adapter.loss(recognizer, batch, [target])
        expected = criterion(loaded.model, replace(batch, targets=[target]), 1).loss
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_no_epochs_change_nothing(corpus: Corpus) -> None:
    adapter, found = adapted(recognizer_of(load()), corpus, corpus.cuts, epochs=0)
    assert found.before == found.after and not any(r.any() for r in adapter.vectors.layers)


def test_the_loss_before_is_that_of_the_plain_model(corpus: Corpus) -> None:
    loaded = load()
    _, found = adapted(recognizer_of(loaded), corpus, corpus.cuts)
    total, frames = 0.0, 0
    for batch in data_of(corpus).test_batches(corpus.cuts):
        with torch.no_grad(), use_precision(loaded.model, 2):
            log_probs, lens = loaded.model(batch.inputs, batch.input_lens)
        targets = [torch.tensor(TOKENIZER.encode(text)) for text in batch.texts]
        args = torch.cat(targets), lens, torch.tensor([len(t) for t in targets])
        total += float(nn.functional.ctc_loss(log_probs.transpose(0, 1), *args, reduction="sum"))
        frames += int(lens.sum())
    assert found.before == pytest.approx(total, rel=1e-5) and found.frames == frames


def test_it_is_the_same_every_time(corpus: Corpus) -> None:
    (first, found), (second, again) = (adapted(recognizer_of(load()), corpus, corpus.cuts) for _ in range(2))
    assert found == again
    assert all(torch.equal(a, b) for a, b in zip(first.vectors.layers, second.vectors.layers, strict=True))


@both
def test_speakers_are_adapted_as_if_alone(encoder: EncoderConfig, corpus: Corpus) -> None:
    """Whoever else is in the set, and however much fits into a batch."""
    recognizer = recognizer_of(load(encoder))
    together, found = adapted(recognizer, corpus, corpus.cuts)
    tight, _ = adapted(recognizer, corpus, corpus.cuts, max_duration=1.0)
    anna = corpus.cuts.filter(lambda cut: cut.supervisions[0].speaker == "anna")
    alone, own = adapted(recognizer, corpus, anna)
    ids = [cut.id for cut in anna]
    assert len(ids) == 3 and own.speakers == 1 and own.utterances == 3
    for other in (alone, tight):
        for a, b in zip(together.vectors.of(ids), other.vectors.of(ids), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    assert 0 < own.before < found.before


@both
def test_a_step_goes_down_the_gradient_by_the_rate(encoder: EncoderConfig, corpus: Corpus) -> None:
    loaded = load(encoder)
    recognizer = recognizer_of(loaded, 32)
    cuts = corpus.cuts.subset(first=1)
    adapter, _ = adapted(recognizer, corpus, cuts, lr=0.02, epochs=1)
    batch = data_of(corpus).make_batch(cuts)
    zeros = [torch.zeros(1, size, requires_grad=True) for _, size in hidden_layers(loaded.model)]
    with use_precision(loaded.model, 32), scaled_units(loaded.model, zeros):
        log_probs, lens = loaded.model(batch.inputs, batch.input_lens)
    loss = ctc_loss(log_probs, lens, [TOKENIZER.encode(text) for text in batch.texts])
    gradient = torch.cat(torch.autograd.grad(loss, zeros), dim=1)
    step = torch.cat(adapter.vectors.layers, dim=1)
    torch.testing.assert_close(step, -0.02 * gradient / gradient.square().mean().sqrt(), rtol=1e-3, atol=1e-6)


def test_a_packed_model_is_adapted_as_its_checkpoint(corpus: Corpus, tmp_path: Path) -> None:
    loaded = load()
    with use_precision(loaded.model, 1):
        pack_model(loaded, tmp_path / "m.packed")
    packed = load_packed(tmp_path / "m.packed")
    before = model_digest(packed)
    results = [adapted(recognizer_of(*args), corpus, corpus.cuts) for args in ((loaded, 1), (packed, None))]
    (first, found), (second, from_packed) = results
    assert found == from_packed and model_digest(packed) == before
    assert all(torch.equal(a, b) for a, b in zip(first.vectors.layers, second.vectors.layers, strict=True))


def test_what_cannot_be_adapted_on_is_counted(corpus: Corpus) -> None:
    hypotheses = {**spoken(corpus.cuts), "c00": [], "c01": ["YES"] * 20, "c02": ["É"]}
    del hypotheses["c03"]  # could not be decoded
    recognizer = replace(recognizer_of(load()), chunking=ChunkConfig(chunk_seconds=0.85, chunk_overlap=0.1))
    targets, left_out = targets_of(recognizer, corpus.cuts, hypotheses)
    assert left_out == {"empty": 1, "too-short": 1, "unknown-characters": 1, "longer than a chunk": 1}
    assert sorted(targets) == ["c04", "c05", "c06", "c08"] and targets["c04"] == TOKENIZER.encode("NO")


def test_of_several_pronunciations_the_first_one(corpus: Corpus) -> None:
    phones = {"<blk>": 0, "a": 1, "b": 2}
    loaded = replace(load(), tokenizer=LexiconTokenizer(phones, [("YES", ("a", "b")), ("YES", ("b",)), ("NO", ("b",))]))
    targets, left_out = targets_of(recognizer_of(loaded), corpus.cuts, spoken(corpus.cuts))
    assert targets == {f"c{n:02}": [1, 2] if n % 3 == 0 else [2] for n in range(9) if n % 3 < 2}
    assert left_out == {"not-in-lexicon": 3}


def test_rounds_hold_no_speaker_twice(corpus: Corpus) -> None:
    cuts = list(corpus.cuts)
    speakers = [cuts[:5], cuts[5:7], cuts[7:8], cuts[8:]]
    owner = {cut.id: n for n, own in enumerate(speakers) for cut in own}
    for limit in (0.1, 1.5, 100.0):
        found = [list(batch) for batch in rounds(speakers, limit)]
        order = [cut.id for batch in found for cut in batch]
        assert sorted(order) == sorted(owner)
        for batch in found:
            assert len({owner[cut.id] for cut in batch}) == len(batch)
            assert len(batch) == 1 or len(batch) * max(cut.duration for cut in batch) <= limit
        assert [name for name in order if owner[name] == 0] == [cut.id for cut in cuts[:5]]
    assert [len(batch) for batch in rounds(speakers, 100.0)] == [4, 2, 1, 1, 1]
    assert list(rounds([], 1.0)) == []


def test_parts_of_a_set_add_up() -> None:
    whole = Adaptation(2, 5, {"empty": 1}, 4.0, 2.0, 10) + Adaptation(1, 1, {"empty": 2, "too-short": 1}, 6.0, 3.0, 10)
    assert whole == Adaptation(3, 6, {"empty": 3, "too-short": 1}, 10.0, 5.0, 20)
    assert str(whole) == (
        "LHUC: 3 speakers by 6 hypotheses (left out: 3 empty, 1 too-short), "
        "their loss per frame 0.5000 before, 0.2500 after"
    )
    assert "0.0000 before" in str(Adaptation(0, 0, {}, 0.0, 0.0, 0))


# --- the second pass ----------------------------------------------------------------------------------------------


def test_every_utterance_is_decoded_by_its_speakers_vectors(corpus: Corpus) -> None:
    recognizer, data = recognizer_of(load()), data_of(corpus)
    first = decode_set(recognizer, data.test_batches(corpus.cuts), 0.01)
    steps: list[int] = []
    second = second_pass(recognizer, data, corpus.cuts, first, LhucConfig(2, 1.0), {}, steps.append)
    assert sum(steps) == (2 + 3) * 9
    assert recognizer.vectors is None
    hypotheses = {name: words for name, _, words in first.found[KEY]}
    adapter = Adapter.of(recognizer, corpus.cuts, hypotheses, 1.0)
    adapter.adapt(data, corpus.cuts, 2)
    found = {name: words for name, _, words in second.found[KEY]}
    assert found.keys() == hypotheses.keys() and found != hypotheses
    for cut in corpus.cuts:
        batch = data.make_batch(CutSet.from_cuts([cut]))
        with recognizer.precision(), adapter.vectors.adapted([cut.id]):
            [[best]] = recognizer.searches[KEY].nbest(recognizer.run(batch.inputs, batch.input_lens))
        assert found[cut.id] == list(best.words)
    times = first.timing.search[KEY] + first.timing.network, second.timing.search[KEY]
    assert second.timing.audio == pytest.approx(first.timing.audio) and times[1] > times[0] > 0
    assert second.real_time_factor(KEY) > first.real_time_factor(KEY)


def test_long_audio_is_decoded_by_its_speakers_vectors(corpus: Corpus) -> None:
    """In chunks, of which a batch holds one; it is not adapted on, but others of the same speaker are."""
    recognizer, data = recognizer_of(load()), data_of(corpus)
    recognizer = replace(recognizer, chunking=ChunkConfig(chunk_seconds=0.65, chunk_overlap=0.1))
    first = decode_set(recognizer, data.test_batches(corpus.cuts), 0.01)
    second = second_pass(recognizer, data, corpus.cuts, first, LhucConfig(2, 1.0), {})
    assert second.adaptations[KEY].left_out["longer than a chunk"] == 6
    changed = {a[0] for a, b in zip(sorted(first.found[KEY]), sorted(second.found[KEY]), strict=True) if a != b}
    assert changed & {cut.id for cut in corpus.cuts if cut.duration > 0.65}


# --- decode.py ----------------------------------------------------------------------------------------------------


@pytest.fixture
def exp_dir(tmp_path: Path) -> Path:
    return save(load(), tmp_path / "exp")


def save(loaded: LoadedModel, folder: Path) -> Path:
    meta = {"model": loaded.model_config.to_dict(), "quant": loaded.quant_config.to_dict(), "update": 1}
    meta |= {"tokenizer": describe_tokenizer(TOKENIZER), "features": FEATURES.to_dict(), "average_period": 1}
    save_checkpoint(folder / "epoch-4.pt", Checkpoint(loaded.model.state_dict(), meta))
    return folder


def run(corpus: Corpus, *flags: str | Path, sets: Mapping[str, CutSet] | None = None) -> dict:
    where = ["--manifest-dir", str(corpus.manifest_dir), "--quiet"]
    return decode(lambda: sets or {"test": corpus.cuts}, *where, *map(str, flags))


def texts(folder: Path, pattern: str = "*.txt") -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted((folder / KEY[0]).glob(pattern))}


def test_files_of_both_passes(exp_dir: Path, corpus: Corpus, capsys: pytest.CaptureFixture[str]) -> None:
    run(corpus, "--exp-dir", exp_dir, "--precision", "2", "1")
    plain = texts(exp_dir)
    for path in (exp_dir / KEY[0]).iterdir():
        path.unlink()
    capsys.readouterr()
    results = run(corpus, "--exp-dir", exp_dir, "--precision", "2", "1", "--lhuc-epochs", "2", "--lhuc-lr", "1")
    labels = [f"epoch-4-avg-1-precision-{bits}{end}" for bits in "21" for end in ("", "-lhuc")]
    assert [key[3] for key in results] == labels
    found = texts(exp_dir)
    assert {name: text for name, text in found.items() if "lhuc" not in name} == plain
    assert {name.replace("-lhuc", "") for name in found if "lhuc" in name} == plain.keys()
    assert {name for name in found if "lhuc" in name} >= {
        f"{kind}-test-{labels[1]}.txt" for kind in ("recogs", "errs", "wer-summary", "speakers")
    }
    assert found[f"recogs-test-{labels[1]}.txt"] != found[f"recogs-test-{labels[0]}.txt"]
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if "LHUC: " in line]
    assert len(lines) == 2 and all("5 speakers by 9 hypotheses" in line and " after" in line for line in lines)
    assert out.count("%WER") == 4 and f"[test, {KEY[0]}, {labels[1]}] %WER" in out


def test_processes_share_speakers(exp_dir: Path, corpus: Corpus, capsys: pytest.CaptureFixture[str]) -> None:
    """The same words, and one line for all, with more processes than some sets have speakers."""
    sets = {"test": corpus.cuts, "one": corpus.cuts.subset(first=1)}
    flags = ["--lhuc-epochs", "2", "--lhuc-lr", "1"]
    found, screens = [], []
    for jobs in ("1", "2"):
        run(corpus, "--exp-dir", exp_dir, *flags, "-j", jobs, sets=sets)
        found.append(texts(exp_dir, "recogs-*"))
        screens.append([line for line in capsys.readouterr().out.splitlines() if "LHUC: " in line])
        for path in (exp_dir / KEY[0]).iterdir():
            path.unlink()
    assert found[0] == found[1] and len(found[0]) == 4
    assert screens[0] == screens[1] and len(screens[0]) == 2


def test_what_is_finished_is_taken_over(
    exp_dir: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    passes: list[bool] = []
    original = decoding.run_task

    def counted(config, task, *rest) -> SetOutcome:
        passes.append(task.first is not None)
        return original(config, task, *rest)

    monkeypatch.setattr(decoding, "run_task", counted)

    def new_passes(*flags: str) -> list[bool]:
        passes.clear()
        run(corpus, "--exp-dir", exp_dir, *flags)
        return list(passes)

    lhuc = ["--lhuc-epochs", "2", "--lhuc-lr", "1"]
    assert new_passes() == [False]
    assert new_passes(*lhuc) == [True]  # on the hypotheses of the earlier call
    first = texts(exp_dir, "recogs-*lhuc*")
    capsys.readouterr()
    assert new_passes(*lhuc) == []
    assert capsys.readouterr().out.count("of an earlier call") == 2
    assert new_passes(*lhuc[:3], "0.5") == [True] and new_passes() == []
    for path in (exp_dir / KEY[0]).iterdir():
        path.unlink()
    assert new_passes(*lhuc) == [False, True]
    assert texts(exp_dir, "recogs-*lhuc*") == first


def test_from_a_packed_file(exp_dir: Path, corpus: Corpus, tmp_path: Path) -> None:
    packed = tmp_path / "models/one.safetensors"
    export(lambda: None, "--exp-dir", str(exp_dir), "--precision", "1", "--output", str(packed))
    lhuc = ["--lhuc-epochs", "2", "--lhuc-lr", "1"]
    run(corpus, "--packed", packed, *lhuc)
    run(corpus, "--exp-dir", exp_dir, "--precision", "1", *lhuc)
    [from_packed] = texts(packed.parent, "recogs-test-packed-one-lhuc.txt").values()
    [from_model] = texts(exp_dir, "recogs-test-*-precision-1-lhuc.txt").values()
    assert from_packed == from_model


def test_utterances_that_cannot_be_read(exp_dir: Path, corpus: Corpus, capsys: pytest.CaptureFixture[str]) -> None:
    cuts = CutSet.from_cuts(cut if cut.id != "c00" else broken(cut) for cut in corpus.cuts)
    with pytest.raises(UserError, match="1 utterances could not be decoded"):
        run(corpus, "--exp-dir", exp_dir, "--lhuc-epochs", "1", sets={"test": cuts})
    printed = capsys.readouterr()
    assert "5 speakers by 8 hypotheses" in printed.out
    assert printed.out.count("1 utterances could not be decoded and are not counted") == 2
    assert printed.err.count("error: ") == 1 and not list(exp_dir.glob("*/finished-*"))


def broken(cut):
    from lhotse.utils import fastcopy

    return fastcopy(cut, features=fastcopy(cut.features, storage_key="nowhere.npy"))


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--lhuc-epochs", "-1"], "--lhuc-epochs must not be negative, it is -1"),
        (["--lhuc-epochs", "1", "--lhuc-lr", "0"], "--lhuc-lr must be positive, it is 0.0"),
        (["--lhuc-epochs", "1", "--lhuc-lr", "-2"], "--lhuc-lr must be positive, it is -2.0"),
        (["--lhuc-epochs", "1", "--lhuc-lr", "nan"], "--lhuc-lr must be a finite number, not nan"),
        (["--lhuc-epochs", "1", "--lhuc-lr", "inf"], "--lhuc-lr must be a finite number, not inf"),
        (
            ["--lhuc-epochs", "1", "--wav", "a.wav"],
            "--lhuc-epochs adapts to the speakers of test sets: use 0 with audio files",
        ),
    ],
)
def test_refused_flags(flags: list[str], line: str, exp_dir: Path, corpus: Corpus) -> None:
    with pytest.raises(UserError) as caught:
        run(corpus, "--exp-dir", exp_dir, *flags)
    assert str(caught.value) == line


@pytest.mark.parametrize("ctc_head", [False, True])
def test_transducers_need_ctc(ctc_head: bool, corpus: Corpus, tmp_path: Path) -> None:
    config = TransducerConfig(TDNNF, TOKENIZER.vocab_size, decoder_dim=8, joiner_dim=8, ctc_head=ctc_head)
    exp = save(load(config=config), tmp_path / "exp")
    flags = ["--exp-dir", exp, "--decoding-method", "greedy_search", "--lhuc-epochs", "1"]
    if ctc_head:
        assert len(run(corpus, *flags)) == 2
        return
    with pytest.raises(UserError) as caught:
        run(corpus, *flags)
    assert str(caught.value) == (
        "--lhuc-epochs needs CTC, which this transducer model lacks: train it with --objective ctc-rnnt, or use 0"
    )
    assert not list(exp.glob("*/*"))


def test_an_encoder_without_hidden_layers(exp_dir: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    from lowbit_k2.models.conformer import ConformerEncoder

    monkeypatch.delattr(ConformerEncoder, "hidden_layers")
    with pytest.raises(UserError) as caught:
        run(corpus, "--exp-dir", exp_dir, "--lhuc-epochs", "1")
    assert str(caught.value) == "--lhuc-epochs finds no hidden_layers in the encoder of this ctc model: use 0"


def test_too_little_memory(exp_dir: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object) -> Sequence[torch.Tensor]:
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(torch.autograd, "grad", fails)
    with pytest.raises(UserError, match="too little memory to adapt to the speakers: lower max_duration"):
        run(corpus, "--exp-dir", exp_dir, "--lhuc-epochs", "1")
