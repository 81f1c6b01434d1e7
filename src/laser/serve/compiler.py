"""Whether what the C++ compiler links can be used beside torch.

Some toolchains put a copy of libstdc++ into each library that they link. Torch brings the shared one, and with two of
them what the library asks the locale for is something else: AOTInductor's code ends the process as soon as it is
loaded, when it reads the name of its device with a regular expression.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

SOURCE = """
#include <regex>
extern "C" int matches(const char* text) { return std::regex_match(text, std::regex("[a-z]+(:[0-9]+)?")); }
"""
LOAD = "import ctypes, sys, torch; sys.exit(ctypes.CDLL(sys.argv[1]).matches(b'cuda:0') != 1)"


def check_compiler() -> None:
    """Link a library with the compiler that torch uses, and call it in another process that has loaded torch.

    Raises:
        ValueError: when there is no compiler, or what it links does not run.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler  # it takes a second to import

    try:
        compiler = get_cpp_compiler()
    except RuntimeError as error:
        raise ValueError(f"--compile needs a C++ compiler, such as g++ ({' '.join(str(error).split())})") from None
    with TemporaryDirectory() as folder:
        source, library = Path(folder, "probe.cpp"), Path(folder, "probe.so")
        source.write_text(SOURCE)
        done = subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], capture_output=True, text=True)
        if done.returncode:
            words = " ".join(done.stderr.split())[-300:]
            raise ValueError(f"--compile needs a C++ compiler, and {compiler} cannot link a library ({words})")
        if subprocess.run([sys.executable, "-c", LOAD, library], capture_output=True).returncode:
            raise ValueError(
                f"what {compiler} links does not run beside torch, as where it puts libstdc++ into each library; set "
                "the environment variable CXX to another C++ compiler, such as /usr/bin/g++"
            )
