"""Convert a model of CellTypist, a file that you have downloaded, for `annotation: reference`.

    python scripts/lib/inputs/celltypist.py Immune_All_Low.pkl immune.h5

CellTypist's models are pickles, which can run any code when they are opened. So a process of its own, with limits on
memory and time, opens the file, with an unpickler that knows NumPy's arrays, and nothing of scikit-learn but the names
of its classes, whose contents it takes as plain values. Any other object in the file ends the conversion.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import pickle
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).parents[2]))

from lib.methods.typing_model import Model
from lib.run.errors import UserError

SECONDS, MEMORY = 120, 4 << 30  # of the process that opens the pickle
TARGET_SUM, MAX_VALUE = 1e4, 10.0  # CellTypist's normalisation and cut
PARTS = ("weights", "intercepts", "labels", "genes", "mean", "std")
NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray", "numpy", "numpy.core.numeric", "numpy._core.numeric")
NAMES = ("_reconstruct", "scalar", "ndarray", "dtype", "_frombuffer")


class Plain:
    """The contents of an object of a class that is not loaded."""

    def __init__(self, *values: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        """Take a dict of attributes, as objects without such a method get it."""
        self.__dict__.update(state if isinstance(state, dict) else {})


class Restricted(pickle.Unpickler):
    """An unpickler of arrays, plain values, and `Plain` objects in the place of scikit-learn's."""

    def find_class(self, module: str, name: str) -> Any:
        """The class, if it is allowed."""
        if module in NUMPY and name in NAMES:
            return super().find_class(module, name)
        if module.startswith(("sklearn.", "numpy.random.")):
            return Plain
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a model")


def parts_of(raw: bytes) -> dict[str, np.ndarray]:
    """The arrays of a CellTypist model, by `PARTS`.

    Raises
    ------
    ValueError, pickle.UnpicklingError
        If it is none.
    """
    found = Restricted(io.BytesIO(raw)).load()
    if not isinstance(found, dict) or not {"Model", "Scaler_"} <= {*found}:
        raise ValueError("it is no model of CellTypist: it has no Model and Scaler_")
    model, scaler = vars(found["Model"]), vars(found["Scaler_"])
    parts = [
        model["coef_"],
        model["intercept_"],
        model["classes_"],
        model["features"],
        scaler["mean_"],
        scaler["scale_"],
    ]
    weights, intercepts, labels, genes, mean, std = (np.asarray(part) for part in parts)
    if len(weights) == 1 and len(labels) == 2:  # the second label against the first
        weights, intercepts = np.vstack([-weights, weights]), np.append(-intercepts, intercepts)
    numbers = [np.asarray(part, np.float32) for part in (weights, intercepts, mean, std)]
    weights, intercepts, mean, std = numbers
    if weights.shape != (len(labels), len(genes)) or not len(mean) == len(std) == len(genes):
        raise ValueError("its weights, labels, genes and scaling do not fit each other")
    if not all(np.isfinite(part).all() for part in numbers):
        raise ValueError("its weights are not finite")
    return dict(zip(PARTS, (weights, intercepts, labels.astype(str), genes.astype(str), mean, std), strict=True))


def opened(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a model, which a process of its own opens.

    Raises
    ------
    UserError
        If the file is no model of CellTypist, or holds other objects.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist, or is no file.")
    command = [sys.executable, "-I", str(Path(__file__).resolve()), "--open", str(path.resolve())]
    try:
        done = subprocess.run(command, capture_output=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise UserError(f"{path}: opening it took more than {SECONDS} seconds: it is no model of CellTypist.") from None
    if done.returncode:
        why = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["it ended the process"]
        raise UserError(f"{path} is not converted: {why[0]}")
    with np.load(io.BytesIO(done.stdout), allow_pickle=False) as found:
        return {name: found[name] for name in PARTS}


def open_here(path: str) -> None:
    """Open a pickle in this process, with limits, and write its arrays to the standard output."""
    limits = {resource.RLIMIT_AS: MEMORY, resource.RLIMIT_CPU: SECONDS, resource.RLIMIT_FSIZE: 0}
    for what, most in limits.items():
        with contextlib.suppress(ValueError):  # macOS does not limit all of these
            resource.setrlimit(what, (most, most))
    try:
        parts = parts_of(Path(path).read_bytes())
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {error}" if not isinstance(error, ValueError) else str(error))
    buffer = io.BytesIO()
    np.savez(buffer, **parts)
    sys.stdout.buffer.write(buffer.getvalue())


def convert(source: Path, target: Path) -> Model:
    """Convert a file of CellTypist, and write the model."""
    found = opened(source)
    names = {name: found[name].astype(object) for name in ("labels", "genes")}
    numbers = {name: found[name] for name in ("weights", "intercepts", "mean", "std")}
    nothing = np.zeros(0, object)
    model = Model(**names, **numbers, universe=nothing, target_sum=TARGET_SUM, max_value=MAX_VALUE, link="sigmoid")
    model.write(target)
    return model


def main() -> None:
    """Convert the file that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="CellTypist's model, a .pkl")
    parser.add_argument("target", nargs="?", help="the file to write, a .h5")
    parser.add_argument("--open", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.open:
        open_here(given.source)
        return
    try:
        model = convert(Path(given.source), Path(given.target or Path(given.source).with_suffix(".h5").name))
    except UserError as error:
        sys.exit(str(error))
    print(f"{len(model.labels)} labels, {len(model.genes)} genes")


if __name__ == "__main__":
    main()
