"""The config, checked whole before any job runs, and what follows from it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lib.run.errors import UserError

QC_COLUMNS = ("total_counts", "log1p_total_counts", "n_genes_by_counts", "log1p_n_genes_by_counts")
MISSING = object()
# obs columns that stages write, whatever the config
COMPUTED = re.compile(
    r"(?:log1p_)?total_counts(?:_.+)?|(?:log1p_)?n_genes_by_counts|pct_counts_.+|doublet_score|predicted_doublet"
    r"|kept|reason|kept_counts|umap_density_.+|(?:leiden|louvain|kmeans)_\d[\d.e+-]*"
)


def complete(config: Mapping[str, Any], schema_file: str | Path) -> dict[str, Any]:
    """The config with every default filled in, checked against the schema and against itself.

    Raises
    ------
    UserError
        Listing all problems: unknown keys with the nearest known one, wrong types, values out of range, contradictions.
    """
    import yaml  # here, for stages that need something else of this file
    from jsonschema import Draft202012Validator

    schema = yaml.safe_load(Path(schema_file).read_text())
    problems = list(_unknown_keys(config, schema, ""))
    if not problems:
        errors = sorted(Draft202012Validator(schema).iter_errors(dict(config)), key=lambda error: list(error.path))
        problems = [_explain(error) for error in errors]
    if not problems:
        given, config = config, _with_defaults(config, schema, schema)
        for section, key in (("qc", "gene_families"), ("cells", "max_pct_counts")):
            config[section][key] = {name: value for name, value in config[section][key].items() if value is not None}
        _without_families(config, given)
        problems = list(_contradictions(config))
    if problems:
        raise UserError("the config is not right:\n" + "\n".join(f"  - {problem}" for problem in problems))
    return config


def _without_families(config: dict[str, Any], given: Mapping[str, Any]) -> None:
    """Leave out what hangs on a gene family that the config takes away, with null or by naming others instead.

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


def _unknown_keys(config: Mapping[str, Any], schema: Mapping[str, Any], where: str) -> Iterator[str]:
    known = schema.get("properties", {})
    for key, value in config.items():
        if key not in known:
            if schema.get("additionalProperties") is False:
                near = difflib.get_close_matches(str(key), known, n=1) or [k for k in known if str(key) in k][:1]
                hint = f"did you mean `{near[0]}`?" if near else f"there are {', '.join(known)}"
                yield f"unknown key `{where}{key}`: {hint}"
        elif isinstance(value, Mapping):
            yield from _unknown_keys(value, known[key], f"{where}{key}: ")


def _explain(error: Any) -> str:
    where = ": ".join(str(part) for part in error.absolute_path) or "config"
    if error.validator == "enum":
        choices = ", ".join(map(str, error.validator_value))
        near = difflib.get_close_matches(str(error.instance), map(str, error.validator_value), n=1)
        return f"`{where}` is {error.instance!r}, not one of {choices}" + (f": did you mean {near[0]}?" if near else "")
    if error.validator == "type":
        wanted = error.validator_value if isinstance(error.validator_value, list) else [error.validator_value]
        return f"`{where}` is {error.instance!r}, a {type(error.instance).__name__}; it must be {' or '.join(wanted)}"
    return f"`{where}`: {error.message}"


def _with_defaults(config: Any, schema: Mapping[str, Any], root: Mapping[str, Any]) -> Any:
    if "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rsplit("/", 1)[1]]
    if "properties" not in schema:
        return schema.get("default") if config is MISSING else config
    config = {} if config in (MISSING, None) else config
    return {key: _with_defaults(config.get(key, MISSING), value, root) for key, value in schema["properties"].items()}


