"""Find what the stages' scripts declare, and give the needs of their jobs in Snakemake's units."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from functools import cache
from math import ceil
from typing import Any

from lib.run.code import SCRIPTS, syntax_tree
from lib.run.resources import MB, Job, Model, Need

MARGIN = 1.3  # of memory, beyond the models' terms
SLOW = 3.0  # of time, beyond that measured on two cores
AT_LEAST = 3  # minutes
GPU_SPEED = 4  # the least speed-up by a GPU
WARM_MB, WARM_GPU_MB = 500, 1000  # a warm process, and a second one with RAPIDS, beside the stages in a cluster job
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


@cache
def model_of(stage: str) -> Model:
    """The model of a stage: the function `needs` of its script.

    Only the statements that `needs` depends on are executed: Snakemake asks all models at every start, and the
    libraries that stages compute with take seconds to import.
    """
    return declared(stage, "needs")


def declared(stage: str, name: str) -> Any:
    """What a stage's script declares under a name, from the statements alone that it depends on; None: nothing."""
    path = SCRIPTS / f"{stage}.py"
    namespace: dict[str, Any] = {"__name__": f"{name} of {path.name}"}
    body = list(_depended_on(syntax_tree(path).body, name))
    exec(compile(ast.Module(body, []), str(path), "exec"), namespace)
    return namespace.get(name)


def _depended_on(statements: Sequence[ast.stmt], name: str) -> Iterator[ast.stmt]:
    """The statements of a module that bind a name, and those that bind the names they use, in order."""
    needed, wanted = set(), {name}
    while wanted:
        name = wanted.pop()
        for number, statement in enumerate(statements):
            if number not in needed and name in _bound(statement):
                needed.add(number)
                wanted |= {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
    return (statements[number] for number in sorted(needed))


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
