"""Find what the stages' scripts declare, and give the needs of their jobs in Snakemake's units."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from functools import cache
from math import ceil
from typing import Any

from lib.run import code, handover
from lib.run.kept import keep, recall
from lib.run.resources import MB, Job, Model, Need

MARGIN = 1.3  # of memory, beyond the models' terms
SLOW = 3.0  # of time, beyond that measured on two cores
AT_LEAST = 3  # minutes
GPU_SPEED = 4  # the least speed-up by a GPU
# Beside the stages in a cluster job: a warm process; a second one with RAPIDS, and its fork with CUDA
WARM_MB, WARM_GPU_MB = 500, 1400
SNAKEMAKE_MB = 400  # Snakemake's two processes of 175 MB, beside the stage's process in a cluster job


def resources_of(need: Need, job: Job, attempt: int = 1) -> dict[str, int]:
    """The need of a job in Snakemake's units: `mem_mb`, `vram_mb`, `runtime` (minutes) and `disk_mb`.

    Attempt n asks for n times the memory, GPU memory and time. `gpu: memory_gb` limits `vram_mb`.
    """
    on_gpu = job.gpu and need.vram > 0
    mem = need.gpu_mem if on_gpu and need.gpu_mem is not None else need.mem
    minutes = SLOW * need.seconds / 60 / (GPU_SPEED if on_gpu else 1)
    most = (job.config["gpu"]["memory_gb"] or float("inf")) * 1024
    return {
        "mem_mb": ceil(MARGIN * mem / MB) * attempt,
        "vram_mb": int(min(need.vram / MB * attempt, most)) if on_gpu else 0,
        "runtime": ceil(max(AT_LEAST, minutes)) * attempt,
        "disk_mb": ceil(need.disk / MB),
    }


def of_scripts() -> dict[str, dict[str, str]]:
    """By the name of each script the version of its code, `versions`, and the source of its model, `models`.

    They are kept until a file of the code changes, and beside the code alone: the sources are executed.
    """
    place, state = code.SCRIPTS / "__pycache__" / "somersault.json", handover.state()
    if (known := recall(place)).get("state") == state:
        return known["found"]
    scripts = sorted(code.SCRIPTS.glob("*.py"))
    found = {"versions": {script.name: code.version_of_code(script) for script in scripts}}
    found["models"] = {script.stem: source_of(script.stem, "needs") for script in scripts}
    keep(place, {"state": state, "found": found})
    return found


@cache
def model_of(stage: str, source: str | None = None) -> Model:
    """The model of a stage: the function `needs` of its script, or of `source`, that which `source_of` it gave.

    Only the statements that `needs` depends on are executed: Snakemake asks all models at every start, and the
    libraries that stages compute with take seconds to import.
    """
    return declared(stage, "needs", source)


def declared(stage: str, name: str, source: str | None = None) -> Any:
    """What a stage's script declares under a name, from the statements alone that it depends on; None: nothing."""
    path = code.SCRIPTS / f"{stage}.py"
    namespace: dict[str, Any] = {"__name__": f"{name} of {path.name}"}
    exec(compile(source_of(stage, name) if source is None else source, str(path), "exec"), namespace)
    return namespace.get(name)


def source_of(stage: str, name: str) -> str:
    """The lines of a stage's script that bind a name, and the names that it depends on; the others are blank."""
    path = code.SCRIPTS / f"{stage}.py"
    lines, kept = path.read_text(encoding="utf-8").splitlines(), set()
    for node in _depended_on(code.syntax_tree(path).body, name):
        kept |= {*range(code.first_line(node) - 1, node.end_lineno or 0)}
    return "\n".join(line if number in kept else "" for number, line in enumerate(lines)).rstrip()


def _depended_on(statements: Sequence[ast.stmt], name: str) -> list[ast.stmt]:
    """The statements of a module that bind a name, and those that bind the names they use, in order."""
    binding: dict[str, list[int]] = {}
    for number, statement in enumerate(statements):
        for bound in _bound(statement):
            binding.setdefault(bound, []).append(number)
    needed, wanted = set(), {name}
    while wanted:
        for number in binding.get(wanted.pop(), ()):
            if number not in needed:
                needed.add(number)
                wanted |= {node.id for node in ast.walk(statements[number]) if isinstance(node, ast.Name)}
    return [statements[number] for number in sorted(needed)]


def _bound(statement: ast.stmt) -> set[str]:
    """The names that a statement of a module binds."""
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return {statement.name}
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return {alias.asname or alias.name.partition(".")[0] for alias in statement.names}
    return {node.id for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def read_mb(model: Model, job: Job) -> float:
    """Megabytes that several threads of a stage can read; the useful number of threads follows from it."""
    reads = model(job).reads
    return (job.store if reads is None else reads) / MB
