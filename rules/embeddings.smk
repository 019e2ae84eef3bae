# The graph of nearest neighbours, and what is drawn from it.


rule neighbors:
    input:
        pca=f"{COHORT}/pca.h5",
        harmony=HARMONY,
    output:
        neighbors=f"{COHORT}/neighbors.h5",
    params:
        neighbors=config["neighbors"],
        perplexity=config["tsne"]["perplexity"] if config["tsne"]["enabled"] else None,
    log:
        "logs/cohort/neighbors.log",
    benchmark:
        "benchmarks/cohort/neighbors.tsv"
    threads: 8
    resources:
        mem_mb=memory(2000, 40),
    conda:
        "../envs/cpu.yaml"
    script:
        "../scripts/neighbors.py"


rule umap:
    input:
        neighbors=f"{COHORT}/neighbors.h5",
        pca=f"{COHORT}/pca.h5",
        harmony=HARMONY,
        obs=f"{COHORT}/obs.parquet",
    output:
        umap=f"{COHORT}/umap.parquet",
    params:
        umap=config["umap"],
    log:
        "logs/cohort/umap.log",
    benchmark:
        "benchmarks/cohort/umap.tsv"
    resources:
        mem_mb=memory(1500, 10),
    conda:
        "../envs/cpu.yaml"
    script:
        "../scripts/umap.py"


rule tsne:
    input:
        neighbors=f"{COHORT}/neighbors.h5",
        pca=f"{COHORT}/pca.h5",
        harmony=HARMONY,
        obs=f"{COHORT}/obs.parquet",
    output:
        tsne=f"{COHORT}/tsne.parquet",
    params:
        tsne=config["tsne"],
    log:
        "logs/cohort/tsne.log",
    benchmark:
        "benchmarks/cohort/tsne.tsv"
    threads: cores
    resources:
        mem_mb=memory(1500, 15),
    conda:
        "../envs/cpu.yaml"
    script:
        "../scripts/tsne.py"


rule density:
    input:
        umap=f"{COHORT}/umap.parquet",
        obs=f"{COHORT}/obs.parquet",
    output:
        density=f"{COHORT}/density.parquet",
    params:
        groupby=DENSITY_KEY,
    log:
        "logs/cohort/density.log",
    benchmark:
        "benchmarks/cohort/density.tsv"
    resources:
        mem_mb=memory(1000, 10),
    conda:
        "../envs/cpu.yaml"
    script:
        "../scripts/density.py"
