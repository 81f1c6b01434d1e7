"""Numbers from values that are the same in every engine, process and release: the beginning of an MD5 checksum.

``hash_number(a, b)`` is the first 12 hexadecimal digits of md5("a|b"), so a whole number below 2^48. In Python:
``int(hashlib.md5(b"7|abc").hexdigest()[:12], 16)``.
"""

from __future__ import annotations

import ibis
import ibis.expr.types as ir

DIGITS = 12
SPAN = 16**DIGITS
"""Hash numbers lie below it."""


def hash_number(*parts: ir.Value) -> ir.IntegerColumn:
    """Whole number in [0, ``SPAN``) of texts and whole numbers."""
    text = parts[0].cast("string")
    for part in parts[1:]:
        text = text.concat("|").concat(part.cast("string"))
    digest = text.hexdigest("md5")
    letters = ibis.literal("0123456789abcdef")
    number = ibis.literal(0, "int64")
    for place in range(DIGITS):
        # Spark's place in a text has 32 bits, which Ibis takes for 64, so that it would leave out a single cast.
        number = number * 16 + letters.find(digest.substr(place, 1)).cast("int32").cast("int64")
    return number
