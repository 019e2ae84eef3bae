"""Hand a job over to a warm process (`lib.run.forks`), and end as it ends.

Snakemake starts every script by `main`, as the prefix of its command says. The modules imported here are few, as this
happens once for each job: so it takes 30 ms where a process that imports what Snakemake's scripts import takes 300.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import signal
import socket
import stat
import struct
import sys
import zlib
from collections.abc import Iterator, Sequence

# In the environment: the Snakemake that is served, `pid-born`; how many forks wait with CUDA started; scripts on a GPU
VARIABLE = "SOMERSAULT_WARM"
SCRIPTS = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
COMMAND = "import sys; sys.path.append(sys.argv.pop(1)); from lib.run.handover import main; main(sys.argv[1:])"
ACCEPTED = b"+"  # the first byte of an answer; the exit status follows
STATUS = struct.Struct("<i")
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def main(command: Sequence[str]) -> None:
    """Run the command of a job: Python, and a script.

    A warm process of this interpreter runs it if there is one, else this process becomes the command.
    """
    python, script = command if len(command) == 2 else ("", "")
    served = os.environ.get(VARIABLE)
    folder = private_folder() if served and python == sys.executable and script.endswith(".py") else None
    if served and folder is not None:
        with socket.socket(socket.AF_UNIX) as connection:
            if connected(connection, folder, names_of(served)[kind_of(served, script)]):
                give(connection, script)
    os.execvp(command[0], command)


def give(connection: socket.socket, script: str) -> None:
    """Have the warm process at the other end run a script, and end as it ends; return if it does not take it."""
    if peer(connection)[1] == os.getuid() and ask(connection, script):
        finish(connection)


def names_of(served: str) -> dict[str, str]:
    """The names of the warm processes of a Snakemake, given as in `VARIABLE`, by the kinds of its jobs."""
    snakemake, spares, on_gpu = served.split(" ")
    names = {"cpu": f"{snakemake}-{version()}-cpu-0"}
    return names | ({"gpu": f"{snakemake}-{version()}-gpu-{spares}"} if on_gpu else {})


def kind_of(served: str, script: str) -> str:
    """The kind of process that runs a script, by the name that Snakemake gives to its copy: `tmp….{name}.py`."""
    name = os.path.basename(script).removesuffix(".py").rpartition(".")[2]
    return "gpu" if name in served.split(" ")[2].split(",") else "cpu"


def version() -> str:
    """A hash of the interpreter and of this workflow's code, which warm processes have read."""
    return f"{zlib.crc32(repr((sys.executable, state())).encode()):08x}"


def state() -> list[list[str | int]]:
    """Names, times and sizes of the files of this workflow's code."""
    found = []
    for folder, _, names in os.walk(SCRIPTS):
        for path in (os.path.join(folder, name) for name in names if not folder.endswith("__pycache__")):
            with contextlib.suppress(FileNotFoundError):  # an editor's lock or scratch file
                about = os.stat(path)
                found.append([path, about.st_mtime_ns, about.st_size])
    return sorted(found)


def private_folder() -> str | None:
    """The folder of the sockets, which only this user can enter; None if there cannot be one."""
    place = next((os.environ[name] for name in ("TMPDIR", "TEMP", "TMP") if os.environ.get(name)), "/tmp")
    folder = os.path.join(place, f"somersault-warm-{os.getuid()}")
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder, 0o700)
        found = os.lstat(folder)
    except OSError:
        return None
    return folder if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o77 else None


@contextlib.contextmanager
def address(folder: str, name: str) -> Iterator[str]:
    """The path of a socket, short enough for sockets (108 bytes) whatever the folder's own path."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        yield f"/proc/self/fd/{fd}/{name}"
    finally:
        os.close(fd)


def connected(connection: socket.socket, folder: str, name: str) -> bool:
    """Connect to a warm process; whether it takes jobs."""
    try:
        with address(folder, name) as path:
            connection.connect(path)
    except OSError:
        return False
    return True


def peer(connection: socket.socket) -> tuple[int, int]:
    """The process and the user at the other end of a connection."""
    return struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[:2]


def ask(connection: socket.socket, script: str) -> bool:
    """Send a job to the warm process, and pass on signals from then on; whether it took the job."""
    body = marshal.dumps({"script": script, "folder": os.getcwd(), "environment": dict(os.environ)})
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
