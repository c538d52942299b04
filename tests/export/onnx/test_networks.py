"""Networks for ONNX: the same numbers as the model gives, their own normalisation, and models that are refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lowbit_k2.core.config import ConfigError
from lowbit_k2.core.encoders import LstmConfig
from lowbit_k2.core.features import NORMALIZATIONS, FeatureConfig
from lowbit_k2.data.features import normalize_features
from lowbit_k2.export.onnx import check_model, feature_notes, networks_of
from lowbit_k2.export.onnx.networks import Frontend
from lowbit_k2.models import CtcConfig, TransducerConfig, make_model
from tests.export.toy import CONFIG, ENCODER, toy_batch

TRANSDUCER = TransducerConfig(ENCODER, vocab_size=7, decoder_dim=12, joiner_dim=10, context_size=3, ctc_head=True)
PLAIN = FeatureConfig(num_mel_bins=23, normalize="none")


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_a_batch_is_normalised_as_its_utterances_alone(normalize: str) -> None:
    x, lens = toy_batch()
    x = 3 * x - 7  # far from the mean that it gets
    x[1, 10:12] = x[1, 10]
    found = Frontend(normalize, min_frames=7)(x.clone(), lens)
    assert found.shape == (3, 61 + 6, 23)
    for n, length in enumerate(lens.tolist()):
        expected = normalize_features(x[n, :length].double(), FeatureConfig(normalize=normalize))
        torch.testing.assert_close(found[n, :length].double(), expected, rtol=1e-5, atol=1e-5)
        assert not found[n, length:].any()


def test_what_pads_a_batch_is_never_read() -> None:
    x, lens = toy_batch()
    other = x.clone()
    other[1, 40:] = float("nan")
    front = Frontend("utterance-std", min_frames=7)
    assert torch.equal(front(x, lens), front(other, lens))


@torch.no_grad()
def test_the_networks_of_a_transducer_add_up_to_it() -> None:
    torch.manual_seed(0)
    model = make_model(TRANSDUCER, for_training=False).eval()
    networks = {network.name: network for network in networks_of(model, TRANSDUCER, PLAIN.to_dict())}
    assert set(networks) == {"model", "encoder", "decoder", "joiner"}
    x, lens = toy_batch()
    tokens = torch.tensor([[0, 0, 3], [1, 2, 5], [4, 4, 4]])
    encoder_out, found_lens = networks["encoder"].module(x, lens)
    decoder_out = networks["decoder"].module(tokens)
    logits = networks["joiner"].module(encoder_out[:, 2], decoder_out)

    output = model.network_output(x, lens)
    expected = model.joiner(output["encoder_out"][:, 2], model.decoder(tokens, pad=False)[:, 0])
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    log_probs, ctc_lens = networks["model"].module(x, lens)
    for n, length in enumerate(output["lens"].tolist()):
        torch.testing.assert_close(log_probs[n, :length], output["log_probs"][n, :length], rtol=1e-4, atol=1e-5)
    assert torch.equal(found_lens, output["lens"]) and torch.equal(ctc_lens, output["lens"])


def test_what_sherpa_onnx_reads() -> None:
    model = make_model(TRANSDUCER, for_training=False)
    found = {network.name: network.metadata for network in networks_of(model, TRANSDUCER, PLAIN.to_dict())}
    assert found["model"]["model_type"] == "zipformer2_ctc" and found["encoder"]["model_type"] == "conformer"
    assert found["decoder"] == {"context_size": "3", "vocab_size": "7"} and found["joiner"] == {"joiner_dim": "10"}
    assert found["encoder"]["subsampling_factor"] == "4" and found["encoder"]["normalize_type"] == "none"
    assert feature_notes(FeatureConfig())["feature_high_freq"] == "-400"


def test_a_model_without_ctc_head_or_transducer_lacks_their_files() -> None:
    for config, names in ((CONFIG, ["model"]), (replace(TRANSDUCER, ctc_head=False), ["encoder", "decoder", "joiner"])):
        model = make_model(config, for_training=False)
        assert [network.name for network in networks_of(model, config, PLAIN.to_dict())] == names


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (replace(TRANSDUCER, decoder_kind="lstm"), "stateless prediction network, not --decoder-kind lstm"),
        (
            CtcConfig(LstmConfig(), vocab_size=7),
            "Conformers with CTC or a transducer, not a ctc model with encoder lstm",
        ),
        (replace(CONFIG, topology="chain"), "no search for the topology chain"),
    ],
)
def test_models_that_sherpa_onnx_does_not_take(config: CtcConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        check_model(config)
    assert caught.value.as_flag().startswith("--format onnx") and "\n" not in str(caught.value)
