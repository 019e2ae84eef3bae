"""The device that a stage computes on, resolved once from the config's `device`."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from .errors import UserError

CHOICES = ("auto", "cpu", "gpu")


@dataclass(frozen=True)
class Device:
    """Where arrays live.

    `xp` is the array module (NumPy) and `sparse` its sparse module (scipy.sparse): code on
    counts is written against these two, and names neither NumPy nor SciPy itself.
    """

    name: str
    xp: ModuleType
    sparse: ModuleType

    def to_host(self, array: Any) -> np.ndarray:
        """The array as NumPy's."""
        return np.asarray(array)


def resolve(choice: str = "auto") -> Device:
    """The device for `device: auto | cpu | gpu`.

    Raises
    ------
    UserError
        For `gpu`: this version computes on the CPU, and a request for a GPU is never quietly
        answered with a CPU run.
    """
    if choice == "gpu":
        raise UserError(
            "device: gpu is not supported by this version of Somersault, whose stages compute on the CPU. "
            "Set `device: cpu` or `device: auto` in the config."
        )
    if choice not in CHOICES:
        raise UserError(f"device: {choice!r} is not one of {', '.join(CHOICES)}")
    import scipy.sparse

    return Device("cpu", np, scipy.sparse)
