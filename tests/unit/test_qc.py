"""Compare QC metrics with scanpy.pp.calculate_qc_metrics, on real and on simulated counts."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
from lib.inputs.genelists import GeneNames, gene_families
from lib.run.errors import UserError
from lib.store.counts import Counts, CountsWriter
from lib.store.stream import InMemory
from qc import qc_metrics

FAMILIES = {"MT": ["MT-"], "RIBO": ["RPS", "RPL"]}


def genes(symbols, ids=None, flags=None) -> GeneNames:
    symbols = np.array(symbols, object)
    return GeneNames(symbols, symbols if ids is None else np.array(ids, object), flags or {})


def compare(adata: ad.AnnData, percent_top: list[int], max_cells: int = 1000) -> None:
    families = gene_families(FAMILIES, genes(adata.var_names))
    for name, mask in families.items():
        adata.var[name] = mask
    obs, var = qc_metrics(InMemory(adata.X.astype(np.uint16), max_cells=max_cells), families, percent_top)
    theirs_obs, theirs_var = sc.pp.calculate_qc_metrics(adata, qc_vars=list(families), percent_top=percent_top)
    assert set(obs) == set(theirs_obs)
    for name in theirs_obs:
        # Sums are equal; scanpy computes percentages and logarithms in float32, so they agree to its 24 bits
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
    """A family of 2^25 counts plus single counts, which float32 sums would lose."""
    X = sp.csr_matrix(np.array([[1 << 24, 1 << 24, 1, 1, 1]], np.uint32))
    obs, var = qc_metrics(InMemory(X), {"MT": np.array([True, True, True, False, False])}, [2])
    assert obs.loc[0, "total_counts"] == (1 << 25) + 3
    assert obs.loc[0, "total_counts_MT"] == (1 << 25) + 1
    assert var["total_counts"].sum() == (1 << 25) + 3


def test_a_family_is_found_in_any_case_and_writing():
    found = gene_families(
        FAMILIES,
        genes(
            ["mt-Nd1", "Rps3", "Actb", "MT.CO1", "mt:ND1", "GRCh38_MT-ND2", "mm10___mt-Nd4", "Mtor", "RpL10", "HMT-1"]
        ),
    )
    assert found["MT"].tolist() == [True, False, False, True, True, True, True, False, False, False]
    assert np.flatnonzero(found["RIBO"]).tolist() == [1, 8]


def test_a_family_is_found_by_ids_where_no_symbol_serves():
    ids = ["ENSG00000198888.2", "ENSG00000075624", "ENSMUSG00000064370", "GRCh38_ENSG00000211459", "ENSG00000149273"]
    for symbols in (ids, [f"gene {i}" for i in range(5)]):
        found = gene_families(FAMILIES | {"RPS": ["RPS"]}, genes(symbols, ids))
        assert found["MT"].tolist() == [True, False, True, True, False]
        assert found["RIBO"].tolist() == found["RPS"].tolist() == [False] * 4 + [True]
    # If a symbol matches, ids add nothing: the family is scanpy's
    found = gene_families(FAMILIES, genes(["MT-ND1", *ids[1:]], ids))
    assert found["MT"].tolist() == [True] + [False] * 4


@pytest.mark.parametrize("species", ["pbmc3k", "heart"])
def test_ids_find_what_symbols_do(real_data, species):
    """On the references of which the bundled list was made, human and mouse."""
    if species == "pbmc3k":
        table = pd.read_csv(
            real_data / "pbmc3k/filtered_gene_bc_matrices/hg19/genes.tsv.gz", sep="\t", header=None, dtype=str
        )
        ids, symbols = table[0].to_numpy(object), table[1].to_numpy(object)
    else:
        var = sc.read_10x_h5(real_data / "heart_1k_10x_h5/filtered_gene_bc_matrices_h5.h5").var
        ids, symbols = var["gene_ids"].to_numpy(object), var.index.to_numpy(object)
    by_symbol, by_id = gene_families(FAMILIES, genes(symbols, ids)), gene_families(FAMILIES, genes(ids))
    assert by_symbol["MT"].sum() == 13
    for name in FAMILIES:
        np.testing.assert_array_equal(by_id[name], by_symbol[name])


@pytest.mark.parametrize(
    ("column", "family"), [("mt", "MT"), ("is_mito", "MT"), ("RIBO", "RIBO"), ("ribosomal", "RIBO")]
)
def test_a_column_of_var_tells_where_no_name_does(column, family):
    mask = np.array([True, False, True])
    found = gene_families(FAMILIES, genes(["a", "b", "c"], flags={column: mask, "other": ~mask}))
    assert list(found) == [family]
    np.testing.assert_array_equal(found[family], mask)
    named = gene_families(FAMILIES, genes(["a", "MT-ND1", "RPS3"], flags={column: mask}))
    assert named["MT"].tolist() == [False, True, False]


def test_columns_of_var_are_read_from_the_store(tmp_path):
    writer = CountsWriter(tmp_path / "counts.h5ad", 3)
    writer.append(sp.csr_matrix(np.ones((2, 3), np.uint16)))
    var = pd.DataFrame({"gene_symbols": list("abc"), "gene_ids": list("abc")}, index=list("abc"))
    writer.close(pd.DataFrame(index=["x", "y"]), var.assign(mt=[True, False, False], length=[1, 2, 3]))
    found = GeneNames.of(Counts(tmp_path / "counts.h5ad"))
    assert found.symbols.tolist() == list("abc")
    assert {name: mask.tolist() for name, mask in found.flags.items()} == {"mt": [True, False, False]}


def test_a_family_without_genes_is_left_out_and_logged(caplog):
    assert gene_families({"MT": ["MT-"], "A": ["A"]}, genes(["A1", "B", "C"])).keys() == {"A"}
    assert "gene family MT (MT-): no gene, named like A1, B, C, belongs to it" in caplog.text


def test_family_from_a_file(tmp_path):
    path = tmp_path / "heat_shock.txt"
    path.write_text("# heat shock\nHSPA1A\n\nHSPA1B # inducible\n")
    families = {"HSP": str(path)}
    assert gene_families(families, genes(["HSPA1B", "HSPA1AX", "HSPA1A"]))["HSP"].tolist() == [True, False, True]
    assert gene_families(families, genes(["Hspa1b", "Hspa1ax"]))["HSP"].tolist() == [True, False]
    # Exact names first: a mouse gene beside the human ones is another
    assert gene_families(families, genes(["Hspa1b", "HSPA1A"]))["HSP"].tolist() == [False, True]
    path.write_text("ENSG00000204389\nMT-ND1\n")
    ids = ["ENSG00000204389.1", "ENSG00000198888", "ENSG00000075624"]
    assert gene_families(families, genes(["x", "y", "z"], ids))["HSP"].tolist() == [True, True, False]
    with pytest.raises(UserError, match=r"none of the 2 genes in .*qc: gene_families: HSP.*named like A, B\."):
        gene_families(families, genes(["A", "B"]))
    with pytest.raises(UserError, match="does not exist"):
        gene_families({"HSP": str(tmp_path / "absent.txt")}, genes(["HSPA1B"]))
