# Everything in one AnnData, in scanpy's slots.

RANKINGS = [[grouping, method] for grouping in GROUPINGS for method in METHODS]
GROUPED = ["sample", BATCH_KEY, LABEL_KEY, *(config["harmony"]["keys"] or [])]
GROUPED += [DENSITY_KEY, *GROUPINGS, *CLUSTERINGS]


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
        markers=[
            f"{COHORT}/markers/{escape(grouping)}/{method}.tsv.gz"
            for grouping, method in RANKINGS
        ],
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
        rankings=RANKINGS,
        # columns that group cells
        groupings=list(dict.fromkeys(filter(None, GROUPED))),
    script:
        "../scripts/atlas.py"
