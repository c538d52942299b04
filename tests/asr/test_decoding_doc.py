"""The Python of docs/decoding.md runs: n-best lists of a packed model, and a search of one's own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from lowbit_k2.asr.recognizer import METHODS, DecodeConfig, make_recognizers
from lowbit_k2.data.features import FeatureConfig
from lowbit_k2.data.tokenizer import SentencePieceTokenizer
from lowbit_k2.export import pack_model
from lowbit_k2.recipe.train_bpe import train_sentencepiece
from tests.egs.scripts import ROOT
from tests.export.toy import toy_model


def test_the_examples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nbest, search = re.findall(r"```python\n(.*?)```", (ROOT / "docs/decoding.md").read_text(), re.DOTALL)
    toy = toy_model()
    toy.features = FeatureConfig(num_mel_bins=23).to_dict()
    toy.tokenizer = SentencePieceTokenizer(train_sentencepiece(["ABC A"], "char", 0))
    assert toy.tokenizer.vocab_size == toy.model_config.vocab_size
    path = tmp_path / "toy.safetensors"
    pack_model(toy, path)
    torch.manual_seed(0)
    names = {"PACKED": path, "features": torch.randn(1, 80, 23), "feature_lens": torch.tensor([80])}
    exec(nbest, dict(names))
    [line] = capsys.readouterr().out.splitlines()
    words, acoustic, lm, total = line.rsplit(" ", 3)
    assert words.startswith("(") and float(acoustic) == float(total) < 0 and float(lm) == 0
    exec(search, dict(names))
    try:
        [recognizer] = make_recognizers(DecodeConfig(packed=path, decoding_method="ctc-shy-search"))
        [method] = recognizer.searches.values()
        [[best]] = method.nbest(recognizer.run(names["features"], names["feature_lens"]))
        assert best.total < 0
    finally:
        METHODS.pop("ctc-shy-search")
