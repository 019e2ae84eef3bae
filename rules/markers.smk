# Marker genes: one job for each grouping and method.


rule markers_logreg:
    input:
        features=FEATURE_FILES,
        pca=f"{COHORT}/pca.h5",
        obs=f"{COHORT}/obs.parquet",
        cell_cycle=CELL_CYCLE,
        grouping=grouping_file,
    output:
        **marker_tables("logreg"),
    log:
        "logs/cohort/markers_logreg/{grouping}.log",
    priority: MARKED  # the atlas waits for it, and the panel, for which the slowest figures wait
    conda:
        GPU_ENV
    threads: few_cores("markers_logreg", 2)
    resources:
        **needs("markers_logreg"),
        gpu=GPU,
    params:
        grouping=grouping_of,
        logreg=config["markers"]["logreg"],
        reference="rest",
        n_genes=config["markers"]["n_genes"],
        hidden_families=config["markers"]["hidden_families"],
    script:
        "../scripts/markers_logreg.py"


rule markers_ttest:
    input:
        counts=of_samples("counts.h5ad"),
        cells=of_samples("cells.parquet"),
        genes=f"{COHORT}/genes.parquet",
        obs=f"{COHORT}/obs.parquet",
        grouping=grouping_file,
        shards=passes("markers_ttest", of="{grouping}/", sums=SHARDS),
    output:
        **marker_tables("t-test"),
    log:
        "logs/cohort/markers_ttest/{grouping}.log",
    priority: MARKED  # the atlas waits for it, and the panel, for which the slowest figures wait
    conda:
        GPU_ENV
    threads: few_cores("markers_ttest")
    resources:
        **needs("markers_ttest"),
        gpu=GPU * WHOLE,
    params:
        grouping=grouping_of,
        samples=SAMPLES,
        gene_key=config["ingest"]["gene_key"],
        target_sum=config["normalize"]["target_sum"],
        reference=reference_of,
        n_genes=config["markers"]["n_genes"],
        hidden_families=config["markers"]["hidden_families"],
    script:
        "../scripts/markers_ttest.py"


rule markers_wilcoxon:
    input:
        counts=of_samples("counts.h5ad"),
        cells=of_samples("cells.parquet"),
        genes=f"{COHORT}/genes.parquet",
        obs=f"{COHORT}/obs.parquet",
        grouping=grouping_file,
    output:
        **marker_tables("wilcoxon"),
    log:
        "logs/cohort/markers_wilcoxon/{grouping}.log",
    conda:
        GPU_ENV
    threads: few_cores("markers_wilcoxon")
    resources:
        **needs("markers_wilcoxon"),
        gpu=GPU,
    params:
        grouping=grouping_of,
        samples=SAMPLES,
        gene_key=config["ingest"]["gene_key"],
        target_sum=config["normalize"]["target_sum"],
        reference=reference_of,
        n_genes=config["markers"]["n_genes"],
        hidden_families=config["markers"]["hidden_families"],
    script:
        "../scripts/markers_wilcoxon.py"


ARTIFACTS += expand(
    f"{COHORT}/markers/{{grouping}}/{{method}}.parquet",
    grouping=GROUPING_PARTS,
    method=METHODS,
)
