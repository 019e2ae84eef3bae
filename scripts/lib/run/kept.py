"""Facts that are kept between runs in JSON files, to be found anew where these are gone or cannot be written."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any


def recall(path: Path) -> dict[str, Any]:
    """The facts in a file; none if it cannot be read."""
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def keep(path: Path, facts: dict[str, Any]) -> None:
    """Write facts for later runs, if that is permitted."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(facts))
        partial.replace(path)
