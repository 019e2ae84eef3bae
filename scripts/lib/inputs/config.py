"""Check the complete config before any job runs, and derive facts from it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

from lib.inputs.computed import COMPUTED
from lib.run.errors import UserError
from lib.store.names import LONGEST, escape

CYCLE_SCORES = ("S_score", "G2M_score")
QC_COLUMNS = ("total_counts", "log1p_total_counts", "n_genes_by_counts", "log1p_n_genes_by_counts")


def _model() -> type[Any]:
    """`lib.inputs.sections.Config`, imported by name, so that it is no part of the stages' code or imports."""
    return import_module("lib.inputs.sections").Config


def _contrasts() -> Any:
    """`lib.inputs.contrasts`, which imports this module, and pandas."""
    return import_module("lib.inputs.contrasts")


def complete(config: Any) -> dict[str, Any]:
    """The config with all defaults, in the order of config.yaml, checked against the model and for contradictions.

    Raises
    ------
    UserError
        Lists all problems: unknown keys with the nearest known one, wrong types, values out of range, contradictions.
    """
    given = {} if config is None else config
    model, problems = _model().checked(given)
    if not problems:
        config = model.model_dump(warnings=False)
        for section, key in (("qc", "gene_families"), ("cells", "max_pct_counts"), ("markers", "hidden_families")):
            config[section][key] = {name: value for name, value in config[section][key].items() if value is not None}
        _without_families(config, given)
        problems = [*model.contradictions(), *_contradictions(config)]
    if problems:
        raise UserError("the config is not right:\n" + "\n".join(f"  - {problem}" for problem in problems))
    return config


def _without_families(config: dict[str, Any], given: Mapping[str, Any]) -> None:
    """Remove the defaults that need a gene family which the config removes, by null or by naming other families.

    A limit, a regressor or a metric that the config itself (`given`) names stays, unless the family is null there.
    """
    families = config["qc"]["gene_families"]
    removed = {name for name, genes in ((given.get("qc") or {}).get("gene_families") or {}).items() if genes is None}
    for section, key, prefix in (
        ("cells", "max_pct_counts", ""),
        ("cells", "mad_metrics", "pct_counts_"),
        ("regress_out", "keys", "pct_counts_"),
    ):
        named, own = config[section][key], (given.get(section) or {}).get(key) is not None
        of_family = {name: name.removeprefix(prefix) for name in named if name.startswith(prefix)}
        lost = {name for name, family in of_family.items() if family in removed or not (own or family in families)}
        kept = [name for name in named if name not in lost]
        config[section][key] = {name: named[name] for name in kept} if isinstance(named, dict) else kept


def _contradictions(config: Mapping[str, Any]) -> Iterator[str]:
    n_comps, n_pcs = config["pca"]["n_comps"], config["neighbors"]["n_pcs"]
    if n_pcs > n_comps:
        yield f"`neighbors: n_pcs` ({n_pcs}) exceeds `pca: n_comps` ({n_comps}): lower it, or compute more components"
    if collection := config["annotation"]["markers"]:
        named = {name if isinstance(spec, str) else "lists" for name, spec in config["gene_sets"].items()}
        if collection not in named:
            there = f"there are {', '.join(sorted(named))}" if named else "`gene_sets` is empty"
            yield f"`annotation: markers` names {collection}, which is no collection of `gene_sets`; {there}"
        if not config["scores"]["methods"]:
            yield "`annotation: markers` needs scores of cells: name a method in `scores: methods`"
        if not clustering_names(config):
            yield "`annotation: markers` needs a clustering (`leiden: resolutions`, louvain or kmeans)"
    for name, spec in config["gene_sets"].items():
        if not name.strip():
            yield "`gene_sets` has a set without a name"
        if isinstance(spec, str) and name == "lists":
            yield "`gene_sets: lists` is a file, but `lists` is the name of all sets that are lists: name it otherwise"
        if len(escape(name)) > LONGEST:
            yield f"`gene_sets` names {name[:40]}..., whose {len(name)} characters do not fit a path: shorten the name"
    families = config["qc"]["gene_families"]
    for family in config["cells"]["max_pct_counts"]:
        if family not in families:
            yield f"`cells: max_pct_counts: {family}` is no gene family; `qc: gene_families` has {', '.join(families)}"
    for section, key in (("regress_out", "keys"), ("cells", "mad_metrics")):
        if section == "cells" and config["cells"]["mad"] is None:
            continue
        for name in config[section][key]:
            if name.startswith("pct_counts_") and not _is_metric(name, config):
                yield f"`{section}: {key}` names {name}, but `qc: gene_families` has only {', '.join(families)}"
            elif section == "cells" and not _is_metric(name, config):
                yield f"`cells: mad_metrics` names {name!r}, no metric of cells; there are {', '.join(QC_COLUMNS)} ..."
    if config["harmony"]["enabled"] is False and config["neighbors"]["use_rep"] == "X_pca_harmony":
        yield "`neighbors: use_rep` is X_pca_harmony, but `harmony: enabled` is false"
    clusterings = clustering_names(config)
    own = {"kept", "reason", *clusterings, *label_names(config)}  # columns that stages write only after these are used
    before = {*own, "doublet_score", "predicted_doublet", "kept_counts"}
    for name, key in ({config["batch_key"]: "batch_key"} | required_columns(config)).items():
        if name in own or (key == "batch_key" and (name in before or _is_metric(name, config))):
            yield (
                f"`{key}` names {name}, which this run computes itself, and later. A column of this name in a file is "
                f"kept as {name}_file: name that, or another"
            )
        if name in ("", "."):
            yield f"`{key}` names {name!r}, which no file of HDF5 can have as a name: rename the column"
        if len(escape(name)) > LONGEST:
            yield f"`{key}` names {name[:40]}..., whose {len(name)} characters do not fit a path: rename the column"
        if "/" in name:
            plain = name.replace("/", "_")
            yield (
                f"`{key}` names {name}; from version 0.13 on, AnnData refuses names of columns with a /. Rename it in "
                f"the file (adata.obs = adata.obs.rename(columns={{{name!r}: {plain!r}}})) or in the sheet"
            )
    ours = "|".join(method.written(name) for name, method in _model().clusterings().items())
    grouped = dict.fromkeys(config["markers"]["groupings"] or [], "markers: groupings")
    grouped[config["subclusters"]["grouping"] or ""] = "subclusters: grouping"
    for name, key in (_contrasts().used_columns(config) | grouped).items():
        if re.fullmatch(ours, name) and name not in clusterings:
            yield f"`{key}` names {name}, which is not computed; there are {', '.join(clusterings) or 'no clusterings'}"
    for name in config["subclusters"]["groups"]:
        if len(escape(name)) > LONGEST:
            yield f"`subclusters: groups` names {name[:40]}..., which is too long for a path: rename the group"
    yield from _contrasts().config_problems(config)


