import torch
from torch.nn.functional import prelu

from laser.model.baselines.din import DIN


def published(din, t_D, x_LD):
    """The equation as it is written, one event at a time, in float64."""
    out, scores = torch.zeros_like(t_D), []
    for x_D in x_LD:
        h = din.unit.first.double()(torch.cat([t_D, x_D, t_D - x_D, t_D * x_D]))
        first, second, last = din.unit.rest[0], din.unit.rest[2], din.unit.rest[3:]
        h = prelu(h, first.weight.double())
        h = prelu(din.unit.rest[1].double()(h), second.weight.double())
        scores.append(last.double()(h).squeeze())
    weights = torch.stack(scores).softmax(0) if din.softmax and scores else scores
    for weight, x_D in zip(weights, x_LD):
        out = out + weight * x_D
    return out


def check(inputs, rows_of, **options):
    torch.manual_seed(1)
    din = DIN(16, 12, hidden_widths=(8, 4), **options)
    for parameter in din.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    (got_BD,) = din(inputs).vectors
    for b in range(len(got_BD)):
        x_LD = rows_of(inputs, b, inputs.x_TD).double()
        newest = options.get("newest") or len(x_LD)
        expected_D = published(din, inputs.target_BD[b].double(), x_LD[max(len(x_LD) - newest, 0) :])
        torch.testing.assert_close(got_BD[b].double(), expected_D, rtol=1e-4, atol=1e-4)
        din.float()


def test_equals_the_published_equation(inputs, rows_of):
    check(inputs, rows_of)


def test_softmax_and_newest(inputs, rows_of):
    check(inputs, rows_of, softmax=True)
    check(inputs, rows_of, newest=5)
