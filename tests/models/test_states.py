"""SUPERB's network on hidden states: written out, and padding that changes nothing."""

from __future__ import annotations

import pytest
import torch

from lowbit_k2.core.models import CtcConfig, check_shapes
from lowbit_k2.core.states import StatesConfig
from lowbit_k2.errors import UserError
from lowbit_k2.models import make_model
from lowbit_k2.models.states import StatesEncoder

SMALL = StatesConfig(num_features=12, num_states=3, projection_dim=5, d_model=6, num_layers=2, dropout=0.0)


@torch.no_grad()
def test_the_weighted_sum_and_the_ways_back() -> None:
    torch.manual_seed(0)
    encoder = StatesEncoder(SMALL).eval()
    encoder.state_weights.copy_(torch.tensor([0.5, -1.0, 2.0]))
    lens, x = torch.tensor([9, 4]), torch.randn(2, 9, 12)
    out, out_lens = encoder(x, lens)
    assert torch.equal(out_lens, lens) and out.shape == (2, 9, 6)
    shares = torch.tensor([0.5, -1.0, 2.0]).exp()
    shares = shares / shares.sum()
    for n, t in enumerate(lens.tolist()):
        alone = x[n, :t]
        y = sum(share * alone[:, 4 * i : 4 * i + 4] for i, share in enumerate(shares))
        y = y @ encoder.projection.weight.T + encoder.projection.bias
        for lstm in encoder.layers:
            y = torch.nn.LSTM.forward(lstm, y[None])[0][0]
        torch.testing.assert_close(out[n, :t], y)


def test_settings() -> None:
    config = CtcConfig(SMALL, 8)
    check_shapes(config, {name: tuple(t.shape) for name, t in make_model(config).state_dict().items()})
    named = CtcConfig.preset("superb-tiny", vocab_size=30, num_features=1152)
    assert named.encoder.kind == "states" and named.encoder.state_dim == 192 and named.output_lens(7) == 7
    with pytest.raises(UserError, match="num_states 5 does not divide the 12 features"):
        StatesConfig(num_features=12, num_states=5)
    with pytest.raises(UserError, match="d_model 7 must be even"):
        StatesConfig(d_model=7)
