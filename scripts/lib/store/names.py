"""Escape names that users choose (columns, labels, batches) for paths and HDF5 keys, and unescape them.

A forbidden character becomes `=` and its UTF-8 bytes in hexadecimal, as in quoted-printable (RFC 2045). `%`, the escape
character of URLs, would not do: it is a placeholder in SLURM's log paths, and browsers decode it in links.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

LONGEST = 150  # characters of an escaped name in a path, of the 255 bytes that file systems allow a part of it
UNSAFE_IN_PATH = re.compile(r"^\.|[^A-Za-z0-9._+@-]")
UNSAFE_IN_HDF5 = re.compile(r"^\.+$|[/=\x00-\x1f\x7f]")  # HDF5 itself forbids only "/", "." and NUL


def escape(name: str, unsafe: re.Pattern[str] = UNSAFE_IN_PATH) -> str:
    """A name as part of a path, shell word or wildcard: letters, digits and `._+@-=`, no leading dot, not empty.

    Parameters
    ----------
    name
        Any text. Different names give different results.
    unsafe
        The pattern to escape; it must match `=`.
    """
    return unsafe.sub(lambda found: "".join(f"={byte:02X}" for byte in found[0].encode()), name) or "="


def escape_key(name: str) -> str:
    """A name as one key of an HDF5 file; most names stay as they are."""
    return escape(name, UNSAFE_IN_HDF5)


def file_names(names: Iterable[str]) -> dict[str, str]:
    """Part of a path for each name: escaped, of LONGEST characters at most, and different where case does not count."""
    found: dict[str, str] = {}
    for i, name in enumerate(names, 1):
        text = escape(name)
        again = text.lower() in map(str.lower, found.values())
        found[name] = f"{text[: LONGEST - 8]}~{i}" if again or len(text) > LONGEST else text
    return found


def unescape(text: str) -> str:
    """The name that `escape` or `escape_key` turned into this text; text without escapes stays as it is."""
    if text == "=":
        return ""
    runs = re.compile(r"(?:=[0-9A-F]{2})+")
    return runs.sub(lambda found: bytes.fromhex(found[0].replace("=", "")).decode(), text)
