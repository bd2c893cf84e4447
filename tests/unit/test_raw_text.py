"""What is in Redis, as text and back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aiogpulock.raw_text import bytes_of, text_of

PIECES = st.sampled_from([b"\\", b"x", b"5c", b"f", b"\xff", "é".encode(), b":"])


@given(st.binary() | st.lists(PIECES).map(b"".join))
def test_every_value_can_be_shown_and_turned_back(raw: bytes) -> None:
    shown = text_of(raw)
    assert bytes_of(shown) == raw
    assert not set(shown) & set(map(chr, range(0xD800, 0xE000)))  # JSON can carry it


def test_what_is_text_is_shown_as_it_is() -> None:
    assert text_of("locked_by_речь\\:7".encode()) == "locked_by_речь\\:7"
