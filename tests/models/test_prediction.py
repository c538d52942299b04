"""The prediction networks: what they see, and that a search's steps give what training's pass gives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lowbit_k2.models.prediction import LstmDecoder, StatelessDecoder

TOKENS = torch.tensor([[0, 3, 1, 4, 1, 5], [0, 2, 2, 7, 8, 1]])  # the blank starts a sequence


@pytest.mark.parametrize("context_size", [1, 2, 3])
def test_a_stateless_network_sees_its_context_only(context_size: int) -> None:
    torch.manual_seed(0)
    decoder = StatelessDecoder(9, 8, context_size)
    tokens = TOKENS[:1]
    whole = decoder(tokens)
    assert whole.shape == (1, 6, 8)
    for i in range(6):
        history = ([0] * context_size + tokens[0].tolist())[: i + 1 + context_size][-context_size:]
        alone = decoder(torch.tensor([history]), pad=False)
        torch.testing.assert_close(alone[:, 0], whole[:, i])
    changed = tokens.clone()
    changed[0, 1] = 8
    same = (decoder(changed) == whole).all(-1)[0].tolist()
    assert same == [not 1 <= i < 1 + context_size for i in range(6)]


def test_an_lstm_sees_all_tokens_before() -> None:
    torch.manual_seed(0)
    decoder, plain = LstmDecoder(9, 8, 2), nn.LSTM(8, 8, 2, batch_first=True)
    plain.load_state_dict(decoder.lstm.state_dict())
    whole = decoder(TOKENS)
    torch.testing.assert_close(whole, plain(decoder.embedding(TOKENS))[0])
    changed = TOKENS[:1].clone()
    changed[0, 1] = 8
    assert (decoder(changed) == whole[:1]).all(-1)[0].tolist() == [True, False, False, False, False, False]


@pytest.mark.parametrize(
    "decoder", [StatelessDecoder(9, 8, 1), StatelessDecoder(9, 8, 3), LstmDecoder(9, 8, 1), LstmDecoder(9, 8, 3)]
)
@torch.no_grad()
def test_steps_give_what_the_whole_gives_whatever_rows_are_taken(decoder: nn.Module) -> None:
    whole = decoder(TOKENS)  # (N, U, D)
    state: Tensor = decoder.initial_state(3, "cpu")
    assert len(state) == 3
    rows = [0, 1, 0]  # one sequence twice, as in a beam
    for u in range(TOKENS.size(1)):
        out, state = decoder.step(TOKENS[rows, u], state)
        torch.testing.assert_close(out, whole[rows, u])
        rows = [rows[2], rows[0], rows[1]]
        state = state[[2, 0, 1]]
