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
    conda:
        GPU_ENV
    threads: few_cores("trust_integration")
    resources:
        **needs("trust_integration"),
        gpu=GPU,
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


if TRUST["enabled"]:
    FIGURES += rules.trust_integration.output