def clustering_names(config: Mapping[str, Any]) -> list[str]:
    """The names of all clusterings of the config: leiden_0.6, louvain_0.6, kmeans_8 ..."""
    methods = _model().clusterings()
    return [f"{name}_{value}" for name, method in methods.items() for value in config[name][method.each]]


def cycle_scores(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The scores of the cell cycle that are computed."""
    return CYCLE_SCORES if config["scores"]["cell_cycle"] != "none" else ()


def label_names(config: Mapping[str, Any]) -> list[str]:
    """The names of the groupings that are neither clusterings nor from a file."""
    found = ["phase"] if cycle_scores(config) else []
    found += ["annotation_label", "annotation_majority"] if config["annotation"]["reference"] else []
    found += ["annotation_markers"] if config["annotation"]["markers"] else []
    return found + (["subclusters"] if config["subclusters"]["groups"] else [])


def over_clustering(config: Mapping[str, Any], n_obs: int) -> str:
    """The resolution of the fine clustering for majority votes, CellTypist's by the number of cells."""
    if given := config["annotation"]["over_clustering"]:
        return str(given)
    limits = {5000: "5", 20_000: "10", 40_000: "15", 100_000: "20", 200_000: "25"}
    return next((resolution for most, resolution in limits.items() if n_obs < most), "30")


def hvg_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config's `hvg` section without the keys that its flavour does not read."""
    fields = _model().inner()["hvg"].model_fields
    flavors = {name: (field.json_schema_extra or {}).get("only", ()) for name, field in fields.items()}
    flavor = config["hvg"]["flavor"]
    return {name: value for name, value in config["hvg"].items() if not flavors[name] or flavor in flavors[name]}


def genes_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config's `genes` section without `min_shared` for an outer join, which does not read it."""
    outer = config["genes"]["join"] == "outer"
    return {name: value for name, value in config["genes"].items() if not (outer and name == "min_shared")}


def hvg_passes(flavor: str, target_sum: float | None) -> int:
    """The number of passes over the counts of a flavour of highly variable genes."""
    if flavor in ("seurat", "cell_ranger"):
        return 1 if target_sum else 2  # a first pass for the cells' totals, whose median is the target
    return 1 if flavor == "poisson_gene_selection" else 2


def groupings(config: Mapping[str, Any]) -> list[str]:
    """The groupings whose markers are computed: by default the label and every Leiden clustering."""
    leiden = [name for name in clustering_names(config) if name.startswith("leiden_")]
    default = ([config["label_key"]] if config["label_key"] else []) + leiden
    return default if config["markers"]["groupings"] is None else config["markers"]["groupings"]


def reference_of(config: Mapping[str, Any], grouping: str) -> str | list[str]:
    """What the groups of a grouping are compared with: "rest", the name of a group, or pairs of groups."""
    return config["markers"]["reference"].get(grouping, "rest")


def required_columns(config: Mapping[str, Any]) -> dict[str, str]:
    """obs columns that must come from the files or the sheet -> the config key that needs them."""
    wanted = {config["batch_key"]: "batch_key", config["label_key"]: "label_key"}
    wanted |= dict.fromkeys(config["regress_out"]["keys"], "regress_out: keys")
    wanted |= dict.fromkeys(config["harmony"]["keys"] or [], "harmony: keys")
    wanted |= dict.fromkeys(config["markers"]["groupings"] or [], "markers: groupings")
    wanted[config["density"]["groupby"]] = "density: groupby"
    wanted = _contrasts().used_columns(config) | wanted
    wanted.setdefault(config["subclusters"]["grouping"], "subclusters: grouping")
    ours = {None, "sample", "doublet_score", "predicted_doublet", "kept_counts", *QC_COLUMNS, *clustering_names(config)}
    ours |= {*cycle_scores(config), *label_names(config)}
    return {name: key for name, key in wanted.items() if name not in ours and not _is_metric(name, config)}


def kept_columns(config: Mapping[str, Any]) -> list[str]:
    """obs columns that the config takes from the files although stages may write columns of the same names."""
    return sorted(name for name in required_columns(config) if COMPUTED.fullmatch(name))


def _is_metric(name: str, config: Mapping[str, Any]) -> bool:
    families = list(config["qc"]["gene_families"])
    tops = [f"in_top_{n}_genes" for n in config["qc"]["percent_top"]]
    return name in QC_COLUMNS or name in {
        f"{prefix}{part}"
        for prefix in ("pct_counts_", "total_counts_", "log1p_total_counts_")
        for part in families + tops
    }
