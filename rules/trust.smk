# Evidence that the results can be believed. Nothing runs if `trust: enabled` is false.

TRUST = config["trust"]
# What keeps apart in an integration: the known labels, else the first clustering
TRUST_LABEL = LABEL_KEY or next(iter(CLUSTERINGS), None)
TRUST_LABEL_TABLE = [TABLE_OF[name] for name in {TRUST_LABEL} & set(TABLE_OF)]
THETAS = TRUST["thetas"] if WITH_HARMONY else []


rule trust_integration:
    input:
        pca=f"{COHORT}/pca.h5",
        harmony=HARMONY,
        obs=f"{COHORT}/obs.parquet",
        labels=TRUST_LABEL_TABLE,
    output:
        metrics="results/tables/trust_integration.tsv",
        batches="results/tables/trust_batches.tsv",
        labels="results/tables/trust_labels.tsv",
        thetas=branch(THETAS, then=["results/tables/trust_thetas.tsv"], otherwise=[]),
    log:
        "logs/trust/integration.log",
    priority: -1  # only the report waits for it
    conda:
        GPU_ENV
    threads: few_cores("trust_integration", 1)
    resources:
        **needs("trust_integration"),
        gpu=GPU,
        turns=GPU,
    params:
        seed=config["seed"],
        batch_keys=(config["harmony"]["keys"] if WITH_HARMONY else None) or [BATCH_KEY],
        label=TRUST_LABEL,
        known=LABEL_KEY is not None,
        n_pcs=config["neighbors"]["n_pcs"],
        n_cells=TRUST["n_cells"],
        thetas=THETAS,
        harmony=config["harmony"] if THETAS else {},
    script:
        "../scripts/trust_integration.py"


# The ranking that is made again: the t-test of the first grouping, if each group is compared with the rest
TRUST_GROUPING = next(iter(GROUPINGS), None)
RANKED_AGAIN = (
    "t-test" in METHODS
    and TRUST_GROUPING is not None
    and settings.reference_of(config, TRUST_GROUPING) == "rest"
)


rule trust_stages:
    input:
        counts=of_samples("counts.h5ad"),
        cells=of_samples("cells.parquet"),
        qc_genes=of_samples("qc_genes.parquet"),
        genes=f"{COHORT}/genes.parquet",
        obs=f"{COHORT}/obs.parquet",
        hvg=f"{COHORT}/hvg.parquet",
        features=FEATURE_FILES,
        cell_cycle=CELL_CYCLE,
        pca=f"{COHORT}/pca.h5",
        harmony=HARMONY,
        neighbors=f"{COHORT}/neighbors.h5",
        umap=[],
        tsne=[],
        clusters=[TABLE_OF[name] for name in CLUSTERINGS[:1]],
        ranking=branch(
            RANKED_AGAIN,
            then=[f"{COHORT}/markers/{escape(TRUST_GROUPING or '')}/t-test.parquet"],
            otherwise=[],
        ),
        grouping=[TABLE_OF[name] for name in {TRUST_GROUPING} & set(TABLE_OF)],
    output:
        stages="results/tables/trust_stages.tsv",
    log:
        "logs/trust/stages.log",
    group:
        "figures"
    conda:
        "../envs/cpu.yaml"
    threads: few_cores("trust_stages", 4 if load_of(None).nnz > 10**9 else 2)
    resources:
        **needs("trust_stages"),
    params:
        seed=config["seed"],
        batch_key=BATCH_KEY,
        batch_keys=config["harmony"]["keys"] or [BATCH_KEY],
        gene_key=config["ingest"]["gene_key"],
        target_sum=config["normalize"]["target_sum"],
        hvg=settings.hvg_options(config),
        grouping=TRUST_GROUPING,
        n_cells=TRUST["n_cells"],
        harmony=config["harmony"],
    script:
        "../scripts/trust_stages.py"


# The embeddings with another seed: by default where that takes seconds
AGAIN = TRUST["embeddings_again"]
if AGAIN is None:
    AGAIN = bool(GPU) and load_of(None).n_kept <= 500_000


use rule umap as umap_again with:
    input:
        **rules.umap.input,
        first=rules.umap.output,  # what others wait for goes first
    output:
        umap=f"{COHORT}/umap_again.parquet",
    log:
        "logs/cohort/umap_again.log",
    priority: -1
    group:
        "umap"
    params:
        seed=(config["seed"] + 1) % 2**32,
        umap=config["umap"],


