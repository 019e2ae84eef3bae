"""Check the groups of cells that are to be clustered again (`subclusters`), before and after the cells are filtered."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence

from lib.run.errors import UserError

MIN_CELLS = 3  # for two principal components
SHOWN = 40  # groups that a message spells out


def check(groups: Sequence[str], cells: Mapping[str, int], grouping: str, which: str = "") -> None:
    """Refuse groups that do not exist or have too few cells for a PCA, all in one message.

    Parameters
    ----------
    groups
        The config's `subclusters: groups`.
    cells
        The cells of each group that there is.
    grouping
        The config's `subclusters: grouping`.
    which
        Which cells these are, for the message: "kept".

    Raises
    ------
    UserError
        See above; also for a group whose name could be that of another's sub-cluster.
    """
    which, problems = f"{which} " if which else "", []
    for group in groups:
        if group not in cells:
            near = difflib.get_close_matches(group, cells, n=1)
            problems.append(f"{group!r} is no group with {which}cells" + (f" (like {near[0]!r}?)" if near else ""))
        elif cells[group] < MIN_CELLS:
            n = f"{cells[group]} {which}cell{'s' * (cells[group] != 1)}"
            problems.append(f"{group!r} has {n}, too few for a PCA, which takes {MIN_CELLS}")
        taken = [name for name in cells if re.fullmatch(rf"{re.escape(group)},\d+", name)]
        problems += [f"{name!r} would also be the name of a sub-cluster of {group!r}: rename it" for name in taken]
    if problems:
        there = [f"{name!r} ({n:,})" for name, n in list(cells.items())[:SHOWN]]
        there += [f"{len(cells) - SHOWN} more"] if len(cells) > SHOWN else []
        lines = "".join(f"\n  - {problem}" for problem in problems)
        known = f"Its groups and their {which}cells: {', '.join(there)}." if there else f"It has no {which}cells."
        raise UserError(
            f"`subclusters: groups` names groups of {grouping} (`subclusters: grouping`) that cannot be clustered "
            f"again:{lines}\n{known} Correct the list."
        )
