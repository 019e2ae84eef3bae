"""Links of an HDF5 file to other files, of which those outside its folder would put foreign data into the results."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import h5py

from lib.run.errors import UserError

NOT_READ = ("uns", "obsm", "varm", "obsp", "varp")  # groups of an AnnData that no reader opens


def refuse_foreign(file: h5py.File, path: Path) -> None:
    """Refuse external storage, and links to files that lie outside the file's folder or do not exist.

    Raises
    ------
    UserError
        Which element, and where it is.
    """
    folder = path.resolve().parent
    for name, target, storage in _targets(file, set()):
        where = (folder / target).resolve()
        if storage or not where.is_relative_to(folder):  # HDF5 looks for external storage where the process runs
            why = "external storage" if storage else "outside its folder"
            advice = "Write the file anew with its own copy of the data."
            raise UserError(f"{path}: {name} is not in this file but in {target}, {why}. {advice}")
        if not where.is_file():
            raise UserError(f"{path}: {name} is not in this file but in {target}, which does not exist. Copy that too.")


def _targets(group: h5py.Group, seen: set[int], prefix: str = "") -> Iterator[tuple[str, str, bool]]:
    """The elements that lie in other files, each with that file and whether it is external storage."""
    for key in group:
        name, link = f"{prefix}{key}", group.get(key, getlink=True)
        if name in NOT_READ or isinstance(link, h5py.SoftLink):
            continue
        if isinstance(link, h5py.ExternalLink):
            yield name, link.filename, False
            continue
        element = group.get(key)
        if isinstance(element, h5py.Dataset):
            for file, *_ in element.external or ():
                yield name, file, True
            sources = element.virtual_sources() if element.is_virtual else ()
            for file in {source.file_name for source in sources} - {"."}:
                yield name, file, False
        elif isinstance(element, h5py.Group):
            address = h5py.h5o.get_info(element.id).addr
            if address not in seen:
                seen.add(address)
                yield from _targets(element, seen, f"{name}/")
