"""Low-bit weights for any PyTorch model: quantizers with learned scales, precisions switched at run time.

    from lowbit_k2.quant import QuantConfig, quantize_model, use_precision

    report = quantize_model(model, QuantConfig.preset("paper", precisions=(2, 1)))
    with use_precision(model, 1):
        loss(model(batch)).backward()

Reading order: projection (codes), scales (s), fake_quant (gradients), config and presets, quantizer, walker, switching,
report, export, statistics, schedule. `docs/adding-a-quantizer.md` says where a new one goes.
"""

from lowbit_k2.core.grids import PRECISIONS, max_code
from lowbit_k2.quant.config import QuantConfig, TensorScheme
from lowbit_k2.quant.export import ExportTensor, export_tensors, plain_state_dict, rederive_scales
from lowbit_k2.quant.fake_quant import fake_quantize, round_to_half
from lowbit_k2.quant.report import QuantReport, ReportRow
from lowbit_k2.quant.schedule import draw_sp, generator_seed, parse_precision, sp_probabilities
from lowbit_k2.quant.statistics import alpha_parameters, quant_statistics
from lowbit_k2.quant.switching import current_assignment, layer_assignment, layer_names, use_precision
from lowbit_k2.quant.walker import quantize_model

__all__ = [
    "PRECISIONS",
    "ExportTensor",
    "QuantConfig",
    "QuantReport",
    "ReportRow",
    "TensorScheme",
    "alpha_parameters",
    "current_assignment",
    "draw_sp",
    "export_tensors",
    "fake_quantize",
    "generator_seed",
    "layer_assignment",
    "layer_names",
    "max_code",
    "parse_precision",
    "plain_state_dict",
    "quant_statistics",
    "quantize_model",
    "rederive_scales",
    "round_to_half",
    "sp_probabilities",
    "use_precision",
]
