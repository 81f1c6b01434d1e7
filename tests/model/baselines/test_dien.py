import torch

from laser.model.baselines.dien import DIEN


def test_equals_the_published_equations(inputs, rows_of):
    torch.manual_seed(0)
    dien = DIEN(16, 12, newest=9)
    for parameter in dien.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    (got_BD,) = dien(inputs).vectors
    for b in range(len(got_BD)):
        x_LD, t_D = rows_of(inputs, b, inputs.x_TD)[-9:], inputs.target_BD[b]
        h_D, states = torch.zeros(16), []
        for x_D in x_LD:
            h_D = step(dien.interest.extraction, x_D, h_D, 1.0)
            states.append(h_D)
        g_D = torch.zeros(16)
        if states:
            weights = torch.stack([state @ (dien.interest.attention.weight @ t_D) for state in states]).softmax(0)
            for state, weight in zip(states, weights):
                g_D = step(dien.interest.evolution, state, g_D, weight)
        torch.testing.assert_close(got_BD[b], g_D, rtol=1e-4, atol=1e-5)


def step(cell, x_D, h_D, attention):
    """u, r and the candidate, each with its own matrices, as published."""
    w, bias = cell.input.weight.split(16), cell.input.bias.split(16)
    gates = cell.gates.weight.split(16)
    u_D = torch.sigmoid(w[0] @ x_D + bias[0] + gates[0] @ h_D) * attention
    r_D = torch.sigmoid(w[1] @ x_D + bias[1] + gates[1] @ h_D)
    candidate_D = torch.tanh(w[2] @ x_D + bias[2] + cell.candidate.weight @ (r_D * h_D))
    return (1 - u_D) * h_D + u_D * candidate_D
