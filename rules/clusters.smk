# Clusterings: one job and one small table for each resolution or k.


rule leiden:
    input:
        neighbors=f"{COHORT}/neighbors.h5",
        obs=f"{COHORT}/obs.parquet",
    output:
        leiden=f"{COHORT}/leiden/{{resolution}}.parquet",
    log:
        "logs/cohort/leiden/{resolution}.log",
    priority: CLUSTERED  # markers wait for it, and the atlas for them
    conda:
        GPU_ENV
    resources:
        **needs("leiden"),
        gpu=GPU,
        # its many short kernels would each wait for a long one of the embeddings
        turns=GPU * TURNS // max(1, len(config["leiden"]["resolutions"])),
    params:
        seed=config["seed"],
        n_iterations=config["leiden"]["n_iterations"],
    script:
        "../scripts/leiden.py"


rule louvain:
    input:
        neighbors=f"{COHORT}/neighbors.h5",
        obs=f"{COHORT}/obs.parquet",
    output:
        louvain=f"{COHORT}/louvain/{{resolution}}.parquet",
    log:
        "logs/cohort/louvain/{resolution}.log",
    conda:
        GPU_ENV
    resources:
        **needs("louvain"),
        gpu=GPU,
        turns=GPU,
    params:
        seed=config["seed"],
    script:
        "../scripts/louvain.py"


rule kmeans:
    input:
        pca=f"{COHORT}/pca.h5",
        harmony=HARMONY,
        obs=f"{COHORT}/obs.parquet",
    output:
        kmeans=f"{COHORT}/kmeans/{{n_clusters}}.parquet",
    log:
        "logs/cohort/kmeans/{n_clusters}.log",
    conda:
        GPU_ENV
    threads: few_cores("kmeans", 1)
    resources:
        **needs("kmeans"),
        gpu=GPU,
    params:
        seed=config["seed"],
        n_pcs=config["neighbors"]["n_pcs"],
        use_rep=config["neighbors"]["use_rep"],
    script:
        "../scripts/kmeans.py"


ARTIFACTS += [TABLE_OF[name] for name in CLUSTERINGS]
