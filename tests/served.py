"""A process in the place of Snakemake, whose jobs run as forks of a warm process."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lib import start
from lib.run import handover

SCRIPTS = Path(start.__file__).parents[1]
JOB = """
import os, sys
sys.path.append({scripts!r})
__real_file__, snakemake = __file__, None
from lib import start
print(start.HOW, flush=True)
"""


class Served:
    """A process in the place of Snakemake, and jobs that it runs."""

    def __init__(self, folder: Path, scripts: Path = SCRIPTS, gpu: int = 0) -> None:
        self.folder, self.scripts, self.gpu = folder, scripts, gpu
        self.process = subprocess.Popen(["sleep", "1000"])
        served = {handover.VARIABLE: start.names_itself(self.process.pid, ["on_gpu"] * gpu, spares=3)}
        self.env = {**os.environ, **served, "TMPDIR": str(folder), "OMP_NUM_THREADS": "1"}
        self.sockets = folder / f"somersault-warm-{os.getuid()}"

    def begin(self, code: str = "", directly: bool = False, **env: str) -> subprocess.Popen[str]:
        """Begin a job that says how it was started, then runs the code; `directly`: by the command with our prefix."""
        script = self.folder / f"job{time.time_ns()}.{'on_gpu' if self.gpu else 'on_cpu'}.py"
        script.write_text(JOB.format(scripts=str(self.scripts)) + code)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        pipes["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # shells ignore it in the background
        command = [sys.executable, str(script)]
        if directly:
            command = ["bash", "-c", f"{start.prefix().format()} {shlex.join(command)}"]
        return subprocess.Popen(command, env=self.env | env, cwd=self.folder, **pipes)

    def run(self, code: str = "", directly: bool = False, **env: str) -> tuple[int, str, str]:
        """Run a job: exit status, output, errors."""
        job = self.begin(code, directly, **env)
        out, err = job.communicate(timeout=60)
        return job.returncode, out, err

    def settle(self) -> int:
        """Wait until the heir has taken over from the process that it is a fork of; the heir."""
        self.run()
        until(lambda: len(self.servers()) == 1)
        return self.servers()[0]

    def spares(self) -> list[int]:
        """The processes that wait for jobs on a GPU, and those that run one."""
        mine, found = self.servers("gpu"), []
        for pid in mine:
            with contextlib.suppress(OSError):  # it ended
                found += [pid] if parent_of(pid) in mine and os.getpgid(pid) == pid else []
        return found

    def servers(self, kind: str = "") -> list[int]:
        """The warm processes of this test, and their jobs; `kind`: of jobs on a `cpu` or a `gpu`."""
        return [pid for pid, command in processes() if str(self.sockets) in command and f"-{kind}" in command]


def processes() -> list[tuple[int, str]]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append((int(path.parent.name), path.read_text().replace("\0", " ")))
        except OSError:
            continue
    return found


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def until(holds: Callable[[], Any], seconds: float = 60) -> None:
    """Wait until something holds."""
    end = time.time() + seconds
    while not holds():
        assert time.time() < end
        time.sleep(0.02)


def serve(folder: Path, **options: Any) -> Iterator[Served]:
    """Serve jobs; in the end, wait until no process is left."""
    made = Served(folder, **options)
    yield made
    made.process.kill()
    made.process.wait()
    until(lambda: not made.servers())
