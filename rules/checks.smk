# What can be known beforehand: what the jobs will ask for, and whether the machine is in order. Targets by name only.


def whole_load(wildcards):
    """The size of the cohort."""
    return vars(load_of(None))


def limits(wildcards):
    """What no job may exceed, in the resources' units: the config's limits, those of the command line, this machine's."""
    asked = config["limits"]
    found = {
        "mem_mb": asked["mem_gb"] and asked["mem_gb"] * 1000,
        "vram_mb": asked["gpu_memory_gb"] and asked["gpu_memory_gb"] * 1024,
        "runtime": asked["runtime_h"] and asked["runtime_h"] * 60,
    }
    if workflow.local_exec and found["mem_mb"] is None:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        found["mem_mb"] = memory // 10**6
    for name, limit in found.items():
        given = workflow.global_resources.get(name).value
        found[name] = min((n for n in (limit, given) if n is not None), default=None)
    return found


def only_looks():
    """Whether this run computes nothing: preflight and doctor are for machines of any kind."""
    return not {"preflight", "doctor"}.isdisjoint(sys.argv)


def check_device():
    """Refuse `device: gpu` where the jobs run on this machine and no GPU can be used; never fall back quietly."""
    if (
        GPU
        and workflow.local_exec
        and not only_looks()
        and (problem := diagnosis.unusable())
    ):
        raise WorkflowError(diagnosis.refusal(problem))


def needs_of_all(targets):
    """What each job of a whole run asks for."""
    names = ("mem_mb", "vram_mb", "runtime", "disk_mb")
    return [
        {"rule": job.rule.name} | {name: job.resource(name) for name in names}
        for job in jobs_of_all(targets)
    ]


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
