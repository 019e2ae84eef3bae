# All samples together: genes, highly variable genes, features, PCA, Harmony. With `shards`, shards.smk runs the passes.


rule genes:
    input:
        counts=of_samples("counts.h5ad"),
        cells=of_samples("cells.parquet"),
    output:
        genes=f"{COHORT}/genes.parquet",
    log:
        "logs/cohort/genes.log",
    priority: SPINE  # all that follows waits for it
    group:
        CHAIN
    conda:
        GPU_ENV
    threads: cores("genes")
    resources:
        **needs("genes"),
        gpu=GPU,
    params:
        samples=SAMPLES,
        batch_key=BATCH_KEY,
        genes=settings.genes_options(config),
        gene_key=config["ingest"]["gene_key"],
        gene_families=config["qc"]["gene_families"],
    script:
        "../scripts/genes.py"


rule hvg:
    input:
        counts=of_samples("counts.h5ad"),
        cells=of_samples("cells.parquet"),
        genes=f"{COHORT}/genes.parquet",
        shards=passes("hvg", **dict.fromkeys(HVG_PASSES, SHARDS)),
    output:
        hvg=f"{COHORT}/hvg.parquet",
        batches=f"{COHORT}/hvg_batches.tsv",
    log:
        "logs/cohort/hvg.log",
    priority: SPINE  # all that follows waits for it
    group:
        CHAIN
    conda:
        GPU_ENV
    threads: cores("hvg")
    resources:
        **needs("hvg"),
        gpu=GPU,
    params:
        samples=SAMPLES,
        seed=config["seed"],
        gene_key=config["ingest"]["gene_key"],
        batch_key=BATCH_KEY,
        target_sum=config["normalize"]["target_sum"],
        hvg=settings.hvg_options(config),
    script:
        "../scripts/hvg.py"


rule features:
    input:
        counts=of_samples("counts.h5ad"),
        cells=of_samples("cells.parquet"),
        genes=f"{COHORT}/genes.parquet",
        hvg=f"{COHORT}/hvg.parquet",
        parts=branch(WHOLE, then=[], otherwise=FEATURE_FILES),
    output:
        features=branch(WHOLE, then=FEATURE_FILES[0], otherwise=[]),
        obs=f"{COHORT}/obs.parquet",
    log:
        "logs/cohort/features.log",
    priority: SPINE  # all that follows waits for it
    group:
        CHAIN
    conda:
        GPU_ENV
    threads: cores("features")
    resources:
        **needs("features"),
        gpu=GPU * WHOLE,
    params:
        samples=SAMPLES,
        gene_key=config["ingest"]["gene_key"],
    script:
        "../scripts/features.py"


use rule features as features_shard with:
    input:
        counts=of_samples("counts.h5ad"),
        cells=of_samples("cells.parquet"),
        genes=f"{COHORT}/genes.parquet",
        hvg=f"{COHORT}/hvg.parquet",
        parts=[],
    output:
        features=f"{COHORT}/features/{{scatteritem}}.h5ad",
    log:
        "logs/cohort/features_shard/{scatteritem}.log",
    resources:
        **needs("features"),
        gpu=GPU,


rule pca:
    input:
        features=FEATURE_FILES,
        obs=f"{COHORT}/obs.parquet",
        cell_cycle=CELL_CYCLE,
        shards=passes("pca", sums=SHARDS, gram=SHARDS, components=1, projection=SHARDS),
    output:
        pca=f"{COHORT}/pca.h5",
    log:
        "logs/cohort/pca.log",
    priority: SPINE  # all that follows waits for it
    group:
        "cohort"
    conda:
        GPU_ENV
    # a CPU's cores would otherwise wait for it
    threads: few_cores("pca") if GPU else cores("pca")
    resources:
        **needs("pca"),
        gpu=GPU * WHOLE,
    params:
        n_comps=config["pca"]["n_comps"],
        target_sum=config["normalize"]["target_sum"],
        regress_keys=config["regress_out"]["keys"],
        scale=config["scale"],
    script:
        "../scripts/pca.py"


rule harmony:
    input:
        pca=f"{COHORT}/pca.h5",
        obs=f"{COHORT}/obs.parquet",
    output:
        harmony=f"{COHORT}/harmony.h5",
    log:
        "logs/cohort/harmony.log",
    priority: SPINE  # all that follows waits for it
    group:
        "cohort"
    conda:
        GPU_ENV
    threads: few_cores("harmony", 1)
    resources:
        **needs("harmony"),
        gpu=GPU,
    params:
        seed=config["seed"],
        vars_use=config["harmony"]["keys"] or [BATCH_KEY],
        harmony=config["harmony"],
    script:
        "../scripts/harmony.py"


ARTIFACTS += [*rules.hvg.output[:1], *rules.pca.output, *HARMONY]
