import math

import pytest
import torch

from laser.model.baselines.encoder import Inputs
from laser.model.baselines.sdim import SDIM


def test_equals_the_published_equation(inputs, rows_of):
    torch.manual_seed(0)
    sdim = SDIM(16, 12, signs=12, signs_per_signature=2)
    (got_BD,) = sdim(inputs).vectors
    matrix_SE = sdim.hash.projection_SD
    for b in range(len(got_BD)):
        x_LD, item_LE = rows_of(inputs, b, inputs.x_TD), rows_of(inputs, b, inputs.item_TE)
        target_S = matrix_SE @ inputs.item_BE[b] >= 0
        expected_D = torch.zeros(16)
        for g in range(6):
            signs = slice(2 * g, 2 * g + 2)
            matching = [
                x for x, item in zip(x_LD, item_LE) if torch.equal((matrix_SE @ item >= 0)[signs], target_S[signs])
            ]
            total_D = sum(matching) if matching else torch.zeros(16)
            expected_D = expected_D + (total_D / total_D.norm() if matching else total_D) / 6
        torch.testing.assert_close(got_BD[b], expected_D, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tau", [1, 3])
def test_expected_weight_falls_with_the_angle(schema, make_batch, tau):
    """One event per history: it is summed, with norm 1, in a share (1 - angle / pi)^tau of the signatures."""
    torch.manual_seed(0)
    angle_B = torch.tensor([0.0, math.pi / 4, math.pi / 2, math.pi])
    batch = make_batch(schema, [1] * 4, list(range(4)))
    item_TE = torch.stack([angle_B.cos(), angle_B.sin()], dim=1)
    x_TD = torch.tensor([[7.0, 0.0]] * 4)
    sdim = SDIM(2, 2, signs=6000 * tau, signs_per_signature=tau)
    (got_BD,) = sdim(Inputs(x_TD, x_TD, item_TE, torch.tensor([[1.0, 0.0]] * 4), batch)).vectors
    torch.testing.assert_close(got_BD[:, 0], (1 - angle_B / math.pi) ** tau, atol=0.02, rtol=0)


def test_signs_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="signs of SDIM is 48, not a multiple of signs_per_signature 5"):
        SDIM(16, 12, signs_per_signature=5)
