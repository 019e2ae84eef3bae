"""Write the atlas: all results of the cohort in one AnnData file, in scanpy's slots.

The atlas is a copy of the file with X and `layers['counts']` that `matrices` wrote beside the stages before, with all
other slots added. These have scanpy's names and structure (pp.pca, pp.neighbors, tl.umap, tl.leiden,
tl.embedding_density, tl.rank_genes_groups ...), so that scanpy's functions work on them; `uns['somersault']` has the
config and the versions. They are not compressed: most of them are floats, which deflate shrinks by a tenth only.

HDF5 from 1.8 and AnnData from 0.10 on read the file: no value is None, as older versions don't know its encoding.
Columns that group cells are categories of strings, in the figures' colours. "/", a path to HDF5, becomes "_" in column
names.
"""

from lib.start import run

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import reduce
from importlib.metadata import version
from itertools import chain, count
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from anndata.io import write_elem
from lib.methods.markers import FLOATS
from lib.run import stage
from lib.run.clock import spending
from lib.run.resources import MB, N_GROUPS, Job, Need
from lib.store import identity
from lib.store.categories import as_categories, category_colours, natural_order
from lib.store.cohort import kept_genes, with_results
from lib.store.files import LIBVER, read_table, replacing
from lib.store.h5ad import plain_strings
from lib.store.slots import Part, of_all_genes, parts_of

RANKING = "uns/rank_genes_groups"
PTS = {"pct_nz_group": "pts", "pct_nz_reference": "pts_rest"}  # scanpy's names in tables and in uns
PACKAGES = ("anndata", "h5py", "numpy", "pandas", "scipy")  # the atlas names their versions


def with_categories(table: pd.DataFrame, groupings: Iterable[str]) -> pd.DataFrame:
    """The table with `groupings` and columns of strings as categories of strings, which scanpy's plots need."""
    text = [name for name in table if not pd.api.types.is_numeric_dtype(table[name].dtype)]
    return table.assign(**{name: as_categories(table[name]) for name in {*text, *groupings}})


def colours(obs: pd.DataFrame, families: Mapping[str, str]) -> dict[str, np.ndarray]:
    """scanpy's uns entries `{grouping}_colors`: the figures' colours, by each grouping's family, in the order of its
    categories."""
    categories = {name: obs[name].cat.categories for name in families}
    of_names = {name: category_colours(natural_order(found), families[name]) for name, found in categories.items()}
    return {f"{name}_colors": np.array([of_names[name][c] for c in found]) for name, found in categories.items()}


def slot_names(columns: Iterable[str]) -> dict[str, str]:
    """Column -> its name in the atlas: "cell/type" becomes "cell_type", or "cell_type-1" if that is another column.

    Names without a path in HDF5's sense stay as they are.
    """
    columns = list(columns)
    names = {name: name for name in columns if "/" not in name and name not in ("", ".")}
    for column in (name for name in columns if name not in names):
        plain = column.replace("/", "_").strip(".") or "_"
        names[column] = next(n for n in chain([plain], (f"{plain}-{i}" for i in count(1))) if n not in names.values())
    if renamed := [f"{column} is {name}" for column, name in names.items() if column != name]:
        stage.notice("columns renamed in the atlas, as a / in a name would be a path: %s", ", ".join(renamed))
    return names


def without_none(uns: Mapping[str, Any]) -> dict[str, Any]:
    """A dict of dicts without the keys whose value is None: only AnnData from 0.12 on reads None."""
    kept = {key: value for key, value in uns.items() if value is not None}
    return {key: without_none(value) if isinstance(value, Mapping) else value for key, value in kept.items()}


