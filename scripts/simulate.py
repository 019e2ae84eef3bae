"""Simulate a cohort of single-cell counts with known truth: cell types, patients' effects, doublets and bad cells.

A cell of type t of patient p has N UMIs, N ~ Poisson(umi * s_t * exp(0.4 z)); each UMI is of gene j with probability

    (1 - m) [ (1 - a) ((1 - c) w_tpj + c w_upj) + a w_pj ] + m v_pj

w_tp is the type's profile: a log-normal background with the shares of gene families and most abundant genes of blood,
times the marker programmes of the lineage and the type, times the patient's effect exp(batch_sd z_pj). u is a type of
the same lineage (c ~ Beta(0.4, 8): cells between types), w_p the patient's ambient RNA (a = AMBIENT), v_p the
mitochondrial genes and m the cell's share of them. A doublet is the sum of two cells of its patient; half of the bad
cells are dying (high m), half are nearly empty. The design is our own; background and shares follow 10x Genomics' 3k
PBMC, and counts are multinomial as in Townes et al., Genome Biology 20, 295 (2019).

A treated patient has planted effects, which `planted` tells: genes that change in two types, and more B cells.

The seed determines everything: a patient is the same in every cohort, and the first n cells are the same for any number
of further cells and any number of processes.

    python scripts/simulate.py cohort.h5ad --patients 8 --cells 2500 --genes 30000 --types 20 --umi 6000
    python scripts/simulate.py cohort --split --patients 40 --cells 25000 --processes 16
"""

from lib.start import run

import argparse
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from lib.run.resources import MB, Job, Need
from lib.store.files import replacing
from scipy.sparse import csr_matrix

BLOCK = 500  # cells drawn at once, with their own generator
BLOCKS = 5  # blocks that a process draws before it returns them
RESOLUTION = 1 << 20  # entries of a profile's table: the smallest possible share is one in a million
AMBIENT = 0.05  # share of a cell's UMIs from the patient's ambient RNA
MT_SHARE = 0.06  # mean mitochondrial share of a good cell
MARKERS = 0.01  # share of the genes raised in a type, and also in a lineage, in addition to those named below

CHANGED = ("CD4 T", "CD14 monocyte")  # types in which genes change by treatment
GROWN, GROWTH = "B", 4.0  # the type that grows by treatment, and how many times
PLANTED, LOG2_FOLD = 0.02, 1.5  # share of the genes that change in each of these types, and their fold change

# Lineage -> its genes; type -> its lineage and genes. A design takes the first n_types types
LINEAGES = {
    "T and NK": "CD2 CD7 IL32 PTPRCAP",
    "myeloid": "LYZ CST3 TYROBP FCER1G",
    "B lineage": "CD79A CD79B CD74 MEF2C",
    "epithelial": "EPCAM KRT18 KRT8 CDH1",
    "stromal": "COL6A2 CALD1 SPARC BGN",
    "vascular": "PECAM1 CLDN5 RAMP2 EGFL7",
}
TYPES = {
    "CD4 T": ("T and NK", "IL7R CD4 LTB MAL"),
    "CD14 monocyte": ("myeloid", "CD14 S100A8 S100A9 VCAN"),
    "B": ("B lineage", "MS4A1 CD19 BANK1 VPREB3"),
    "CD8 T": ("T and NK", "CD8A CD8B GZMK CCL5"),
    "NK": ("T and NK", "GNLY NKG7 KLRD1 NCAM1"),
    "FCGR3A monocyte": ("myeloid", "FCGR3A MS4A7 CDKN1C LST1"),
    "plasma": ("B lineage", "MZB1 JCHAIN XBP1 SDC1"),
    "dendritic": ("myeloid", "FCER1A CD1C CLEC10A HLA-DQA1"),
    "regulatory T": ("T and NK", "FOXP3 IL2RA CTLA4 TIGIT"),
    "macrophage": ("myeloid", "C1QA C1QB APOE MARCO"),
    "AT2": ("epithelial", "SFTPC SFTPB SFTPA1 LAMP3"),
    "fibroblast": ("stromal", "COL1A1 COL1A2 DCN LUM"),
    "endothelial": ("vascular", "VWF CDH5 KDR PLVAP"),
    "mast": ("myeloid", "TPSAB1 TPSB2 CPA3 KIT"),
    "AT1": ("epithelial", "AGER CAV1 PDPN CLIC5"),
    "smooth muscle": ("stromal", "ACTA2 MYH11 TAGLN CNN1"),
    "ciliated": ("epithelial", "FOXJ1 TPPP3 CAPS PIFO"),
    "lymphatic": ("vascular", "PROX1 LYVE1 CCL21 MMRN1"),
    "club": ("epithelial", "SCGB1A1 SCGB3A1 BPIFB1 MUC5B"),
    "plasmacytoid dendritic": ("myeloid", "LILRA4 CLEC4C IRF7 SERPINF1"),
}
MT = ["MT-CO1", "MT-CO2", "MT-CO3", "MT-ATP6", "MT-ATP8", "MT-CYB", "MT-ND4L", *[f"MT-ND{i}" for i in range(1, 7)]]
RIBO = [f"RPS{i}" for i in range(2, 30) if i != 22]
RIBO += [f"RPL{i}" for i in range(3, 42) if i not in (16, 20, 25, 33)] + ["RPSA", "RPLP0", "RPLP1", "RPLP2"]
RIBO_SHARE = 0.25
ABUNDANT = {"MALAT1": 0.025, "TMSB4X": 0.019, "B2M": 0.019, "FTL": 0.012, "FTH1": 0.009, "ACTB": 0.007, "EEF1A1": 0.007}


