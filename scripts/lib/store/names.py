"""Names that users choose (columns, labels, batches) as parts of paths and as keys of HDF5 files, and back.

A character that may not stand there becomes `=` and its UTF-8 bytes in hexadecimal, as in quoted-printable (RFC 2045).
`%`, which URLs have for this, is a placeholder in the log paths of SLURM, and browsers decode it in links.
"""

from __future__ import annotations

import re

UNSAFE_IN_PATH = re.compile(r"^\.|[^A-Za-z0-9._+@-]")
UNSAFE_IN_HDF5 = re.compile(r"^\.+$|[/=\x00-\x1f\x7f]")  # HDF5 itself takes all but "/", "." and NUL


def escape(name: str, unsafe: re.Pattern[str] = UNSAFE_IN_PATH) -> str:
    """A name as one part of a path, a shell word, a wildcard: letters, digits and `._+@-=`, no dot in front, not empty.

    Parameters
    ----------
    name
        Any text. Different names give different results.
    unsafe
        What is escaped; must match `=`.
    """
    return unsafe.sub(lambda found: "".join(f"={byte:02X}" for byte in found[0].encode()), name) or "="


def escape_key(name: str) -> str:
    """A name as one key of an HDF5 file; most names stay as they are."""
    return escape(name, UNSAFE_IN_HDF5)


def unescape(text: str) -> str:
    """The name that `escape`, or `escape_key`, has made this text of; text without escapes stays as it is."""
    if text == "=":
        return ""
    runs = re.compile(r"(?:=[0-9A-F]{2})+")
    return runs.sub(lambda found: bytes.fromhex(found[0].replace("=", "")).decode(), text)
