"""Warm processes: jobs as their forks, and what ends with what. Each test has its own folder of sockets."""

from __future__ import annotations

import marshal
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from itertools import product

import pytest
from lib import start
from lib.run import clock, handover
from served import SCRIPTS, Served, parent_of, serve, until

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="warm processes need Linux")
SLEEPING = "import time\nprint(os.getpid(), flush=True)\ntime.sleep(1000)"


@pytest.fixture
def served(tmp_path):
    yield from serve(tmp_path)


@pytest.fixture(scope="module")
def warmed(tmp_path_factory):
    """One with a warm process, for tests that leave it as it is."""
    yield from serve(tmp_path_factory.mktemp("warm"))


@pytest.fixture
def served_on_gpu(tmp_path):
    yield from serve(tmp_path, gpu=1)


@pytest.mark.parametrize("directly", [False, True])
def test_jobs_are_forks_that_see_what_a_process_of_their_own_does(warmed, directly):
    code = """
import threadpoolctl, numpy
print(os.getcwd(), os.environ['MINE'], sys.argv[0] == __file__ == __real_file__, __name__)
print({pool['num_threads'] for pool in threadpoolctl.threadpool_info()})
print('odd', file=sys.stderr)
sys.exit(3)
"""
    warmed.run()
    status, out, err = warmed.run(code, directly, MINE="set", OMP_NUM_THREADS="2", OPENBLAS_NUM_THREADS="2")
    forked, place, threads = out.splitlines()
    assert forked == start.FORKED
    assert place == f"{warmed.folder} set True __main__"
    assert threads == "{2}"
    assert (status, err) == (3, "odd\n")


@pytest.mark.parametrize(
    ("code", "status", "message"),
    [
        ("", 0, ""),
        ("sys.exit('the reason')", 1, "the reason"),
        ("1 / 0", 1, "ZeroDivisionError"),
        ("os.kill(os.getpid(), 11)", 139, "The job was ended by SIGSEGV."),
        ("os._exit(7)", 7, ""),
    ],
)
@pytest.mark.parametrize("directly", [False, True])
def test_a_job_ends_as_its_process_would(warmed, code, status, message, directly):
    found, out, err = warmed.run(code, directly)
    assert out.strip() == start.FORKED
    assert found == status
    assert message in err


def test_a_killed_client_ends_its_job_and_a_signal_reaches_it(warmed):
    body = SLEEPING.replace("\n", "\n    ")  # the process tells its number within `try`
    code = f"try:\n    {body}\nfinally:\n    print('cleaned', flush=True)"
    warmed.run()
    ends = ((signal.SIGKILL, ""), (signal.SIGINT, "cleaned\n"))
    for (number, cleaned), directly in product(ends, (False, True)):
        job = warmed.begin(code, directly)
        assert job.stdout.readline().strip() == start.FORKED
        pid = int(job.stdout.readline())
        job.send_signal(number)
        assert job.stdout.read() == cleaned
        assert job.wait(60) != 0
        until(lambda pid=pid: clock.born(pid) is None)
    warmed.settle()


def test_warm_processes_and_jobs_end_with_snakemake(served):
    job = served.begin(SLEEPING)
    job.stdout.readline()
    pid = int(job.stdout.readline())
    served.process.kill()
    served.process.wait()
    assert job.wait(60) == 1
    until(lambda: clock.born(pid) is None and not served.servers())
    assert not list(served.sockets.iterdir())


def test_jobs_run_while_the_heir_imports_and_after_it_took_over(served):
    job = served.begin(SLEEPING)
    assert job.stdout.readline().strip() == start.FORKED
    first = parent_of(int(job.stdout.readline()))
    until(lambda: served.run("print(os.getppid())")[1].split()[-1] != str(first))
    assert clock.born(first)  # its job still runs
    job.send_signal(signal.SIGINT)
    assert job.wait(60) == 1
    until(lambda: clock.born(first) is None)
    assert served.run()[1].strip() == start.FORKED


def test_a_job_on_a_gpu_runs_in_a_fork_that_waits_for_it(served_on_gpu):
    """Unless it sees other cards, or that fork was killed."""

    ran = set()

    def place(**env: str) -> int:
        forked, pid = served_on_gpu.run("print(os.getpid())", **env)[1].splitlines()
        assert forked == start.FORKED
        ran.add(int(pid))
        return int(pid)

    def waiting() -> set[int]:
        """Those that wait, one fewer than may, once there is no process but them and the last heir."""
        until(lambda: [len({*pids} - ran) for pids in (served_on_gpu.servers("gpu"), served_on_gpu.spares())] == [3, 2])
        return {*served_on_gpu.spares()} - ran

    place()
    for _ in range(3):
        before = waiting()
        assert place() in before
    before = waiting()
    assert place(CUDA_VISIBLE_DEVICES="1") not in before
    assert waiting() == before
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    for _ in range(3):
        assert place() not in before


GOES_ON = """
import gc, builtins
from lib.run import clock, stage
from lib.store import compressed, stream
clock.count_imports()
print(os.getpid(), builtins.__import__.__name__, len(clock._PLAIN))
print(stage._NOTICES, stream._SHARE, compressed._N, os.getcwd(), os.environ.get('MINE'))
stage._NOTICES.append('told')
stream.halve_chunks()
compressed.set_threads(7)
if os.environ.get('MINE') == 'kept':
    sys.kept = b'1' * 1200_000_000
sys.stdout.flush()
start.END({status})
"""


