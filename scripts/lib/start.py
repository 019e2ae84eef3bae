"""Start a stage: in a fork of a warm process, which has imported the libraries already, or else in this process.

Every stage's script imports `run` from here before anything else. If the script runs as a job, that import hands it
over to the warm process (`lib.run.forks`), and this process only waits for its end. Snakemake starts the warm process
while it makes its plan, or else the first job does; it takes jobs as soon as it has imported what most stages need. It
serves one Snakemake, which names itself in the environment; without that name every job runs in its own process.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lib.run import clock

VARIABLE = "SOMERSAULT_WARM"  # in the environment: the Snakemake that is served, `pid-born`, and the kinds of processes
SCRIPTS = Path(__file__).resolve().parents[1]
ACCEPTED = b"+"  # the first byte of an answer; the exit status follows
STATUS = struct.Struct("<i")
SERVER = "import sys; sys.path.append(sys.argv.pop(1)); from lib.run.forks import serve; serve(*sys.argv[1:])"

OWN, FORKED = "in its own process", "in a fork of a warm process"
SIGNALS = (signal.SIGINT, signal.SIGTERM)
PATIENCE = 20  # seconds to wait for a warm process that has just been started

HOW = OWN  # how this job was started, for its log and run record


def run(main: Callable[[Any], None], snakemake: Any) -> None:
    """Run a stage's `main(snakemake)`: see `lib.run.stage.run`."""
    from lib.run import stage

    stage.run(main, snakemake)


def names_itself(pid: int, kinds: str) -> str:
    """The value of `VARIABLE` for a Snakemake that runs jobs of these kinds: cpu, or cpu,gpu."""
    return f"{pid}-{clock.born(pid)} {kinds}"


def names_of(served: str) -> dict[str, str]:
    """The names of the warm processes of a Snakemake, given as in `VARIABLE`, by the kinds of its jobs."""
    snakemake, _, kinds = served.partition(" ")
    return {kind: f"{snakemake}-{version()}-{kind}" for kind in kinds.split(",")}


def begin_early() -> None:
    """Start the warm processes that the first jobs would start."""
    folder = private_folder()
    if sys.platform.startswith("linux") and folder is not None:
        for name in names_of(os.environ[VARIABLE]).values():
            is_starting(folder, name)


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
    if not sys.platform.startswith("linux"):
        return f"{OWN}: warm processes need Linux"
    folder, names = private_folder(), names_of(served)
    if folder is None:
        return f"{OWN}: the folder of warm processes belongs to somebody else"
    kind = "gpu" if "gpu" in names and job.snakemake.resources.get("gpu", 0) else "cpu"
    with socket.socket(socket.AF_UNIX) as connection:
        end = time.monotonic() + PATIENCE
        while not connected(connection, folder, names[kind]):
            living = {name: is_starting(folder, name) for name in names.values()}
            if time.monotonic() > end or not living[names[kind]]:
                return f"{OWN}: there is no warm process"
            time.sleep(0.02)
        if peer(connection) == os.getuid() and ask(connection, job.__real_file__):
            finish(connection)
    return f"{OWN}: the warm process did not take it"


def private_folder() -> Path | None:
    """The folder of the sockets, which only this user can enter; None if there cannot be one."""
    folder = Path(tempfile.gettempdir()) / f"somersault-warm-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    return folder if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o77 else None


@contextlib.contextmanager
def address(folder: str | Path, name: str) -> Iterator[str]:
    """The path of a socket, short enough for sockets (108 bytes) whatever the folder's own path."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        yield f"/proc/self/fd/{fd}/{name}"
    finally:
        os.close(fd)


def version() -> str:
    """A hash of the interpreter and of the state of this workflow's code, which warm processes have read."""
    files = [(file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in sorted(SCRIPTS.rglob("*.py"))]
    return hashlib.blake2b(repr((sys.executable, sys.prefix, str(SCRIPTS), files)).encode(), digest_size=6).hexdigest()


def is_starting(folder: Path, name: str) -> bool:
    """Whether a warm process lives; it is started if none was. One that crashed is not started again."""
    log = folder / f"{name}.log"  # the warm process locks it until it ends
    try:
        with log.open("x") as said:
            fcntl.flock(said, fcntl.LOCK_EX | fcntl.LOCK_NB)
            command = [sys.executable, "-P", "-c", SERVER, str(SCRIPTS), str(folder), name]
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


def connected(connection: socket.socket, folder: Path, name: str) -> bool:
    """Connect to a warm process; whether it takes jobs."""
    try:
        with address(folder, name) as path:
            connection.connect(path)
    except OSError:
        return False
    return True


def peer(connection: socket.socket) -> int:
    """The user at the other end of a connection."""
    return struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]


def ask(connection: socket.socket, script: str) -> bool:
    """Send a job to the warm process, and pass on signals from then on; whether it took the job."""
    request = {
        "script": script,
        "folder": os.getcwd(),
        "started": clock.process_start(),
        "environment": dict(os.environ),
    }
    body = json.dumps(request).encode()
    try:
        socket.send_fds(connection, [STATUS.pack(len(body))], [1, 2])
        connection.sendall(body)
        for number in SIGNALS:
            signal.signal(number, lambda number, _: connection.send(bytes([number])))
        if connection.recv(1) == ACCEPTED:
            return True
    except OSError:
        pass
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return False


def finish(connection: socket.socket) -> None:
    """Wait for the job's end, and end with its exit status."""
    status = connection.recv(STATUS.size)
    code = STATUS.unpack(status)[0] if status else 1
    if not status:
        print("The warm process of this job ended, and the job with it.", file=sys.stderr)
    elif code < 0:
        print(f"The job was ended by {signal.Signals(-code).name}.", file=sys.stderr)
    sys.stderr.flush()
    os._exit(code if code >= 0 else 128 - code)


if hasattr(sys.modules["__main__"], "snakemake") and hasattr(sys.modules["__main__"], "__real_file__"):
    HOW = hand_over(sys.modules["__main__"])
