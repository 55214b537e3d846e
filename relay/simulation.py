"""The simulated source's text: a pure function of the seed and the token index.

Anyone who knows the seed can check any part of a response without having seen the rest. The words
include characters of two, three and four UTF-8 bytes, so that no path is only ever tried on ASCII.
"""

from functools import lru_cache

_WORDS = (
    "water stone river light slow quick careful bound pressure stream token reader writer lag "
    "window credit offset journal record epoch lease fence drain queue signal patient measure "
    "naïve café über señor — … 流 水 記録 🌊 🪨 and or but so then when where while because the a "
    "of in to is was be has had it that this which every some none more less before after"
).split()
_SENTENCE = 12  # tokens
_PARAGRAPH = 96  # tokens
_MASK = (1 << 64) - 1


def token(seed: int, index: int) -> str:
    """The text of token `index` (from 0), with the space or punctuation that belongs to it."""
    mixed = (seed * 0x9E3779B97F4A7C15 + index * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) & _MASK
    mixed ^= mixed >> 31
    mixed = mixed * 0xD6E8FEB86659FD93 & _MASK
    word = _WORDS[(mixed >> 32) % len(_WORDS)]
    place = index % _SENTENCE
    if place == 0:
        return word.capitalize()
    if place == _SENTENCE - 1:
        return f" {word}.\n\n" if (index + 1) % _PARAGRAPH == 0 else f" {word}. "
    return " " + word


def text(seed: int, start: int, stop: int) -> str:
    """The text of tokens `start` to `stop - 1`."""
    return "".join(token(seed, index) for index in range(start, stop))


def tokens_in(seed: int, size_bytes: int) -> int:
    """How many whole tokens the first `size_bytes` bytes of UTF-8 hold."""
    index, left = 0, size_bytes
    while (left := left - token_size(seed, index)) >= 0:
        index += 1
    return index


@lru_cache(maxsize=4096)
def token_size(seed: int, index: int) -> int:
    """The UTF-8 size of one token."""
    return len(token(seed, index).encode())
