import sys
from dataclasses import dataclass

import pytest
from click.testing import CliRunner

from cli import main
from tests.cli.fake_cloud import TOKEN, FakeCloud


@dataclass
class Result:
    code: int
    out: str
    err: str


@pytest.fixture
def cloud():
    fake = FakeCloud()
    yield fake
    fake.stop()


@pytest.fixture
def virga(cloud, tmp_path, monkeypatch):
    """Run a command line against the fake: virga("vm list") → Result."""
    (tmp_path / "token").write_text(TOKEN + "\n")
    monkeypatch.setenv("VIRGA_STATE", str(tmp_path))
    monkeypatch.setenv("VIRGA_ENDPOINT", f"127.0.0.1:{cloud.port}")

    def run(line, stdin=None):
        return invoke(line.split(), stdin)
    return run


def invoke(arguments, stdin=None):
    """main.run with captured streams; the exit code is run's, as the process would have it."""
    with CliRunner().isolation(input=stdin) as (out, err, _):
        code = main.run(arguments)
        sys.stdout.flush()
        sys.stderr.flush()
        return Result(code, out.getvalue().decode(errors="replace"), err.getvalue().decode(errors="replace"))
