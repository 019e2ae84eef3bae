"""Check the machine: packages, driver, cards, and the write speed of the results folder.

It checks the machine where it runs: this one or, submitted like any other job, a compute node. Every finding is
printed; a finding that is wrong fails the job.
"""

from lib.start import run

import os
import re
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path
from typing import Any

from lib.run import cards, diagnosis, stage
from lib.run import device as devices
from lib.run.errors import UserError

WRITTEN = 128 << 20  # bytes written to test the disk
SLOW = 20  # MB/s: a slower disk delays a run
PLUGINS = "snakemake-executor-plugin-"
RELEASED_TOGETHER = ("rmm", "cuvs", "cuml", "pylibcugraph")
GOOD, ODD, WRONG = "ok", "note", "WRONG"


@dataclass(frozen=True)
class Finding:
    """A check, its state (`GOOD`, `ODD` or `WRONG`), and what was found."""

    what: str
    state: str
    found: str


def in_range(found: str, wanted: str) -> bool:
    """Whether a version is in a range in pyproject.toml's notation: `>=1.2,<3`, `==26.10.*`; text after a + is ignored.

    Only the numbers are compared: 2.0rc1 is 2.0.
    """

    def numbers(text: str) -> tuple[int, ...]:
        return tuple(int(part) for part in re.findall(r"(?:^|\.)(\d+)", text.partition("+")[0]))

    have = numbers(found)
    for operator, text in re.findall(r"(>=|<=|==|!=|<|>)\s*([\w.*+]+)", wanted):
        limit = numbers(text)
        length = len(limit) if text.endswith("*") else max(len(limit), len(have))
        a, b = ((v + (0,) * length)[:length] for v in (have, limit))
        if not {">=": a >= b, "<=": a <= b, "==": a == b, "!=": a != b, "<": a < b, ">": a > b}[operator]:
            return False
    return True


def requirements(project: Mapping[str, Any], extra: str | None = None) -> dict[str, str]:
    """Package -> its range, for all packages that this Python needs by pyproject.toml's `project`, and by an extra."""
    lines = [*project["dependencies"], *(project["optional-dependencies"][extra] if extra else ())]
    wanted = {}
    for line in lines:
        requirement, _, marker = line.partition(";")
        name, ranges = re.fullmatch(r"\s*([\w.-]+)\s*(.*?)\s*", requirement).groups()
        if applies(marker):
            wanted[name.lower()] = ranges
    return wanted


def applies(marker: str) -> bool:
    """Whether a marker of pyproject.toml, `python_version < '3.12' and sys_platform == 'linux'`, holds here."""
    for part in filter(None, re.split(r"\s+and\s+", marker.strip())):
        name, operator, value = re.fullmatch(r"(\w+)\s*(\S+)\s*['\"](.+)['\"]", part).groups()
        if name == "python_version" and not in_range(".".join(map(str, sys.version_info[:2])), operator + value):
            return False
        if name == "sys_platform" and (sys.platform == value) != (operator == "=="):
            return False
    return True


def locked(lock: str) -> dict[str, set[str]]:
    """Package -> its versions in a uv.lock: one, or several for different Pythons."""
    versions: dict[str, set[str]] = {}
    for package in tomllib.loads(lock).get("package", ()):
        versions.setdefault(package["name"], set()).add(package.get("version", ""))
    return versions


def check_packages(wanted: Mapping[str, str], lock: Mapping[str, set[str]]) -> Iterator[Finding]:
    """Compare each package's version with its range and with the lock, whose versions are those of the tests."""
    good = 0
    for name, ranges in wanted.items():
        try:
            found = version(name)
        except PackageNotFoundError:
            yield Finding(name, WRONG, f"is not installed ({ranges}). `uv sync` installs it")
            continue
        if not in_range(found, ranges):
            yield Finding(name, WRONG, f"{found} is not {ranges}. `uv sync` installs another")
        elif name in lock and found not in lock[name]:
            yield Finding(name, ODD, f"{found}, not the lock's {' or '.join(sorted(lock[name]))}")
        else:
            good += 1
    yield Finding("packages", GOOD, f"{good} of {len(wanted)} as {'the lock' if lock else 'pyproject.toml'} wants them")


def check_plugins() -> Iterator[Finding]:
    """Snakemake's executors other than this machine."""
    found = {d.metadata["Name"]: d.version for d in distributions() if (d.metadata["Name"] or "").startswith(PLUGINS)}
    yield Finding("executors", GOOD, ", ".join(f"{name} {number}" for name, number in sorted(found.items())) or "none")


def rapids() -> dict[str, tuple[str, str]]:
    """Package of RAPIDS -> its installed version, and the extra of pyproject.toml that provides it (conda: "")."""
    found = {}
    for name in RELEASED_TOGETHER:
        for suffix, extra in {"-cu13": "gpu-cu13", "-cu12": "gpu-cu12", "": ""}.items():
            with suppress(PackageNotFoundError):
                found.setdefault(name, (version(name + suffix), extra))
    return found


