"""The agent's command line: what it means, and what it refuses before anything starts."""

import pytest

from node_agent.agent.config import parse

GOOD = ["--name", "node-1", "--state", "/tmp/x", "--controller", "127.0.0.1:7000", "--token-file", "/tmp/t",
        "--memory", "4G"]


def test_a_plain_line():
    config = parse([*GOOD, "--cpus", "3", "--labels", "rack=a,disk=ssd", "--metrics", "127.0.0.1:9"])
    assert (config.memory_bytes, config.cpus, config.labels) == (4 << 30, 3, {"rack": "a", "disk": "ssd"})


@pytest.mark.parametrize("text,size", [("512M", 512 << 20), ("1g", 1 << 30), ("2GiB", 2 << 30), ("1048576", 1 << 20)])
def test_sizes(text, size):
    assert parse([*GOOD, "--memory", text]).memory_bytes == size


@pytest.mark.parametrize("more,word", [
    (["--memory", "lots"], "lots"), (["--memory", "1K"], "--memory"), (["--cpus", "0"], "--cpus"),
    (["--labels", "rack"], "rack"), (["--name", "Node_1"], "Node_1"), (["--controller", "nowhere"], "host:port"),
    (["--controller", "192.0.2.1:7000"], "--tls-ca"), (["--controller", "example.org:7000"], "--tls-ca"),
    (["--tls-cert", "/tmp/c"], "--tls-key"), (["--address", "192.0.2.1"], "--tls-cert"),
])
def test_refusals_name_what_is_wrong(capsys, more, word):
    with pytest.raises(SystemExit) as error:
        parse([*GOOD, *more])
    assert error.value.code == 2 and word in capsys.readouterr().err


def test_off_loopback_with_certificates():
    config = parse([*GOOD, "--controller", "[2001:db8::1]:7000", "--tls-ca", "a", "--tls-cert", "c", "--tls-key", "k",
                    "--address", "192.0.2.1"])
    assert config.address == "192.0.2.1"