use rule tsne as tsne_again with:
    input:
        **rules.tsne.input,
        first=rules.tsne.output,
    output:
        tsne=f"{COHORT}/tsne_again.parquet",
    log:
        "logs/cohort/tsne_again.log",
    priority: -1
    params:
        seed=(config["seed"] + 1) % 2**32,
        tsne=config["tsne"],


# Apart, as the embeddings are the last that is computed
use rule trust_stages as trust_embeddings with:
    input:
        counts=[],
        obs=f"{COHORT}/obs.parquet",
        pca=f"{COHORT}/pca.h5",
        harmony=HARMONY,
        neighbors=f"{COHORT}/neighbors.h5",
        umap=[
            f"{COHORT}/umap.parquet",
            *branch(AGAIN, then=rules.umap_again.output[:], otherwise=[]),
        ],
        tsne=[
            *TSNE,
            *branch(AGAIN and TSNE, then=rules.tsne_again.output[:], otherwise=[]),
        ],
        clusters=rules.trust_stages.input.clusters,
    output:
        stages="results/tables/trust_embeddings.tsv",
    log:
        "logs/trust/embeddings.log",
    threads: 1


rule trust_clusters:
    input:
        neighbors=f"{COHORT}/neighbors.h5",
        pca=f"{COHORT}/pca.h5",
        harmony=HARMONY,
        clusterings=[TABLE_OF[name] for name in CLUSTERINGS],
    output:
        clusterings="results/tables/trust_clusterings.tsv",
        clusters="results/tables/trust_clusters.tsv",
        stability=f"{COHORT}/stability.parquet",
    log:
        "logs/trust/clusters.log",
    priority: 1  # the atlas waits for it
    conda:
        "../envs/cpu.yaml"
    threads: forks
    resources:
        **needs("trust_clusters"),
    params:
        seed=config["seed"],
        n_cells=TRUST["n_cells"],
        seeds=TRUST["seeds"],
        n_iterations=config["leiden"]["n_iterations"],
    script:
        "../scripts/trust_clusters.py"


rule trust_resolutions:
    input:
        neighbors=f"{COHORT}/neighbors.h5",
        pca=f"{COHORT}/pca.h5",
        harmony=HARMONY,
        clusterings=[TABLE_OF[name] for name in CLUSTERINGS[:1]],
    output:
        resolutions="results/tables/trust_resolutions.tsv",
    log:
        "logs/trust/resolutions.log",
    priority: -1  # only the report waits for it
    group:
        "figures"
    conda:
        "../envs/cpu.yaml"
    resources:
        **needs("trust_resolutions"),
    params:
        seed=config["seed"],
        n_cells=TRUST["n_cells"],
        resolutions=TRUST["resolutions"],
    script:
        "../scripts/trust_resolutions.py"


rule trust_filters:
    input:
        counts=of_samples("counts.h5ad"),
        cells=of_samples("cells.parquet"),
        simulated=of_samples("doublets_simulated.h5"),
        genes=f"{COHORT}/genes.parquet",
    output:
        filters="results/tables/trust_filters.tsv",
        doublets="results/tables/trust_doublets.tsv",
    log:
        "logs/trust/filters.log",
    priority: -1  # only the report waits for it
    group:
        "figures"
    conda:
        "../envs/cpu.yaml"
    threads: few_cores("trust_filters", 1)
    resources:
        **needs("trust_filters"),
    params:
        samples=SAMPLES,
        seed=config["seed"],
        batch_key=BATCH_KEY,
        label=LABEL_KEY,
        gene_key=config["ingest"]["gene_key"],
        n_cells=TRUST["n_cells"],
    script:
        "../scripts/trust_filters.py"


if TRUST["enabled"] and CLUSTERINGS:
    ARTIFACTS.append(rules.trust_clusters.output.stability)
    FIGURES += rules.trust_clusters.output[:2] + rules.trust_resolutions.output
if TRUST["enabled"]:
    FIGURES += [
        *rules.trust_integration.output,
        *rules.trust_stages.output,
        *rules.trust_embeddings.output,
        *rules.trust_filters.output,
    ]
