# Figures and tables for readers, with their captions in the report.


report: "captions/workflow.rst"


# Categories of the report
QC, FEATURES, EMBEDDINGS = "1 Quality control", "2 Features", "3 Embeddings"
MARKERS, TABLES, RUNS, NOTES = "4 Markers", "5 Tables", "6 Runs", "0 Worth a look"
BASIS_NAMES = {"umap": "UMAP", "tsne": "t-SNE"}

FAMILIES = list(config["qc"]["gene_families"])
METRICS = [
    "total_counts",
    "n_genes_by_counts",
    *(f"pct_counts_{family}" for family in FAMILIES),
]
SCORES = ["doublet_score"] if config["doublets"]["enabled"] else []
LABELS = [LABEL_KEY] if LABEL_KEY else []
CATEGORIES = list(dict.fromkeys([*LABELS, *CLUSTERINGS, BATCH_KEY, "sample"]))
COLOURS = list(dict.fromkeys([*CATEGORIES, *METRICS, *SCORES]))


rule figures_sample:
    input:
        cells=f"{SAMPLE}/cells.parquet",
        ledger=f"{SAMPLE}/ledger.tsv",
        simulated=f"{SAMPLE}/doublets_simulated.h5",
    output:
        qc=report(
            "results/figures/samples/{sample}/qc_scatter.png",
            caption="captions/qc_scatter_sample.rst",
            category=QC,
            subcategory="Samples",
            labels={"sample": "{sample}", "figure": "cells kept and removed"},
        ),
        doublets=report(
            "results/figures/samples/{sample}/doublets.png",
            caption="captions/doublets.rst",
            category=QC,
            subcategory="Samples",
            labels={"sample": "{sample}", "figure": "doublet scores"},
        ),
    log:
        "logs/samples/{sample}/figures_sample.log",
    group:
        "sample_figures"
    conda:
        "../envs/cpu.yaml"
    threads: drawers
    resources:
        **needs("figures_sample"),
    params:
        seed=config["seed"],
        batch_key=BATCH_KEY,
        families=FAMILIES,
        cells=CELL_LIMITS,
    script:
        "../scripts/figures_sample.py"


FIGURES += expand(rules.figures_sample.output, sample=SAMPLES)


rule figures_qc:
    input:
        cells=of_samples("cells.parquet"),
        ledgers=of_samples("ledger.tsv"),
        obs=f"{COHORT}/obs.parquet",
    output:
        violins=report(
            "results/figures/qc_violins.png",
            caption="captions/qc_violins.rst",
            category=QC,
            subcategory="Cohort",
            labels={"figure": "metrics by batch"},
        ),
        scatter=report(
            "results/figures/qc_scatter.png",
            caption="captions/qc_scatter.rst",
            category=QC,
            subcategory="Cohort",
            labels={"figure": "counts, genes and families"},
        ),
        attrition=report(
            "results/figures/attrition.png",
            caption="captions/attrition.rst",
            category=QC,
            subcategory="Cohort",
            labels={"figure": "cells kept and removed"},
        ),
        attrition_html=report(
            "results/figures/attrition.html",
            caption="captions/attrition_table.rst",
            category=QC,
            subcategory="Cohort",
            labels={"figure": "cells kept and removed (table)"},
        ),
        summary_html=report(
            "results/figures/qc_by_batch.html",
            caption="captions/qc_by_batch.rst",
            category=QC,
            subcategory="Cohort",
            labels={"figure": "cells and medians by batch (table)"},
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
    threads: drawers
    resources:
        **needs("figures_qc"),
    params:
        samples=SAMPLES,
        seed=config["seed"],
        batch_key=BATCH_KEY,
        families=FAMILIES,
        cells=sheets.used_limits(config["cells"]),
    script:
        "../scripts/figures_qc.py"


FIGURES += rules.figures_qc.output


rule figures_hvg:
    input:
        hvg=f"{COHORT}/hvg.parquet",
        genes=f"{COHORT}/genes.parquet",
    output:
        hvg=report(
            "results/figures/hvg.png",
            caption="captions/hvg.rst",
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
        variance=report(
            "results/figures/pca_variance.png",
            caption="captions/pca_variance.rst",
            category=FEATURES,
            labels={"figure": "variance by component"},
        ),
        components=report(
            "results/figures/pca.png",
            caption="captions/pca.rst",
            category=FEATURES,
            labels={"figure": "components by batch"},
        ),
    log:
        "logs/cohort/figures_pca.log",
    group:
        "figures"
    conda:
        "../envs/cpu.yaml"
    resources:
        **needs("figures_pca"),
    params:
        seed=config["seed"],
        batch_key=BATCH_KEY,
        n_pcs=config["neighbors"]["n_pcs"],
    script:
        "../scripts/figures_pca.py"


FIGURES += rules.figures_pca.output


rule figures_embedding:
    input:
        embedding=f"{COHORT}/{{basis}}.parquet",
        obs=f"{COHORT}/obs.parquet",
        clusterings=[clustering_file(name) for name in CLUSTERINGS],
        density=[],
    output:
        [coloured(name) for name in COLOURS],
    log:
        "logs/cohort/figures_embedding/{basis}.log",
    wildcard_constraints:
        basis="umap|tsne",
    group:
        "figures"
    conda:
        "../envs/cpu.yaml"
    threads: drawers
    resources:
        **needs("figures_embedding"),
    params:
        seed=config["seed"],
        colours=COLOURS,
        groupings=CATEGORIES,
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
        report(
            f"results/figures/density_{escape(DENSITY_KEY)}.png",
            caption="captions/density.rst",
            category=EMBEDDINGS,
            subcategory="UMAP",
            labels={"coloured by": f"density by {DENSITY_KEY}"},
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
        colours=[f"density_{DENSITY_KEY}"],
        groupings=[DENSITY_KEY],
    script:
        "../scripts/figures_embedding.py"


FIGURES += rules.figures_density.output


rule figures_markers:
    input:
        top=f"{COHORT}/markers/{{grouping}}/{{method}}.top.tsv",
        features=FEATURE_FILES,
        obs=f"{COHORT}/obs.parquet",
        grouping=grouping_file,
        counts=of_samples("counts.h5ad"),
        cells=of_samples("cells.parquet"),
        genes=f"{COHORT}/genes.parquet",
    output:
        scores=report(
            "results/figures/markers/{grouping}/{method}.png",
            caption="captions/markers.rst",
            category=MARKERS,
            subcategory=grouping_of,
            labels={"method": "{method}", "figure": "scores"},
        ),
        dotplot=report(
            "results/figures/markers/{grouping}/{method}_dotplot.png",
            caption="captions/dotplot.rst",
            category=MARKERS,
            subcategory=grouping_of,
            labels={"method": "{method}", "figure": "dot plot"},
        ),
        table=report(
            "results/figures/markers/{grouping}/{method}.html",
            caption="captions/markers_table.rst",
            category=MARKERS,
            subcategory=grouping_of,
            labels={"method": "{method}", "figure": "table"},
        ),
    log:
        "logs/cohort/figures_markers/{grouping}/{method}.log",
    group:
        "figures"
    conda:
        "../envs/cpu.yaml"
    threads: drawers
    resources:
        **needs("figures_markers"),
    params:
        grouping=grouping_of,
        samples=SAMPLES,
        gene_key=config["ingest"]["gene_key"],
        target_sum=config["normalize"]["target_sum"],
    script:
        "../scripts/figures_markers.py"


FIGURES += expand(rules.figures_markers.output, grouping=GROUPING_PARTS, method=METHODS)
