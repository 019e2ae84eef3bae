# The demo cohort: simulated patients with known cell types, for sheets with paths demo/P1.h5ad, and treated ones, with
# planted effects: demo/P2-treated.h5ad.


rule simulate:
    output:
        h5ad="demo/{patient}.h5ad",
    log:
        "logs/demo/{patient}.log",
    group:
        "sample"
    conda:
        "../envs/cpu.yaml"
    resources:
        **needs("simulate"),
    params:
        **DEMO,
        seed=config["seed"],
        patient=patient_number,
        treated=is_treated,
    script:
        "../scripts/simulate.py"
