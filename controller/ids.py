"""Identifiers: ULID-like, so that they sort by creation.

Owns:    the alphabet and the monotonic counter.
Never:   reads the clock or makes randomness of its own.
Threads: one event loop.
"""

import random
from collections.abc import Callable

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"        # Crockford's base 32, lower case
LENGTH = 26


class Ids:
    """48 bits of milliseconds, then 80 random bits that count up within one millisecond."""

    def __init__(self, clock: Callable[[], float], rng: random.Random) -> None:
        self._clock, self._rng = clock, rng
        self._last = 0

    def next(self) -> str:
        fresh = int(self._clock() * 1000) << 80 | self._rng.getrandbits(80)
        self._last = value = fresh if fresh > self._last else self._last + 1
        letters = []
        for _ in range(LENGTH):
            letters.append(ALPHABET[value & 31])
            value >>= 5
        return "".join(reversed(letters))

    def token(self) -> str:
        """A secret of 128 bits."""
        return f"{self._rng.getrandbits(128):032x}"
