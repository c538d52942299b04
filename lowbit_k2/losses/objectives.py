"""What can be trained, by name: a kind of model with its criterion. `register_objective` adds one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowbit_k2.core.config import Config
from lowbit_k2.core.hubert import HubertConfig, MaskedHubertConfig
from lowbit_k2.core.lm import LanguageModelConfig
from lowbit_k2.core.models import CtcConfig, ModelConfig, TransducerConfig
from lowbit_k2.errors import UserError
from lowbit_k2.losses.ctc import CtcCriterion
from lowbit_k2.losses.lfmmi import LfMmiConfig, LfMmiCriterion
from lowbit_k2.losses.lm import LmCriterion
from lowbit_k2.losses.masked_prediction import MaskedPredictionConfig, MaskedPredictionCriterion
from lowbit_k2.losses.output import Criterion, GraphCriterion
from lowbit_k2.losses.representation import RepresentationConfig, RepresentationCriterion
from lowbit_k2.losses.rnnt import RnntConfig, RnntCriterion


@dataclass(frozen=True)
class NoSettings(Config):
    """Of a criterion that has nothing to set."""


@dataclass(frozen=True)
class Objective:
    """A criterion, and the kind of model that it trains.

    Attributes:
      model: settings of the model.
      make: settings of the criterion -> the criterion.
      settings: their class, whose fields are flags of train.py.
      model_fields: settings -> fields of the model that they decide.
    """

    model: type[ModelConfig]
    make: Callable[[Any], Criterion]
    settings: type[Config] = NoSettings
    model_fields: Callable[[Any], Mapping[str, Any]] = lambda settings: {}


OBJECTIVES: dict[str, Objective] = {
    "ctc": Objective(CtcConfig, lambda settings: CtcCriterion()),
    "lfmmi": Objective(
        CtcConfig, LfMmiCriterion, LfMmiConfig, lambda s: {"topology": s.topology, "xent_head": s.xent_regularize > 0}
    ),
    "rnnt": Objective(TransducerConfig, RnntCriterion, RnntConfig),
    "ctc-rnnt": Objective(TransducerConfig, RnntCriterion, RnntConfig, lambda s: {"ctc_head": True}),
    "lm": Objective(LanguageModelConfig, lambda settings: LmCriterion()),
    "masked-prediction": Objective(MaskedHubertConfig, MaskedPredictionCriterion, MaskedPredictionConfig),
    "distillation": Objective(HubertConfig, RepresentationCriterion, RepresentationConfig),
}


def speech_objectives() -> dict[str, Objective]:
    """Those of recognisers."""
    return objectives_of((LanguageModelConfig, HubertConfig), others=True)


def objectives_of(models: tuple[type[ModelConfig], ...], others: bool = False) -> dict[str, Objective]:
    """Those that train such models, or `others`."""
    return {name: o for name, o in OBJECTIVES.items() if issubclass(o.model, models) != others}


def register_objective(name: str, objective: Objective) -> None:
    """Make an objective known to `train.py --objective`."""
    OBJECTIVES[name] = objective


def make_criterion(
    name: str, settings: Config | None = None, units: Any = None, lang_dir: Path | None = None
) -> Criterion:
    """The criterion of an objective.

    Args:
      units: the tokenizer, and lang_dir its folder, for a criterion that makes graphs of them (`load_units`). Without
        them it is as yet good for nothing but to be asked about itself.

    Raises:
      UserError: no such objective, k2 is missing where its loss needs it, or lang_dir lacks what the criterion reads.
    """
    if name not in OBJECTIVES:
        raise UserError(f"objective {name!r} is unknown: choose one of {', '.join(OBJECTIVES)}")
    objective = OBJECTIVES[name]
    criterion = objective.make(settings or objective.settings())
    if units is not None and isinstance(criterion, GraphCriterion):
        criterion.load_units(units, lang_dir)
    return criterion


def criterion_from(settings: Mapping[str, Any], units: Any, lang_dir: Path | None = None) -> Criterion:
    """The criterion that a checkpoint was trained with.

    Args:
      settings: of the run, as the checkpoint has them: by the name of its objective, among others.
      lang_dir: where a criterion reads its n-gram.

    Raises:
      UserError: the objective is none of this version, or lang_dir is missing or lacks something.
    """
    name = next((name for name in OBJECTIVES if name in settings), None)
    if name is None:
        raise UserError("the checkpoint does not say what it was trained for: train it again, or give its --plugin")
    return make_criterion(name, OBJECTIVES[name].settings.from_dict(settings[name]), units, lang_dir)


def encoder_of(criterion: Criterion, units: Any) -> Callable[[str], Any]:
    """Transcript -> what the criterion takes as its target: token ids, or what it makes of the text itself."""
    return criterion.encode if isinstance(criterion, GraphCriterion) else units.encode
