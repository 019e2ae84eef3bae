# Figures and tables for readers, with their captions in the report.


report: "captions/workflow.rst"


rule figures_qc:
    input:
        cells=of_samples("cells.parquet"),
        ledgers=of_samples("ledger.tsv"),
        simulated=of_samples("doublets_simulated.h5"),
        obs=f"{COHORT}/obs.parquet",
    output:
        violins=pages(
            "results/figures/qc_violins",
            each=ROWS,
            caption="qc_violins",
            subcategory="Cohort",
            labels={"figure": "metrics by batch"},
        ),
        attrition=pages(
            "results/figures/attrition",
            each=ROWS,
            caption="attrition",
            subcategory="Cohort",
            labels={"figure": "cells kept and removed"},
        ),
        limits=pages(
            "results/figures/qc_limits",
            each=TILES,
            caption="qc_limits",
            subcategory="Batches",
            labels={"figure": "cells that the limits remove"},
        ),
        doublets=pages(
            "results/figures/doublets",
            each=TILES,
            caption="doublets",
            subcategory="Batches",
            labels={"figure": "doublet scores"},
        ),
        scatter=figure(
            "results/figures/qc_scatter",
            caption="qc_scatter",
            category=QC,
            subcategory="Cohort",
            labels={"figure": "counts, genes and families"},
        ),
        attrition_table=report(
            "results/tables/attrition.tsv",
            caption="captions/attrition_table.rst",
            category=TABLES,
            labels={"table": "attrition ledger"},
        ),
        summary=report(
            "results/tables/qc_by_batch.tsv",
            caption="captions/qc_by_batch.rst",
            category=TABLES,
            labels={"table": "quality by batch"},
        ),
    log:
        "logs/cohort/figures_qc.log",
    group:
        "figures"
    conda:
        "../envs/cpu.yaml"
    threads: forks
    resources:
        **needs("figures_qc"),
    params:
        samples=SAMPLES,
        seed=config["seed"],
        batch_key=BATCH_KEY,
        families=FAMILIES,
        cells=sheets.used_limits(config["cells"]),
        limits=[sheets.cell_limits(SHEET, name, config["cells"]) for name in SAMPLES],
        formats=len(FORMATS),
    script:
        "../scripts/figures_qc.py"


FIGURES += rules.figures_qc.output


rule figures_hvg:
    input:
        hvg=f"{COHORT}/hvg.parquet",
        genes=f"{COHORT}/genes.parquet",
    output:
        hvg=figure(
            "results/figures/hvg",
            caption="hvg",
            category=FEATURES,
            labels={"figure": "highly variable genes"},
        ),
    log:
        "logs/cohort/figures_hvg.log",
    group:
        "figures"
    conda:
        "../envs/cpu.yaml"
    resources:
        **needs("figures_hvg"),
    params:
        flavor=config["hvg"]["flavor"],
    script:
        "../scripts/figures_hvg.py"


FIGURES += rules.figures_hvg.output


rule figures_pca:
    input:
        pca=f"{COHORT}/pca.h5",
        obs=f"{COHORT}/obs.parquet",
        harmony=HARMONY,
    output:
        variance=figure(
            "results/figures/pca_variance",
            caption="pca_variance",
            category=FEATURES,
            labels={"figure": "variance by component"},
        ),
        components=figure(
            "results/figures/pca",
            caption="pca",
            category=FEATURES,
            labels={"figure": "components by batch"},
        ),
        harmony=(
            figure(
                "results/figures/harmony",
                caption="harmony",
                category=EMBEDDINGS,
                subcategory="Integration",
                labels={"figure": "before and after Harmony"},
            )
            if WITH_HARMONY
            else []
        ),
    log:
        "logs/cohort/figures_pca.log",
    group:
        "figures"
    conda:
        "../envs/cpu.yaml"
    threads: forks
    resources:
        **needs("figures_pca"),
    params:
        seed=config["seed"],
        batch_key=BATCH_KEY,
        groupings=list(dict.fromkeys([BATCH_KEY, *LABELS])),
        colours=colours_of([BATCH_KEY, *LABELS]),
        n_pcs=config["neighbors"]["n_pcs"],
    script:
        "../scripts/figures_pca.py"


FIGURES += rules.figures_pca.output


rule figures_clusters:
    input:
        obs=f"{COHORT}/obs.parquet",
        clusterings=[TABLE_OF[name] for name in CLUSTERINGS],
    output:
        composition=[
            path
            for name in LOOKED_AT
            for other in SPLIT_BY
            for path in of_clusters(
                name,
                f"by_{other}",
                caption="composition",
                labels={"clusters": name, "figure": f"by {other}"},
            )
        ],
        quality=[
            path
            for name in LOOKED_AT
            for path in of_clusters(
                name,
                "quality",
                caption="cluster_quality",
                labels={"clusters": name, "figure": "quality"},
            )
        ],
        trees=[
            path
            for method in TREES
            for path in of_clusters(
                method,
                "tree",
                caption="tree",
                labels={"clusters": method, "figure": "how clusters split"},
            )
        ],
    log:
        "logs/cohort/figures_clusters.log",
    group:
        "figures"
    conda:
        "../envs/cpu.yaml"
    threads: forks
    resources:
        **needs("figures_clusters"),
    params:
        clusterings=LOOKED_AT,
        groupings=SPLIT_BY,
        metrics=METRICS,
        colours=colours_of(SPLIT_BY),
        trees=TREES,
    script:
        "../scripts/figures_clusters.py"


