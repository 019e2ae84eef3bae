# Each sample by itself: its counts, its metrics, its doublets, its kept cells.


rule ingest:
    input:
        file=sample_path,
    output:
        counts=f"{SAMPLE}/counts.h5ad",
    params:
        sample="{sample}",
        sheet=sheet_obs,
        counts=counts_slot,
        genome=config["ingest"]["genome"],
        batch_key=BATCH_KEY,
        label_key=LABEL_KEY,
        required=settings.required_columns(config),
    log:
        "logs/samples/{sample}/ingest.log",
    benchmark:
        "benchmarks/samples/{sample}/ingest.tsv"
    threads: cores
    resources:
        mem_mb=memory(1500, 0.1),
    conda:
        "../envs/cpu.yaml"
    script:
        "../scripts/ingest.py"


rule qc:
    input:
        counts=f"{SAMPLE}/counts.h5ad",
    output:
        cells=f"{SAMPLE}/qc.parquet",
        genes=f"{SAMPLE}/qc_genes.parquet",
    params:
        gene_families=config["qc"]["gene_families"],
        percent_top=config["qc"]["percent_top"],
    log:
        "logs/samples/{sample}/qc.log",
    benchmark:
        "benchmarks/samples/{sample}/qc.tsv"
    threads: cores
    resources:
        mem_mb=memory(1500, 0.5),
    conda:
        "../envs/cpu.yaml"
    script:
        "../scripts/qc.py"


rule doublets:
    input:
        counts=f"{SAMPLE}/counts.h5ad",
        qc=f"{SAMPLE}/qc.parquet",
    output:
        doublets=f"{SAMPLE}/doublets.parquet",
        simulated=f"{SAMPLE}/doublets_simulated.h5",
    params:
        batch_key=BATCH_KEY,
        cells=cell_limits,
        doublets=config["doublets"],
    log:
        "logs/samples/{sample}/doublets.log",
    benchmark:
        "benchmarks/samples/{sample}/doublets.tsv"
    threads: cores
    resources:
        mem_mb=memory(2000, 1),
    conda:
        "../envs/cpu.yaml"
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
    params:
        batch_key=BATCH_KEY,
        cells=cell_limits,
        remove_doublets=config["doublets"]["remove"],
    log:
        "logs/samples/{sample}/cells.log",
    benchmark:
        "benchmarks/samples/{sample}/cells.tsv"
    resources:
        mem_mb=memory(1000, 1),
    conda:
        "../envs/cpu.yaml"
    script:
        "../scripts/cells.py"
