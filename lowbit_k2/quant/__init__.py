"""Low-bit weights for any PyTorch model: quantizers with learned scales, precisions switched at run time.

    from lowbit_k2.quant import QuantConfig, quantize_model, use_precision

    report = quantize_model(model, QuantConfig.preset("paper", precisions=(2, 1)))
    with use_precision(model, 1):
        loss(model(batch)).backward()

Reading order: projection (codes), scales (s), fake_quant (gradients), rules, config and presets, quantizer, linear,
codebook, elastic, squashed, soft_assignment, general, product, learned_inputs, inputs, rnn, walker, allocation,
switching, report, export, parameters, statistics, schedule, admm, cosine.
`docs/own-model.md` takes a model of your own from float to packed file, `docs/adding-a-quantizer.md` says where a new
quantizer goes.
"""

from lowbit_k2.core.grids import PRECISIONS, max_code
from lowbit_k2.quant.allocation import Allocation
from lowbit_k2.quant.codebook import CodebookQuantizer
from lowbit_k2.quant.config import QuantConfig, TensorScheme
from lowbit_k2.quant.elastic import ElasticQuantizer
from lowbit_k2.quant.export import (
    ExportTensor,
    export_activations,
    export_tensors,
    plain_name,
    plain_state_dict,
    rederive_scales,
)
from lowbit_k2.quant.fake_quant import fake_quantize, round_to_half
from lowbit_k2.quant.general import GeneralQuantization, GeneralQuantizer
from lowbit_k2.quant.inputs import attach_input_quantizers, attach_learned_inputs
from lowbit_k2.quant.linear import LinearQuantizer
from lowbit_k2.quant.parameters import alpha_parameters, clamp_alphas, parameter_groups, quantizer_parameters
from lowbit_k2.quant.presets import ACTIVATION_PRESETS, PRESETS
from lowbit_k2.quant.product import MatrixProduct
from lowbit_k2.quant.quantizer import QUANTIZERS, WeightQuantizer, register_quantizer
from lowbit_k2.quant.report import QuantReport, ReportRow
from lowbit_k2.quant.rnn import GRU, LSTM, RNN, replace_rnns
from lowbit_k2.quant.rules import DEFAULT_RULES
from lowbit_k2.quant.scales import STATISTICS, register_statistic
from lowbit_k2.quant.schedule import draw_sp, generator_seed, sp_probabilities
from lowbit_k2.quant.squashed import SquashedQuantizer, squash_penalty
from lowbit_k2.quant.statistics import quant_statistics
from lowbit_k2.quant.switching import current_assignment, use_precision
from lowbit_k2.quant.walker import quantize_model

__all__ = [
    "DEFAULT_RULES",
    "GRU",
    "LSTM",
    "PRECISIONS",
    "ACTIVATION_PRESETS",
    "PRESETS",
    "QUANTIZERS",
    "RNN",
    "STATISTICS",
    "Allocation",
    "CodebookQuantizer",
    "ElasticQuantizer",
    "ExportTensor",
    "GeneralQuantization",
    "GeneralQuantizer",
    "LinearQuantizer",
    "MatrixProduct",
    "QuantConfig",
    "QuantReport",
    "ReportRow",
    "SquashedQuantizer",
    "TensorScheme",
    "WeightQuantizer",
    "alpha_parameters",
    "attach_input_quantizers",
    "attach_learned_inputs",
    "clamp_alphas",
    "current_assignment",
    "draw_sp",
    "export_activations",
    "export_tensors",
    "fake_quantize",
    "generator_seed",
    "max_code",
    "parameter_groups",
    "plain_name",
    "plain_state_dict",
    "quant_statistics",
    "quantize_model",
    "quantizer_parameters",
    "rederive_scales",
    "replace_rnns",
    "register_quantizer",
    "register_statistic",
    "round_to_half",
    "sp_probabilities",
    "squash_penalty",
    "use_precision",
]