@dataclass(frozen=True)
class Design:
    """The settings of a simulated cohort.

    Attributes
    ----------
    n_genes
        Number of genes, at least twice that of the named ones: 400 suffice.
    n_types
        Cell types, the first of TYPES.
    umi
        Approximate median UMIs of a good cell; types differ.
    batch_sd
        Standard deviation of a patient's effect on a gene's log expression.
    doublet_rate, low_quality_rate
        Expected fractions of the cells.
    seed
        Determines everything.
    """

    n_genes: int = 8000
    n_types: int = 8
    umi: float = 3000
    batch_sd: float = 0.25
    doublet_rate: float = 0.06
    low_quality_rate: float = 0.04
    seed: int = 0

    def types(self) -> list[str]:
        """Names of the cell types."""
        return list(TYPES)[: self.n_types]

    def lineages(self) -> list[str]:
        """The lineage of each cell type."""
        return [TYPES[name][0] for name in self.types()]

    def rng(self, *what: int) -> np.random.Generator:
        """The generator of one part of the cohort."""
        return np.random.default_rng([self.seed, *what])


def simulated_genes(design: Design) -> pd.DataFrame:
    """The genes in the files' order.

    Returns
    -------
    Index: symbols; `gene_ids`: Ensembl-like ids; `marker_of`: the type or lineage with raised expression, or "".

    Raises
    ------
    ValueError
        If the design has too few genes, or more types than TYPES.
    """
    if not 1 <= design.n_types <= len(TYPES):
        raise ValueError(f"n_types: {design.n_types} is not within 1 to {len(TYPES)}")
    named = dict.fromkeys([*MT, *RIBO, *ABUNDANT], "")
    groups = {lineage: LINEAGES[lineage] for lineage in design.lineages()}
    groups |= {name: TYPES[name][1] for name in design.types()}
    for group, symbols in groups.items():
        named |= dict.fromkeys(symbols.split(), group)
    if design.n_genes < 2 * len(named):
        raise ValueError(f"n_genes: {design.n_genes} is less than {2 * len(named)}")
    symbols = [*named, *(f"GENE{i:05d}" for i in range(1, design.n_genes - len(named) + 1))]
    marker_of = [*named.values(), *np.repeat(list(groups), round(MARKERS * design.n_genes))]
    marker_of += [""] * (design.n_genes - len(marker_of))
    table = pd.DataFrame({"marker_of": marker_of}, index=pd.Index(symbols))
    table = table.iloc[design.rng(0).permutation(len(table))]
    table.insert(0, "gene_ids", [f"ENSG{i:011d}" for i in range(1, len(table) + 1)])
    return table


