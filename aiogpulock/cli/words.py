"""How times, places and names are said to people."""

from __future__ import annotations

import unicodedata
from itertools import accumulate

_ENDINGS = {1: "st", 2: "nd", 3: "rd"}


def plain(text: str) -> str:
    """`text` without what could move a terminal's cursor, change its colours, or turn the writing around."""
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") else char
        for char in text
    )


def fit(text: str, columns: int) -> str:
    """`text`, cut to what a terminal shows in so many columns; a Chinese character takes two."""
    widths = [2 if unicodedata.east_asian_width(char) in "FW" else 1 for char in text]
    if sum(widths) <= columns:
        return text
    ends = [place for place, taken in enumerate(accumulate(widths), start=1) if taken < columns]
    return f"{text[: ends[-1] if ends else 0]}…"


def ordinal(number: int) -> str:
    """1st, 2nd, 3rd, …"""
    return f"{number}{'th' if number % 100 in (11, 12, 13) else _ENDINGS.get(number % 10, 'th')}"


def duration(seconds: float) -> str:
    """The two largest units: 12s, 2m10s, 3h05m, 2d04h."""
    whole = int(max(0.0, seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02}h"


def who(user: str | None, host: str | None, pid: int | None) -> str:
    """alice@host pid 812, with what is known of it."""
    place = f"{user}@{host}" if user and host else host or user or ""
    return plain(f"{place} pid {pid}".strip() if pid else place)
