"""A warm process: it has imported the libraries, and runs each job that it is given in a fork of itself.

It takes jobs once it has imported what most need. Its heir, a fork that meanwhile imports some more, then takes them
instead, and has an heir itself until all is imported: so no job waits for an import, which may take long where nothing
is compiled yet.

For jobs on a GPU it keeps some forks, spares, which have started CUDA, so that jobs need not wait for that. A spare
whose job ended well waits for another (`lib.run.again`); one whose job failed ends with it.

It ends when the Snakemake that it serves ends, and after a minute without jobs; its jobs end with it. A job ends with
the process that asked for it (`lib.run.handover`).
"""

from __future__ import annotations

import ast
import contextlib
import ctypes
import gc
import marshal
import os
import runpy
import selectors
import signal
import socket
import struct
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from lib import start
from lib.run import again, clock, diagnosis, handover
from lib.run.code import SCRIPTS, syntax_tree
from lib.run.imports import hidden, import_lean

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
# What is imported before the first job: with these come NumPy, pandas, h5py and SciPy's sparse matrices
FIRST = ("snakemake.script", "snakemake.logging", "lib.run.stage", "lib.store.cohort")
# What libraries import when they are used: for tables, and for images
USED = ("pyarrow.dataset", "pyarrow.pandas_compat", "pandas.core.arrays.arrow.extension_types")
USED += ("pandas.core.reshape.reshape", "pandas.io.formats.csvs", "pandas.io.formats.string")
USED += ("PIL.BmpImagePlugin", "PIL.GifImagePlugin", "PIL.JpegImagePlugin", "PIL.PpmImagePlugin")
OVER, READY = b"-", b"+"  # what a spare says when its job is over, and when it takes another
STEP = 0.5  # seconds of imports after which an heir takes over
IDLE = 60  # seconds without a job after which it ends
WITHIN = 5.0  # seconds for a request to arrive
PR_SET_PDEATHSIG = 1


@dataclass
class Spare:
    """A process that waits for a job or runs one, and the connection to it."""

    pid: int
    connection: socket.socket


