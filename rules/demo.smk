# The demo cohort: simulated patients with known cell types, for sheets that name demo/*.h5ad.


rule simulate:
    output:
        h5ad="demo/{patient}.h5ad",
    log:
        "logs/demo/{patient}.log",
    benchmark:
        "benchmarks/demo/{patient}.tsv"
    conda:
        "../envs/cpu.yaml"
    resources:
        mem_mb=1000,
    params:
        patient=patient_number,
        n_obs=1000,
        n_genes=8000,
        n_types=8,
        umi=3000,
    script:
        "../scripts/simulate.py"
