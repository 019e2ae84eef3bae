# Each sample separately: its counts, its metrics, its doublets, its kept cells.


CELL_LIMITS = of_line(sheets.cell_limits, config["cells"])


rule ingest:
    input:
        file=of_line(sheets.path_of),
    output:
        counts=f"{SAMPLE}/counts.h5ad",
    log:
        "logs/samples/{sample}/ingest.log",
    group:
        "sample"
    conda:
        "../envs/cpu.yaml"
    threads: sample_cores("ingest")
    resources:
        **needs("ingest"),
    params:
        sample=lambda wildcards: wildcards.sample,
        suffix=of_line(sheets.cell_suffix),
        sheet=of_line(sheets.batch_of_line, BATCH_KEY),
        options=ingest_options,
        batch_key=BATCH_KEY,
        keep=settings.kept_columns(config),
        version=file_version,
    script:
        "../scripts/ingest.py"


rule qc:
    input:
        counts=f"{SAMPLE}/counts.h5ad",
    output:
        cells=f"{SAMPLE}/qc.parquet",
        genes=f"{SAMPLE}/qc_genes.parquet",
    log:
        "logs/samples/{sample}/qc.log",
    priority: GPU  # before other samples' counts: a card has work from the start
    group:
        "sample"
    conda:
        GPU_ENV
    threads: sample_cores("qc")
    resources:
        **needs("qc"),
        gpu=GPU,
    params:
        gene_families=config["qc"]["gene_families"],
        percent_top=config["qc"]["percent_top"],
    script:
        "../scripts/qc.py"


rule doublets:
    input:
        counts=f"{SAMPLE}/counts.h5ad",
        qc=f"{SAMPLE}/qc.parquet",
    output:
        doublets=f"{SAMPLE}/doublets.parquet",
        simulated=f"{SAMPLE}/doublets_simulated.h5",
    log:
        "logs/samples/{sample}/doublets.log",
    priority: 2 * GPU
    group:
        "sample"
    conda:
        GPU_ENV
    threads: sample_cores("doublets")
    resources:
        **needs("doublets"),
        gpu=GPU,
    params:
        seed=config["seed"],
        batch_key=BATCH_KEY,
        cells=CELL_LIMITS,
        doublets=of_line(sheets.doublet_options, config["doublets"]),
    script:
        "../scripts/doublets.py"


rule cells:
    input:
        counts=f"{SAMPLE}/counts.h5ad",
        qc=f"{SAMPLE}/qc.parquet",
        doublets=f"{SAMPLE}/doublets.parquet",
    output:
        cells=f"{SAMPLE}/cells.parquet",
        ledger=f"{SAMPLE}/ledger.tsv",
    log:
        "logs/samples/{sample}/cells.log",
    priority: 3 * GPU
    group:
        "sample"
    conda:
        "../envs/cpu.yaml"
    resources:
        **needs("cells"),
    params:
        batch_key=BATCH_KEY,
        sheet=of_line(sheets.sheet_obs),
        cells=CELL_LIMITS,
        remove_doublets=config["doublets"]["remove"],
    script:
        "../scripts/cells.py"