@dataclass
class Job:
    """A running job: its process, the connection to the process that asked for it, and the spare that runs it."""

    pid: int
    connection: socket.socket
    spare: Spare | None = None

    def is_over(self) -> bool:
        """Whether its spare says so, which then goes on."""
        with contextlib.suppress(OSError):
            return self.spare is not None and bool(self.spare.connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        return False


class Ended(BaseException):
    """Raised where a job ends whose process goes on."""


def serve(folder: str, name: str) -> None:
    """Import the libraries, then run jobs until the Snakemake that is named in `name` ends, or for a minute without.

    Parameters
    ----------
    folder
        The folder of the socket.
    name
        The socket's name: `{pid}-{born}-{version}-{kind}-{spares}` of Snakemake, of the code, and of the jobs.
    """
    pid, born, _, kind, spares = name.split("-")
    path, listener, server = Path(folder) / name, socket.socket(socket.AF_UNIX), None
    try:
        served = os.pidfd_open(int(pid))
        if clock.born(int(pid)) != born:
            raise ProcessLookupError(f"Snakemake, {pid}, has ended")
        set_environment()
        for module in FIRST:
            import_if_there(module, kind)
        with handover.address(folder, name) as address:
            listener.bind(address)
        listener.listen(128)
        listener.setblocking(False)  # for a while two processes take jobs
        ready, modules = None, None
        while ready is None and modules != []:
            ready, modules = heir(modules, kind)
        server = Server(listener, served, ready, int(spares))
        server.serve()
    finally:
        if server is None or not server.replaced:
            for file in (path, path.with_name(f"{name}.log")):
                file.unlink(missing_ok=True)


def heir(modules: list[str] | None, kind: str) -> tuple[int | None, list[str] | None]:
    """Fork the heir, which imports some of the modules; None: it finds out which there are.

    Returns
    -------
    In the heir, once it has imported them, None and the modules that are left; here, the pipe that says when.
    """
    ready, done = os.pipe()
    pid = os.getpid()
    if os.fork():
        os.close(done)
        return ready, modules
    try:
        os.close(ready)
        ends_with(pid)
        modules = [*USED, *imported_names()] if modules is None else modules
        end = time.monotonic() + STEP
        while modules and time.monotonic() < end:
            import_if_there(modules.pop(0), kind)
        gc.collect()
        gc.freeze()  # the collector of a fork then leaves the pages of these objects shared
        ends_with(None)
        os.write(done, b"+")
        os.close(done)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    return None, modules


def ends_with(parent: int | None) -> None:
    """Have this process killed when its parent ends; None: no longer."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL if parent else 0)
    if parent and os.getppid() != parent:  # it ended before that call
        os._exit(1)


def set_environment() -> None:
    """Set the variables that the libraries read when they are imported."""
    os.environ |= dict.fromkeys(THREADS, "1")  # no threads before a fork; each job sets its own number
    os.environ |= {"MPLBACKEND": "Agg", "RAPIDS_NO_INITIALIZE": "1"}  # each job initialises CUDA itself


def imported_names() -> list[str]:
    """The modules that the scripts and their library import anywhere, the most common first."""
    found: Counter[str] = Counter()
    for path in sorted(SCRIPTS.rglob("*.py")):
        for node in ast.walk(syntax_tree(path)):
            if isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.update([node.module, *(f"{node.module}.{alias.name}" for alias in node.names)])
    return [name for name, _ in found.most_common()]


def import_if_there(name: str, kind: str) -> None:
    """Import a module, without RAPIDS for jobs of the kind cpu; if it fails, the job that needs it tells why."""
    module, _, attribute = name.rpartition(".")
    with hidden(tuple(diagnosis.PACKAGES) if kind == "cpu" else ()), contextlib.suppress(Exception):
        if not hasattr(sys.modules.get(module), attribute):
            import_lean(name)


class Server:
    """The loop of a warm process.

    Parameters
    ----------
    listener
        The socket at which processes ask for jobs.
    served
        The pidfd of Snakemake.
    ready
        The pipe that says when the heir takes the jobs; None in the heir.
    spares
        How many spares may wait, once there is no heir to come; of more than one, one fewer is forked ahead.

    Attributes
    ----------
    replaced
        Whether the heir has taken over.
    waiting
        The spares, and the connections to them; the first has waited longest.
    pools
        The loaded libraries' threads (threadpoolctl), which takes 40 ms to find; None while others may be loaded.
    """

    def __init__(self, listener: socket.socket, served: int, ready: int | None, spares: int) -> None:
        self.listener, self.events, self.pid = listener, selectors.DefaultSelector(), os.getpid()
        self.spares, self.environment = spares * (ready is None), devices_seen(os.environ)
        self.waiting: list[Spare] = []
        self.jobs: dict[int, Job] = {}  # by the pidfd of their processes
        self.waits_for_heir, self.replaced = ready is not None, False
        self.pools = None if self.waits_for_heir else thread_pools()
        self.events.register(listener, selectors.EVENT_READ, self.accept)
        self.events.register(served, selectors.EVENT_READ, self.leave)
        if ready is not None:
            self.events.register(ready, selectors.EVENT_READ, self.hand_on)
        self.keep_spares()

    def serve(self) -> None:
        """Run jobs until there is none for a minute, Snakemake ends, or the heir has taken over and no job is left."""
        while not self.replaced or self.jobs:
            if not self.handle(None if self.jobs or self.waits_for_heir else IDLE):
                break

    def handle(self, timeout: float | None) -> bool:
        """Wait this long for something to happen, and handle it; whether something did."""
        ready = self.events.select(timeout)
        for key, _ in ready:
            if key.fd in self.events.get_map():  # an event before may have ended its job
                key.data(key.fd)
        return bool(ready)

    def hand_on(self, ready: int) -> None:
        """Leave the next jobs to the heir; go on without one if it died."""
        self.events.unregister(ready)
        self.waits_for_heir, self.replaced = False, os.read(ready, 1) == b"+"
        os.close(ready)
        if self.replaced:
            self.events.unregister(self.listener)

    def leave(self, _: int) -> None:
        """End all jobs, and this process, as Snakemake has ended."""
        for job in self.jobs.values():
            os.killpg(job.pid, signal.SIGKILL)
        sys.exit()

    def accept(self, _: int) -> None:
        """Take a request, and fork its job."""
        try:
            connection, _ = self.listener.accept()
        except BlockingIOError:  # the heir was faster
            return
        connection.settimeout(WITHIN)
        files: list[int] = []
        try:
            client, user = handover.peer(connection)
            if user != os.getuid():
                raise PermissionError("a job of another user")
            head, files, *_ = socket.recv_fds(connection, handover.STATUS.size, 2)
            size, body = handover.STATUS.unpack(head)[0], b""
            while len(body) < size and (part := connection.recv(size - len(body))):
                body += part
            request = {**marshal.loads(body), "started": clock.started(client)}
        except (OSError, ValueError, EOFError, TypeError, struct.error):
            traceback.print_exc()
            connection.close()
            for file in files:
                os.close(file)
            return
        connection.settimeout(None)
        with contextlib.suppress(OSError):  # a client that is gone is seen as an event
            connection.send(handover.ACCEPTED)
        spare = self.given_to_spare(request, [*files, connection.fileno()])
        pid = spare.pid if spare else self.fork(lambda: self.work(request, [*files, connection.fileno()]))
        os.setpgid(pid, pid)
        for file in files:
            os.close(file)
        job, process = Job(pid, connection, spare), os.pidfd_open(pid)
        self.jobs[process] = job
        if spare:
            self.events.register(spare.connection, selectors.EVENT_READ, lambda _: self.take_back(process))
        self.events.register(process, selectors.EVENT_READ, self.end)
        self.events.register(connection, selectors.EVENT_READ, lambda _: self.signal(job))
        self.keep_spares()

    def fork(self, work: Callable[[], None]) -> int:
        """Fork a process that does some work and ends."""
        sys.stdout.flush()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # threads of libraries: each handles forks
            pid = os.fork()
        if pid:
            return pid
        try:
            os.setpgid(0, 0)
            ends_with(self.pid)
            for fd in [key.fd for key in self.events.get_map().values()]:
                os.close(fd)
            for spare in self.waiting:
                spare.connection.close()
            work()
        except BaseException:
            traceback.print_exc()
        os._exit(1)

    def keep_spares(self) -> None:
        """Fork the spares that there shall be."""
        while len(self.waiting) < min(self.spares, max(1, self.spares - 1)):
            mine, its = socket.socketpair()
            self.waiting.append(Spare(self.fork(lambda its=its, mine=mine: self.wait_as_spare(its, mine)), mine))
            its.close()

    def wait_as_spare(self, connection: socket.socket, other: socket.socket) -> None:
        """Start CUDA, and run the jobs that are given, one after the other."""
        other.close()
        with contextlib.suppress(Exception):  # the job that needs it tells why it cannot be
            start_cuda()
        quiet = os.dup(1), os.dup(2)
        again.remember()
        while True:
            head, files, *_ = socket.recv_fds(connection, handover.STATUS.size, 3)
            size, body = handover.STATUS.unpack(head)[0] if head else 0, b""
            while len(body) < size and (part := connection.recv(size - len(body))):
                body += part
            if not body:  # it is not needed any more
                os._exit(0)
            with contextlib.suppress(Ended):
                self.work(marshal.loads(body), files, go_on)
            sys.stdout.flush()
            sys.stderr.flush()
            connection.send(OVER)
            with contextlib.suppress(OSError):  # who asked is gone
                os.write(files[-1], handover.STATUS.pack(0))
            os.close(files[-1])
            for fd, target in zip(quiet, (1, 2), strict=True):
                os.dup2(fd, target)
            if not again.is_clear():
                os._exit(0)
            self.pools = thread_pools()
            connection.send(READY)

    def take_back(self, process: int) -> None:
        """Have a spare whose job is over wait for the next one, if there are not enough."""
        job = self.jobs[process]
        said = job.spare.connection.recv(2)
        if OVER in said:
            self.close(job.connection)
        if READY in said and len(self.waiting) < self.spares:
            self.waiting.append(job.spare)
            for ended in (job.spare.connection, process):
                self.events.unregister(ended)
            os.close(process)
            del self.jobs[process]
        elif said != OVER:  # its process ends, or has ended
            self.close(job.spare.connection)

    def given_to_spare(self, request: dict[str, Any], files: list[int]) -> Spare | None:
        """The spare that runs the job; None if there is none, or the job shall see other cards."""
        if not self.waiting or devices_seen(request["environment"]) != self.environment:
            return None
        spare = self.waiting.pop()  # the last one, whose memory is warm
        body = marshal.dumps(request)
        try:
            socket.send_fds(spare.connection, [handover.STATUS.pack(len(body))], files)
            spare.connection.sendall(body)
        except OSError:  # it died: no further one is begun
            spare.connection.close()
            os.waitpid(spare.pid, 0)
            self.spares = 0
            return None
        return spare

    def signal(self, job: Job) -> None:
        """Pass a signal on to a job; kill it if the process that asked for it is gone."""
        try:
            number = job.connection.recv(1)
        except OSError:
            number = b""
        if not number:
            self.events.unregister(job.connection)
            if job.is_over():
                return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job.pid, number[0] if number else signal.SIGKILL)

    def end(self, process: int) -> None:
        """Tell the exit status of a job that could not tell it itself."""
        job = self.jobs.pop(process)
        status = os.waitstatus_to_exitcode(os.waitpid(job.pid, 0)[1])
        self.events.unregister(process)
        os.close(process)
        with contextlib.suppress(OSError):
            job.connection.send(handover.STATUS.pack(status))
        self.close(job.connection)
        if job.spare:
            self.close(job.spare.connection)

    def close(self, connection: socket.socket) -> None:
        """Close a connection, if it is not closed yet, and wait for nothing from it any more."""
        if connection.fileno() != -1:
            with contextlib.suppress(KeyError):
                self.events.unregister(connection)
            connection.close()

    def work(self, request: dict[str, Any], files: list[int], ends: Callable[[int, int], Any] | None = None) -> None:
        """Run a job's script in this fork, as Snakemake's own process would, and end.

        Parameters
        ----------
        request
            The script, its folder and its environment.
        files
            Standard output, standard error, and the connection to the process that asked for the job.
        ends
            Called in place of `tell_and_end`.
        """
        code, (*outputs, asked) = 1, files
        try:
            for fd, target in zip(outputs, (1, 2), strict=True):
                os.dup2(fd, target)
                os.close(fd)
            with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
                file.write("5")  # the peak of memory begins anew
            os.chdir(request["folder"])
            os.environ.clear()
            os.environ.update(request["environment"])
            # Libraries that are loaded later read the environment
            (self.pools or thread_pools()).limit(limits=int(os.environ.get(THREADS[0], 1)))
            clock.starts(request["started"])
            start.HOW, start.END = start.FORKED, partial(ends or tell_and_end, asked)
            runpy.run_path(request["script"], run_name="__main__")
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
        except Ended:
            raise
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        tell_and_end(asked, code)


def go_on(asked: int, status: int) -> NoReturn:
    """As `tell_and_end` if the job failed, else the process goes on."""
    if status:
        tell_and_end(asked, status)
    raise Ended


def tell_and_end(asked: int, status: int) -> NoReturn:
    """Tell the process that asked for this job its exit status, and end: to leave a card takes CUDA some 0.2 s more."""
    with contextlib.suppress(OSError):
        os.write(asked, handover.STATUS.pack(status))
    os._exit(status)


def devices_seen(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that tell CUDA which cards it sees, and in which order."""
    return {name: value for name, value in environment.items() if name.startswith("CUDA_")}


def start_cuda() -> None:
    """Create this process' context on the card, if there is one only, and others may have theirs on it."""
    from lib.run import cards

    (card,) = cards.visible()
    if cards.is_shared(card):
        import cupy

        cupy.cuda.Device(card.ordinal).use()
        cupy.cuda.runtime.free(0)


def thread_pools() -> Any:
    """The pools of threads of the libraries that are loaded."""
    return import_module("threadpoolctl").ThreadpoolController()
