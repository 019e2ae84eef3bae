# Checks before a run: the resources that the jobs will request, and the state of the machine. Targets by name only.


localrules:
    preflight,


rule preflight:
    log:
        "logs/preflight.log",
    retries: 0
    conda:
        "../envs/cpu.yaml"
    resources:
        mem_mb=500,
        runtime=5,
        disk_mb=1,
    params:
        jobs=lambda wildcards: needs_of_all(rules.all.input),
        limits=limits,
        load=whole_load,
    script:
        "../scripts/preflight.py"


rule doctor:
    log:
        "logs/doctor.log",
    retries: 0
    conda:
        GPU_ENV
    resources:
        mem_mb=2000,
        runtime=5,
        disk_mb=200,
        gpu=GPU,
        vram_mb=GPU * 1000,
    params:
        home=str(HOME),
    script:
        "../scripts/doctor.py"