FIGURES += rules.figures_clusters.output


rule figures_embedding:
    input:
        embedding=f"{COHORT}/{{basis}}.parquet",
        obs=f"{COHORT}/obs.parquet",
        clusterings=list(dict.fromkeys(TABLE_OF.values())),
        density=[],
    output:
        groupings=[path for name in CATEGORIES for path in coloured(name)],
    log:
        "logs/cohort/figures_embedding/{basis}.log",
    wildcard_constraints:
        basis="umap|tsne",
    group:
        "figures"
    conda:
        "../envs/cpu.yaml"
    threads: forks
    resources:
        **needs("figures_embedding"),
    params:
        seed=config["seed"],
        groupings=CATEGORIES,
        metrics=[],
        colours=colours_of(CATEGORIES),
    script:
        "../scripts/figures_embedding.py"


FIGURES += expand(rules.figures_embedding.output, basis=BASES)


rule figures_density:
    input:
        embedding=f"{COHORT}/umap.parquet",
        obs=f"{COHORT}/obs.parquet",
        clusterings=DENSITY_GROUPING,
        density=[f"{COHORT}/density.parquet"],
    output:
        groupings=figure(
            f"results/figures/density_{escape(DENSITY_KEY)}",
            caption="density",
            category=EMBEDDINGS,
            subcategory="UMAP",
            labels={"coloured by": f"density by {DENSITY_KEY}"},
        ),
        quality=figure(
            "results/figures/umap_quality",
            caption="quality",
            category=EMBEDDINGS,
            subcategory="UMAP",
            labels={"coloured by": "quality metrics"},
        ),
    log:
        "logs/cohort/figures_density.log",
    group:
        "figures"
    conda:
        "../envs/cpu.yaml"
    resources:
        **needs("figures_embedding"),
    params:
        seed=config["seed"],
        groupings=[DENSITY_KEY],
        metrics=METRICS,
        colours=colours_of([DENSITY_KEY]),
    script:
        "../scripts/figures_embedding.py"


FIGURES += rules.figures_density.output


use rule figures_density as figures_stability with:
    input:
        embedding=f"{COHORT}/umap.parquet",
        obs=rules.trust_clusters.output.stability,
        clusterings=[],
        density=[],
    output:
        groupings=[],
        quality=figure(
            "results/figures/umap_stability",
            caption="stability",
            category=EMBEDDINGS,
            subcategory="UMAP",
            labels={"figure": "stability of clusters"},
        ),
    log:
        "logs/cohort/figures_stability.log",
    params:
        seed=config["seed"],
        groupings=[],
        metrics=[f"stability_{name}" for name in CLUSTERINGS[:1]],
        colours={},


if TRUST["enabled"] and CLUSTERINGS:
    FIGURES += rules.figures_stability.output


rule panel:
    input:
        tops=expand(
            f"{COHORT}/markers/{{grouping}}/{{method}}.shown.tsv",
            grouping=GROUPING_PARTS,
            method=METHODS,
        ),
        counts=of_samples("counts.h5ad"),
        cells=of_samples("cells.parquet"),
        genes=f"{COHORT}/genes.parquet",
        obs=f"{COHORT}/obs.parquet",
    output:
        panel=f"{COHORT}/panel.h5ad",
    log:
        "logs/cohort/panel.log",
    priority: MARKED  # the slowest figures wait for it
    group:
        "figures"
    conda:
        GPU_ENV
    threads: few_cores("panel", 8 if load_of(None).nnz > 10**9 else 6)
    resources:
        **needs("panel"),
        gpu=GPU * HERE,  # a cluster's job of figures has none
    params:
        samples=SAMPLES,
        gene_key=config["ingest"]["gene_key"],
        n_genes=config["explorer"]["n_genes"],
    script:
        "../scripts/panel.py"


rule figures_markers:
    input:
        tops=rules.panel.input.tops,
        panel=rules.panel.output.panel,
        embedding=f"{COHORT}/umap.parquet",
        obs=f"{COHORT}/obs.parquet",
        clusterings=[TABLE_OF[name] for name in GROUPINGS if name in TABLE_OF],
    output:
        scores=of_markers("", "markers", "scores"),
        dotplot=of_markers("_dotplot", "dotplot", "dot plot"),
        cells=of_markers("_umap", "expression", "on the UMAP", METHODS[:1]),
    log:
        "logs/cohort/figures_markers.log",
    group:
        "figures"
    conda:
        "../envs/cpu.yaml"
    threads: forks
    resources:
        **needs("figures_markers"),
    params:
        seed=config["seed"],
        groupings=GROUPINGS,
        clusterings=[name for name in GROUPINGS if name in TABLE_OF],
        methods=METHODS,
        target_sum=config["normalize"]["target_sum"],
    script:
        "../scripts/figures_markers.py"


FIGURES += rules.figures_markers.output
