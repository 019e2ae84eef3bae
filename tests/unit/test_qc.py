"""QC metrics against scanpy.pp.calculate_qc_metrics, on real and on simulated counts."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
from lib.counts import InMemory
from lib.errors import UserError
from lib.genelists import gene_families
from qc import qc_metrics

FAMILIES = {"MT": ["MT-"], "RIBO": ["RPS", "RPL"]}


def compare(adata: ad.AnnData, percent_top: list[int], max_cells: int = 1000) -> None:
    families = gene_families(FAMILIES, adata.var_names.to_numpy())
    for name, mask in families.items():
        adata.var[name] = mask
    obs, var = qc_metrics(InMemory(adata.X.astype(np.uint16), max_cells=max_cells), families, percent_top)
    theirs_obs, theirs_var = sc.pp.calculate_qc_metrics(adata, qc_vars=list(families), percent_top=percent_top)
    assert set(obs) == set(theirs_obs)
    for name in theirs_obs:
        # Sums are equal; scanpy takes percentages and logarithms in float32, so they agree to its 24 bits
        tolerance = 0 if name.startswith(("total_counts", "n_genes")) else 3e-7
        np.testing.assert_allclose(obs[name], theirs_obs[name], rtol=tolerance, err_msg=name)
    for name in theirs_var:
        tolerance = 0 if name in ("total_counts", "n_cells_by_counts") else 3e-7
        np.testing.assert_allclose(var[name], theirs_var[name], rtol=tolerance, err_msg=name)


def test_pbmc3k_equals_scanpy(pbmc3k):
    compare(pbmc3k, [50, 100, 200, 500])


def simulated(n_obs: int = 97, n_vars: int = 300) -> ad.AnnData:
    rng = np.random.default_rng(0)
    X = sp.csr_matrix(rng.poisson(rng.lognormal(-1.5, 1.5, n_vars), (n_obs, n_vars)).astype(np.float32))
    names = [f"MT-{i}" for i in range(5)] + [f"RPS{i}" for i in range(9)] + [f"RPL{i}" for i in range(9)]
    names += [f"G{i}" for i in range(n_vars - len(names))]
    return ad.AnnData(X, var=pd.DataFrame(index=names))


@pytest.mark.parametrize("max_cells", [1, 10, 97])
def test_chunks_of_any_size_equal_scanpy(max_cells):
    compare(simulated(), [5, 50, 250], max_cells)


def test_cell_without_counts_has_no_percentage():
    adata = simulated(3)
    adata.X[1] = 0
    adata.X.eliminate_zeros()
    obs, _ = qc_metrics(InMemory(adata.X.astype(np.uint16)), {"MT": np.arange(300) < 5}, [50])
    assert obs.loc[1, "total_counts"] == 0
    assert np.isnan(obs.loc[1, ["pct_counts_MT", "pct_counts_in_top_50_genes"]].astype(float)).all()


def test_sums_stay_exact_past_float32():
    """A family of 2^25 counts plus single ones: float32 accumulators lose the ones."""
    X = sp.csr_matrix(np.array([[1 << 24, 1 << 24, 1, 1, 1]], np.uint32))
    obs, var = qc_metrics(InMemory(X), {"MT": np.array([True, True, True, False, False])}, [2])
    assert obs.loc[0, "total_counts"] == (1 << 25) + 3
    assert obs.loc[0, "total_counts_MT"] == (1 << 25) + 1
    assert var["total_counts"].sum() == (1 << 25) + 3


@pytest.mark.parametrize(
    ("symbols", "advice"),
    [
        (["mt-Nd1", "Rps3", "Actb"], "The case differs, as in mouse"),
        (["ENSG00000198888", "ENSG00000149273", "ENSG00000075624"], "Ensembl ids"),
        (["A", "B", "C"], "remove the family"),
    ],
)
def test_family_without_genes_names_key_and_remedy(symbols, advice):
    with pytest.raises(UserError, match=advice) as error:
        gene_families({"MT": ["MT-"]}, np.array(symbols))
    assert "qc: gene_families: MT" in str(error.value)
    assert symbols[0] in str(error.value)


def test_family_from_a_file(tmp_path):
    path = tmp_path / "heat_shock.txt"
    path.write_text("# heat shock\nHSPA1A\n\nHSPA1B # inducible\n")
    masks = gene_families({"HSP": str(path)}, np.array(["HSPA1B", "HSPA1AX", "HSPA1A"]))
    assert masks["HSP"].tolist() == [True, False, True]
    with pytest.raises(UserError, match="does not exist"):
        gene_families({"HSP": str(tmp_path / "absent.txt")}, np.array(["HSPA1B"]))
