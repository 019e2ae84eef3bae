"""Start a stage: in a fork of a warm process, which has imported the libraries already, or else in this process.

Snakemake hands every job over as it starts it (`lib.run.handover`). What no warm process takes, as there is none yet,
starts as a process of its own: every stage's script imports `run` from here before anything else, and that import hands
the job over once the warm process is there; this process then only waits for its end. Snakemake starts the warm process
while it makes its plan, or else the first job does; it takes jobs as soon as it has imported what most stages need. It
serves one Snakemake, which names itself in the environment; without that name every job runs in its own process.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

from lib.run import clock, handover
from lib.run.handover import SCRIPTS, VARIABLE

SERVER = "import sys; sys.path.append(sys.argv.pop(1)); from lib.run.forks import serve; serve(*sys.argv[1:])"

LINUX = sys.platform.startswith("linux")
OWN, FORKED = "in its own process", "in a fork of a warm process"
PATIENCE = 20  # seconds to wait for a warm process that has just been started

HOW = OWN  # how this job was started, for its log and run record
END: Callable[[int], NoReturn] = os._exit  # how it ends its process


def run(main: Callable[[Any], None], snakemake: Any) -> None:
    """Run a stage's `main(snakemake)`: see `lib.run.stage.run`."""
    from lib.run import stage

    stage.run(main, snakemake)


def names_itself(pid: int, on_gpu: Iterable[str] = (), spares: int = 1) -> str:
    """The value of `VARIABLE` for a Snakemake that runs these scripts on a GPU; so many forks wait for them."""
    return f"{pid}-{clock.born(pid)} {spares} {','.join(sorted(on_gpu))}"


def prefix() -> str:
    """What Snakemake writes before the command of a job, so that a warm process can take it."""
    command = shlex.join([sys.executable, "-ISc", handover.COMMAND, SCRIPTS])
    return f"set -eu; {command}".replace("{", "{{").replace("}", "}}")


def begin_early() -> None:
    """Start the warm processes that the first jobs would start."""
    folder = handover.private_folder()
    if LINUX and folder is not None:
        for name in handover.names_of(os.environ[VARIABLE]).values():
            is_starting(Path(folder), name)


def hand_over(job: Any) -> str:
    """Have a warm process run the script of a job, and end as the script ends.

    Parameters
    ----------
    job
        The module `__main__` of the script, as Snakemake starts it.

    Returns
    -------
    Why the script runs in this process.
    """
    served = os.environ.get(VARIABLE)
    if not served:
        return OWN
    if not LINUX:
        return f"{OWN}: warm processes need Linux"
    folder, script = handover.private_folder(), job.__real_file__
    if folder is None:
        return f"{OWN}: the folder of warm processes cannot be used or belongs to somebody else"
    names = handover.names_of(served)
    mine = names[handover.kind_of(served, script)]
    with socket.socket(socket.AF_UNIX) as connection:
        end = time.monotonic() + PATIENCE
        while not handover.connected(connection, folder, mine):
            living = {name: is_starting(Path(folder), name) for name in names.values()}
            if time.monotonic() > end or not living[mine]:
                return f"{OWN}: there is no warm process"
            time.sleep(0.02)
        handover.give(connection, script)
    return f"{OWN}: the warm process did not take it"


def is_starting(folder: Path, name: str) -> bool:
    """Whether a warm process lives; it is started if none was. One that crashed is not started again."""
    log = folder / f"{name}.log"  # the warm process locks it until it ends
    try:
        with log.open("x") as said:
            fcntl.flock(said, fcntl.LOCK_EX | fcntl.LOCK_NB)
            command = [sys.executable, "-P", "-c", SERVER, SCRIPTS, str(folder), name]
            options = {"stdin": subprocess.DEVNULL, "stdout": said, "stderr": said, "start_new_session": True}
            subprocess.Popen(command, **options)
    except FileExistsError:
        with contextlib.suppress(FileNotFoundError), log.open() as said:
            try:
                fcntl.flock(said, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False
    except OSError:
        return False
    return True


if hasattr(sys.modules["__main__"], "snakemake") and hasattr(sys.modules["__main__"], "__real_file__"):
    HOW = hand_over(sys.modules["__main__"])
