import pytest
import torch

from laser.model.baselines.multi_window_din import MultiWindowDIN


def test_windows_are_counted_from_the_newest_event(inputs, rows_of):
    torch.manual_seed(0)
    model = MultiWindowDIN(16, 12, windows=(3, 6), hidden_widths=(8, 4))
    got = model(inputs).vectors
    assert len(got) == model.vectors == 3
    for b in range(len(got[0])):
        x_LD, t_D = rows_of(inputs, b, inputs.x_TD), inputs.target_BD[b]
        newest_first = list(x_LD.unbind(0))[::-1]
        for vector_BD, window in zip(got, (newest_first[:3], newest_first[3:9], newest_first[9:])):
            expected_D = torch.zeros(16)
            for x_D in window:
                pair = torch.cat([t_D, x_D, t_D - x_D, t_D * x_D])
                expected_D = expected_D + model.unit.rest(model.unit.first(pair)) * x_D / len(window)
            torch.testing.assert_close(vector_BD[b], expected_D, rtol=1e-4, atol=1e-5)


def test_empty_windows_are_refused():
    with pytest.raises(ValueError, match=r"windows of MultiWindowDIN are \[10, 0\]"):
        MultiWindowDIN(16, 12, windows=(10, 0))
