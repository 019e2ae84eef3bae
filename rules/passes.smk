# The passes over the cohort as jobs of shards: what the rule `shard` looks up.

from itertools import takewhile


def passes(stage, of="", **jobs):
    """The files of a stage's passes, each pass with this many jobs; none if one job reads the whole cohort."""
    found = []
    for name, n in jobs.items():
        path = f"{COHORT}/shards/{stage}/{of}{name}/{{scatteritem}}.h5"
        several = gather.shards(path, allow_missing=True)
        found += several if n > 1 else [path.replace("{scatteritem}", "1-of-1")]
    return [] if WHOLE else found


def rule_of_pass(wildcards):
    """The rule of the pass' stage and its wildcards, from `markers_ttest/leiden_0.6/sums`."""
    stage, *grouping, _ = wildcards.passed.split("/")
    return workflow.get_rule(stage), Wildcards(
        fromdict=dict(zip(["grouping"], grouping))
    )


def inputs_of_pass(wildcards):
    """The input of the stage, with only the shards' files of earlier passes."""
    made, of_stage = rule_of_pass(wildcards)
    found = made.expand_input(of_stage)[0]
    name = Path(wildcards.passed).name
    before = takewhile(lambda file: Path(file).parent.name != name, found.shards)
    return {**dict(found.items()), "shards": list(before)}


def params_of_pass(wildcards):
    """The params of the stage's rule."""
    made, of_stage = rule_of_pass(wildcards)
    given = made.params.items()
    return {
        name: value(of_stage) if callable(value) else value for name, value in given
    }


def code_of_pass(wildcards):
    """The version of the stage's code."""
    return code_of(rule_of_pass(wildcards)[0])
