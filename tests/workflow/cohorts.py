"""Small cohorts that resemble public ones, and run with the defaults of the config: 5,000 genes, 100 components, 200
genes per cell and 20 % MT matter in them.

Each function writes the cohort's files into a folder and returns the sheet. Counts are negative binomial around the
profiles of a few types; `CellType` is in obs, and `donor` if one file holds several batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

Sheet = list[dict[str, str]]

HUMAN_MT = ("ENSG00000198888", "ENSG00000198763", "ENSG00000198804", "ENSG00000198712", "ENSG00000198899")


def symbols(n_genes: int, mt: Sequence[str] = (), ribosomal: Sequence[str] = ()) -> list[str]:
    """Names of genes: those of the families first, then invented ones."""
    names = [*mt, *ribosomal]
    return names + [f"GENE{i}" for i in range(n_genes - len(names))]


def counts(
    rng: np.random.Generator,
    profiles: np.ndarray,
    of_cell: np.ndarray,
    depth: float,
    mt: int = 0,
    mt_share: float = 0.05,
) -> sp.csr_matrix:
    """Counts of cells around their profiles; the first `mt` genes have about `mt_share` of each cell's counts."""
    rates = profiles[of_cell]
    if mt:
        rates[:, :mt] *= (
            mt_share / (1 - mt_share) * rates[:, mt:].sum(1, keepdims=True) / rates[:, :mt].sum(1, keepdims=True)
        )
    rates = rates / rates.sum(1, keepdims=True) * depth * rng.lognormal(0, 0.3, (len(of_cell), 1))
    return sp.csr_matrix(rng.poisson(rates * rng.gamma(4, 0.25, rates.shape)).astype(np.float32))


def profiles_of(
    rng: np.random.Generator, n_types: int, n_genes: int, sigma: float = 1.3, first: int = 40
) -> np.ndarray:
    """Relative expression of types, each with its own 40 markers from the gene `first` on."""
    profiles = np.tile(rng.lognormal(0, sigma, n_genes), (n_types, 1))
    for kind in range(n_types):
        profiles[kind, first + 40 * kind : first + 40 * (kind + 1)] *= 12
    return profiles


def write(path: Path, X: sp.csr_matrix, names: Sequence[str], types: np.ndarray, **obs: np.ndarray) -> None:
    """Write an h5ad."""
    table = pd.DataFrame({"CellType": [f"type{t}" for t in types], **obs}, [f"cell{i}" for i in range(X.shape[0])])
    ad.AnnData(X, obs=table, var=pd.DataFrame(index=list(names))).write_h5ad(path)


def panel(folder: Path) -> Sheet:
    """Two samples of 500 cells x 1,000 genes with Ensembl ids; five genes are mitochondrial, none ribosomal."""
    rng = np.random.default_rng(1)
    names = [*HUMAN_MT, *(f"ENSG{i:011d}.3" for i in range(995))]
    profiles = profiles_of(rng, 5, 1000)
    for sample in ("S1", "S2"):
        types = rng.integers(5, size=500)
        write(folder / f"{sample}.h5ad", counts(rng, profiles, types, 1500, mt=5), names, types)
    return sheet(folder, "S1", "S2")


def small_donors(folder: Path) -> Sheet:
    """40 batches of 100 to 300 cells x 4,000 genes in one file; with 1,500 counts the loess of some has no fit."""
    rng = np.random.default_rng(2)
    sizes = np.linspace(100, 300, 40).astype(int)
    donors = np.repeat([f"D{i}" for i in range(40)], sizes)
    names = symbols(4000, [f"MT-{i}" for i in range(10)], [f"RPL{i}" for i in range(20)])
    types = rng.integers(6, size=len(donors))
    X = counts(rng, profiles_of(rng, 6, 4000, sigma=1.8), types, 1500, mt=10)
    write(folder / "donors.h5ad", X, names, types, donor=donors)
    return sheet(folder, "donors")


def mouse(folder: Path) -> Sheet:
    """Two mouse samples of 400 cells x 3,000 genes: mt-Nd1, Rps3."""
    rng = np.random.default_rng(3)
    names = symbols(3000, [f"mt-Nd{i}" for i in range(1, 7)], [f"Rps{i}" for i in range(3, 20)])
    profiles = profiles_of(rng, 5, 3000)
    for sample in ("M1", "M2"):
        types = rng.integers(5, size=400)
        write(folder / f"{sample}.h5ad", counts(rng, profiles, types, 3000, mt=6), names, types)
    return sheet(folder, "M1", "M2")


def full_length(folder: Path) -> Sheet:
    """300 cells of a full-length protocol with 9,000 genes per cell, and 300 cells of droplets."""
    rng = np.random.default_rng(4)
    names = symbols(12_000, [f"MT-{i}" for i in range(10)], [f"RPS{i}" for i in range(20)])
    profiles = profiles_of(rng, 4, 12_000, sigma=1.5)
    for sample, depth in (("plates", 300_000), ("droplets", 4000)):
        types = rng.integers(4, size=300)
        write(folder / f"{sample}.h5ad", counts(rng, profiles, types, depth, mt=10), names, types)
    return sheet(folder, "plates", "droplets")


def continuum(folder: Path) -> Sheet:
    """A continuum of progenitors: 1,000 cells along one path, whose genes switch on and off."""
    rng = np.random.default_rng(5)
    names = symbols(3000, [f"MT-{i}" for i in range(10)], [f"RPS{i}" for i in range(20)])
    at, base = rng.random(1000), rng.lognormal(0, 1.2, 3000)
    peaks, moving = rng.random(3000), rng.random(3000) < 0.3
    waves = 1 + 2.5 * np.exp(-0.5 * ((at[:, None] - peaks) / 0.7) ** 2)
    X = counts(rng, base * np.where(moving, waves, 1), np.arange(1000), 4000, mt=10)
    write(folder / "progenitors.h5ad", X, names, (4 * at).astype(int))
    return sheet(folder, "progenitors")


def half_mt(folder: Path) -> Sheet:
    """One sample with 53 % MT and one with 5 %: 400 cells x 3,000 genes each."""
    rng = np.random.default_rng(6)
    names = symbols(3000, [f"MT-{i}" for i in range(13)], [f"RPL{i}" for i in range(20)])
    profiles = profiles_of(rng, 4, 3000)
    for sample, share in (("heart", 0.53), ("blood", 0.05)):
        types = rng.integers(4, size=400)
        write(folder / f"{sample}.h5ad", counts(rng, profiles, types, 4000, mt=13, mt_share=share), names, types)
    return sheet(folder, "heart", "blood")


def sheet(folder: Path, *samples: str) -> Sheet:
    """One line per sample."""
    return [{"sample": sample, "path": str(folder / f"{sample}.h5ad")} for sample in samples]


COHORTS = {f.__name__: f for f in (panel, small_donors, mouse, full_length, continuum, half_mt)}
