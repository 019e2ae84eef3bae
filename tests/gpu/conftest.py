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


MARKERS = {
    "T": ["CD3D", "CD3E", "IL7R", "LTB", "CD2"],
    "NK": ["GNLY", "NKG7", "KLRD1", "GZMB", "PRF1"],
    "B": ["MS4A1", "CD79A", "CD79B", "CD74", "BANK1"],
    "monocyte": ["LYZ", "CD14", "CST3", "S100A8", "S100A9", "FCGR3A"],
}


def reference_of(name: str, folder: Path) -> dict[str, str]:
    """The config's `annotation`: PBMC by those of three technologies; the demo by a simulated patient."""
    if name != "demo":
        path = Path(os.environ["SOMERSAULT_TEST_DATA"]) / "pbmc_3tech" / "pbmc_3tech.h5ad"
        return {"reference": str(path), "reference_key": "cell_type"}
    from simulate import Design, simulate_patient, simulated_genes, write_h5ad

    design = Design()
    genes, path = simulated_genes(design), folder / "reference.h5ad"
    if not path.exists():
        write_h5ad(path, simulate_patient(design, 9, 1000, genes), genes)
    return {"reference": str(path), "reference_key": "CellType"}


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
    config["markers"] = config.get("markers", {}) | {"methods": ["logreg", "t-test", "wilcoxon"]}
    config["gene_sets"] = config.get("gene_sets") or MARKERS
    config["scores"] = {"methods": ["ulm", "mlm", "aucell", "zscore", "waggr", "score_genes"]}
    config["scores"] |= {"cell_cycle": "none" if name == "demo" else "human"}
    config["annotation"] = reference_of(name, cpu)
    config["pseudobulk"] = {"groupings": ["leiden_0.6"]}
    (cpu / "config" / "config.yaml").write_text(yaml.safe_dump(config))
    targets = ["atlas.h5ad", "cohort/pseudobulk/leiden_0.6.h5ad", STAGES["trust_integration"][0]]
    targets = [f"results/{path}" for path in targets]
    done = snakemake(cpu, os.cpu_count(), *targets)
    assert done.returncode == 0, done.stderr[-5000:]
    runs = [(stage, run) for run in ((1, 2) if name == TWICE else (1,)) for stage in STAGES]
    with ThreadPoolExecutor(max(2, os.cpu_count() // 2)) as pool:
        list(pool.map(lambda job: on_gpu(folder, *job), runs))
    return Carried(name, folder, config)
