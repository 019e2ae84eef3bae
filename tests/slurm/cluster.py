"""A SLURM cluster on this machine, for the tests: real daemons, several nodes, simulated GPUs.

Needs root and Debian's packages PACKAGES. Each node is a separate slurmd under the name of this host; a GPU is a
character device, so that SLURM counts GPUs and sets CUDA_VISIBLE_DEVICES as it does for real ones.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

PACKAGES = ["munge", "slurm-client", "slurmctld", "slurmd"]
CONF = Path("/etc/slurm/slurm.conf")  # srun within a job reads only this file: the plugin clears SLURM_CONF there
BASE = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
AuthInfo=socket={folder}/munge/socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/spool/%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
SlurmdParameters=config_overrides
DefMemPerCPU=500
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
MinJobAge=36000
KillWait=5
JobRequeue=0
ReturnToService=2
MpiDefault=none
MailProg=/bin/true
PropagateResourceLimits=NONE
"""


@dataclass(frozen=True)
class Node:
    """A simulated node: CPUs, memory in MB and GPUs of one type."""

    name: str
    cpus: int = 8
    memory_mb: int = 20000
    gpus: int = 0
    gpu_model: str = "h100"


@dataclass
class Cluster:
    """The cluster: `start`, use SLURM's commands with `environment`, `stop`.

    Partitions: `main` (the default; all nodes), `cpu` and `gpu` (the nodes without and with GPUs).
    """

    folder: Path
    nodes: Sequence[Node] = (Node("cpu1"), Node("cpu2"), Node("gpu1", gpus=2))
    daemons: list[subprocess.Popen] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables of a process that uses this cluster."""
        return {**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf")}

    def start(self) -> None:
        """Write the configuration and start munge, the controller and the nodes."""
        for name in ("log", "state", "spool", "dev", "munge"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)
        (self.folder / "munge").chmod(0o711)
        key, sock = self.folder / "munge" / "key", self.folder / "munge" / "socket"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(1024))
        self._configure()
        CONF.parent.mkdir(exist_ok=True)
        CONF.symlink_to(self.folder / "slurm.conf")
        paths = {name: f"--{name}={self.folder}/munge/{name}" for name in ("pid-file", "log-file", "seed-file")}
        self._daemon("munged", "-F", "-f", f"--key-file={key}", "-S", str(sock), *paths.values())
        self._await("munge", "-n", "-S", str(sock))
        self._daemon("slurmctld", "-D")
        self._await("scontrol", "ping")
        for node in self.nodes:
            self._daemon("slurmd", "-D", "-N", node.name)
        self._await("bash", "-c", f"[ $(sinfo -hNo %N -t idle -p main | wc -l) = {len(self.nodes)} ]")

    def stop(self) -> None:
        """Cancel running jobs, and stop the daemons that `start` started."""
        if CONF.is_symlink() and CONF.readlink() == self.folder / "slurm.conf":
            self.run("scancel", "--user=root", check=False)
            end = time.time() + 20
            while self.run("squeue", "-h", check=False) and time.time() < end:
                time.sleep(0.2)
            CONF.unlink()
        for daemon in reversed(self.daemons):
            daemon.terminate()
            try:
                daemon.wait(15)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def run(self, *command: str, check: bool = True) -> str:
        """Run one of SLURM's commands, and return its output."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False, timeout=60)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
        return done.stdout.strip()

    def jobs(self) -> list[dict[str, str]]:
        """All jobs so far, by number: `job`, `run` (the run's name), `state`, `memory`, `minutes`, `node` ..."""
        names = ["job", "run", "state", "memory", "limit", "seconds", "node", "partition", "what"]
        lines = self.run("squeue", "--states=all", "-ho", "%A|%j|%T|%m|%l|%M|%N|%P|%k").splitlines()
        return sorted((dict(zip(names, line.split("|"), strict=True)) for line in lines), key=lambda j: int(j["job"]))

    def _configure(self) -> None:
        host, ports = socket.gethostname().split(".")[0], free_ports(len(self.nodes) + 1)
        lines, gres, devices = [BASE.format(host=host, port=ports[0], folder=self.folder)], [], 0
        for node, port in zip(self.nodes, ports[1:], strict=True):
            (self.folder / "spool" / node.name).mkdir(exist_ok=True)
            line = f"NodeName={node.name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} "
            line += f"CPUs={node.cpus} RealMemory={node.memory_mb}"
            if node.gpus:
                line += f" Gres=gpu:{node.gpu_model}:{node.gpus}"
                for _ in range(node.gpus):
                    device = self.folder / "dev" / f"gpu{devices}"
                    os.mknod(device, 0o020666, os.makedev(1, 3))
                    gres.append(f"NodeName={node.name} Name=gpu Type={node.gpu_model} File={device}")
                    devices += 1
            lines.append(line)
        parts = {"main": self.nodes}
        parts |= {"cpu": [n for n in self.nodes if not n.gpus], "gpu": [n for n in self.nodes if n.gpus]}
        for name, nodes in parts.items():
            if nodes:
                line = f"PartitionName={name} Nodes={','.join(n.name for n in nodes)} MaxTime=10000"
                lines.append(line + (" Default=YES" if name == "main" else ""))
        (self.folder / "slurm.conf").write_text("\n".join(lines) + "\n")
        (self.folder / "gres.conf").write_text("\n".join(gres) + "\n")

    def _daemon(self, *command: str) -> None:
        with (self.folder / "log" / f"{command[0]}.out").open("a") as out:
            options = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": out, "start_new_session": True}
            self.daemons.append(subprocess.Popen(command, env=self.environment, **options))

    def _await(self, *command: str) -> None:
        end = time.time() + 60
        while subprocess.run(command, env=self.environment, capture_output=True, check=False).returncode:
            if time.time() > end:
                logs = "\n".join(path.read_text()[-500:] for path in (self.folder / "log").iterdir())
                raise RuntimeError(f"{' '.join(command)} did not succeed in 60 s:\n{logs}")
            time.sleep(0.2)