def type_profiles(design: Design, genes: pd.DataFrame) -> np.ndarray:
    """Expression of each type without patients' effects: types x genes; rows sum to 1, mitochondrial genes are 0."""
    rng = design.rng(1)
    base = rng.lognormal(0, 1.9, design.n_genes)
    symbols, marker_of = genes.index.to_numpy(), genes["marker_of"].to_numpy()
    is_ribo, is_named = np.isin(symbols, RIBO), ~np.char.startswith(symbols.astype(str), "GENE")
    base[is_ribo] = rng.lognormal(0, 0.5, is_ribo.sum())
    base[np.isin(symbols, MT)] = 0
    is_marker = marker_of != ""
    base[is_marker] = 3 * np.median(base) * rng.lognormal(0, 0.7, is_marker.sum())
    plain = ~is_ribo & ~np.isin(symbols, list(ABUNDANT))
    base[plain] *= (1 - RIBO_SHARE - sum(ABUNDANT.values())) / base[plain].sum()
    base[is_ribo] *= RIBO_SHARE / base[is_ribo].sum()
    for symbol, share in ABUNDANT.items():
        base[symbols == symbol] = share

    fold = np.where(is_named, rng.lognormal(3.5, 0.3, design.n_genes), rng.lognormal(1.2, 0.4, design.n_genes))
    profiles = np.tile(base, (design.n_types, 1))
    for profile, name, lineage in zip(profiles, design.types(), design.lineages(), strict=True):
        profile[(marker_of == name) | (marker_of == lineage)] *= fold[(marker_of == name) | (marker_of == lineage)]
        profile[is_ribo] *= rng.lognormal(0, 0.1)
        profile *= rng.lognormal(0, 0.1, design.n_genes)
    return profiles / profiles.sum(1, keepdims=True)


def planted(design: Design, genes: pd.DataFrame) -> pd.DataFrame:
    """The log2 fold changes of a treated patient's genes in each of the types CHANGED: genes x types, mostly 0.

    Half of the genes rise, half fall. They are among those of rank 5 % to 30 % in the type, markers left out.
    """
    rng, found = design.rng(6), pd.DataFrame(0.0, genes.index, list(CHANGED))
    for profile, name in zip(type_profiles(design, genes), design.types(), strict=True):
        if name in CHANGED:
            ranks = (-profile).argsort().argsort() / len(profile)
            fit = (ranks > 0.05) & (ranks < 0.3) & (genes["marker_of"] == "").to_numpy()
            chosen = rng.choice(np.flatnonzero(fit), round(PLANTED * design.n_genes), replace=False)
            found.iloc[chosen, found.columns.get_loc(name)] = LOG2_FOLD * rng.permutation(
                np.resize([1, -1], len(chosen))
            )
    return found


