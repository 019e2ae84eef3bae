"""The cohorts for the comparison of the GPU's stages."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from carried import HOME, STAGES, Carried, on_gpu, snakemake
from lib.run import diagnosis

COHORTS = ["demo", "pbmc3k", "pbmc_3tech"]
TWICE = "pbmc_3tech"  # the cohort on which every stage runs a second time


@pytest.hookimpl(tryfirst=True)  # before xdist looks for groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    problem = diagnosis.unusable()
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.gpu)
            # One worker per cohort
            of = item.callspec.params.get("carried") if hasattr(item, "callspec") else item.path.stem
            item.add_marker(pytest.mark.xdist_group(f"gpu {of}"))
            if problem:
                item.add_marker(pytest.mark.skip(reason=f"needs a GPU: {problem}"))


@pytest.fixture(scope="session", params=COHORTS)
def carried(request, tmp_path_factory) -> Carried:
    """The demo cohort, 10x Genomics' 3k PBMC, and PBMC of three technologies."""
    name = request.param
    config = yaml.safe_load((HOME / "config" / "config.yaml").read_text())
    if name != "demo":
        if not os.environ.get("SOMERSAULT_TEST_DATA"):
            pytest.skip("needs the real data: set SOMERSAULT_TEST_DATA to its folder")
        config = yaml.safe_load((HOME / "config" / "examples" / f"{name}.yaml").read_text())
    keep = os.environ.get("SOMERSAULT_GPU_TESTS")  # a folder to keep for inspection
    root = Path(keep) if keep else tmp_path_factory.getbasetemp()
    folder = root / name
    cpu = folder / "cpu"
    (cpu / "config").mkdir(parents=True, exist_ok=True)
    if name == "demo":
        shutil.copy(HOME / "config" / "samples.tsv", cpu / "config")
    else:
        path = {"pbmc3k": "pbmc3k/filtered_gene_bc_matrices/hg19", "pbmc_3tech": "pbmc_3tech/pbmc_3tech.h5ad"}[name]
        path = Path(os.environ["SOMERSAULT_TEST_DATA"]) / path
        (cpu / "config" / "samples.tsv").write_text(f"sample\tpath\n{name}\t{path}\n")
    config |= {"samples": "config/samples.tsv", "device": "cpu"}
    (cpu / "config" / "config.yaml").write_text(yaml.safe_dump(config))
    done = snakemake(cpu, os.cpu_count(), "results/atlas.h5ad")
    assert done.returncode == 0, done.stderr[-5000:]
    runs = [(stage, run) for run in ((1, 2) if name == TWICE else (1,)) for stage in STAGES]
    with ThreadPoolExecutor(max(2, os.cpu_count() // 2)) as pool:
        list(pool.map(lambda job: on_gpu(folder, *job), runs))
    return Carried(name, folder, config)
