"""The stages of a tiny cohort in one process, without Snakemake; and judgement of what they write.

`serve` tries configs, each in a forked child: what ends a process or hangs is the failure of that config alone. It
reads lines of JSON (a number and a list of configs) and answers each with a line (a list of outcomes).
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import resource
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import chain
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
from lib.figures import plots
from lib.inputs import config as settings
from lib.inputs import contrasts, formats, genesets, reference, sizes
from lib.inputs import sheet as sheets
from lib.run import models, stage
from lib.run.errors import UserError
from lib.run.resources import Job, Load
from lib.store import compressed
from lib.store.files import read_arrays, read_table
from lib.store.names import escape

SCRIPTS = Path(__file__).parents[1] / "scripts"
TINY = {  # settings for some 300 cells x 400 genes
    "label_key": "CellType",
    "cells": {"min_genes": 20},
    "doublets": {"min_cells": 60},
    "hvg": {"n_top_genes": 150, "span": 0.5},
    "pca": {"n_comps": 20},
    "neighbors": {"n_pcs": 15},
    "tsne": {"n_iter": 60},
    "umap": {"n_epochs": 30},
    "markers": {"logreg": {"max_iter": 20}},
}
SETS = {  # and, for their own sections alone, of sets of genes, few of which strict filters leave
    "annotation": {"reference_key": "CellType", "markers": "lists", "n_genes": 100},
    "gene_sets": {
        "B": ["MS4A1", "CD19", "BANK1", "VPREB3"],
        "T": ["IL7R", "CD4", "LTB", "MAL", "CD2", "CD7"],
        "lineage B": ["CD79A", "CD79B", "CD74", "MEF2C"],
    },
    "scores": {
        "methods": ["ulm", "mlm", "aucell", "zscore", "waggr", "score_genes"],
        "marker_methods": ["ora", "gsea"],
    },
    "markers": {"methods": ["logreg", "t-test", "wilcoxon"]},
}
BULK = {  # and, for their own sections alone, of differences between conditions
    # So many cells leave one type to be tested: each takes 2 s
    "pseudobulk": {"sample_key": "donor", "groupings": ["CellType"], "min_cells": 13},
    "de": [{"column": "condition", "level": "ill", "reference": "well"}],
    "composition": {"groupings": ["CellType"]},
}
ODD = ["{sample}", "{}", "x\ny", "..", " ", "5", "1e-5", 'a"b, µ', "-rf", "😀", "x", "X"]  # columns of obs
LABELS = ["", "a/b", "..", "{x}", "x\ny", "n" * 300, "nan", "😀", "A/B", " "]
SECONDS, MEMORY = 60, 8 << 30  # of one config at most
DEPTH = 1  # stages after the last whose params a config changes
ONLY_ASKED = ("figures", "atlas", "trust")  # run for their own params, not for other input


def merged(config: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of `more` over those of `config`, section by section; mappings of families are replaced."""
    both = dict(config)
    for name, value in more.items():
        inner = isinstance(value, dict) and isinstance(both.get(name), dict) and name != "max_pct_counts"
        both[name] = merged(both[name], value) if inner else value
    return both


def write_cohort(folder: Path) -> None:
    """Three files of 130, 100 and 70 cells x 400 genes, two donors each, columns of odd names and labels; the sheet."""
    from simulate import Design, simulate_patient, simulated_genes

    design = Design(n_genes=400, n_types=4, umi=900, seed=3)
    genes = simulated_genes(design)
    lines = ["sample\tpath"]
    for patient, n_obs in enumerate((130, 100, 70), 1):
        ((X, obs),) = simulate_patient(design, patient, n_obs, genes)
        for i, (name, labels) in enumerate([*((name, ["a", "b", "c"]) for name in ODD), ("labels", LABELS)]):
            obs[name] = pd.Categorical.from_codes((np.arange(n_obs) + i) % len(labels), labels)
        well = np.arange(n_obs) // 10 % 2
        obs["donor"], obs["condition"] = 2 * patient + well, np.where(well, "well", "ill")
        ad.AnnData(X.astype(np.float32), obs=obs, var=genes[["gene_ids"]]).write_h5ad(folder / f"P{patient}.h5ad")
        lines.append(f"P{patient}\t{folder}/P{patient}.h5ad")
    (folder / "samples.tsv").write_text("\n".join(lines) + "\n")


@dataclass
class Step:
    """A job of a stage, with paths relative to the run's folder."""

    stage: str
    input: dict[str, Any]
    output: dict[str, Any]
    params: dict[str, Any]
    wildcards: dict[str, str] = field(default_factory=dict)

    def files(self, which: str) -> list[str]:
        """Its input or output files."""
        found = []
        for value in getattr(self, which).values():
            found += [value] if isinstance(value, str) else value
        return found