def patient_profiles(
    design: Design, genes: pd.DataFrame, patient: int, treated: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """A patient's profiles and share of each type.

    Returns
    -------
    profiles
        (types + 2) x genes, rows sum to 1: the types, the ambient RNA, the mitochondrial genes.
    composition
        The types' shares of the patient's cells.
    """
    rng = design.rng(2, patient)
    usual = 1 / (1 + 0.15 * np.arange(design.n_types))
    composition = rng.dirichlet(40 * usual / usual.sum() + 0.5)
    effect = rng.lognormal(0, design.batch_sd, design.n_genes)
    types = type_profiles(design, genes) * effect
    if treated:
        for name, change in planted(design, genes).items():
            types[design.types().index(name)] *= 2.0**change
        composition[design.types().index(GROWN)] *= GROWTH
        composition /= composition.sum()
    types /= types.sum(1, keepdims=True)
    mt = np.isin(genes.index, MT) * design.rng(3).lognormal(0, 0.8, design.n_genes) * effect
    return np.vstack([types, composition @ types, mt / mt.sum()]), composition


def simulate_patient(
    design: Design, patient: int, n_obs: int, genes: pd.DataFrame | None = None, treated: bool = False
) -> Iterator[tuple[csr_matrix, pd.DataFrame]]:
    """A patient's cells in blocks of BLOCK.

    Parameters
    ----------
    design
        The settings of the cohort.
    patient
        From 1; patients differ in expression and in composition.
    n_obs
        Number of cells.
    genes
        `simulated_genes(design)`, if it was computed already.
    treated
        Whether the patient has the effects `planted`; the design then has the types CHANGED and GROWN.

    Yields
    ------
    The counts (cells x genes, CSR, int32, sorted) and obs, with the barcodes as index, `PatientNumber`, `CellType`
    (for a doublet that of the first cell), `true_doublet` and `true_low_quality`.
    """
    model = patient_model(design, patient, simulated_genes(design) if genes is None else genes, treated)
    for start in range(0, n_obs, BLOCK):
        counts, obs = draw_block(design, model, start // BLOCK)
        yield counts[: n_obs - start], obs[: n_obs - start]


@dataclass(frozen=True)
class PatientModel:
    """The distributions of a patient's cells.

    Attributes
    ----------
    patient
        From 1.
    tables
        The rows of `patient_profiles` as concatenated `inverse_cdf` tables.
    composition
        The types' shares of the patient's cells.
    """

    patient: int
    tables: np.ndarray
    composition: np.ndarray


def patient_model(design: Design, patient: int, genes: pd.DataFrame, treated: bool = False) -> PatientModel:
    """The distributions of the cells of a patient, numbered from 1; about 90 MB for 20 types."""
    profiles, composition = patient_profiles(design, genes, patient, treated)
    return PatientModel(patient, np.concatenate([inverse_cdf(profile) for profile in profiles]), composition)


def draw_block(design: Design, model: PatientModel, block: int) -> tuple[csr_matrix, pd.DataFrame]:
    """A patient's cells block * BLOCK to (block + 1) * BLOCK - 1: counts and obs as in `simulate_patient`."""
    types, lineages = np.array(design.types()), np.array(design.lineages())
    sisters = (lineages[:, None] == lineages).cumsum(1)
    size = design.rng(4).lognormal(0, 0.15, design.n_types)
    rng = design.rng(5, model.patient, block)
    is_doublet = rng.random(BLOCK) < design.doublet_rate
    quality = rng.random(BLOCK)
    is_dying, is_empty = quality < design.low_quality_rate / 2, quality > 1 - design.low_quality_rate / 2
    # One or two cells in every droplet
    droplet = np.concatenate([np.arange(BLOCK), np.flatnonzero(is_doublet)])
    type_of = rng.choice(design.n_types, len(droplet), p=model.composition)
    nth = rng.random(len(droplet)) * sisters[type_of, -1]
    sister_of = (sisters[type_of] <= nth[:, None]).sum(1)
    mt = np.where(is_dying[droplet], rng.beta(12, 18, len(droplet)), rng.beta(6, 6 / MT_SHARE - 6, len(droplet)))
    umi = design.umi * size[type_of] * rng.lognormal(0, 0.4, len(droplet)) * np.where(is_empty[droplet], 0.03, 1)
    between = rng.beta(0.4, 8, len(droplet))
    own = (1 - mt) * (1 - AMBIENT)
    shares = np.stack([own * (1 - between), own * between, (1 - mt) * AMBIENT, mt], 1)
    n_drawn = rng.multinomial(rng.poisson(umi), shares)
    ambient = np.full_like(type_of, design.n_types)
    drawn_from = np.stack([type_of, sister_of, ambient, ambient + 1], 1)
    counts = draw(rng, model.tables, drawn_from, n_drawn, droplet, (BLOCK, design.n_genes))
    obs = pd.DataFrame(
        {
            "PatientNumber": pd.Categorical([f"P{model.patient}"] * BLOCK),
            "CellType": pd.Categorical(types[type_of[:BLOCK]], categories=types),
            "true_doublet": is_doublet,
            "true_low_quality": is_dying | is_empty,
        },
        index=pd.Index(barcodes(np.arange(block * BLOCK, (block + 1) * BLOCK), f"-{model.patient}")),
    )
    return counts, obs


def inverse_cdf(profile: np.ndarray) -> np.ndarray:
    """A table of genes in which each gene has its share of the profile: RESOLUTION entries, int32."""
    cdf = np.cumsum(profile)
    ends = np.rint(cdf / cdf[-1] * RESOLUTION).astype(np.int64)
    return np.repeat(np.arange(len(profile), dtype=np.int32), np.diff(ends, prepend=0))


def draw(
    rng: np.random.Generator,
    tables: np.ndarray,
    drawn_from: np.ndarray,
    n_drawn: np.ndarray,
    row_of: np.ndarray,
    shape: tuple[int, int],
) -> csr_matrix:
    """Draw UMIs one by one and count them.

    Parameters
    ----------
    tables
        Profiles as concatenated `inverse_cdf` tables.
    drawn_from, n_drawn
        cells x components: the tables of a cell's UMIs, and the number of UMIs from each.
    row_of
        The row of each cell's UMIs; cells of the same row are added.
    shape
        Shape of the counts.
    """
    at = rng.integers(0, RESOLUTION, n_drawn.sum(), dtype=np.int32)
    at += np.repeat((drawn_from * RESOLUTION).astype(np.int32).ravel(), n_drawn.ravel())
    keys = np.repeat((row_of * shape[1]).astype(np.int32), n_drawn.sum(1))
    keys += tables[at]
    keys.sort()
    first = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    data = np.diff(first, append=len(keys)).astype(np.int32)
    rows, columns = np.divmod(keys[first], np.int32(shape[1]))
    indptr = np.searchsorted(rows, np.arange(shape[0] + 1)).astype(np.int32)
    return csr_matrix((data, columns, indptr), shape=shape)


def barcodes(cells: np.ndarray, suffix: str) -> list[str]:
    """A unique barcode of 16 bases for each cell number."""
    codes = cells.astype(np.uint64) * np.uint64(2654435761) % np.uint64(1 << 32)
    digits = (codes[:, None] >> np.arange(0, 32, 2, dtype=np.uint64)) % np.uint64(4)
    letters = np.frombuffer(b"ACGT", "S1")[digits.astype(int)]
    return [barcode.decode() + suffix for barcode in letters.view("S16").ravel()]


def simulate(
    design: Design, n_patients: int, n_obs_per_patient: int, processes: int = 1
) -> tuple[pd.DataFrame, Iterator[tuple[csr_matrix, pd.DataFrame]]]:
    """A whole cohort: its genes, and its cells patient by patient, as in `simulate_patient`.

    With several processes each holds about 300 MB, and blocks drawn ahead of the reader take as much again.
    """
    starts = range(0, n_obs_per_patient, BLOCK * BLOCKS)
    tasks = [(design, i, start, n_obs_per_patient) for i in range(1, n_patients + 1) for start in starts]
    return simulated_genes(design), (block for blocks in _in_order(_draw_blocks, tasks, processes) for block in blocks)


def write_patients(
    folder: str | Path,
    design: Design,
    n_patients: int,
    n_obs_per_patient: int,
    compression: str | None = None,
    processes: int = 1,
) -> int:
    """Write a cohort as one h5ad per patient, `P1.h5ad` and so on; return the number of cells.

    The process that draws a patient also writes its file, so at most one process per patient is used.
    """
    paths = [Path(folder) / f"P{patient}.h5ad" for patient in range(1, n_patients + 1)]
    tasks = [(path, design, i, n_obs_per_patient, compression) for i, path in enumerate(paths, 1)]
    return sum(_in_order(_write_patient, tasks, processes))


def _in_order(function: Callable[..., Any], tasks: Iterable[tuple], processes: int) -> Iterator[Any]:
    """The results of the tasks in their order; at most two results per process wait to be taken."""
    if processes == 1:
        yield from (function(*task) for task in tasks)
        return
    # spawn, as the fork of a process whose libraries have threads may hang
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        waiting = deque()
        for task in tasks:
            waiting.append(pool.submit(function, *task))
            if len(waiting) > 2 * processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _draw_blocks(design: Design, patient: int, start: int, n_obs: int) -> list[tuple[csr_matrix, pd.DataFrame]]:
    """Up to BLOCKS blocks of a patient with `n_obs` cells, from the cell `start` on."""
    model = _patient_model(design, patient)
    starts = range(start, min(start + BLOCK * BLOCKS, n_obs), BLOCK)
    blocks = ((n_obs - first, draw_block(design, model, first // BLOCK)) for first in starts)
    return [(counts[:left], obs[:left]) for left, (counts, obs) in blocks]


@lru_cache(maxsize=1)  # a process draws a patient's cells one task after the other
def _patient_model(design: Design, patient: int) -> PatientModel:
    return patient_model(design, patient, simulated_genes(design))


def _write_patient(path: Path, design: Design, patient: int, n_obs: int, compression: str | None) -> int:
    genes = simulated_genes(design)
    return write_h5ad(path, simulate_patient(design, patient, n_obs, genes), genes, compression)


def write_h5ad(
    path: str | Path,
    blocks: Iterable[tuple[csr_matrix, pd.DataFrame]],
    genes: pd.DataFrame,
    compression: str | None = None,
) -> int:
    """Write blocks of cells like users' h5ad files: X as CSR, float32 with int32 indices; return the number of cells.

    Parameters
    ----------
    path
        File to write.
    blocks
        Counts and obs.
    genes
        The var table.
    compression
        None or gzip.
    """
    from anndata.io import write_elem

    tables, row_lengths = [], []
    with replacing(path) as partial, h5py.File(partial, "w") as file:
        group = file.create_group("X")
        kwargs = {"shape": (0,), "maxshape": (None,), "chunks": (1 << 18,), "compression": compression}
        data = group.create_dataset("data", dtype=np.float32, **kwargs)
        indices = group.create_dataset("indices", dtype=np.int32, **kwargs)
        for X, obs in blocks:
            end = len(data) + X.nnz
            for dataset, values in ((data, X.data), (indices, X.indices)):
                dataset.resize((end,))
                # NumPy casts several times faster than HDF5
                dataset[end - X.nnz :] = values.astype(dataset.dtype, copy=False)
            tables.append(obs)
            row_lengths.append(np.diff(X.indptr))
        indptr = np.concatenate([[0], *row_lengths]).cumsum(dtype=np.int64)
        group["indptr"] = indptr.astype(np.int32) if indptr[-1] < 1 << 31 else indptr
        group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0"})
        group.attrs["shape"] = np.array([len(indptr) - 1, len(genes)])
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        obs = pd.concat(tables)
        obs["PatientNumber"] = obs["PatientNumber"].astype("category")
        write_elem(file, "obs", obs)
        write_elem(file, "var", genes)
    return len(obs)


def needs(job: Job) -> Need:
    """A patient's expected expression, and its counts."""
    return Need(job.process + 40 * MB + 40 * job.nnz, seconds=20, disk=8 * job.nnz)


def main(snakemake: Any) -> None:
    """Simulate one patient, write its h5ad."""
    params = snakemake.params
    design = Design(params.n_genes, params.n_types, params.umi, seed=snakemake.params.seed)
    genes = simulated_genes(design)
    blocks = simulate_patient(design, params.patient, params.n_obs, genes, params.treated)
    write_h5ad(snakemake.output.h5ad, blocks, genes, compression="gzip")


def command_line() -> None:
    """Simulate a cohort into one h5ad, or one for each patient, to try the workflow at scale."""
    parser = argparse.ArgumentParser(description=command_line.__doc__)
    parser.add_argument("h5ad", type=Path, help="the file to write; with --split, the folder")
    parser.add_argument("--patients", type=int, default=8)
    parser.add_argument("--cells", type=int, default=2500, help="cells of each patient")
    parser.add_argument("--genes", type=int, default=30_000)
    parser.add_argument("--types", type=int, default=20)
    parser.add_argument("--umi", type=float, default=6000, help="median UMIs of a cell")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compression", choices=["gzip"])
    parser.add_argument("--split", action="store_true", help="one file per patient: P1.h5ad and so on")
    parser.add_argument("--processes", type=int, default=1, help="number of processes; the cells do not depend on it")
    args = parser.parse_args()
    design = Design(args.genes, args.types, args.umi, seed=args.seed)
    if args.split:
        n_obs = write_patients(args.h5ad, design, args.patients, args.cells, args.compression, args.processes)
    else:
        genes, blocks = simulate(design, args.patients, args.cells, args.processes)
        n_obs = write_h5ad(args.h5ad, blocks, genes, args.compression)
    print(f"{n_obs} cells in {args.h5ad}")


if "snakemake" in globals():
    run(main, snakemake)  # noqa: F821
elif __name__ == "__main__":
    command_line()
