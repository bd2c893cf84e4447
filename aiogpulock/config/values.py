"""Texts that are more than texts: sizes and URLs. What is shown of a value in an error never holds a password."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import urlsplit

from aiogpulock.errors import ConfigError

SIZE_WORDS = "a size such as '256MiB' or '1.5GB', or a whole number of bytes"
RECLAIMER_NAMES = ("gc", "torch", "cupy")
"""What ``gpu_memory.cleanup`` may list; `gpu.reclaim` has the functions."""
_REDIS_URL_WORDS = (
    "redis://host:port/db, rediss://host:port/db or unix:///path, special characters in a password percent-encoded"
)
_SIZE = re.compile(r"(\d{1,12}(?:\.\d{1,9})?) ?([kmgt]i?)?b", re.ASCII | re.IGNORECASE)
_SECRET_OPTION = re.compile(r"([?&][^=&]*(?:password|secret|token)[^=&]*=)[^&]*", re.IGNORECASE)
_WITH_HOST = frozenset({"http", "https", "json", "jsons", "xml", "xmls", "form", "forms", "mailto", "mailtos"})
_ALERT_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/\s]\S*")


def redact_url(url: str) -> str:
    """Return `url` fit for logs: without passwords, and for other schemes than Redis's without what follows the host.

    The path of a webhook is its key. Text that is no URL and has no ``@`` comes back as it is.
    """
    scheme, mark, rest = url.partition("://") if "://" in url else ("", "", url)
    user, at, place = rest.rpartition("@")
    who = f"{user.partition(':')[0]}:***" if ":" in user else "***"
    if scheme.lower() in ("", "redis", "rediss", "unix"):
        place = _SECRET_OPTION.sub(r"\1***", place)
    else:
        place = re.sub(r"[/?#].+", "/***", place, flags=re.DOTALL)
    return f"{scheme}{mark}{who if at else ''}{at}{place}"


def redact_alert_url(url: str) -> str:
    """Return an alert URL fit for logs. Beside plain web hooks and mail, what stands where a host would is a key."""
    scheme, mark, _ = url.partition("://")
    if not mark:
        return "***"
    return redact_url(url) if scheme.lower() in _WITH_HOST else f"{scheme}://***"


def show(value: object) -> str:
    """Return a value for an error text: short, and without passwords."""
    if value is None or isinstance(value, bool | int | float):
        return repr(value)
    if isinstance(value, str):
        text = redact_url(value)
        return repr(text if len(text) <= 80 else f"{text[:79]}…")
    return f"a {type(value).__name__}"


def parse_size(value: int | str, key: str = "size") -> int:
    """Return bytes for ``"256MiB"``, ``"1.5 GB"`` or a number of bytes, or raise a `ConfigError` that names `key`."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ConfigError(f"{key}: got {show(value)}, expected {SIZE_WORDS}")
    unit = (match[2] or "").lower()
    base = 1024 if unit.endswith("i") else 1000
    return int(float(match[1]) * base ** " kmgt".index(unit[:1] or " "))


def check_redis_url(url: str | None, key: str) -> None:
    """Raise `ConfigError` for a URL that redis-py would refuse or misread."""
    if url is not None and not _is_redis_url(url):
        raise ConfigError(f"{key}: got {show(url)}, expected {_REDIS_URL_WORDS}")


def _is_redis_url(url: str) -> bool:
    """redis-py takes database 0 for a path that it cannot read; a raw ``/`` in a password makes such a path."""
    if not url.startswith(("redis://", "rediss://", "unix://")) or re.search(r"\s", url):
        return False
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return False
    if parts.scheme == "unix":
        return bool(parts.path) and not parts.fragment
    has_place = bool(parts.hostname) or not parts.netloc
    return has_place and not parts.fragment and re.fullmatch(r"/?[0-9]*/?", parts.path) is not None


def check_reclaimers(names: Iterable[str], key: str) -> None:
    """Raise `ConfigError` for a name that is no reclaimer."""
    for name in names:
        if name not in RECLAIMER_NAMES:
            raise ConfigError(f"{key}: {show(name)} is no reclaimer; known are {', '.join(RECLAIMER_NAMES)}")


def check_alert_urls(urls: Iterable[str], key: str) -> None:
    """Raise `ConfigError` for a URL without a scheme or without a place."""
    for url in urls:
        if not _ALERT_URL.fullmatch(url):
            raise ConfigError(f"{key}: got {redact_alert_url(url)!r}, expected URLs with a scheme and a host")
