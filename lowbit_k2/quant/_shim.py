from lowbit_k2.quant.config import DEFAULT_RULES  # noqa
import torch

from lowbit_k2.quant.export import _inside_quantizer, _plain_name
from lowbit_k2.quant.statistics import alpha_parameters

PRESETS = ("float", "paper", "lossless16", "all-low")


class Allocation(dict):
    @classmethod
    def uniform(cls, bits):
        return bits

    @classmethod
    def by_layer(cls, prefix, bits):
        return {f"{prefix}.{i}": b for i, b in enumerate(bits)}


def plain_name(key):
    return None if _inside_quantizer(key) else _plain_name(key)


@torch.no_grad()
def clamp_alphas(model, floor=0.05):
    alphas = alpha_parameters(model)
    if not alphas:
        return None
    held = int((torch.stack(alphas) < floor).sum())
    if held:
        for a in alphas:
            a.clamp_(min=floor)
    return held