def _contradictions(config: Mapping[str, Any]) -> Iterator[str]:
    n_comps, n_pcs = config["pca"]["n_comps"], config["neighbors"]["n_pcs"]
    if n_pcs > n_comps:
        yield f"`neighbors: n_pcs` ({n_pcs}) exceeds `pca: n_comps` ({n_comps}): lower it, or compute more components"
    for low, high in (("min_genes", "max_genes"), ("min_counts", "max_counts")):
        limits = config["cells"][low], config["cells"][high]
        if None not in limits and limits[0] >= limits[1]:
            yield f"`cells: {low}` ({limits[0]}) is not below `cells: {high}` ({limits[1]}): no cell would be kept"
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
    n_top, flavor = config["hvg"]["n_top_genes"], config["hvg"]["flavor"]
    if n_top is None and flavor not in ("seurat", "cell_ranger"):
        yield f"`hvg: n_top_genes` is null, which only seurat and cell_ranger can do; {flavor} needs a number"
    if config["harmony"]["enabled"] is False and config["neighbors"]["use_rep"] == "X_pca_harmony":
        yield "`neighbors: use_rep` is X_pca_harmony, but `harmony: enabled` is false"
    clusterings = clustering_names(config)
    own = {"kept", "reason", *clusterings}  # what stages write after these are needed
    before = {*own, "doublet_score", "predicted_doublet", "kept_counts"}
    for name, key in ({config["batch_key"]: "batch_key"} | required_columns(config)).items():
        if name in own or (key == "batch_key" and (name in before or _is_metric(name, config))):
            yield (
                f"`{key}` names {name}, which this run computes itself, and later. A column of this name in a file is "
                f"kept as {name}_file: name that, or another"
            )
        if "/" in name:
            plain = name.replace("/", "_")
            yield (
                f"`{key}` names {name}; from version 0.13 on, AnnData refuses names of columns with a /. Rename it in "
                f"the file (adata.obs = adata.obs.rename(columns={{{name!r}: {plain!r}}})) or in the sheet"
            )
    for name in config["markers"]["groupings"] or []:
        if re.match(r"(leiden|louvain|kmeans)_", name) and name not in clusterings:
            yield f"`markers: groupings` names {name}, which is not computed; there are {', '.join(clusterings)}"


def clustering_names(config: Mapping[str, Any]) -> list[str]:
    """leiden_0.6, louvain_0.6, kmeans_8 ...: every clustering that the config asks for."""
    lists = {"leiden": "resolutions", "louvain": "resolutions", "kmeans": "n_clusters"}
    return [f"{method}_{value}" for method, key in lists.items() for value in config[method][key]]


def hvg_passes(flavor: str, target_sum: float | None) -> int:
    """How often a flavour of highly variable genes reads the counts."""
    if flavor in ("seurat", "cell_ranger"):
        return 1 if target_sum else 2  # the cells' totals first, of which the target is the median
    return 1 if flavor == "poisson_gene_selection" else 2


def groupings(config: Mapping[str, Any]) -> list[str]:
    """What markers are sought for: by default the label and every Leiden clustering."""
    leiden = [name for name in clustering_names(config) if name.startswith("leiden_")]
    default = ([config["label_key"]] if config["label_key"] else []) + leiden
    return default if config["markers"]["groupings"] is None else config["markers"]["groupings"]


def required_columns(config: Mapping[str, Any]) -> dict[str, str]:
    """obs columns that must come from the files or the sheet -> the config key that asks for them."""
    wanted = {config["batch_key"]: "batch_key", config["label_key"]: "label_key"}
    wanted |= dict.fromkeys(config["regress_out"]["keys"], "regress_out: keys")
    wanted |= dict.fromkeys(config["harmony"]["keys"] or [], "harmony: keys")
    wanted |= dict.fromkeys(config["markers"]["groupings"] or [], "markers: groupings")
    wanted[config["density"]["groupby"]] = "density: groupby"
    ours = {None, "sample", "doublet_score", "predicted_doublet", "kept_counts", *QC_COLUMNS, *clustering_names(config)}
    return {name: key for name, key in wanted.items() if name not in ours and not _is_metric(name, config)}


def kept_columns(config: Mapping[str, Any]) -> list[str]:
    """obs columns that the config takes from the files, although they are named as what stages write."""
    return sorted(name for name in required_columns(config) if COMPUTED.fullmatch(name))


def _is_metric(name: str, config: Mapping[str, Any]) -> bool:
    families = list(config["qc"]["gene_families"])
    tops = [f"in_top_{n}_genes" for n in config["qc"]["percent_top"]]
    return name in QC_COLUMNS or name in {
        f"{prefix}{part}"
        for prefix in ("pct_counts_", "total_counts_", "log1p_total_counts_")
        for part in families + tops
    }
