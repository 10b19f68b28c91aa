"""Arrow columns from Python values, and back to numpy, without importing pandas.

pyarrow's own `array`, `scalar` and `to_numpy` import pandas (0.2 s) to see whether they were given something of its;
buffers and dlpack do not. Columns here have no nulls.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def arrow_column(values: Sequence[int | bool | str] | NDArray[np.int64], kind: pa.DataType) -> pa.Array:
    """A column of type int64, bool or string."""
    if kind == pa.string():
        texts = [str(value).encode() for value in values]
        offsets = np.fromiter(accumulate(map(len, texts), initial=0), dtype=np.int32, count=len(texts) + 1)
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(texts))]
        return pa.Array.from_buffers(kind, len(texts), buffers)
    numbers = np.ascontiguousarray(values, dtype=np.int64)
    whole = pa.Array.from_buffers(pa.int64(), len(numbers), [None, pa.py_buffer(numbers)])
    return whole if kind == pa.int64() else whole.cast(kind)


def text_column(numbers: NDArray[np.int64], words: Sequence[str]) -> pa.Array:
    """A string column from the numbers of its words."""
    indices = arrow_column(numbers, pa.int64()).cast(pa.int32())
    return pa.DictionaryArray.from_arrays(indices, arrow_column(words, pa.string())).cast(pa.string())


def numpy_column(column: pa.ChunkedArray | pa.Array) -> NDArray[Any]:
    """A column of numbers or booleans; read-only, shares memory where it can."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):  # combine_chunks of a table's column may leave a single chunk
        array = pa.concat_arrays(array.chunks)
    if array.type == pa.bool_():
        return np.from_dlpack(array.cast(pa.uint8())).view(np.bool_)
    return np.from_dlpack(array)
