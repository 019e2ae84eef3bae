# With `shards: N` in the config the passes over the cohort, each as N jobs: each on a part of the kept cells, on a GPU or a
# node of its own. The stages of the same name, without the ending, add up what they leave, which is then deleted.


rule hvg_sums:
    input:
        counts=of_samples("counts.h5ad"),
        cells=of_samples("cells.parquet"),
        genes=f"{COHORT}/genes.parquet",
        first=sums_before,
    output:
        sums=temp(f"{HVG_SUMS}/{{number}}/{{shard}}.h5"),
    log:
        "logs/cohort/hvg_sums/{number}/{shard}.log",
    benchmark:
        "benchmarks/cohort/hvg_sums/{number}/{shard}.tsv"
    conda:
        GPU_ENV
    threads: cores("hvg_sums")
    resources:
        **needs("hvg_sums"),
        gpu=GPU,
    params:
        samples=SAMPLES,
        gene_key=config["ingest"]["gene_key"],
        batch_key=BATCH_KEY,
        target_sum=config["normalize"]["target_sum"],
        hvg=config["hvg"],
    script:
        "../scripts/hvg_sums.py"


rule features_part:
    input:
        counts=of_samples("counts.h5ad"),
        cells=of_samples("cells.parquet"),
        genes=f"{COHORT}/genes.parquet",
        hvg=f"{COHORT}/hvg.parquet",
    output:
        features=f"{COHORT}/features/{{shard}}.h5ad",
    log:
        "logs/cohort/features_part/{shard}.log",
    benchmark:
        "benchmarks/cohort/features_part/{shard}.tsv"
    conda:
        GPU_ENV
    threads: cores("features_part")
    resources:
        **needs("features_part"),
        gpu=GPU,
    params:
        samples=SAMPLES,
        gene_key=config["ingest"]["gene_key"],
    script:
        "../scripts/features_part.py"


rule pca_sums:
    input:
        features=f"{COHORT}/features/{{shard}}.h5ad",
        obs=f"{COHORT}/obs.parquet",
    output:
        sums=temp(f"{COHORT}/shards/pca_sums/{{shard}}.h5"),
    log:
        "logs/cohort/pca_sums/{shard}.log",
    benchmark:
        "benchmarks/cohort/pca_sums/{shard}.tsv"
    conda:
        GPU_ENV
    threads: cores("pca_sums")
    resources:
        **needs("pca_sums"),
        gpu=GPU,
    params:
        target_sum=config["normalize"]["target_sum"],
        regress_keys=config["regress_out"]["keys"],
    script:
        "../scripts/pca_sums.py"


rule pca_gram:
    input:
        features=f"{COHORT}/features/{{shard}}.h5ad",
        obs=f"{COHORT}/obs.parquet",
        sums=of_shards(f"{COHORT}/shards/pca_sums/{{shard}}.h5"),
    output:
        gram=temp(f"{COHORT}/shards/pca_gram/{{shard}}.h5"),
    log:
        "logs/cohort/pca_gram/{shard}.log",
    benchmark:
        "benchmarks/cohort/pca_gram/{shard}.tsv"
    conda:
        GPU_ENV
    threads: cores("pca_gram")
    resources:
        **needs("pca_gram"),
        gpu=GPU,
    params:
        target_sum=config["normalize"]["target_sum"],
        regress_keys=config["regress_out"]["keys"],
        scale=config["scale"],
    script:
        "../scripts/pca_gram.py"


rule pca_components:
    input:
        obs=f"{COHORT}/obs.parquet",
        gram=of_shards(f"{COHORT}/shards/pca_gram/{{shard}}.h5"),
    output:
        components=temp(f"{COHORT}/shards/pca_components.h5"),
    log:
        "logs/cohort/pca_components.log",
    benchmark:
        "benchmarks/cohort/pca_components.tsv"
    conda:
        GPU_ENV
    threads: cores("pca_components")
    resources:
        **needs("pca_components"),
        gpu=GPU,
    params:
        n_comps=config["pca"]["n_comps"],
    script:
        "../scripts/pca_components.py"


rule pca_projection:
    input:
        features=f"{COHORT}/features/{{shard}}.h5ad",
        obs=f"{COHORT}/obs.parquet",
        components=f"{COHORT}/shards/pca_components.h5",
    output:
        projection=temp(f"{COHORT}/shards/pca_projection/{{shard}}.h5"),
    log:
        "logs/cohort/pca_projection/{shard}.log",
    benchmark:
        "benchmarks/cohort/pca_projection/{shard}.tsv"
    conda:
        GPU_ENV
    threads: cores("pca_projection")
    resources:
        **needs("pca_projection"),
        gpu=GPU,
    params:
        target_sum=config["normalize"]["target_sum"],
        regress_keys=config["regress_out"]["keys"],
    script:
        "../scripts/pca_projection.py"


rule markers_ttest_sums:
    input:
        counts=of_samples("counts.h5ad"),
        cells=of_samples("cells.parquet"),
        genes=f"{COHORT}/genes.parquet",
        obs=f"{COHORT}/obs.parquet",
        grouping=grouping_file,
    output:
        sums=temp(f"{COHORT}/shards/markers_ttest_sums/{{grouping}}/{{shard}}.h5"),
    log:
        "logs/cohort/markers_ttest_sums/{grouping}/{shard}.log",
    benchmark:
        "benchmarks/cohort/markers_ttest_sums/{grouping}/{shard}.tsv"
    conda:
        GPU_ENV
    threads: few_cores("markers_ttest_sums")
    resources:
        **needs("markers_ttest_sums"),
        gpu=GPU,
    params:
        grouping=grouping_of,
        samples=SAMPLES,
        gene_key=config["ingest"]["gene_key"],
        target_sum=config["normalize"]["target_sum"],
    script:
        "../scripts/markers_ttest_sums.py"
