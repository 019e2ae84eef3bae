# Checks before a run: the resources that the jobs will request, and the state of the machine. Targets by name only.


def whole_load(wildcards):
    """The load of the whole cohort, as a dict."""
    return vars(load_of(None))


def limits(wildcards):
    """The largest allowed request of a job, in the resources' units: from config, command line and this machine."""
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
    """Whether this run computes nothing: preflight and doctor run on machines of any kind."""
    return not {"preflight", "doctor"}.isdisjoint(sys.argv)


def check_device():
    """Refuse `device: gpu` if the jobs run on this machine and it has no usable GPU: there is no silent fallback."""
    if (
        GPU
        and workflow.local_exec
        and not only_looks()
        and (problem := diagnosis.unusable())
    ):
        raise WorkflowError(diagnosis.refusal(problem))


def needs_of_all(targets):
    """The resources that each job of a whole run requests."""
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
