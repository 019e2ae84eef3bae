# The graph of nearest neighbours, and the embeddings computed from it.


rule neighbors:
    input:
        pca=f"{COHORT}/pca.h5",
        harmony=HARMONY,
    output:
        neighbors=f"{COHORT}/neighbors.h5",
    log:
        "logs/cohort/neighbors.log",
    priority: SPINE  # all that follows waits for it
    group:
        "cohort"
    conda:
        GPU_ENV
    threads: few_cores("neighbors", 1)
    resources:
        **needs("neighbors"),
        gpu=GPU,
        turns=GPU * TURNS,  # a card would share its time out among this and what only the report waits for
    params:
        seed=config["seed"],
        neighbors=config["neighbors"],
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
    log:
        "logs/cohort/umap.log",
    group:
        "umap"
    conda:
        GPU_ENV
    resources:
        **needs("umap"),
        gpu=GPU,
        turns=GPU,
    params:
        seed=config["seed"],
        umap=config["umap"],
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
    log:
        "logs/cohort/tsne.log",
    priority: 1 + GPU  # the slowest embedding: it starts before others
    conda:
        GPU_ENV
    threads: few_cores("tsne", 1)
    resources:
        **needs("tsne"),
        gpu=GPU,
        turns=GPU,
    params:
        seed=config["seed"],
        tsne=config["tsne"],
    script:
        "../scripts/tsne.py"


# The table of the densities' categories, if these are a clustering
DENSITY_GROUPING = [TABLE_OF[name] for name in {DENSITY_KEY} & set(TABLE_OF)]


rule density:
    input:
        umap=f"{COHORT}/umap.parquet",
        obs=f"{COHORT}/obs.parquet",
        grouping=DENSITY_GROUPING,
    output:
        density=f"{COHORT}/density.parquet",
    log:
        "logs/cohort/density.log",
    group:
        "umap"
    conda:
        "../envs/cpu.yaml"
    resources:
        **needs("density"),
    params:
        groupby=DENSITY_KEY,
    script:
        "../scripts/density.py"


ARTIFACTS += [*rules.neighbors.output, *rules.umap.output, *TSNE, *rules.density.output]
