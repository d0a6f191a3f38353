"""The .npy format of small arrays, whose headers all have the same size."""

from __future__ import annotations

import io
import re
from functools import lru_cache

import numpy as np

NPY_HEADER_BYTES = 128  # NumPy pads the header of every small array to this size
_DESCR = re.compile(rb"""['"]descr['"]: *['"]([^'"]+)['"]""")
_FORTRAN = re.compile(rb"""['"]fortran_order['"]: *(True|False)""")
_SHAPE = re.compile(rb"""['"]shape['"]: *\(([\d, ]*)\)""")


def npy_bytes(array: np.ndarray) -> bytes:
    """Return the content of an .npy file."""
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(array), allow_pickle=False)
    assert file.getbuffer().nbytes == NPY_HEADER_BYTES + array.nbytes
    return file.getvalue()


@lru_cache(maxsize=4096)
def npy_shape(header: bytes, dtype: np.dtype) -> tuple[int, ...] | None:
    """Return the shape in an array header of 128 bytes, or None if it is not the header of an array of this type.

    NumPy's own reader uses `ast`, which fails at random in threads before Python 3.12 (gh-106905).
    """
    matches = [pattern.search(header) for pattern in (_DESCR, _FORTRAN, _SHAPE)]
    if (
        header[:8] != b"\x93NUMPY\x01\x00"
        or int.from_bytes(header[8:10], "little") != NPY_HEADER_BYTES - 10
        or None in matches
    ):
        return None
    descr, fortran, shape = (match[1].decode("latin-1") for match in matches if match)
    if descr != dtype.str or fortran == "True":
        return None
    return tuple(int(n) for n in shape.replace(",", " ").split())
