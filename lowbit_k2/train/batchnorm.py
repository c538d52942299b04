"""BatchNorm statistics for one precision.

In co-training every branch moves the same running statistics, so they fit no precision exactly. They can be taken
anew, on training data without labels, for the precision that is exported.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from lowbit_k2.errors import UserError
from lowbit_k2.models.masking import MaskedBatchNorm


@torch.no_grad()
def recalibrate(model: nn.Module, batches: Iterable) -> int:
    """Replace the running statistics by their plain mean over `batches`, under the precision now in force.

    Dropout stays off: only the BatchNorm modules go into train mode.

    Args:
      model: in eval mode, under `use_precision`; any kind with a `network_output`.
      batches: `Batch`es with inputs and input_lens, not augmented.

    Returns:
      The number of batches used; 0 where the model has no BatchNorm.

    Raises:
      UserError: there is no batch to take the statistics from.
    """
    norms = [m for m in model.modules() if isinstance(m, MaskedBatchNorm)]
    if not norms:
        return 0
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative mean
        norm.train()
    count = 0
    try:
        for batch in batches:
            model.network_output(batch.inputs, batch.input_lens)
            count += 1
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()
    if count == 0:
        raise UserError("BatchNorm cannot be recalibrated: the training cuts give no batch")
    return count
