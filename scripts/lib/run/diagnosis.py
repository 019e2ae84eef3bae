"""Check whether this machine has a usable GPU, and if not, what is missing."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from lib.run.errors import UserError

CHOICES = ("auto", "cpu", "gpu")


PACKAGES = {"cupy": "cupy", "rmm": "rmm", "cuvs": "cuvs", "cuml": "cuml", "pylibcugraph": "pylibcugraph"}


EXTRAS = "`uv sync --extra gpu-cu13` (driver 580 or newer) or `uv sync --extra gpu-cu12` (driver 535 or newer)"


OLDEST = (7, 5)  # the lowest compute capability that RAPIDS supports


def choose(choice: str) -> str:
    """cpu or gpu, for the config's `device: auto | cpu | gpu`; auto takes a GPU if one can be used."""
    if choice not in CHOICES:
        raise UserError(f"device: {choice!r} is not one of {', '.join(CHOICES)}")
    if choice == "auto":
        return "cpu" if unusable() else "gpu"
    return choice


@cache
def unusable() -> str | None:
    """Why no GPU can be used on this machine, and what to do; None if one can."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no NVIDIA driver is installed (libcuda.so.1 is missing). Run on a machine with a GPU and its driver."
    count = ctypes.c_int(0)
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        hidden = f" (CUDA_VISIBLE_DEVICES is {visible!r})" if visible is not None else ""
        return f"the NVIDIA driver shows no card{hidden}. Ask the scheduler for a GPU, or check `nvidia-smi`."
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        python = "" if sys.version_info >= (3, 12) else " with Python 3.12 or newer (`uv sync --python 3.12`)"
        return f"the packages {', '.join(missing)} are not installed. Install them with {EXTRAS}{python}."
    number = ctypes.c_int(0)
    driver.cuDriverGetVersion(ctypes.byref(number))
    needed = 13 if version_of_package("rmm-cu13") else 12
    if number.value // 1000 < needed:
        return (
            f"the driver knows CUDA {dotted(number.value)} only, and the packages installed are for CUDA {needed}. "
            f"Update the driver, or install the other packages: {EXTRAS}."
        )
    capability = max(_capability(driver, card) for card in range(count.value))
    if capability < OLDEST:
        needs = ".".join(map(str, OLDEST))
        return f"the card's compute capability {'.'.join(map(str, capability))} is below the {needs} that RAPIDS needs."
    return None


def refusal(problem: str) -> str:
    """The message for `device: gpu` if `unusable` names a problem."""
    return f"device: gpu cannot be used here: {problem} Or set `device: cpu` in the config."


def driver_version() -> str | None:
    """The NVIDIA driver's version, as `nvidia-smi` shows it."""
    try:
        with open("/proc/driver/nvidia/version") as file:
            words = file.readline().split()
    except OSError:
        return None
    return next((word for word in words if word[0].isdigit() and "." in word), None)


def _capability(driver: Any, card: int) -> tuple[int, int]:
    numbers = []
    for attribute in (75, 76):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
        number = ctypes.c_int(0)
        driver.cuDeviceGetAttribute(ctypes.byref(number), attribute, card)
        numbers.append(number.value)
    return numbers[0], numbers[1]


def dotted(number: int) -> str:
    """CUDA's version number 12040 as text, "12.4"."""
    return f"{number // 1000}.{number % 1000 // 10}"


def version_of_package(package: str) -> str | None:
    """The version of a package, built for any version of CUDA; None if it is not installed."""
    for name in (package, f"{package}-cu13", f"{package}-cu12", f"{package}-cuda13x", f"{package}-cuda12x"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None
