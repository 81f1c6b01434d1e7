"""Progress where nobody looks at a terminal: lines in the log of a long job, silence in that of a short one."""

import time

from data_prep import progress


def stages(capsys, pause: float) -> str:
    share = iter([-1.0, 20.0, 50.0, *[80.0] * 1000])
    with progress.Stages(lambda: next(share)) as shown:
        with shown.query("coding ids"):
            time.sleep(pause)
        with shown.counted("writing samples", 1000) as advance:
            advance(500)
            time.sleep(pause)
    return capsys.readouterr().err


def test_a_long_job_tells_its_log(capsys, monkeypatch):
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.1)
    lines = stages(capsys, 0.75).splitlines()
    assert lines[0].startswith("laser-prep: coding ids for 0 s: its end cannot be told yet")
    assert any("coding ids" in line and "50 %, about 0 s left" in line for line in lines), lines
    assert any("writing samples" in line and "50 %" in line for line in lines), lines


def test_a_short_job_is_silent(capsys):
    assert stages(capsys, 0.05) == ""
