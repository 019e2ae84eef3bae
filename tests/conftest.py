"""Fixtures: the real data in the folder that `SOMERSAULT_TEST_DATA` names, if it is set."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

# Before NumPy is imported: workers share the cores, and threads of BLAS that wait for each other spin
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")
# Last, as under Snakemake: scripts/umap.py must not hide umap-learn
sys.path.append(str(Path(__file__).parents[1] / "scripts"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real test data; without one the test is skipped."""
    folder = os.environ.get("SOMERSAULT_TEST_DATA")
    if not folder:
        pytest.skip("needs the real data: set SOMERSAULT_TEST_DATA to its folder")
    return Path(folder)


@pytest.fixture
def pbmc3k(real_data):
    """10x Genomics' 3k PBMC: raw counts, float32 CSR, unique gene names."""
    import anndata as ad

    adata = ad.read_h5ad(real_data / "pbmc3k" / "pbmc3k_raw.h5ad")
    adata.var_names_make_unique()
    return adata
