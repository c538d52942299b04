"""A small quantized recogniser that has learned a few real utterances by heart, in seconds and without k2.

It is trained on one alignment: the characters of an utterance lie evenly over its frames, and each frame is classified
as its character or as blank, with the characters before it as the context of a transducer.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowbit_k2.asr.model_io import describe_tokenizer
from lowbit_k2.core.features import FeatureConfig
from lowbit_k2.data.features import extract_wav, make_extractor
from lowbit_k2.data.tokenizer import SentencePieceTokenizer
from lowbit_k2.models import ConformerConfig, TransducerConfig, make_model
from lowbit_k2.quant import QuantConfig, parameter_groups, quantize_model, use_precision
from lowbit_k2.recipe.train_bpe import train_sentencepiece
from lowbit_k2.train.checkpoint import Checkpoint, save_checkpoint

ENCODER = ConformerConfig(
    num_features=80,
    d_model=48,
    num_layers=2,
    num_heads=4,
    ffn_dim=96,
    conv_kernel=7,
    subsampling_channels=8,
    dropout=0.0,
    ffn_dropout=0.0,
    attention_dropout=0.0,
    conv_norm="layer",
)
FEATURES = FeatureConfig()
BITS = 2
UPDATES = 80


@dataclass(frozen=True)
class Utterance:
    audio: Path
    text: str
    features: Tensor  # (T, F)


def read_an4(data_dir: Path, number: int) -> list[Utterance]:
    """The shortest utterances of AN4's test set with different texts, so that training on them is quick."""
    etc, wav = data_dir / "an4/etc", data_dir / "an4/wav"
    files = [wav / f"{line}.wav" for line in (etc / "an4_test.fileids").read_text().split()]
    texts = [line.rpartition("(")[0].strip() for line in (etc / "an4_test.transcription").read_text().splitlines()]
    longest_first = sorted(zip(texts, files, strict=True), key=lambda pair: pair[1].stat().st_size, reverse=True)
    shortest = list(dict(longest_first).items())[-number:]  # the last of each text is its shortest
    extractor = make_extractor(FEATURES)
    return [Utterance(file, text, extract_wav(file, FEATURES, extractor)) for text, file in shortest]


def learn(utterances: list[Utterance], path: Path) -> None:
    """Train a transducer with a CTC head at 2 bits, and write a checkpoint."""
    torch.manual_seed(0)
    tokenizer = SentencePieceTokenizer(train_sentencepiece([u.text for u in utterances], "char", 0))
    sizes = {"decoder_dim": 32, "joiner_dim": 40, "context_size": 2}
    config = TransducerConfig(ENCODER, vocab_size=tokenizer.vocab_size, ctc_head=True, **sizes)
    model = make_model(config)
    quant = QuantConfig.preset("lossless16", precisions=(BITS, 1))
    quantize_model(model, quant)
    optimizer = torch.optim.Adam(parameter_groups(model, weight_decay=0.0), lr=4e-3)
    inputs = nn.utils.rnn.pad_sequence([u.features for u in utterances], batch_first=True)  # (N, T, F)
    lens = torch.tensor([len(u.features) for u in utterances])
    tokens = [torch.tensor(tokenizer.encode(u.text)) for u in utterances]
    with use_precision(model, BITS):
        for _ in range(UPDATES):
            optimizer.zero_grad()
            loss = aligned_loss(model, config, inputs, lens, tokens)
            loss.backward()
            optimizer.step()
    meta = {
        "model": config.to_dict(),
        "quant": quant.to_dict(),
        "tokenizer": describe_tokenizer(tokenizer),
        "features": FEATURES.to_dict(),
    }
    save_checkpoint(path, Checkpoint(model.state_dict(), meta))


def aligned_loss(
    model: nn.Module, config: TransducerConfig, inputs: Tensor, lens: Tensor, tokens: list[Tensor]
) -> Tensor:
    """Cross-entropy of the alignments, by the joiner and by the CTC head."""
    output = model.network_output(inputs, lens)
    loss = inputs.new_zeros(())
    for n, (own, length) in enumerate(zip(tokens, output["lens"].tolist(), strict=True)):
        at = ((torch.arange(len(own)) + 0.5) * length / len(own)).long()  # the frame of each token
        targets = torch.zeros(length, dtype=torch.int64).index_put((at,), own)  # (T',)
        before = (torch.arange(length)[:, None] > at).sum(dim=1)  # (T',) tokens before each frame
        histories = F.pad(own, (config.context_size, 0)).unfold(0, config.context_size, 1)  # (U + 1, context)
        contexts = model.decoder(histories, pad=False)[:, 0][before]  # (T', D)
        loss = loss + F.cross_entropy(model.joiner(output["encoder_out"][n, :length], contexts), targets)
        loss = loss + F.nll_loss(output["log_probs"][n, :length], targets)
    return loss / len(tokens)