def steps(config: Mapping[str, Any], sheet: pd.DataFrame) -> dict[str, Step]:
    """The jobs of a whole run in order, as the rules say; `test_params_are_those_of_the_rules` compares the names."""
    samples, batch_key, label_key = list(sheet.index), config["batch_key"], config["label_key"]
    collections = list(genesets.read_collections(config["gene_sets"]))
    seed, gene_key, families = config["seed"], config["ingest"]["gene_key"], config["qc"]["gene_families"]
    target_sum, density_key = config["normalize"]["target_sum"], config["density"]["groupby"] or batch_key
    clusterings, groupings = settings.clustering_names(config), settings.groupings(config)
    found: dict[str, Step] = {}

    def add(name: str, inputs: dict, outputs: dict, params: dict, **wildcards: str) -> None:
        key = " ".join([name, *wildcards.values(), *(["density"] if "density" in outputs.get("png", [""])[0] else [])])
        found[key] = Step(name, inputs, outputs, params, wildcards)

    def of_clustering(name: str) -> list[str]:
        if name in settings.label_names(config):
            of = {"phase": "cell_cycle"} | {name: name for name in ("annotation_markers", "subclusters")}
            return [f"{of.get(name, 'annotation')}.parquet"]
        return [f"{name.replace('_', '/', 1)}.parquet"] if name in clusterings else []

    for name in samples:
        at = {file.partition(".")[0]: f"{name}/{file}" for file in ("counts.h5ad", "qc.parquet", "doublets.parquet")}
        limits = sheets.cell_limits(sheet, name, config["cells"])
        given = sheets.file_options(sheet, name, config)
        path = sheets.path_of(sheet, name)
        read = {"sample": name, "suffix": sheets.cell_suffix(sheet, name), "batch_key": batch_key}
        read |= {"sheet": sheets.batch_of_line(sheet, name, batch_key), "keep": settings.kept_columns(config)}
        read |= {"options": formats.options_of(Path(path), given), "version": []}
        add("ingest", {"file": path}, {"counts": at["counts"]}, read, sample=name)
        qc = {"gene_families": families, "percent_top": config["qc"]["percent_top"]}
        outputs = {"cells": at["qc"], "genes": f"{name}/qc_genes.parquet"}
        add("qc", {"counts": at["counts"]}, outputs, qc, sample=name)
        doublets = {"seed": seed, "batch_key": batch_key, "cells": limits}
        doublets["doublets"] = sheets.doublet_options(sheet, name, config["doublets"])
        outputs = {"doublets": at["doublets"], "simulated": f"{name}/doublets_simulated.h5"}
        add("doublets", {"counts": at["counts"], "qc": at["qc"]}, outputs, doublets, sample=name)
        keep = {"batch_key": batch_key, "cells": limits, "remove_doublets": config["doublets"]["remove"]}
        keep["sheet"] = sheets.sheet_obs(sheet, name)
        outputs = {"cells": f"{name}/cells.parquet", "ledger": f"{name}/ledger.tsv"}
        add("cells", at, outputs, keep, sample=name)

    counts, cells = ([f"{name}/{file}" for name in samples] for file in ("counts.h5ad", "cells.parquet"))
    whole = {"counts": counts, "cells": cells, "genes": "genes.parquet"}
    params = {"samples": samples, "batch_key": batch_key, "genes": settings.genes_options(config), "gene_key": gene_key}
    params["gene_families"] = families
    add("genes", {"counts": counts, "cells": cells}, {"genes": "genes.parquet"}, params)
    params = {"samples": samples, "seed": seed, "gene_key": gene_key, "batch_key": batch_key, "target_sum": target_sum}
    params["hvg"] = settings.hvg_options(config)
    add("hvg", whole | {"shards": []}, {"hvg": "hvg.parquet", "batches": "hvg_batches.tsv"}, params)
    params = {"samples": samples, "gene_key": gene_key}
    outputs = {"features": "features.h5ad", "obs": "obs.parquet"}
    add("features", whole | {"hvg": "hvg.parquet", "parts": []}, outputs, params)
    params = {"n_comps": config["pca"]["n_comps"], "target_sum": target_sum, "scale": config["scale"]}
    params["regress_keys"] = config["regress_out"]["keys"]
    cycle = bool({*settings.cycle_scores(config)} & {*config["regress_out"]["keys"]})
    regressed = {"cell_cycle": ["cell_cycle.parquet"] if cycle else []}
    if settings.cycle_scores(config):
        of = {"samples": samples, "seed": seed, "gene_key": gene_key, "target_sum": target_sum}
        of["organism"] = config["scores"]["cell_cycle"]
        add("cell_cycle", whole | {"obs": "obs.parquet"}, {"cell_cycle": "cell_cycle.parquet"}, of)
    features = {"features": ["features.h5ad"], "obs": "obs.parquet"}
    add("pca", features | regressed | {"shards": []}, {"pca": "pca.h5"}, params)
    harmony = ["harmony.h5"] if config["harmony"]["enabled"] else []
    if harmony:
        params = {"seed": seed, "vars_use": config["harmony"]["keys"] or [batch_key], "harmony": config["harmony"]}
        add("harmony", {"pca": "pca.h5", "obs": "obs.parquet"}, {"harmony": "harmony.h5"}, params)
    space = {"pca": "pca.h5", "harmony": harmony}
    add("neighbors", space, {"neighbors": "neighbors.h5"}, {"seed": seed, "neighbors": config["neighbors"]})
    graph, obs = {"neighbors": "neighbors.h5"}, {"obs": "obs.parquet"}
    for basis in ["umap", *(["tsne"] if config["tsne"]["enabled"] else [])]:
        params = {"seed": seed, basis: config[basis]}
        add(basis, graph | space | obs, {basis: f"{basis}.parquet"}, params)
    for value in config["leiden"]["resolutions"]:
        params = {"seed": seed, "n_iterations": config["leiden"]["n_iterations"]}
        add("leiden", graph | obs, {"leiden": f"leiden/{value}.parquet"}, params, resolution=str(value))
    for value in config["louvain"]["resolutions"]:
        add("louvain", graph | obs, {"louvain": f"louvain/{value}.parquet"}, {"seed": seed}, resolution=str(value))
    for value in config["kmeans"]["n_clusters"]:
        params = {"seed": seed, "n_pcs": config["neighbors"]["n_pcs"], "use_rep": config["neighbors"]["use_rep"]}
        add("kmeans", space | obs, {"kmeans": f"kmeans/{value}.parquet"}, params, n_clusters=str(value))
    given = {"umap": "umap.parquet", "obs": "obs.parquet", "grouping": of_clustering(density_key)}
    add("density", given, {"density": "density.parquet"}, {"groupby": density_key})

    artifacts = ["hvg.parquet", "pca.h5", *harmony, "neighbors.h5", "umap.parquet", "density.parquet"]
    artifacts += ["tsne.parquet"] if config["tsne"]["enabled"] else []
    artifacts += [file for name in clusterings for file in of_clustering(name)]
    subs, parts = config["subclusters"], {name: [] for name in ("leiden", "umap")}
    by_subgroups = obs | {"grouping": of_clustering(subs["grouping"])}
    for group in subs["groups"]:
        folder, wild = f"sub/{escape(group)}", {"subgroup": escape(group)}
        params = {"grouping": subs["grouping"], "group": group, "groups": subs["groups"]}
        add("subset", by_subgroups | regressed, {"obs": f"{folder}/obs.parquet"}, params, **wild)
        resolution = str(subs["resolution"])
        params = {"seed": seed, "n_iterations": config["leiden"]["n_iterations"]}
        leiden = Step("leiden", graph | obs, {"leiden": f"leiden/{resolution}.parquet"}, params)
        stages = ("hvg", "features", "pca", *(["harmony"] if harmony else []), "neighbors", "umap")
        for step in [*(found[name] for name in stages), leiden]:
            given = of_folder(step.input, folder, {*counts, *cells, "genes.parquet"})
            given |= {"obs": f"{folder}/obs.parquet"} if step.stage in ("hvg", "features") else {}
            given |= {"cell_cycle": []} if step.stage == "pca" else {}
            outputs = of_folder(step.output, folder)
            if step.stage == "features":
                del outputs["obs"]
            of = wild | ({"resolution": resolution} if step.stage == "leiden" else {})
            found[f"{step.stage} {folder}"] = Step(step.stage, given, outputs, step.params, of)
            if step.stage in parts:
                parts[step.stage].append(outputs[step.stage])
    if subs["groups"]:
        params = {name: subs[name] for name in ("grouping", "groups", "resolution")} | {"batch_key": batch_key}
        outputs = {"labels": "subclusters.parquet", "umap": "subclusters_umap.parquet", "table": "subclusters.tsv"}
        add("subclusters", by_subgroups | parts | {"tops": []}, outputs, params)
        artifacts += [outputs["labels"], outputs["umap"]]
    tops, drawn = [], []
    for name in groupings:
        for method in config["markers"]["methods"]:
            at, of = f"markers/{escape(name)}/{method}", {"grouping": of_clustering(name)}
            outputs = {name: f"{at}.{name}.tsv" for name in ("top", "shown", "panel")}
            outputs |= {"markers": f"{at}.tsv.gz", "ranking": f"{at}.parquet"}
            params = {key: config["markers"][key] for key in ("n_genes", "hidden_families")}
            params |= {"grouping": name, "reference": settings.reference_of(config, name)}
            wild = {"grouping": escape(name)}
            artifacts.append(outputs["ranking"])
            if method == "logreg":
                params |= {"logreg": config["markers"]["logreg"], "reference": "rest"}
                add("markers_logreg", features | regressed | {"pca": "pca.h5"} | of, outputs, params, **wild)
            else:
                params |= {"samples": samples, "gene_key": gene_key, "target_sum": target_sum}
                shards = {"shards": []} if method == "t-test" else {}
                add(f"markers_{method.replace('-', '')}", whole | obs | of | shards, outputs, params, **wild)
                if name == groupings[0]:  # one is like the other
                    given = {"ranking": outputs["ranking"], "shown": outputs["shown"]}
                    volcano = {"volcano": f"{at}_volcano.png"}
                    add("figures_volcano", given, volcano, {"grouping": name}, **wild, method=method)
            tops.append(outputs["shown"])
            drawn += [(name, at)]

    of_markers = {
        name: [f"{at}{end}" for _, at in drawn] for name, end in (("scores", ".png"), ("dotplot", "_dots.png"))
    }
    of_markers["cells"] = [f"markers/{escape(name)}/umap.png" for name in groupings]
    params = {"samples": samples, "gene_key": gene_key, "n_genes": 300}
    add("panel", whole | obs | {"tops": tops}, {"panel": "panel.h5ad"}, params)
    params = {"seed": seed, "groupings": groupings, "methods": config["markers"]["methods"], "target_sum": target_sum}
    params["clusterings"] = [name for name in groupings if name in clusterings]
    given = obs | {"tops": tops, "panel": "panel.h5ad", "embedding": "umap.parquet"}
    given["clusterings"] = [file for name in params["clusterings"] for file in of_clustering(name)]
    if drawn:
        add("figures_markers", given, of_markers, params)

    if collections:
        asked = config["scores"]
        sets = {"sets": [spec for spec in config["gene_sets"].values() if isinstance(spec, str)]}
        params = {"samples": samples, "seed": seed, "gene_key": gene_key, "target_sum": target_sum}
        params["gene_sets"] = config["gene_sets"]
        tested = [method for method in asked["methods"] if method in ("ulm", "mlm", "zscore")]
        outputs = {"scores": [f"scores/{escape(name)}/{m}.parquet" for name in collections for m in asked["methods"]]}
        outputs["padj"] = [f"scores/{escape(name)}/{m}_padj.parquet" for name in collections for m in tested]
        if asked["methods"]:
            of = params | {"scores": {key: asked[key] for key in ("methods", "tmin")}}
            add("scores", whole | obs | sets, outputs, of)
            artifacts += [*outputs["scores"], *outputs["padj"]]
        for path in outputs["scores"][:1]:
            name = (groupings or ["sample"])[0]
            given = obs | {"scores": path, "umap": "umap.parquet", "grouping": of_clustering(name)}
            drawn = {"heatmap": "scores/heatmap.png", "umaps": "scores/umaps.png", "means": "scores/means.tsv"}
            of = {"seed": seed, "grouping": name, "label": "a score"}
            add("figures_scores", given, drawn, of, grouping=escape(name))
        ranked = [m for m in ("wilcoxon", "t-test", "logreg") if m in config["markers"]["methods"]]
        for name in groupings if ranked and asked["marker_methods"] else []:
            at = escape(name)
            given = sets | {"ranking": f"markers/{at}/{ranked[0]}.parquet", "genes": "genes.parquet"}
            of = {"gene_sets": config["gene_sets"], "scores": {key: asked[key] for key in ("marker_methods", "tmin")}}
            add("enrichment", given, {"enrichment": f"enrichment/{at}.tsv"}, of, grouping=at)

    types = [name for name in settings.label_names(config) if name not in ("phase", "subclusters")]
    asked = config["annotation"]
    if asked["markers"]:
        given = {"scores": f"scores/{escape(asked['markers'])}/{config['scores']['methods'][0]}.parquet"}
        given["clustering"] = of_clustering(clusterings[0])[0]
        outputs = {"annotation": "annotation_markers.parquet", "table": "annotation_markers.tsv"}
        add("annotation_markers", given, outputs, {"collection": asked["markers"]})
        artifacts.append(outputs["annotation"])
    if asked["reference"]:
        of = {name: asked[name] for name in ("reference_key", "reference_counts", "n_genes", "C", "max_iter")}
        given, model = {"reference": asked["reference"], "genes": "genes.parquet"}, "annotation/model.h5"
        add("annotation_model", given, {"model": model}, {"annotation": of})
        fine = f"leiden/{settings.over_clustering(config, 300)}.parquet"
        if fine not in (file for name in clusterings for file in of_clustering(name)):
            of = {"seed": seed, "n_iterations": config["leiden"]["n_iterations"]}
            add("leiden", graph | obs, {"leiden": fine}, of, resolution=Path(fine).stem)
        of = {
            "samples": samples,
            "gene_key": gene_key,
            "reference": asked["reference"],
            "threshold": asked["threshold"],
        }
        given = whole | obs | {"model": model, "over_clustering": fine}
        add("annotation", given, {"annotation": "annotation.parquet"}, of)
        artifacts.append("annotation.parquet")
    if types:
        known = label_key or (clusterings or ["sample"])[0]
        given = obs | {"names": [of_clustering(name)[0] for name in types], "known": of_clustering(known)}
        drawn = {"figures": [f"annotation/{name}.png" for name in types]}
        drawn["tables"] = [f"annotation/{name}.tsv" for name in types]
        add("figures_annotation", given, drawn, {"names": types, "known": known, "formats": 1})

    sample_key, seen = config["pseudobulk"]["sample_key"], contrasts.bulk_groupings(config)
    by_sample = {"sample_key": sample_key, "min_cells": config["pseudobulk"]["min_cells"]}
    for name in seen:
        at, wild = f"pseudobulk/{escape(name)}", {"grouping": escape(name)}
        params = by_sample | {"samples": samples, "gene_key": gene_key, "target_sum": target_sum, "grouping": name}
        given = whole | obs | {"grouping": of_clustering(name), "shards": []}
        add("pseudobulk", given, {"pseudobulk": f"{at}.h5ad"}, params, **wild)
        mine = [one for of, one in contrasts.pairs(config) if of == name]
        params = {"min_cells": by_sample["min_cells"], "family": "types"}
        params["column"] = (mine or contrasts.declared(config) or [{"column": ""}])[0]["column"]
        drawn = {"cells": f"{at}/cells.png", "pca": f"{at}/components.png", "table": f"{at}/profiles.tsv"}
        add("figures_pseudobulk", {"pseudobulk": f"{at}.h5ad"}, drawn, params, **wild)
        if collections and config["scores"]["methods"]:
            params = {"seed": seed, "target_sum": target_sum, "gene_sets": config["gene_sets"]}
            params["scores"] = {key: config["scores"][key] for key in ("methods", "tmin")}
            add(
                "pseudobulk_scores", sets | {"pseudobulk": f"{at}.h5ad"}, {"scores": f"{at}/scores.tsv"}, params, **wild
            )
        for one in mine:
            to, of = f"de/{escape(name)}/{escape(one['name'])}", wild | {"contrast": escape(one["name"])}
            outputs = {"de": f"{to}.parquet", "tables": f"{to}/groups"}
            outputs |= {table: f"{to}/{table}.tsv" for table in ("overview", "top")}
            params = by_sample | {"grouping": name, "contrast": one}
            add("de", obs | {"pseudobulk": f"{at}.h5ad"}, outputs, params, **of)
            drawn = {"overview": f"{to}/genes.png", "volcano": f"{to}/volcano.png"}
            add("figures_de", {"de": outputs["de"], "overview": outputs["overview"]}, drawn, {"contrast": one}, **of)
            artifacts.append(outputs["de"])
            if collections and config["scores"]["marker_methods"]:
                params = {"gene_sets": config["gene_sets"]}
                params["scores"] = {key: config["scores"][key] for key in ("marker_methods", "tmin")}
                given = sets | {"de": outputs["de"], "genes": "genes.parquet"}
                add("de_enrichment", given, {"enrichment": f"{to}/enrichment.tsv"}, params, **of)
    composed = {name: f"composition/{escape(name)}" for name in config["composition"]["groupings"]}
    compared = {name: [one for of, one in contrasts.pairs(config, "composition") if of == name] for name in composed}
    for name, at in composed.items():
        outputs = {"composition": f"{at}/shares.parquet", "tests": f"{at}/tests.parquet"}
        artifacts += outputs.values()
        outputs |= {"table": f"{at}/shares.tsv", "tests_table": f"{at}/tests.tsv"}
        params = {"grouping": name, "sample_key": sample_key, "contrasts": compared[name]}
        add("composition", obs | {"grouping": of_clustering(name)}, outputs, params, grouping=escape(name))
    if composed:
        given = {"tables": [f"{at}/shares.parquet" for at in composed.values()]}
        given["tests"] = [f"{at}/tests.parquet" for at in composed.values()]
        drawn = {"bars": [f"{at}/samples.png" for at in composed.values()]}
        drawn["levels"] = [
            f"{composed[name]}/{escape(one['name'])}.png" for name, mine in compared.items() for one in mine
        ]
        params = {"groupings": [*composed], "contrasts": [*compared.values()]}
        add("figures_composition", given, drawn, params | {"families": ["types"] * len(composed), "formats": 1})

    if config["trust"]["enabled"]:
        asked, label = config["trust"], label_key or next(iter(clusterings), None)
        thetas = asked["thetas"] if harmony else []
        outputs = {name: f"trust_{name}.tsv" for name in ("metrics", "batches", "labels")}
        outputs |= {"thetas": ["trust_thetas.tsv"] if thetas else []}
        params = {"seed": seed, "batch_keys": (config["harmony"]["keys"] if harmony else None) or [batch_key]}
        params |= {"label": label, "known": label_key is not None, "n_pcs": config["neighbors"]["n_pcs"]}
        params |= {"n_cells": asked["n_cells"], "thetas": thetas, "harmony": config["harmony"] if thetas else {}}
        labels = {"labels": of_clustering(label) if label else []}
        add("trust_integration", space | obs | labels, outputs, params)
        if clusterings:
            outputs = {name: f"trust_{name}.tsv" for name in ("clusterings", "clusters")}
            outputs |= {"stability": "stability.parquet"}
            params = {name: asked[name] for name in ("n_cells", "seeds")}
            params |= {"seed": seed, "n_iterations": config["leiden"]["n_iterations"]}
            given = {"clusterings": [file for name in clusterings for file in of_clustering(name)]}
            given |= {"neighbors": "neighbors.h5"} | space
            add("trust_clusters", given, outputs, params)
            params = {name: asked[name] for name in ("n_cells", "resolutions")} | {"seed": seed}
            given = given | {"clusterings": of_clustering(clusterings[0])}
            add("trust_resolutions", given, {"resolutions": "trust_resolutions.tsv"}, params)
            artifacts.append("stability.parquet")
        params = {"samples": samples, "seed": seed, "batch_key": batch_key, "label": label_key, "gene_key": gene_key}
        given = {"counts": counts, "cells": cells, "genes": "genes.parquet"}
        given["simulated"] = [f"{name}/doublets_simulated.h5" for name in samples]
        outputs = {name: f"trust_{name}.tsv" for name in ("filters", "doublets")}
        add("trust_filters", given, outputs, params | {"n_cells": asked["n_cells"]})
        again = next(iter(groupings), None)
        ranked = "t-test" in config["markers"]["methods"] and again is not None
        ranked = ranked and settings.reference_of(config, again) == "rest"
        given = {
            "counts": counts,
            "cells": cells,
            "qc_genes": [f"{name}/qc_genes.parquet" for name in samples],
            "genes": "genes.parquet",
        }
        given |= {
            "hvg": "hvg.parquet",
            "umap": ["umap.parquet"],
            "clusters": [file for name in clusterings[:1] for file in of_clustering(name)],
        }
        given |= {"tsne": ["tsne.parquet"] if config["tsne"]["enabled"] else []}
        for basis in ("umap", "tsne") if asked["embeddings_again"] else ():
            if given[basis]:
                given[basis] = [*given[basis], f"{basis}_again.parquet"]
                of = {"seed": (seed + 1) % 2**32, basis: config[basis]}
                add(basis, graph | space | obs, {basis: given[basis][1]}, of, again="again")
        given["ranking"] = [f"markers/{escape(again)}/t-test.parquet"] if ranked else []
        given["grouping"] = of_clustering(again) if again else []
        params = {"seed": seed, "batch_key": batch_key, "batch_keys": config["harmony"]["keys"] or [batch_key]}
        params |= {"gene_key": gene_key, "target_sum": target_sum, "grouping": again}
        params |= {"n_cells": asked["n_cells"], "harmony": config["harmony"], "hvg": config["hvg"]}
        inputs = graph | space | obs | features | regressed | given
        add("trust_stages", inputs, {"stages": "trust_stages.tsv"}, params)

    grouped = ["sample", batch_key, label_key, *(config["harmony"]["keys"] or []), density_key, *groupings]
    params = {"samples": samples, "gene_key": gene_key, "target_sum": target_sum}
    add("matrices", whole | obs, {"matrices": "matrices.h5"}, params)
    colours = dict.fromkeys(["sample", batch_key], "batches") | dict.fromkeys(clusterings, "clusters")
    params = {"config": {}, "colours": colours}
    params["groupings"] = list(dict.fromkeys(filter(None, [*grouped, *clusterings, *settings.label_names(config)])))
    given = {"matrices": "matrices.h5", "genes": whole["genes"]} | obs
    add("atlas", given | {"artifacts": artifacts}, {"atlas": "atlas.h5ad"}, params)
    params = {"samples": samples, "seed": seed, "batch_key": batch_key, "families": list(families), "formats": 1}
    params["cells"] = sheets.used_limits(config["cells"])
    params["limits"] = [sheets.cell_limits(sheet, name, config["cells"]) for name in samples]
    outputs = {name: [f"qc_{name}.png"] for name in ("violins", "attrition", "limits", "doublets")}
    outputs |= {"scatter": "qc_scatter.png"}
    outputs |= {"attrition_table": "a.tsv", "summary": "s.tsv"}
    given = obs | {"cells": cells, "ledgers": [f"{n}/ledger.tsv" for n in samples]}
    given["simulated"] = [f"{n}/doublets_simulated.h5" for n in samples]
    add("figures_qc", given, outputs, params)
    given = {"hvg": "hvg.parquet", "genes": "genes.parquet"}
    add("figures_hvg", given, {"hvg": "hvg.png"}, {"flavor": config["hvg"]["flavor"]})
    params = {"seed": seed, "batch_key": batch_key, "n_pcs": config["neighbors"]["n_pcs"], "colours": colours}
    params["groupings"] = list(dict.fromkeys(filter(None, [batch_key, label_key])))
    outputs = {"variance": "variance.png", "components": "components.png", "harmony": ["harmony.png"] * len(harmony)}
    add("figures_pca", obs | space, outputs, params)
    labelled = settings.label_names(config)
    categories = list(dict.fromkeys([*filter(None, [label_key]), *clusterings, *labelled, batch_key, "sample"]))
    metrics = ["total_counts", "n_genes_by_counts", *(f"pct_counts_{family}" for family in families)]
    metrics += ["doublet_score"] if config["doublets"]["enabled"] else []
    tables = list(dict.fromkeys(file for name in [*clusterings, *labelled] for file in of_clustering(name)))
    for named, shown, density in ((categories, [], []), ([density_key], metrics, ["density.parquet"])):
        given = obs | {"embedding": "umap.parquet", "clusterings": tables, "density": density}
        drawn = {"groupings": [f"embedding/{escape(name)}.png" for name in named], "quality": "quality.png"}
        params = {"seed": seed, "groupings": named, "metrics": shown, "colours": colours}
        if density:
            drawn["groupings"] = ["density.png"]
        else:
            del drawn["quality"]
        add("figures_embedding", given, drawn, params)
    if clusterings:
        split_by = list(dict.fromkeys(filter(None, [batch_key, label_key])))
        params = {
            "clusterings": clusterings,
            "groupings": split_by,
            "metrics": metrics,
            "colours": colours,
            "trees": {},
        }
        drawn = {"composition": [f"by_{i}_{j}.png" for i in range(len(clusterings)) for j in range(len(split_by))]}
        drawn |= {"quality": [f"quality_{i}.png" for i in range(len(clusterings))], "trees": []}
        add("figures_clusters", obs | {"clusterings": tables}, drawn, params)
    return found


