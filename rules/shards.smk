# With `shards: N` in the config each pass over the cohort is N jobs. Each job has a part of the kept cells, and its own
# GPU or node. The stages' rules name their passes (`passes`). The stages add up the files of the passes, which are then
# deleted.


rule shard:
    input:
        unpack(inputs_of_pass),
    output:
        temp(f"{COHORT}/shards/{{passed}}/{{scatteritem}}.h5"),
    log:
        "logs/cohort/shards/{passed}/{scatteritem}.log",
    conda:
        GPU_ENV
    threads: cores("shard")
    resources:
        **needs("shard"),
        gpu=GPU,
    params:
        passed=lambda wildcards: wildcards.passed,
        options=params_of_pass,
        stage_code=code_of_pass,
    script:
        "../scripts/shard.py"