def missing() -> str | None:
    """Why no cluster can be started here; None if one can. With SOMERSAULT_TEST_SLURM=1 installs the packages."""
    if os.geteuid() != 0:
        return "needs root, to start SLURM's daemons"
    if os.path.lexists(CONF) and not _left_behind():
        return f"{CONF} is there: this machine belongs to a cluster"
    if not _there() and os.environ.get("SOMERSAULT_TEST_SLURM") == "1" and shutil.which("apt-get"):
        _install()
    if not _there():
        return f"needs Debian's packages {' '.join(PACKAGES)} (SOMERSAULT_TEST_SLURM=1 installs them)"
    return None


def _left_behind() -> bool:
    """Remove the link of a killed test run; return whether there was one."""
    ours = CONF.is_symlink() and (not CONF.exists() or "ClusterName=tests" in CONF.read_text())
    if ours and (not _there() or subprocess.run(["scontrol", "ping"], capture_output=True, check=False).returncode):
        CONF.unlink()
        return True
    return False


def _there() -> bool:
    return all(map(shutil.which, ("munged", "slurmctld", "slurmd", "sbatch")))


def _install() -> None:
    """Install the packages, without starting services."""
    policy = Path("/usr/sbin/policy-rc.d")
    ours = not policy.exists()
    if ours:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        for command in (["update"], ["install", "-y", "--no-install-recommends", *PACKAGES]):
            subprocess.run(["apt-get", "-q", *command], env=env, capture_output=True, check=False, timeout=300)
    except subprocess.TimeoutExpired:
        pass  # no network: the tests skip
    finally:
        if ours:
            policy.unlink()


def free_ports(n: int) -> list[int]:
    """Free ports."""
    sockets = [socket.socket() for _ in range(n)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports
