"""Odd, damaged and hostile files, and a judge that says what a user gets of each: its counts, or which message.

`cases()` are all of them. The judge runs each in a process of its own, with limits of memory and time, so that a crash,
a hang or an allocation of gigabytes is the failure of one case. `uv run python tests/odd_files.py RESULT.json NAME ...`
writes the results of some cases, or of all; `-` instead of a file prints what is not as expected.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

N_OBS, N_VARS = 30, 20
# Bytes beyond those of the process before the case; each thread of a pool reserves an arena and a stack
MEMORY = (600 << 20) + (72 << 20) * (os.cpu_count() or 1)
SECONDS = 60  # wall time: other tests run beside

Build = Callable[[Path, SimpleNamespace], Path]


@dataclass(frozen=True)
class Case:
    """An odd file.

    Attributes
    ----------
    name, about
        A short name, and a line in plain English.
    build
        Writes the file into a folder, and returns its path. It may change the truth, which is that of `truth()`.
    expected
        Empty if the counts are read; else a piece of the message.
    damaged
        Whether the message says that the file is truncated or damaged.
    late
        Whether the header check need not tell, as only the job reads what is odd.
    options
        What the config or the sheet says: counts, genome, orientation.
    """

    name: str
    about: str
    build: Build
    expected: str = ""
    damaged: bool = False
    late: bool = False
    options: dict[str, Any] = field(default_factory=dict)


class Cases(list[Case]):
    """A list of cases, to which the decorator `add` adds."""

    def add(self, name: str, about: str, expected: str = "", **more: Any) -> Callable[[Build], Build]:
        """A decorator of the function that builds the file."""

        def added(build: Build) -> Build:
            self.append(Case(name, about, build, expected, **more))
            return build

        return added


def truth() -> SimpleNamespace:
    """30 cells x 20 genes with a count beyond uint8, one cell and one gene without counts."""
    X = np.random.default_rng(5).poisson(0.7, (N_OBS, N_VARS))
    X[4], X[:, 6], X[7, 7] = 0, 0, 300
    return SimpleNamespace(
        X=X,
        symbols=np.array([f"Gene{i}" for i in range(N_VARS)], object),
        ids=np.array([f"ENSG{i:05d}" for i in range(N_VARS)], object),
        barcodes=np.array([f"CELL{i}-1" for i in range(N_OBS)], object),
    )


def cases() -> list[Case]:
    """All cases."""
    import odd_h5ad
    import odd_others

    return [*odd_h5ad.CASES, *odd_others.CASES]


def judge(case: Case, folder: Path) -> dict[str, Any]:
    """What a user gets: the header's problems, the job's message ("" if it ends well), and how its counts differ."""
    import ingest
    from lib.inputs import sizes
    from lib.inputs.formats.base import Question
    from lib.run.errors import UserError

    (folder / "in").mkdir()
    told = truth()
    path = case.build(folder / "in", told)
    before = _versions(folder)
    options = {"counts": "X", "genome": None, "orientation": "auto"} | case.options
    found, problems = sizes.examined(Question(str(path), **options))
    output = folder / "out" / "counts.h5ad"
    params = {"sample": "s", "suffix": "s", "sheet": {}, "options": options, "keep": (), "batch_key": "sample"}
    message = differs = ""
    try:
        ingest.main(
            SimpleNamespace(
                input=SimpleNamespace(file=str(path)),
                params=SimpleNamespace(**params),
                output=SimpleNamespace(counts=str(output)),
            )
        )
        differs = _difference(output, told, found)
    except UserError as error:
        message = str(error)
    if before != {name: version for name, version in _versions(folder).items() if not name.startswith("out")}:
        differs = "the input was changed"
    hidden = [text.replace(f"{folder}/in/", "").replace(str(folder), "/elsewhere") for text in (*problems, message)]
    return {"header": hidden[:-1], "job": hidden[-1], "differs": differs, "path": path.name}


def _difference(output: Path, told: SimpleNamespace, sizes: Any) -> str:
    """How a store differs from the truth; "" if it does not."""
    import anndata as ad

    store = ad.read_h5ad(output)
    pairs = {
        "cells": ([f"{name}-s" for name in told.barcodes], list(store.obs_names)),
        "symbols": (list(told.symbols), list(store.var["gene_symbols"])),
        "ids": (list(told.ids), list(store.var["gene_ids"])),
        "counts": (told.X.tolist(), store.X.toarray().tolist()),
        "obs": ({}, {k: v for k, v in getattr(told, "obs", {}).items() if list(map(str, store.obs[k])) != v}),
    }
    if getattr(told, "sized", True) and (sizes.n_obs, sizes.n_vars) != told.X.shape:
        return f"the header says {sizes.n_obs} x {sizes.n_vars}"
    return "; ".join(
        f"{what}: {str(got)[:200]}, not {str(wanted)[:200]}" for what, (wanted, got) in pairs.items() if wanted != got
    )


def _versions(folder: Path) -> dict[str, tuple[int, int]]:
    files = (Path(top) / name for top, _, names in os.walk(folder) for name in names)
    return {str(file.relative_to(folder)): ((s := file.lstat()).st_size, s.st_mtime_ns) for file in files}


def judged(wanted: list[Case], together: int = 2) -> dict[str, dict[str, Any]]:
    """The results of `judge`, each from a forked process; `crash` says how a process ended that gave none."""
    for name in ("anndata", "ingest", "zarr"):  # once, instead of in each process
        import_module(name)
    gc.freeze()
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        running: dict[int, Case] = {}
        for case in [*wanted, *[None] * together]:
            while running and (len(running) == together or case is None):
                process, status = os.wait()
                done = running.pop(process)
                result = Path(temporary) / f"{done.name}.json"
                if result.exists():
                    found[done.name] = json.loads(result.read_text())
                else:
                    code = os.waitstatus_to_exitcode(status)
                    found[done.name] = {"crash": signal.Signals(-code).name if code < 0 else f"exit code {code}"}
            if case is not None:
                if not (process := os.fork()):
                    _one(case, Path(temporary))
                running[process] = case
    return found


def _one(case: Case, temporary: Path) -> None:
    """Judge one case in a forked process, which ends."""
    try:
        (temporary / case.name).mkdir()
        signal.alarm(SECONDS)
        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))
        result = judge(case, temporary / case.name)
    except BaseException as error:
        result = {"crash": f"{type(error).__name__}: {error}"[:500], "traceback": traceback.format_exc()}
    partial = temporary / f"{case.name}.partial"
    partial.write_text(json.dumps(result))
    partial.rename(temporary / f"{case.name}.json")
    os._exit(0)


def verdict(case: Case, result: dict[str, Any]) -> str:
    """What is wrong with a result; "" if it is what the case expects."""
    if "crash" in result:
        return f"ended by {result['crash']}\n{result.get('traceback', '')}"
    header, job = result["header"], result["job"]
    if not case.expected:
        return "; ".join(filter(None, [*header, job, result["differs"]]))
    if result["differs"]:
        return result["differs"]
    told = [("job", job)] if case.late and not header else [("job", job), ("header", " ".join(header))]
    wrong = [f"{who} does not say {case.expected!r}: {text}" for who, text in told if not says(text, case.expected)]
    for text in filter(None, [*header, job]):
        if result["path"] not in text:
            wrong.append(f"the file is not named: {text}")
        if ("truncated or damaged" in text) != case.damaged:
            wrong.append(f"damage {'not ' * case.damaged}said: {text}")
    return "\n".join(wrong)


def says(text: str, expected: str) -> bool:
    """Whether a text has one of the pieces expected, which "||" separates: versions of libraries tell differently."""
    return any(piece in text for piece in expected.split("||"))


def problems(names: list[str]) -> Iterator[str]:
    """The verdicts on cases by name, or on all, that are not as expected."""
    wanted = [case for case in cases() if not names or case.name in names]
    results = judged(wanted)
    for case in wanted:
        if wrong := verdict(case, results[case.name]):
            yield f"{case.name}: {wrong}"
        elif names:
            yield f"{case.name}: as expected: {results[case.name]}"


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[1] / "scripts"))
    sys.path.insert(0, str(Path(__file__).parent))
    import odd_files  # so that its classes are not those of __main__

    target, *names = sys.argv[1:]
    if target == "-":
        print("\n\n".join(odd_files.problems(names)))
    else:
        wanted = [case for case in odd_files.cases() if not names or case.name in names]
        Path(target).write_text(json.dumps(odd_files.judged(wanted)))
