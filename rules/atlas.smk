# Everything in one AnnData, in scanpy's slots.


rule atlas:
    input:
        counts=of_samples("counts.h5ad"),
        cells=of_samples("cells.parquet"),
        genes=f"{COHORT}/genes.parquet",
        hvg=f"{COHORT}/hvg.parquet",
        obs=f"{COHORT}/obs.parquet",
        pca=f"{COHORT}/pca.h5",
        harmony=HARMONY,
        neighbors=f"{COHORT}/neighbors.h5",
        umap=f"{COHORT}/umap.parquet",
        tsne=TSNE,
        density=f"{COHORT}/density.parquet",
        clusterings=[clustering_file(name) for name in CLUSTERINGS],
        markers=expand(
            f"{COHORT}/markers/{{grouping}}/{{method}}.tsv.gz",
            grouping=GROUPING_PARTS,
            method=METHODS,
        ),
    output:
        atlas="results/atlas.h5ad",
    log:
        "logs/atlas.log",
    benchmark:
        "benchmarks/atlas.tsv"
    conda:
        GPU_ENV
    threads: cores("atlas")
    resources:
        **needs("atlas"),
        gpu=GPU,
    params:
        samples=SAMPLES,
        gene_key=config["ingest"]["gene_key"],
        target_sum=config["normalize"]["target_sum"],
        config=config_but("device", "gpu", "limits", "shards"),
    script:
        "../scripts/atlas.py"
