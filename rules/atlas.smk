# All results in one AnnData file, in scanpy's slots.

GROUPED = ["sample", BATCH_KEY, LABEL_KEY, *(config["harmony"]["keys"] or [])]
GROUPED += [DENSITY_KEY, *GROUPINGS, *TABLE_OF]


rule matrices:
    input:
        counts=of_samples("counts.h5ad"),
        cells=of_samples("cells.parquet"),
        genes=f"{COHORT}/genes.parquet",
        obs=f"{COHORT}/obs.parquet",
    output:
        matrices=temp(f"{COHORT}/matrices.h5"),
    log:
        "logs/cohort/matrices.log",
    conda:
        GPU_ENV
    threads: few_cores("matrices")
    resources:
        **needs("matrices"),
        gpu=GPU,
    params:
        samples=SAMPLES,
        gene_key=config["ingest"]["gene_key"],
        target_sum=config["normalize"]["target_sum"],
    script:
        "../scripts/matrices.py"


rule atlas:
    input:
        matrices=rules.matrices.output.matrices,
        genes=f"{COHORT}/genes.parquet",
        obs=f"{COHORT}/obs.parquet",
        artifacts=ARTIFACTS,
    output:
        atlas="results/atlas.h5ad",
    log:
        "logs/atlas.log",
    conda:
        "../envs/cpu.yaml"
    resources:
        **needs("atlas"),
    params:
        config=config_but(
            "device",
            "explorer",
            "figures",
            "gpu",
            "limits",
            "report",
            "shards",
            "trust",
            "warm",
        ),
        # columns that group cells
        groupings=list(dict.fromkeys(filter(None, GROUPED))),
        colours=colours_of(filter(None, GROUPED)),
    script:
        "../scripts/atlas.py"