def rank_genes_groups(table: pd.DataFrame, groupby: str, method: str, reference: str = "rest") -> dict[str, Any]:
    """The uns entry of scanpy.tl.rank_genes_groups(pts=True), from a markers table: recarrays with one field per group.

    Fields need names: the group with the empty name becomes "(empty)".
    """
    n_genes = int(table["rank"].iloc[-1])  # every group ranks all genes
    groups = groups_of(table)
    params = {"groupby": groupby, "reference": reference, "method": method, "use_raw": False}
    params["corr_method"] = "benjamini-hochberg"
    columns = {"names": fixed_length(table["names"].to_numpy(object))}
    columns |= {
        name: table[name].to_numpy(dtype) for name, dtype in FLOATS.items() if name in table and name not in PTS
    }
    recarrays = {
        name: np.rec.fromarrays(values.reshape(len(groups), n_genes), dtype=[(group, values.dtype) for group in groups])
        for name, values in columns.items()
    }
    return {"params": params, **recarrays, **shares(table, groups, n_genes)}


def shares(table: pd.DataFrame, groups: Sequence[str], n_genes: int) -> dict[str, pd.DataFrame]:
    """The tables `pts` and `pts_rest` of scanpy, genes x groups; none if a group's name would be a path in HDF5."""
    if any("/" in name or name == "." for name in groups):
        return {}
    codes, names = pd.factorize(table["names"])
    found = {}
    for column in filter(table.columns.__contains__, PTS):  # in a fixed order, for equal bytes
        values = np.empty((len(groups), n_genes))
        np.put_along_axis(values, codes.reshape(values.shape), table[column].to_numpy().reshape(values.shape), 1)
        found[PTS[column]] = pd.DataFrame(values.T, index=pd.Index(names), columns=pd.Index(groups))
    return found


def fixed_length(names: np.ndarray) -> np.ndarray:
    """ASCII strings with fixed length, which HDF5 writes at once and anndata reads as strings; others unchanged."""
    try:
        return names.astype("S")
    except UnicodeEncodeError:
        return names


def groups_of(table: pd.DataFrame) -> list[str]:
    """The groups of a markers table, as fields of a recarray."""
    return [group or "(empty)" for group in table["group"].iloc[:: int(table["rank"].iloc[-1])]]


def fields_fit(names: Sequence[str]) -> bool:
    """Whether HDF5 can write recarrays with these fields: their description is limited to 64 kB, about 900 fields.

    The check uses the oldest format, in which AnnData writes copies of the atlas.
    """
    with h5py.File("probe", "w", driver="core", backing_store=False) as file:
        try:
            file.create_dataset("ranks", (1,), [(name, np.float64) for name in names])
        except ValueError:
            return False
    return True


def all_rankings(parts: Iterable[Part], names: Mapping[str, str]) -> dict[str, Any]:
    """All tables of markers by their keys in uns: the first is `rank_genes_groups`, scanpy's default key.

    Tables without lines, or with more groups than HDF5 can write, are left out.

    Parameters
    ----------
    parts
        The tables.
    names
        Grouping -> its column in the atlas.
    """
    found: dict[str, Any] = {}
    for part in parts:
        groupby, method = part.about["groupby"], part.about["method"]
        if not len(part.value):
            continue
        if not fields_fit(groups := groups_of(part.value)):
            stage.notice(
                "markers of %s (%s): %d groups are more than HDF5 takes, so that they are not in the atlas, but in %s",
                *(groupby, method, len(groups), part.path),
            )
            continue
        key = f"{part.name}_{names[groupby]}_{method}" if found else part.name
        found[key] = rank_genes_groups(part.value, names[groupby], method, part.about["reference"])
    return found


