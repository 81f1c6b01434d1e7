"""Copies of many tensors to places that stay, with zeros behind those that are smaller: one launch, also recorded.

The sources lie elsewhere and have other sizes in every step, which a recorded launch cannot be told. So it is told
where on the device a list of their addresses and sizes will be, and only this list is sent.

    here     [ a a a ]      [ b b ]
    there    [ a a a 0 ]    [ b b 0 0 0 ]

``naive`` is the specification (any device), ``triton`` is for CUDA.
"""

from laser.ops.address_copy import naive

__all__ = ["naive"]
