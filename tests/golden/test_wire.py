"""The wire contract is what it was: a change of it shows in the diff of wire.txt."""

from pathlib import Path

from tests.golden.describe import describe


def test_the_wire_contract_is_as_written_down():
    assert describe() == (Path(__file__).parent / "wire.txt").read_text(), \
        "regenerate with `python -m tests.golden.describe > tests/golden/wire.txt` and look at the difference"
