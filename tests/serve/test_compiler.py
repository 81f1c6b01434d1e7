"""Compilers whose code cannot run beside torch are found out before a model is compiled."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch._inductor.config as inductor

from laser.serve.compiler import check_compiler
from tests.serve.conftest import LASER
from tests.serve.test_compiled import bundle_of


def compiler(folder: Path, *options: str) -> str:
    path = folder / "g++"
    path.write_text(f'#!/bin/sh\nexec g++ {" ".join(options)} "$@"\n')
    path.chmod(0o755)
    return str(path)


def test_the_usual_one_will_do():
    check_compiler()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["-static-libstdc++"], r"what .*g\+\+ links does not run beside torch.*set the environment variable CXX"),
        (["-lno_such_library"], r"cannot link a library .*no_such_library"),
        (None, r"--compile needs a C\+\+ compiler, such as g\+\+"),
    ],
)
def test_others_are_refused(tmp_path, options, sentence):
    found = compiler(tmp_path, *options) if options else str(tmp_path / "none")
    with inductor.patch({"cpp.cxx": (None, found)}), pytest.raises(ValueError, match=sentence):
        check_compiler()


def test_no_model_is_compiled_with_one_of_them(tmp_path, prepared):
    found = compiler(tmp_path, "-static-libstdc++")
    with inductor.patch({"cpp.cxx": (None, found)}), pytest.raises(ValueError, match="does not run beside torch"):
        bundle_of(prepared, tmp_path / "bundle", "laser.Laser", LASER, "cpu")
