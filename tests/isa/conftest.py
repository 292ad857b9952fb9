import os
import random
from collections.abc import Iterator

import pytest

from . import harness


@pytest.fixture(scope="session")
def host() -> Iterator[harness.Host]:
    oracle = harness.Host()
    yield oracle
    oracle.close()


@pytest.fixture(scope="session")
def seed() -> int:
    """ISA_SEED=N repeats a run; a failure prints it."""
    return int(os.environ.get("ISA_SEED", random.SystemRandom().getrandbits(32)))
