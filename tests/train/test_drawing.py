"""Which scheme a run has, and settings that exclude each other."""

from __future__ import annotations

import pytest
from torch import nn

from lowbit_k2.core.config import ConfigError
from lowbit_k2.losses.co_training import CoTrainingConfig
from lowbit_k2.quant import QuantConfig, TensorScheme, quantize_model
from lowbit_k2.quant.admm import with_fitted_steps
from lowbit_k2.train.admm import AdmmConfig, AdmmWeights
from lowbit_k2.train.cosine import CosineConfig, PulledWeights
from lowbit_k2.train.drawing import DrawingConfig, drawn_weights
from lowbit_k2.train.gq import GeneralizedWeights, GqConfig

PULL, SNAP, ADMM = CosineConfig(cosine_lambda=1e-3), CosineConfig(snap_every=2), AdmmConfig(every=2)


def drawn(config: DrawingConfig):
    model = nn.Linear(3, 3)
    quant = QuantConfig("test", {"linear": TensorScheme((2,), quantizer=config.quantizer)})
    quantize_model(model, with_fitted_steps(quant) if config.admm.every else quant)
    return drawn_weights(model, config, CoTrainingConfig(precisions=("2",)))


def test_one_scheme_by_settings() -> None:
    assert drawn(DrawingConfig()) is None and drawn(DrawingConfig("codebook")) is None
    assert drawn(DrawingConfig("gq", gq=GqConfig(gq_every=0))) is None
    assert isinstance(drawn(DrawingConfig(admm=ADMM)), AdmmWeights)
    assert isinstance(drawn(DrawingConfig("gq")), GeneralizedWeights)
    assert isinstance(drawn(DrawingConfig(cosine=PULL)), PulledWeights)
    assert isinstance(drawn(DrawingConfig("codebook", cosine=SNAP)), PulledWeights)
    assert DrawingConfig.from_dict(DrawingConfig("gq", cosine=CosineConfig()).to_dict()) == DrawingConfig("gq")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: DrawingConfig("gq", admm=ADMM), "quantizer gq: ADMM needs an even grid: take linear"),
        (lambda: DrawingConfig(admm=ADMM, cosine=PULL), "cosine_lambda and ADMM exclude each other"),
        (lambda: DrawingConfig("gq", cosine=PULL), "cosine_lambda does not go with quantizer gq"),
        (lambda: DrawingConfig("linear", cosine=SNAP), "snap_every needs tables, which quantizer linear has not"),
    ],
)
def test_settings_that_exclude_each_other(make, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("config", [DrawingConfig(admm=ADMM), DrawingConfig(cosine=PULL)])
def test_schemes_that_need_one_precision(config: DrawingConfig) -> None:
    who = "ADMM" if config.admm.every else "a cosine"
    for precisions in (("4", "2", "sp"), ("32",)):
        with pytest.raises(ConfigError, match=f"precisions {','.join(precisions)}: {who} .*name one"):
            config.check_precisions(CoTrainingConfig(precisions=precisions))
    DrawingConfig("gq").check_precisions(CoTrainingConfig(precisions=("4", "2", "sp")))
