# The demo cohort: simulated patients with known cell types, for sheets that name demo/*.h5ad.


rule simulate:
    output:
        h5ad="demo/{patient}.h5ad",
    params:
        patient=patient_number,
        n_obs=1000,
        n_genes=8000,
        n_types=8,
        umi=3000,
    log:
        "logs/demo/{patient}.log",
    benchmark:
        "benchmarks/demo/{patient}.tsv"
    resources:
        mem_mb=1000,
    conda:
        "../envs/cpu.yaml"
    script:
        "../scripts/simulate.py"
