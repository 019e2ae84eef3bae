"""pyproject.toml, the conda environment and the repository's own rules agree."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import yaml

HOME = Path(__file__).parents[2]
CONDA_NAMES = {"igraph": "python-igraph", "isal": "python-isal", "matplotlib": "matplotlib-base"}
CONDA_NAMES |= {"snakemake": "snakemake-minimal"}


def requirement(text: str) -> tuple[str, str]:
    """Name and version range of a requirement, without marker and spaces."""
    name, versions = re.fullmatch(r"([A-Za-z0-9-]+)\s*([^;]*)(?:;.*)?", text).groups()
    return name.lower(), versions.replace(" ", "")


def pip_requirements() -> dict[str, str]:
    """The requirements for Python 3.12, which the environments have."""
    project = tomllib.loads((HOME / "pyproject.toml").read_text())["project"]
    lines = [line for line in project["dependencies"] if "python_version < '3.12'" not in line]
    return dict(requirement(line) for line in lines)


def conda_requirements(name: str) -> dict[str, str]:
    """The packages that an environment takes from its channels and by pip."""
    lines = yaml.safe_load((HOME / "envs" / name).read_text())["dependencies"]
    by_pip = [line for part in lines if isinstance(part, dict) for line in part["pip"]]
    conda = dict(requirement(line) for line in [*(line for line in lines if isinstance(line, str)), *by_pip])
    assert (conda.pop("pip", None) is not None) == bool(by_pip)
    return conda


def test_conda_environment_has_pyprojects_ranges():
    conda = conda_requirements("cpu.yaml")
    assert conda.pop("python") == ">=3.12,<3.13"
    assert conda == {CONDA_NAMES.get(name, name): versions for name, versions in pip_requirements().items()}


def test_conda_environment_of_the_gpu_has_the_cpus_and_the_extras():
    found, cpu = conda_requirements("gpu.yaml"), conda_requirements("cpu.yaml")
    assert {name: found.pop(name) for name in cpu} == cpu
    assert found.pop("cuda-version") == ">=12.2,<14"
    extras = tomllib.loads((HOME / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extra in ("gpu-cu12", "gpu-cu13"):
        wanted = dict(requirement(line) for line in extras[extra])
        # pip's names end with their version of CUDA, and its 26.10.* is conda's 26.10
        wanted = {re.sub(r"-cu(da)?1[23]x?$", "", name): version for name, version in wanted.items()}
        assert found == {name: version.replace("==", "=").removesuffix(".*") for name, version in wanted.items()}


def test_every_import_of_the_stages_is_a_declared_dependency():
    """Packages that a stage imports are installed with the workflow; scanpy and harmonypy belong to the tests."""
    modules = {"sklearn": "scikit-learn", "skmisc": "scikit-misc", "skimage": "scikit-image", "umap": "umap-learn"}
    modules |= {"openTSNE": "opentsne", "yaml": "pyyaml", "PIL": "pillow"}
    gpu = {"cuda", "cupy", "cupyx", "rmm", "cuvs", "cuml", "pylibcugraph", "pylibraft"}  # of the extras
    imported = set()
    for path in (HOME / "scripts").rglob("*.py"):
        found = re.findall(r"^\s*(?:from (\w+)[\w.]* import|import (\w+))", path.read_text(), flags=re.M)
        imported |= {name for pair in found for name in pair if name}
    ours = {path.stem for path in (HOME / "scripts").rglob("*.py")} - {"umap"} | {"lib"}
    import sys

    outside = {modules.get(name, name) for name in imported - ours - set(sys.stdlib_module_names)}
    assert outside - gpu <= set(pip_requirements())
    assert not {"scanpy", "harmonypy"} & outside


def test_every_rule_has_log_resources_and_conda():
    every = {"output", "log", "resources", "conda", "script"}
    for path in (HOME / "rules").glob("*.smk"):
        for rule in re.split(r"^rule ", path.read_text(), flags=re.M)[1:]:
            directives = set(re.findall(r"^    (\w+):", rule, flags=re.M))
            # preflight and doctor only check: they have no output
            needed = every - {"output"} if path.name == "checks.smk" else every
            assert needed <= directives, rule
            assert "slurm" not in rule
            assert "partition" not in rule


def test_every_script_begins_with_the_start_of_its_job():
    for path in (HOME / "scripts").glob("*.py"):
        imports = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
        assert ast.unparse(imports[0]) == "from lib.start import run", path


def test_every_rule_is_named_as_its_script():
    for path in (HOME / "rules").glob("*.smk"):
        for name, script in re.findall(r"^rule (\w+):.*?scripts/(\w+)\.py", path.read_text(), flags=re.M | re.S):
            assert name == script or (name, script) == ("figures_density", "figures_embedding")
