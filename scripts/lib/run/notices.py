"""Collect the jobs' notices for the user (`stage.notice`) from their run records."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

SHOWN = 25  # on the console


def read_records(files: Iterable[str | Path]) -> list[dict[str, Any]]:
    """The run records that exist, the earliest job first."""
    records = [json.loads(path.read_text()) for path in map(Path, files) if path.is_file()]
    return sorted(records, key=lambda record: record["started"])


def notices(records: Iterable[Mapping[str, Any]], versions: Mapping[str, str]) -> list[dict[str, str]]:
    """The jobs' notices, one dict each: `rule`, `wildcards`, `notice`.

    The last notices name the rules whose artifacts were made by another version of the code.

    Parameters
    ----------
    records
        The run records, in the order of the notices.
    versions
        Rule -> the version of its code now (`lib.run.code.version_of_code`).
    """
    found, old = [], set()
    for record in records:
        job = ", ".join(f"{name}={value}" for name, value in record["wildcards"].items())
        found += [{"rule": record["rule"], "wildcards": job, "notice": text} for text in record.get("notices", [])]
        if record.get("code") != versions.get(record["rule"], record.get("code")):
            old.add(record["rule"])
    if old:
        rules = " ".join(sorted(old))
        text = f"results of {rules} were made by another version of Somersault's code than is here now"
        found.append({"rule": "all", "wildcards": "", "notice": f"{text}. Make them anew: --forcerun {rules}"})
    return found


def shown(found: Iterable[Mapping[str, str]], table: str) -> str:
    """The first `SHOWN` notices as lines for the console; `table` is the file with all of them."""
    lines = [
        f"  {one['rule']}{' (' + one['wildcards'] + ')' if one['wildcards'] else ''}: {one['notice']}" for one in found
    ]
    if not lines:
        return ""
    more = f"\n  ... and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    return "\n".join([f"Worth a look ({table}):", *lines[:SHOWN]]) + more
