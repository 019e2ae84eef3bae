"""The cell cycle's scores and phases against scanpy's, and their use as regressors."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import anndata as ad
import cell_cycle
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from lib.inputs import genesets
from lib.inputs.config import complete
from lib.inputs.genesets import PHASES_SHARE, match, phase_genes
from lib.inputs.sheet import read_sheet
from lib.methods.scaling import columns_of, usable_keys
from lib.run.errors import UserError
from lib.store.counts import CountsWriter
from lib.store.files import read_table, write_table


def run(tmp_path, X, names, organism, seed=0):
    """The stage on one sample whose cells and genes are all kept."""
    obs = pd.DataFrame({"kept_counts": np.asarray(X.sum(1)).ravel()}, index=[f"c{i}" for i in range(X.shape[0])])
    var = pd.DataFrame({"gene_symbols": names, "gene_ids": names}, index=names)
    writer = CountsWriter(tmp_path / "counts.h5ad", X.shape[1])
    writer.append(sp.csr_matrix(X).astype(np.uint16))
    writer.close(obs, var)
    write_table(obs, tmp_path / "obs.parquet", "cohort")
    write_table(pd.DataFrame({"kept": True, "reason": ""}, obs.index), tmp_path / "cells.parquet")
    write_table(var.assign(kept=True), tmp_path / "genes.parquet")
    job = SimpleNamespace(
        input=SimpleNamespace(
            counts=[tmp_path / "counts.h5ad"],
            cells=[tmp_path / "cells.parquet"],
            genes=tmp_path / "genes.parquet",
            obs=tmp_path / "obs.parquet",
        ),
        output=SimpleNamespace(cell_cycle=tmp_path / "cell_cycle.parquet"),
        params=SimpleNamespace(seed=seed, gene_key="gene_symbols", target_sum=1e4, organism=organism),
        wildcards={},
        resources={},
    )
    cell_cycle.main(job)
    return read_table(tmp_path / "cell_cycle.parquet")


@pytest.mark.parametrize("seed", [0, 5])
def test_scores_and_phases_are_scanpys(pbmc3k, tmp_path, seed):
    """On pbmc3k with the genes that it has, to float32 of scanpy's normalisation."""
    import scanpy as sc

    adata = pbmc3k.copy()
    sc.pp.filter_genes(adata, min_counts=3)
    ours = run(tmp_path, adata.X, adata.var_names.to_numpy(object), "human", seed)
    names = {
        phase: [gene for gene in genes if gene in adata.var_names] for phase, genes in phase_genes("human").items()
    }
    assert min(map(len, names.values())) > 30
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    options = {"s_genes": names["S"], "g2m_genes": names["G2M"], "random_state": seed}
    sc.tl.score_genes_cell_cycle(adata, **options)
    for name in ("S_score", "G2M_score"):
        np.testing.assert_allclose(ours[name], adata.obs[name], rtol=1e-4, atol=2e-5)
    assert (ours["phase"].astype(str).to_numpy() == adata.obs["phase"].to_numpy()).mean() > 0.999
    assert list(ours["phase"].cat.categories) == ["G1", "S", "G2M"]


def test_genes_of_the_mouse_are_in_a_reference_of_the_mouse(real_data):
    """10x Genomics' mm10 has all 97 genes, by their present or former names; human symbols are refused."""
    import h5py

    (file,) = (real_data / "heart_1k_10x_h5").glob("*.h5")
    with h5py.File(file) as opened:
        (genome,) = opened
        names = np.array([name.decode() for name in opened[genome]["gene_names"][...]], object)
    genes = pd.DataFrame({"gene_symbols": names, "gene_ids": names}, index=names)
    found = match(phase_genes("mouse"), genes, "x")
    assert (np.bincount(found.columns) >= [43, 54]).all()
    with pytest.raises(UserError, match="of another organism"):
        match(phase_genes("human"), genes, "x", PHASES_SHARE)


def test_a_cohort_without_the_genes(tmp_path):
    X = sp.csr_matrix(np.random.default_rng(0).poisson(1, (20, 60)))
    names = np.array([f"g{i}" for i in range(60)], object)
    with pytest.raises(UserError, match="scores: cell_cycle: human: 0 of the genes of S and 0 of those of G2M passed"):
        run(tmp_path, X, names, "human")


def test_another_organism_is_refused_before_any_job(tmp_path):
    """By the header of the first sample that is there."""
    names = [*phase_genes("mouse")["S"], *phase_genes("mouse")["G2M"]]
    ad.AnnData(sp.csr_matrix(np.eye(len(names), dtype=np.float32)), var=pd.DataFrame(index=names)).write_h5ad(
        tmp_path / "a.h5ad"
    )
    (tmp_path / "samples.tsv").write_text(f"sample\tpath\nA\t{tmp_path / 'a.h5ad'}\n")
    for organism, refused in (("mouse", False), ("human", True)):
        config = complete({"scores": {"cell_cycle": organism}})
        with pytest.raises(UserError, match=r"cell_cycle: human: 0 of its .* organism") if refused else nullcontext():
            genesets.check({}, read_sheet(tmp_path / "samples.tsv", config), config, tmp_path)


def test_scores_as_regressors(tmp_path):
    """The stage's columns replace a file's own of the same name."""
    index = pd.Index(["a", "b", "c", "d"])
    write_table(pd.DataFrame({"n": [1.0, 2, 3, 4], "S_score": 0.0}, index), tmp_path / "obs.parquet")
    write_table(pd.DataFrame({"S_score": [1.0, 3, 2, 4], "phase": "S"}, index), tmp_path / "cycle.parquet")
    tables = [tmp_path / "obs.parquet", tmp_path / "cycle.parquet"]
    assert columns_of(tables, ["n", "S_score"])["S_score"].tolist() == [1, 3, 2, 4]
    assert usable_keys(tables, ["S_score", "n"], print) == ("S_score", "n")


def test_phases():
    scores = pd.DataFrame({"S_score": [-1.0, 1, 1, -1], "G2M_score": [-1.0, 0, 2, 0]})
    assert list(cell_cycle.phases(scores)) == ["G1", "S", "G2M", "G2M"]
