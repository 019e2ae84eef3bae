"""List all jobs of a run from the rules, including finished jobs and jobs of other processes.

Snakemake's own graph holds only the jobs still to do, and only in the process that schedules them. A cluster job or a
preflight needs all jobs and their resources, and gets them from the rules by Snakemake's methods.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lib.store.names import unescape


@dataclass(frozen=True)
class Planned:
    """A planned job: its rule and its wildcards."""

    rule: Any
    wildcards: Mapping[str, str]

    @cached_property
    def input(self) -> Any:
        """Its input files, as Snakemake finds them."""
        return self.rule.expand_input(self.wildcards)[0]

    @cached_property
    def _output(self) -> Any:
        return self.rule.expand_output(self.wildcards)[0]

    @property
    def output(self) -> dict[str, Any]:
        """Its output files by their names in the rule: a path or a list of paths; those without a name under ""."""
        named = {name: _plain(files) for name, files in self._output.items()}
        told = {path for files in named.values() for path in ([files] if isinstance(files, str) else files)}
        rest = [str(path) for path in self._output if str(path) not in told]
        return named | ({"": rest} if rest else {})

    @property
    def marks(self) -> Iterator[dict[str, Any]]:
        """What its rule's `report(...)` say: path, caption (a path), chapter, section and labels of a file each."""
        from snakemake.iocontainers import Wildcards

        given = Wildcards(fromdict=self.wildcards)

        def filled(value: Any) -> str:
            value = value(given) if callable(value) else value or ""
            return re.sub(r"\{(\w+)\}", lambda found: unescape(self.wildcards.get(found[1], found[0])), str(value))

        for path in self._output:
            mark = path.flags.get("report")
            if mark:
                caption = mark.caption and mark.caption.get_path_or_uri(secret_free=True)
                labels = {name: filled(value) for name, value in (mark.labels or {}).items()}
                place = {"chapter": filled(mark.category), "section": filled(mark.subcategory)}
                yield {"path": str(path), "caption": caption or "", **place, "labels": labels}

    @property
    def log(self) -> str:
        """The path of its log, "" if it has none."""
        return next(iter(self.rule.expand_log(self.wildcards)), "")

    def resource(self, name: str, attempt: int = 1) -> Any:
        """Its request for a resource, before the command line's limits; None if it makes none."""
        threads = self._evaluated("_cores", attempt=attempt)
        return self._evaluated(name, attempt=attempt, threads=threads)

    def _evaluated(self, name: str, **given: Any) -> Any:
        from snakemake.iocontainers import Wildcards

        given |= {"input": self.input, "rulename": self.rule.name, "async_run": self.rule.workflow.async_run}
        return self.rule.resources.get(name).evaluate(Wildcards(fromdict=self.wildcards), **given).value


def _plain(files: Any) -> str | list[str]:
    return str(files) if isinstance(files, str) else list(map(str, files))


def plan(rules: Iterable[Any], targets: Iterable[str], known: dict[Any, Planned | None]) -> list[Planned]:
    """The jobs that make `targets` and all their inputs, each job after those that make its inputs.

    Parameters
    ----------
    rules
        Snakemake's rules; at most one of them makes a given file.
    targets
        Paths.
    known
        The jobs of earlier plans with these rules, by their files and by themselves; those of this plan are added.
    """
    rules, seen = list(rules), set()
    whole = {str(path): rule for rule in rules for path in rule.output if not path.contains_wildcard()}
    patterned = [rule for rule in rules if any(path.contains_wildcard() for path in rule.output)]

    def maker(path: str) -> Planned | None:
        if path not in known:
            rule = whole.get(path) or next((rule for rule in patterned if rule.is_producer(path)), None)
            wildcards = {} if rule is None else rule.get_wildcards(path)
            key = rule and (rule.name, *sorted(wildcards.items()))
            known[path] = known.setdefault(key, Planned(rule, wildcards)) if rule else None
        return known[path]

    def visit(path: str) -> Iterator[Planned]:
        job = maker(path)
        if job is not None and id(job) not in seen:
            seen.add(id(job))
            for needed in job.input:
                yield from visit(str(needed))
            yield job

    return [job for target in targets for job in visit(str(target))]