@dataclass
class Slots:
    """The contents of the artifacts, slot by slot."""

    obs: list[pd.DataFrame] = field(default_factory=list)
    var: list[pd.DataFrame] = field(default_factory=list)
    obsm: dict[str, Any] = field(default_factory=dict)
    varm: dict[str, np.ndarray] = field(default_factory=dict)
    obsp: dict[str, Any] = field(default_factory=dict)
    uns: dict[str, Any] = field(default_factory=dict)
    rankings: list[Part] = field(default_factory=list)  # tables of markers, which go to uns

    def add(self, part: Part) -> None:
        """Add one part of an artifact."""
        slot = part.slot.partition("/")[0]
        if part.slot == RANKING:
            self.rankings.append(part)
            return
        for key, value in part.about.items():
            self.uns.setdefault(key, {}).update(value)
        if slot in ("obs", "var"):
            getattr(self, slot).append(part.value)
        elif slot == "frame":
            self.obsm[part.name] = part.value.rename(columns=slot_names(part.value))
        elif slot == "uns":
            *keys, last = part.name.split("/")
            value = part.value
            if isinstance(value, pd.DataFrame):
                value = plain_strings(value.set_axis(value.index.astype(str), axis=0))
            reduce(lambda uns, key: uns.setdefault(key, {}), keys, self.uns)[last] = value
        else:
            is_table = isinstance(part.value, pd.DataFrame)
            getattr(self, slot)[part.name] = part.value.to_numpy(np.float32) if is_table else part.value


def read_slots(paths: Iterable[str | Path]) -> Slots:
    """The slots that these artifacts fill, in their order."""
    slots = Slots()
    for path in paths:
        for part in parts_of(path):
            slots.add(part)
    return slots


def needs(job: Job) -> Need:
    """Tables, components and graph of the cells; all marker tables."""
    markers = 90 * job.n_rankings * N_GROUPS * job.n_vars
    cells = job.n_kept * (8 * job.n_comps + 8 * job.k + 500) + 16 * job.edges
    disk = 6 * job.nnz + job.n_kept * (8 * job.n_comps + 500) + 16 * job.edges + markers
    return Need(job.process + 40 * MB + markers + cells, 10 + 2e-6 * job.n_kept, disk)


def elements_of(files: Any, params: Any) -> dict[str, Any]:
    """Everything but X and layers, by its name in the file: all artifacts of the cohort."""
    slots = read_slots(files.artifacts)
    obs = with_categories(with_results(read_table(files.obs), *slots.obs), params.groupings)
    names = slot_names(obs)
    obs = obs.rename(columns=names)
    var = kept_genes(files.genes).drop(columns="kept")
    for table in slots.var:
        var = var.join(table[table.columns.difference(var.columns, sort=False)])
    var = var.rename(columns=slot_names(var))
    selected = var["highly_variable"].to_numpy()
    families = {names[name]: params.colours.get(name, "types") for name in params.groupings}
    uns = slots.uns | all_rankings(slots.rankings, names) | colours(obs, families)
    uns["log1p"] = {}  # without a base, scanpy assumes e
    uns["somersault"] = {
        "config": json.dumps(params.config, default=str),
        "versions": {name: version(name) for name in PACKAGES},
    }
    elements = {"obs": plain_strings(obs), "var": plain_strings(var), "uns": without_none(uns), "obsm": slots.obsm}
    elements |= {"varm": {name: of_all_genes(values, selected) for name, values in slots.varm.items()}}
    return elements | {"obsp": slots.obsp, "varp": {}}


def main(snakemake: Any) -> None:
    """Copy the matrices, read all artifacts meanwhile, write `atlas.h5ad`."""
    files = snakemake.input
    with replacing(snakemake.output.atlas) as partial:
        with ThreadPoolExecutor(1) as beside:
            copied = beside.submit(shutil.copyfile, files.matrices, partial)
            elements = elements_of(files, snakemake.params)
            copied.result()
        with h5py.File(partial, "r+", libver=LIBVER) as file, spending("write"):
            file.attrs.pop(identity.KEY, None)
            for name, element in elements.items():
                write_elem(file, name, element)
    size = Path(snakemake.output.atlas).stat().st_size / 1e6
    stage.log.info("%d cells x %d genes, %.0f MB", len(elements["obs"]), len(elements["var"]), size)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
