"""How this store compiles its kernels: without the interpreter lock, cached on disk where there is a place for it."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

PROCESS = uuid.uuid4().hex[:16]
"""Of this process alone."""


def kernel(function: Callable[..., Any]) -> Any:
    """Compile on first call, releasing the interpreter lock, and keep the machine code for the next process.

    Numba caches beside the source, or in the user's cache directory when the installation is read-only; with neither
    at hand (a service account without a home) it refuses, and we compile once in each process instead.
    """
    try:
        compiled = njit(cache=True, nogil=True)(function)
    except RuntimeError:
        return njit(nogil=True)(function)
    _name_apart(compiled)
    return compiled


def _name_apart(compiled: Any) -> None:
    """Give the files of machine code names that no other process, and no older release, uses.

    Numba numbers them, and writes its list of them before the file itself. A process that is killed in between leaves a
    list that names a file of older code, and two that compile at the same time name different code alike.
    """
    files = getattr(getattr(compiled, "_cache", None), "_cache_file", None)
    if files is not None:
        files._data_name_pattern = files._data_name_pattern.replace("{number:d}", PROCESS + "-{number:d}")


pread = types.ExternalFunction("pread", types.int64(types.int32, types.intp, types.uint64, types.int64))
"""libc's ``pread(fd, address, bytes, offset)``, resolved by name so that kernels that call it can be cached."""

fadvise = types.ExternalFunction("posix_fadvise", types.int32(types.int32, types.int64, types.int64, types.int32))
"""libc's ``posix_fadvise(fd, offset, bytes, advice)``."""

WILLNEED = 3
"""``POSIX_FADV_WILLNEED``: start reading these pages now."""

memmove = types.ExternalFunction("memmove", types.intp(types.intp, types.intp, types.intp))
"""libc's ``memmove(to, from, bytes)``."""


def _pointer(typing_context: Any, address: Any) -> Any:
    del typing_context

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), generate


pointer: Any = intrinsic(_pointer)
"""In kernels: an address as what ``carray`` takes, so that one kernel can work on arrays of many types."""