def test_a_process_whose_job_ended_well_runs_the_next_one_and_has_forgotten_it(served_on_gpu):
    def result(status: int = 0, **env: str) -> tuple[str, list[str]]:
        code, out, _ = served_on_gpu.run(GOES_ON.format(status=status), **env)
        assert code == status
        forked, process, *found = out.splitlines()
        assert forked == start.FORKED
        return process, found

    def goes_on() -> bool:
        place, found = result(MINE=str(len(places)))
        assert found == [f"[] 1.0 0 {served_on_gpu.folder} {len(places)}"]
        places.append(place)
        return place in places[:-1]

    places: list[str] = []
    served_on_gpu.run()
    until(goes_on)
    failed, _ = result(status=1)
    large, _ = result(MINE="kept")
    for _ in range(4):
        time.sleep(0.3)
        assert result()[0] not in (failed, large)


def test_a_request_that_is_cut_off_ends_no_warm_process(served):
    heir = served.settle()
    name = next(path.name for path in served.sockets.iterdir() if path.is_socket())
    head = handover.STATUS.pack
    for sent in (b"", b"1", head(100) + b"{", head(2) + b"{}", head(5) + marshal.dumps([]), head(-1)):
        with socket.socket(socket.AF_UNIX) as connection:
            assert handover.connected(connection, str(served.sockets), name)
            connection.send(sent)
    assert served.run()[1].strip() == start.FORKED
    assert served.settle() == heir


def test_a_killed_warm_process_fails_its_jobs_and_the_next_run_without_it(served):
    heir = served.settle()
    job = served.begin(SLEEPING)
    job.stdout.readline()
    pid = int(job.stdout.readline())
    assert parent_of(pid) == heir
    os.kill(heir, signal.SIGKILL)
    assert job.wait(60) == 1
    assert "The warm process of this job ended" in job.stderr.read()
    until(lambda: clock.born(pid) is None)
    for _ in range(2):
        assert served.run()[:2] == (0, f"{start.OWN}: there is no warm process\n")
    assert served.servers() == []


@pytest.mark.slow
@pytest.mark.parametrize("heir", ["", "forks.imported_names = lambda: os._exit(9)"])
def test_a_warm_process_without_work_ends_and_the_next_job_starts_another(served, heir):
    """Its heir too, and one whose heir died."""
    served.sockets.mkdir(mode=0o700)
    name = handover.names_of(start.names_itself(served.process.pid))["cpu"]
    server = start.SERVER.replace(
        "serve(*", f"from lib.run import forks; import os; forks.IDLE = 2; {heir or 0}; serve(*"
    )
    process = subprocess.Popen([sys.executable, "-P", "-c", server, str(SCRIPTS), str(served.sockets), name])
    until(lambda: (served.sockets / name).is_socket())
    assert served.run()[1].strip() == start.FORKED
    assert process.wait(60) == 0
    until(lambda: not list(served.sockets.iterdir()))
    assert served.run()[1].strip() == start.FORKED


@pytest.mark.slow
def test_other_code_is_served_by_another_process(tmp_path):
    scripts = tmp_path / "scripts"
    shutil.copytree(SCRIPTS, scripts, ignore=shutil.ignore_patterns("__pycache__"))
    served = Served(tmp_path, scripts)
    try:
        assert served.run()[1].strip() == start.FORKED
        (scripts / "lib" / "new.py").write_text("1 / 0")
        assert served.run()[1].strip() == start.FORKED
        until(lambda: len(served.servers()) == 2)
    finally:
        served.process.kill()
        served.process.wait()


def test_a_folder_that_others_can_enter_is_not_used(served):
    served.sockets.mkdir()
    served.sockets.chmod(0o755)
    assert served.run()[:2] == (
        0,
        f"{start.OWN}: the folder of warm processes cannot be used or belongs to somebody else\n",
    )
    assert not list(served.sockets.iterdir())


def test_without_a_snakemake_that_asks_for_it_nothing_is_started(served):
    for directly in (False, True):
        assert served.run("", directly, **{handover.VARIABLE: ""})[1].strip() == start.OWN
    assert not served.sockets.exists()


def test_the_prefix_leaves_other_commands_as_they_are(warmed):
    warmed.run()
    for command, said in (("-c 'import sys; print(sys.argv[1:])' 'a b' '{}'", "['a b', '{}']\n"), ("-V", "Python")):
        shell = ["sh", "-c", f"{start.prefix().format()} {sys.executable} {command}"]
        done = subprocess.run(shell, env=warmed.env, capture_output=True, text=True, check=True)
        assert done.stdout.startswith(said)


def test_memory_of_a_fork_is_its_own(warmed):
    code = "from lib.run import stage\nprint(stage.peak_rss_mb())\nheld = os.urandom(1 << 20) * 50\ndel held\n"
    before, peak = map(float, warmed.run(code + "print(stage.peak_rss_mb())")[1].splitlines()[1:])
    assert before < 60  # pages that are copied as they are written
    assert 50 < peak - before < 60
