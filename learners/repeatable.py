"""What makes the same batches give the same bytes: sums in one order, and one way to pickle the same numbers."""

import io
import pickle
from contextlib import AbstractContextManager
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from threadpoolctl import ThreadpoolController


def one_thread() -> AbstractContextManager:
    """Hold linear algebra to one thread: sums that are split depend on how many threads there are."""
    return _controller().limit(limits=1)


def hold_one_thread() -> None:
    """Hold this process's linear algebra to one thread for good.

    OpenBLAS's other threads wait for their next piece of work in a busy loop, which takes a core from whatever else
    runs; arrays as small as a batch's are not worth a second thread.
    """
    _controller().limit(limits=1)


def dumps(estimator: Any) -> bytes:
    """Return an estimator's pickle, the same whether or not the estimator has been through a pickle before."""
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=5).dump(estimator)
    return buffer.getvalue()


@lru_cache(maxsize=1)
def _controller() -> ThreadpoolController:
    return ThreadpoolController()


class _Pickler(pickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        """Pickle plain arrays with numpy's own dtype object: unpickled ones have copies, which pickle once each."""
        if type(obj) is not np.ndarray or obj.dtype.kind not in "biufc":
            return NotImplemented
        order: Literal["C", "F"] = (
            "F" if obj.flags.f_contiguous and not obj.flags.c_contiguous else "C"
        )
        return np.ndarray, (
            obj.shape,
            np.dtype(obj.dtype.str),
            bytearray(obj.tobytes(order)),
            0,
            None,
            order,
        )