def of_folder(files: Mapping[str, Any], folder: str, but: Collection[str] = ()) -> dict[str, Any]:
    """The files in a folder, all but some."""

    def place(path: str) -> str:
        return path if path in but else f"{folder}/{path}"

    return {name: place(file) if isinstance(file, str) else list(map(place, file)) for name, file in files.items()}


class Names(SimpleNamespace):
    """Snakemake's named lists: attributes, `get`, and iteration over the values."""

    def get(self, name: str, default: Any = None) -> Any:
        return getattr(self, name, default)

    def __iter__(self) -> Iterator[Any]:
        return iter(vars(self).values())

    def __len__(self) -> int:
        return len(list(iter(self)))


@cache
def script(name: str) -> ModuleType:
    """The module of a stage; `import umap` would import umap-learn."""
    spec = importlib.util.spec_from_file_location(f"{name}_stage", SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def run_step(step: Step, folder: Path, base: Path | None = None) -> None:
    """Run a job in `folder`; what is not there is read from `base`."""

    def found(path: str) -> str:
        mine = folder / path
        return str(mine if base is None or mine.exists() else base / path)

    def named(paths: Mapping[str, Any], place: Callable[[str], str]) -> Names:
        return Names(**{k: place(v) if isinstance(v, str) else list(map(place, v)) for k, v in paths.items()})

    for path in step.files("output"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
    job = SimpleNamespace(
        input=named(step.input, found),
        output=named(step.output, lambda path: str(folder / path)),
        params=Names(**step.params),
        wildcards=Names(**step.wildcards),
        resources={},
        threads=1,
    )
    script(step.stage).main(job)


def run_steps(asked: Mapping[str, Step], folder: Path, base: Base) -> list[Step]:
    """Run the jobs that differ from those of `base`, and those up to DEPTH after them.

    Jobs further on run only where one that differs needs them.
    """
    maker = {path: step for step in asked.values() for path in step.files("output")}
    depth: dict[str, int] = {}
    stale: set[str] = set()  # of which an input changed, and which nobody made anew
    ran: list[Step] = []

    def run(step: Step, level: int) -> None:
        for path in step.files("input"):
            if path in stale or (path in maker and not any((at / path).exists() for at in (folder, base.folder))):
                run(maker[path], level)
        run_step(step, folder, base.folder)
        ran.append(step)
        stale.difference_update(step.files("output"))
        for path in step.files("output"):
            mine, other = folder / path, base.folder / path
            if mine.is_dir() or not other.exists() or other.read_bytes() != mine.read_bytes():
                depth[path] = level

    for name, step in asked.items():
        figure, inputs = step.stage.startswith(ONLY_ASKED), step.files("input")
        differs = name not in base.before or without_seed(base.before[name]) != without_seed(step)
        level = 0 if differs else min((depth[path] + 1 for path in inputs if path in depth), default=DEPTH + 1)
        level -= step.stage == "features" and level == 1  # whether genes of `hvg` are enough, `pca` tells
        if level <= DEPTH and (differs or not (figure or stale.intersection(inputs))):
            run(step, level)
        elif stale.union(depth).intersection(inputs):
            stale.update(step.files("output"))
    return ran


def without_seed(step: Step) -> Step:
    """A job whose seed draws nothing but the order of points counts as the same with any seed."""
    figure = step.stage.startswith(ONLY_ASKED)
    return replace(step, params={k: v for k, v in step.params.items() if not (figure and k == "seed")})


# What a stage's results must be; each raises AssertionError


def finite(values: Any, what: str) -> None:
    values = np.asarray(values)
    assert np.isfinite(values.astype(np.float64)).all(), f"{what}: not finite"


def table_is_right(path: str, lacking: Sequence[str] = ()) -> pd.DataFrame:
    table = read_table(path)
    for name, values in table.items():
        if pd.api.types.is_float_dtype(values) and not name.startswith(tuple(lacking)):
            finite(values, f"{path} {name}")
    return table


def judge(step: Step, folder: Path, base: Path) -> None:
    """Look at the results of a job."""

    def at(name: str) -> str:
        return str(folder / step.output[name])

    def of_input(name: str) -> str:
        return str(folder / name if (folder / name).exists() else base / name)

    for path in step.files("output"):
        assert (folder / path).stat().st_size > (1000 if path.endswith(".png") else 0), f"{path} is empty"
    if step.stage in JUDGES:
        JUDGES[step.stage](step, at, of_input)


def judge_qc(step: Step, at: Callable, of_input: Callable) -> None:
    table = table_is_right(at("cells"), ["pct_counts_"])
    table_is_right(at("genes"))
    for name in table.filter(regex="^pct_"):
        assert table[name].between(0, 100).all(), name
    tops = [int(name.split("_")[4]) for name in table.filter(regex="in_top_")]
    assert tops == [top for top in step.params["percent_top"] if top <= 400]


def judge_doublets(step: Step, at: Callable, of_input: Callable) -> None:
    table, asked = table_is_right(at("doublets"), ["doublet_score"]), step.params["doublets"]
    scores = table["doublet_score"].dropna()
    assert scores.between(-1e-9, 1 + 1e-9).all(), f"scores {scores.min()} to {scores.max()}"
    with h5py.File(at("simulated")) as file:
        assert (len(scores) > 0) == (len(file["scores"]) > 0)
        for name, values in file["scores"].items():
            finite(values[...], f"simulated scores of {name}")
            limit = values.attrs["threshold"]
            if asked["threshold"] is not None:
                assert limit == asked["threshold"]
    if asked["threshold"] is None and len(scores):
        called = (table["predicted_doublet"] & table["trusted"]).sum()
        assert called <= 3 * asked["expected_doublet_rate"] * len(scores), f"{called} of {len(scores)} are called"
    if len(scores) and not stage._NOTICES:
        assert scores.nunique() > 2, "all scores are equal"


def judge_cells(step: Step, at: Callable, of_input: Callable) -> None:
    table, ledger = read_table(at("cells")), pd.read_csv(at("ledger"), sep="\t", keep_default_na=False)
    assert ((table["reason"] == "") == table["kept"]).all()
    assert ledger.groupby("batch")["left"].last().sum() == table["kept"].sum()
    if table["kept"].mean() < 0.5:
        assert stage._NOTICES, f"only {table['kept'].mean():.0%} of the cells are kept, without a notice"


def judge_genes(step: Step, at: Callable, of_input: Callable) -> None:
    table, asked = table_is_right(at("genes")), step.params["genes"]
    assert table["kept"].any()
    assert (table.loc[table["kept"], "total_counts"] >= asked["min_counts"]).all()


def judge_hvg(step: Step, at: Callable, of_input: Callable) -> None:
    table, asked = table_is_right(at("hvg"), ["highly_variable_rank", "dispersions"]), step.params["hvg"]
    n_top = asked["n_top_genes"]
    assert n_top is None or table["highly_variable"].sum() == min(n_top, len(table))
    statistic = table[next(name for name in table if name.endswith(("_norm", "residual_variances", "enrichment")))]
    finite(statistic[table["highly_variable"]].replace(np.inf, 0), "the statistic of selected genes")
    assert statistic.nunique() > 10 or stage._NOTICES, "most genes have the same statistic"


def judge_features(step: Step, at: Callable, of_input: Callable) -> None:
    if "obs" not in step.output:
        return
    obs = table_is_right(at("obs"), ["pct_counts_", "doublet_score"])
    assert (obs["kept_counts"] > 0).all()


def judge_pca(step: Step, at: Callable, of_input: Callable) -> None:
    found = read_arrays(at("pca"), "X_pca", "PCs", "variance", "variance_ratio", "mean", "std")
    for name, values in found.items():
        finite(values, name)
    X = found["X_pca"]
    assert X.shape[1] == min(step.params["n_comps"], X.shape[1])
    assert X.shape[1] == step.params["n_comps"] or stage._NOTICES
    assert (X[:, :2].std(0) > 1e-3 * np.abs(X).max()).all(), "a component does not vary"
    assert np.abs(found["variance"][:2] / X[:, :2].var(0, ddof=1, dtype=np.float64) - 1).max() < 1e-2
    assert 0 < found["variance_ratio"].sum() < 1 + 1e-6


def judge_harmony(step: Step, at: Callable, of_input: Callable) -> None:
    with h5py.File(at("harmony")) as file:
        if "skipped" in file.attrs:
            return
        X = file["X_pca_harmony"][...]
    before = read_arrays(of_input(step.input["pca"]), "X_pca")["X_pca"]
    finite(X, "X_pca_harmony")
    assert X.shape == before.shape
    assert (X[:, :2].std(0) > 0.1 * before[:, :2].std(0)).all(), "the correction leaves nothing"
    assert np.abs(X).max() < 10 * np.abs(before).max(), "the correction explodes"


def judge_neighbors(step: Step, at: Callable, of_input: Callable) -> None:
    found = read_arrays(at("neighbors"), "indices", "distances", "connectivities/data", "connectivities/indptr")
    n, asked = len(found["indices"]), step.params["neighbors"]["n_neighbors"]
    assert found["indices"].min() >= 0
    assert found["indices"].max() < n
    finite(found["distances"], "distances")
    assert (np.diff(found["distances"]) >= 0).all()
    weights = found["connectivities/data"]
    assert ((weights > 0) & (weights <= 1 + 1e-6)).all()
    assert (np.diff(found["connectivities/indptr"]) > 0).all(), "a cell without a neighbour"
    assert found["indices"].shape[1] >= min(asked, n) - 1


def judge_embedding(step: Step, at: Callable, of_input: Callable) -> None:
    table = table_is_right(at(step.stage))
    spread = table.std()
    assert (spread > 0).all(), "all cells lie at one place"
    assert len(table.drop_duplicates()) > len(table) / 2, "most cells lie at the same places"
    assert table.abs().max().max() < 1e6, f"coordinates up to {table.abs().max().max():g}"


def judge_clusters(step: Step, at: Callable, of_input: Callable) -> None:
    (values,) = (values for _, values in read_table(at(step.stage)).items())
    sizes = values.value_counts()
    assert (sizes > 0).all()
    if "n_clusters" in step.wildcards:
        assert len(sizes) == min(int(step.wildcards["n_clusters"]), len(values))
    else:
        least = 2 if "subgroup" in step.wildcards else 3  # cells of a cluster on average, of 77 cells or of 300
        assert len(sizes) <= len(values) / least or stage._NOTICES, f"{len(sizes)} clusters of {len(values)} cells"


def judge_density(step: Step, at: Callable, of_input: Callable) -> None:
    values = read_table(at("density")).iloc[:, 0]
    assert values.between(0, 1).all()


def judge_markers(step: Step, at: Callable, of_input: Callable) -> None:
    table = table_is_right(at("ranking"))
    assert (table["rank"] >= 1).all()
    if len(table):
        assert table["scores"].nunique() > 2 or stage._NOTICES, "all scores are equal"
    if "pvals" in table:
        assert table[["pvals", "pvals_adj"]].stack().between(0, 1).all()


def judge_pseudobulk(step: Step, at: Callable, of_input: Callable) -> None:
    bulk = ad.read_h5ad(at("pseudobulk"))
    assert (bulk.X >= 0).all()
    assert bulk.obs["n_cells"].min() >= 1
    assert bulk.obs_names.is_unique


def judge_de(step: Step, at: Callable, of_input: Callable) -> None:
    table = read_table(at("de"))
    assert table["pvals"].dropna().between(0, 1).all()
    assert len(list(Path(at("tables")).iterdir())) == table["group"].nunique()
    finite(table["scores"], "scores")


def judge_composition(step: Step, at: Callable, of_input: Callable) -> None:
    shares = read_table(at("composition"))
    assert np.abs(shares.groupby("sample")["share"].sum() - 1).max() < 1e-9


def judge_atlas(step: Step, at: Callable, of_input: Callable) -> None:
    atlas = ad.read_h5ad(at("atlas"))
    finite(atlas.X.data, "X")
    assert (atlas.X.data > 0).all()


JUDGES: dict[str, Callable] = {
    **{name.removeprefix("judge_"): made for name, made in globals().items() if name.startswith("judge_")},
    **{"umap": judge_embedding, "tsne": judge_embedding},
    **dict.fromkeys(("leiden", "louvain", "kmeans"), judge_clusters),
    **dict.fromkeys(("markers_logreg", "markers_ttest", "markers_wilcoxon"), judge_markers),
}


def needs_are_right(config: Mapping[str, Any], load: Load, names: Sequence[str]) -> None:
    """The models of resources give numbers that a scheduler takes."""
    for name in names:
        for grouping in settings.groupings(config)[:1] if name.startswith(("markers", "figures_markers")) else [""]:
            job = Job.of(load, config, False, threads=1, grouping=grouping, part="")
            asked = models.resources_of(models.model_of(name)(job), job, 1)
            assert all(0 <= value < 1e7 for value in asked.values()), f"{name} asks for {asked}"


@dataclass
class Base:
    """A run whose results other configs start from."""

    folder: Path
    before: dict[str, Step]


class Server:
    """The tiny cohort with its base runs, and configs tried on them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bases = folder, {}
        write_cohort(folder)
        self.tiny = merged(TINY, {"samples": str(folder / "samples.tsv")})
        self.config = settings.complete(self.tiny)
        self.sheet = sheets.read_sheet(self.config["samples"], self.config)
        self.asked = sizes.questions(self.sheet, self.config)
        self.load = Load.of(list(sizes.read_headers(self.asked, folder / "sizes.json")[0].values()))
        warnings.simplefilter("ignore")
        save = plots.save
        plots.save = lambda fig, path, **_: save(fig, path, dpi=40)  # four times as fast
        self.base_of({})

    def base_of(self, given: Mapping[str, Any]) -> Base:
        """The run of the settings that a config shares with others: TINY, and SETS or BULK if it has their sections."""
        more = next((more for more in (SETS, BULK) if more.keys() <= given.keys()), {})
        if (key := " ".join(more)) not in self.bases:
            base = Base(self.folder / f"base{len(self.bases)}", steps(self.accept(more), self.sheet))
            base.folder.mkdir()
            for step in base.before.values():  # in this process, so that its children have all libraries, compiled
                run_step(step, base.folder)
                judge(step, base.folder, base.folder)
            needs_are_right(self.config, self.load, dict.fromkeys(step.stage for step in base.before.values()))
            self.bases[key] = base
        return self.bases[key]

    def accept(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The complete config, checked like the rules do before any job."""
        more = {"annotation": {"reference": str(self.folder / "P1.h5ad")}} if "gene_sets" in given else {}
        config = settings.complete(merged(merged(self.tiny, more), given))
        sheet = sheets.read_sheet(self.config["samples"], config)
        columns, asked = sizes.column_problems(sheet, config), sizes.questions(sheet, config)
        found, problems = sizes.read_headers(asked, self.folder / "sizes.json")
        sizes.refuse_problems({name: problems.get(name, []) + columns.get(name, []) for name in asked})
        sizes.group_sizes(sheet, config, found)
        contrasts.check(sheet, config)
        genesets.check(genesets.read_collections(config["gene_sets"]), sheet, config, self.folder)
        reference.look_at(sheet, config, self.folder)
        return config

    def try_all(self, figures_of_every: int, given: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The outcome of each config; those with the same jobs run once. Figures, the slowest, are of every n-th."""
        outcomes, same, jobs = [], {}, {}
        for i, config in enumerate(given):
            try:
                complete = self.accept(config)
            except UserError as error:
                outcomes.append({"refused": str(error)})
                continue
            except Exception:
                outcomes.append({"wrong": traceback.format_exc()[-1500:]})
                continue
            asked = steps(complete, self.sheet)
            key = json.dumps([vars(step) for step in asked.values()], default=str)
            key = same.setdefault(key, i)
            if key not in jobs and len(jobs) % figures_of_every:
                asked = {name: step for name, step in asked.items() if not step.stage.startswith("figures")}
            jobs.setdefault(key, (complete, asked, self.base_of(config)))
            outcomes.append({"as": key})
        with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
            found = dict(zip(jobs, threads.map(lambda i: self.forked(i, *jobs[i]), jobs), strict=True))
        return [found[outcome["as"]] if "as" in outcome else outcome for outcome in outcomes]

    def forked(self, i: int, config: dict[str, Any], asked: Mapping[str, Step], base: Base) -> dict[str, Any]:
        """The outcome of a config, by a child that nothing else depends on."""
        folder, started = self.folder / f"run{i}", time.time()
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        child = os.fork()
        if not child:
            self.in_child(folder, config, asked, base)
        while not os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if time.time() - started > SECONDS:
                os.kill(child, signal.SIGKILL)
            time.sleep(0.01)
        status = os.waitpid(child, 0)[1]
        outcome = {"wrong": f"the process ended with status {status} after {time.time() - started:.0f} s"}
        with contextlib.suppress(FileNotFoundError):
            outcome = json.loads((folder / "outcome.json").read_text())
        shutil.rmtree(folder, ignore_errors=True)
        return outcome | {"seconds": round(time.time() - started, 2)}

    def in_child(self, folder: Path, config: dict[str, Any], asked: Mapping[str, Step], base: Base) -> None:
        """Run and judge, write the outcome, end."""
        outcome: dict[str, Any] = {}
        try:
            resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
            compressed.set_threads(1)  # those of the parent are not here
            stage._NOTICES.clear()
            needs_are_right(config, self.load, dict.fromkeys(step.stage for step in asked.values()))
            ran = run_steps(asked, folder, base)
            outcome = {"ran": [step.stage for step in ran]}
            for step in ran:
                judge(step, folder, base.folder)
        except UserError as error:
            outcome |= {"told": str(error)}
        except BaseException:
            outcome |= {"wrong": traceback.format_exc()[-1500:]}
        outcome["notices"] = list(stage._NOTICES)
        (folder / "outcome.json").write_text(json.dumps(outcome))
        os._exit(0)


def serve(folder: str) -> None:
    """Try the configs that come as lines; the first line that goes out says that the base run is there."""
    server = Server(Path(folder))
    for line in chain(["[1, []]"], sys.stdin):
        print(json.dumps(server.try_all(*json.loads(line))), flush=True)
