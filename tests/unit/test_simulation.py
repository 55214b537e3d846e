"""The simulated text: anyone can make any part of it."""

from hypothesis import given
from hypothesis import strategies as st

from relay.simulation import text, token, token_size, tokens_in

seeds = st.integers(0, 2**53)
indices = st.integers(0, 10_000)


@given(seeds, indices, st.integers(0, 50), st.integers(0, 50))
def test_any_part(seed: int, start: int, first: int, second: int) -> None:
    """Parts made apart are the whole, made at once."""
    middle, stop = start + first, start + first + second
    assert text(seed, start, middle) + text(seed, middle, stop) == text(seed, start, stop)
    assert text(seed, start, stop) == "".join(token(seed, index) for index in range(start, stop))


@given(seeds, indices)
def test_tokens(seed: int, index: int) -> None:
    """A token is short, never empty, and its size is that of its UTF-8."""
    size = len(token(seed, index).encode())
    assert token_size(seed, index) == size
    assert 1 <= size <= 13


@given(seeds, st.integers(0, 300), st.integers(0, 20))
def test_tokens_in(seed: int, count: int, extra: int) -> None:
    """A prefix holds as many whole tokens as it was made of; a part of the next does not count."""
    size = len(text(seed, 0, count).encode())
    assert tokens_in(seed, size) == count
    partial = min(extra, token_size(seed, count) - 1)
    assert tokens_in(seed, size + partial) == count


def test_no_tokens() -> None:
    """Nothing holds no tokens."""
    assert tokens_in(1, 0) == 0
    assert text(1, 5, 5) == ""


def test_the_text_is_fixed() -> None:
    """The text of a seed never changes: streams under way, and other programs, rely on it."""
    assert text(1, 0, 12) == "River stream writer über the 水 careful writer but that less signal. "
    assert text(1, 0, 3) != text(2, 0, 3)


def test_characters_of_every_size() -> None:
    """The text has characters of one, two, three and four bytes, and paragraphs."""
    sample = text(1, 0, 2000)
    assert {len(character.encode()) for character in sample} == {1, 2, 3, 4}
    assert "\n\n" in sample