def check_gpu(wanted: bool) -> Iterator[Finding]:
    """Check driver, cards and RAPIDS; a problem is wrong if the config wants a GPU, else only noted."""
    problem = diagnosis.unusable()
    if problem:
        yield Finding("GPU", WRONG if wanted else GOOD, f"{'not usable: ' if wanted else 'none used: '}{problem}")
        return
    yield Finding("driver", GOOD, str(diagnosis.driver_version()))
    for card in cards.visible():
        yield Finding("card", GOOD, f"{card.ordinal}: {card.uuid}, {card.memory_mb:,} MB")
    found = rapids()
    alike = {(extra, *number.split(".")[:2]) for number, extra in found.values()}
    listed = ", ".join(f"{name} {number}{f' ({extra})' if extra else ''}" for name, (number, extra) in found.items())
    yield Finding("RAPIDS", GOOD if len(alike) == 1 else WRONG, listed)


def check_computing() -> Iterator[Finding]:
    """Run a kernel with a known result on each card, and import the libraries."""
    import cupy

    for name in RELEASED_TOGETHER:
        yield attempt(f"import {name}", lambda name=name: import_module(name).__version__)
    for card in cards.visible():

        def compute(card: cards.Card = card) -> str:
            with cupy.cuda.Device(card.ordinal):
                free, total = cupy.cuda.runtime.memGetInfo()
                if int((cupy.arange(1000) ** 2).sum()) != 332_833_500:
                    raise ArithmeticError("a kernel's sum is wrong")
            return f"a kernel ran; {free >> 20:,} of {total >> 20:,} MB free"

        yield attempt(f"card {card.ordinal}", compute)


def attempt(what: str, action: Callable[[], str]) -> Finding:
    """The finding of an action, or its error."""
    try:
        return Finding(what, GOOD, action())
    except Exception as error:
        return Finding(what, WRONG, f"{type(error).__name__}: {error}")


def check_disk(folder: Path, n_bytes: int = WRITTEN) -> Iterator[Finding]:
    """The write speed of the folder, up to the disk itself, and the free space there."""

    def write() -> str:
        folder.mkdir(parents=True, exist_ok=True)
        path, block = folder / f".doctor-{os.getpid()}", os.urandom(1 << 20)
        try:
            started = time.perf_counter()
            with path.open("wb") as file:
                for _ in range(n_bytes >> 20):
                    file.write(block)
                os.fsync(file.fileno())
            speed = n_bytes / 1e6 / (time.perf_counter() - started)
        finally:
            path.unlink(missing_ok=True)
        if speed < SLOW:
            raise OSError(f"{speed:.0f} MB/s only, where a run should find {SLOW}: choose another disk (--directory)")
        space = os.statvfs(folder)
        return f"{speed:,.0f} MB/s, {space.f_bavail * space.f_frsize / 1e9:,.0f} GB free"

    yield attempt(f"disk of {folder.absolute()}", write)


def check_python(project: Mapping[str, Any]) -> Finding:
    """Check the Python that runs the stages."""
    found, wanted = ".".join(map(str, sys.version_info[:3])), project["requires-python"]
    return Finding("Python", GOOD if in_range(found, wanted) else WRONG, f"{found} ({wanted}), {sys.executable}")


def check_environment(home: Path, gpu: bool) -> Iterator[Finding]:
    """Check Python and packages against pyproject.toml and uv.lock in `home`; with `gpu`, the GPU's packages too."""
    if not (home / "pyproject.toml").exists():
        yield Finding("packages", ODD, f"not compared: {home} has no pyproject.toml")
        return
    project = tomllib.loads((home / "pyproject.toml").read_text())["project"]
    yield check_python(project)
    extras = {extra for _, extra in rapids().values() if extra} if gpu else set()
    wanted = requirements(project, max(extras, default=None))
    lock, by_conda = home / "uv.lock", (Path(sys.prefix) / "conda-meta").exists()  # conda solves the ranges anew
    yield from check_packages(wanted, locked(lock.read_text()) if lock.exists() and not by_conda else {})


def examine(home: Path, gpu: bool, device: devices.Device, folder: Path) -> Iterator[Finding]:
    """Run all checks.

    Parameters
    ----------
    home
        Folder of pyproject.toml and uv.lock.
    gpu
        Whether the workflow computes on a GPU.
    device
        The device of this job.
    folder
        The results folder.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("machine", GOOD, f"{os.uname().nodename}, {cores} cores")
    yield from check_environment(home, gpu)
    yield from check_plugins()
    yield from check_gpu(gpu)
    if device.is_gpu:
        yield from check_computing()
    yield from check_disk(folder)


def main(snakemake: Any) -> None:
    """Print every finding; fail if one is wrong."""
    gpu, wrong = bool(snakemake.resources.get("gpu", 0)), 0
    device = devices.of(snakemake) if gpu and diagnosis.unusable() is None else devices.cpu()
    for finding in examine(Path(snakemake.params.home), gpu, device, Path("results")):
        line = f"{finding.state:5} {finding.what}: {finding.found}"
        print(line, flush=True)
        stage.log.info("%s", line)
        wrong += finding.state == WRONG
    if wrong:
        raise UserError(f"{wrong} of these findings {'is' if wrong == 1 else 'are'} wrong: see the lines with {WRONG}")


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
