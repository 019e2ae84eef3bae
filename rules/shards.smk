# With `shards: N` in the config each pass over the cohort is N jobs, each on a part of the kept cells, on a GPU or a node of
# its own. The passes are those that the stages' rules name (`passes`); the stages add up what they leave, which is then deleted.


rule shard:
    input:
        unpack(inputs_of_pass),
    output:
        temp(f"{COHORT}/shards/{{passed}}/{{scatteritem}}.h5"),
    log:
        "logs/cohort/shards/{passed}/{scatteritem}.log",
    benchmark:
        "benchmarks/cohort/shards/{passed}/{scatteritem}.tsv"
    conda:
        GPU_ENV
    threads: cores("shard")
    resources:
        **needs("shard"),
        gpu=GPU,
    params:
        passed="{passed}",
        options=params_of_pass,
        stage_code=code_of_pass,
    script:
        "../scripts/shard.py"
