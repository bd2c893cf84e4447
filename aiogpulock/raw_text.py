"""Bytes of Redis as text, exactly: what is no UTF-8 is shown as ``\\xff``, and the text can be turned back.

Whoever frees the value of another program must compare what is there, and people, JSON and terminals must be able to
take it.
"""

from __future__ import annotations

import re

_LOOKS_ESCAPED = re.compile(rb"\\(?=x[0-9a-f]{2})")
_ESCAPED = re.compile(rb"\\x([0-9a-f]{2})")


def text_of(raw: bytes) -> str:
    """Different bytes give different texts; a backslash that would look like one of ours becomes ``\\x5c``."""
    return _LOOKS_ESCAPED.sub(rb"\\x5c", raw).decode("utf-8", "backslashreplace")


def bytes_of(text: str) -> bytes:
    """What `text_of` was given."""
    return _ESCAPED.sub(lambda found: bytes.fromhex(found[1].decode()), text.encode())
