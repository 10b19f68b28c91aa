"""ttsim-des: what a test-time-scaling policy costs on a GPU cluster, and how long its tail is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ttsim_des.api import Result, load, run
    from ttsim_des.errors import InputError, NotValidError

__all__ = ["InputError", "NotValidError", "Result", "load", "run"]


def __getattr__(name: str) -> Any:
    """Load the interface on first use: `ttsim-des --help` must not pay for numpy and pyarrow."""
    if name in ("InputError", "NotValidError"):
        from ttsim_des import errors

        return getattr(errors, name)
    if name in __all__:
        from ttsim_des import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
