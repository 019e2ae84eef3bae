"""Make the process of a job that ended well ready for the next one: with CUDA started, and nothing of the job before.

The modules of this workflow are imported anew, so that what they remember of a job is gone; the libraries stay. The
card's memory is freed, and the claim on it. Where memory of the card is left over, something still holds it, and the
process ends; so does one that has grown large.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import sys
from typing import Any

from lib.run.code import SCRIPTS

# Modules that run the process itself
LASTING = {"lib.start", *(f"lib.run.{name}" for name in ("again", "clock", "forks", "handover"))}
MOST_MB = 1000  # memory of its own with which a process ends; the libraries' kernels take some 300
_RESOURCES: list[Any] = []  # RMM's, of the jobs so far: the libraries' handles may refer to them


def remember() -> None:
    """Import what most jobs need."""
    import lib.run.stage
    import lib.store.cohort  # noqa: F401


def is_clear() -> bool:
    """Forget the job; whether nothing of it holds memory."""
    logging.shutdown()
    devices = sys.modules.get("lib.run.device")
    used = devices.given_back(_RESOURCES) if devices else 0
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None) or ""
        if file.startswith(str(SCRIPTS)) and name not in LASTING and not hasattr(module, "__path__"):
            parent, _, child = name.rpartition(".")
            if hasattr(sys.modules.get(parent), child):
                delattr(sys.modules[parent], child)
            del sys.modules[name]
    gc.collect()
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
    remember()
    from lib.run import stage

    return not used and stage.own_mb() < MOST_MB
