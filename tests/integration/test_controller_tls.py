"""A controller off loopback: TLS both ways, through the programs' own arguments; who has no part in it is told so.

Certificates are made by the openssl command; without one these tests are skipped and say so.
"""

import asyncio
import dataclasses
import re
import sys
import time
from contextlib import asynccontextmanager, contextmanager
from types import SimpleNamespace

import pytest

from cli import api as cli_api
from node_agent.agent.config import parse
from node_agent.agent.main import serve
from tests.cli.conftest import invoke
from tests.node_agent.agent.processes import end_all
from tests.servers.agents import FAKE
from tests.servers.certificates import make_certificate, needs_openssl
from tests.servers.controller import ControllerProcess
from tests.servers.etcd import EtcdServer

pytestmark = needs_openssl


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    """Our authority and what it signed, and a stranger's; each (certificate, key)."""
    folder = tmp_path_factory.mktemp("pki")
    ca, strange_ca = make_certificate(folder, "ca"), make_certificate(folder, "strange-ca")
    return SimpleNamespace(ca=ca, strange_ca=strange_ca, controller=make_certificate(folder, "controller", ca),
                           member=make_certificate(folder, "member", ca),
                           stranger=make_certificate(folder, "stranger", strange_ca))


@pytest.fixture(scope="module")
def etcd(tmp_path_factory):
    server = EtcdServer(tmp_path_factory.mktemp("etcd"), fsync=False)
    server.start()
    yield server.endpoint
    server.kill()


@contextmanager
def controller(folder, etcd, pki, *more):
    """On all addresses of this machine; its address as the others dial it."""
    process = ControllerProcess(folder / "controller", etcd)
    dialled = process.address
    process.address = dialled.replace("127.0.0.1", "0.0.0.0")
    process.start("--tls-cert", str(pki.controller[0]), "--tls-key", str(pki.controller[1]), *more)
    try:
        deadline = time.monotonic() + 20
        while not any(line["message"] == "leading" for line in process.log()):
            assert time.monotonic() < deadline, process.log()
            time.sleep(0.1)
        yield dialled
    finally:
        process.stop()


def tls_flags(ca=None, pair=None):
    """The same flags for the agent and for the command line."""
    return [*(["--tls-ca", str(ca[0])] if ca else []),
            *(["--tls-cert", str(pair[0]), "--tls-key", str(pair[1])] if pair else [])]


@asynccontextmanager
async def agent(folder, name, address, *flags, token=None):
    """A real agent, configured by its command line; its zygote makes fake machines."""
    nodes = folder / "nodes"
    nodes.mkdir(exist_ok=True)
    (folder / f"token-of-{name}").write_text(token or f"token-{name}")
    config = parse(["--name", name, "--state", str(nodes / name), "--controller", address, "--memory", "1G",
                    "--token-file", str(folder / f"token-of-{name}"), *flags])
    config = dataclasses.replace(config, zygote=(sys.executable, "-c", FAKE, str(nodes / name)))
    task = asyncio.create_task(serve(config, asyncio.Event()))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        end_all(nodes)


@pytest.fixture
def virga(tmp_path, monkeypatch):
    """A command line against a controller elsewhere; (code, stdout, stderr)."""
    monkeypatch.setattr(cli_api, "PATIENCE_SECONDS", 0.3)
    (tmp_path / "user-token").write_text("user-token")

    async def run(line, address, *flags, token_file="user-token"):
        return await asyncio.to_thread(invoke, [
            *line.split(), "--endpoint", address, "--token-file", str(tmp_path / token_file), *flags])
    return run


async def ready(virga, address, *flags):
    """The node once the user sees that it is there."""
    async with asyncio.timeout(20):
        while (seen := await virga("node list -o name", address, *flags)).out != "node-1\n":
            assert seen.code == 0, seen.err
            await asyncio.sleep(0.2)


async def told(caplog, *words):
    """The agent's log once it has a line with all these words."""
    async with asyncio.timeout(20):
        while not any(all(word in line for word in words) for line in caplog.messages):
            await asyncio.sleep(0.1)


async def test_agent_and_user_trust_the_controller_by_its_authority(tmp_path, etcd, pki, virga, caplog):
    with controller(tmp_path, etcd, pki) as address:
        async with agent(tmp_path, "node-1", address, *tls_flags(pki.ca)):
            await ready(virga, address, *tls_flags(pki.ca))
        async with agent(tmp_path, "node-2", address, *tls_flags(pki.strange_ca)):
            await told(caplog, address, "UNAVAILABLE", "CERTIFICATE_VERIFY_FAILED")
        async with agent(tmp_path, "node-2", address, *tls_flags(pki.ca), token="token-node-1"):
            await told(caplog, address, "UNAUTHENTICATED", "token")
        wrong = await virga("node list", address, *tls_flags(pki.strange_ca))
        assert wrong.code == 7 and "CERTIFICATE_VERIFY_FAILED" in wrong.err and "--tls-ca" in wrong.err
        clear = await virga("node list", address)
        assert clear.code == 7, clear
        (tmp_path / "wrong-token").write_text("wrong")
        wrong = await virga("node list", address, *tls_flags(pki.ca), token_file="wrong-token")
        assert wrong.code == 5 and "token" in wrong.err
        nodes = await virga("node list -o name", address, *tls_flags(pki.ca))
        assert nodes.out == "node-1\n", "who was refused left no trace"


async def test_a_client_authority_demands_certificates_of_all(tmp_path, etcd, pki, virga, caplog):
    with controller(tmp_path, etcd, pki, "--tls-client-ca", str(pki.ca[0])) as address:
        member = tls_flags(pki.ca, pki.member)
        async with agent(tmp_path, "node-1", address, *member):
            await ready(virga, address, *member)
        async with agent(tmp_path, "node-2", address, *tls_flags(pki.ca)):
            await told(caplog, address, "UNAVAILABLE")
        async with agent(tmp_path, "node-3", address, *tls_flags(pki.ca, pki.stranger)):
            await told(caplog, address, "UNAVAILABLE")
        for refused in (tls_flags(pki.ca), tls_flags(pki.ca, pki.stranger)):
            result = await virga("node list", address, *refused)
            assert result.code == 7 and "--tls-cert" in result.err
        assert (await virga("node list -o name", address, *member)).out == "node-1\n"


def flags_with_one_broken(folder, which, ca_flag, ca, pair):
    """All three files, but the one that is no certificate, or another's key."""
    (folder / "broken.pem").write_text("no certificate")
    files = {ca_flag: ca[0], "--tls-cert": pair[0], "--tls-key": pair[1]}
    files[which] = ca[1] if which == "--tls-key" else folder / "broken.pem"
    return [str(word) for pair in files.items() for word in pair], str(files[which])


@pytest.mark.parametrize("which", ["--tls-cert", "--tls-client-ca"])
def test_a_controller_whose_files_are_no_certificates_says_so(tmp_path, etcd, pki, which):
    flags, file = flags_with_one_broken(tmp_path, which, "--tls-client-ca", pki.ca, pki.controller)
    process = ControllerProcess(tmp_path, etcd)
    assert process.start(*flags).wait(20) == 3
    last = process.log()[-1]
    assert last["level"] == "error" and file in last["message"], last


@pytest.mark.parametrize("which", ["--tls-cert", "--tls-key", "--tls-ca"])
async def test_an_agent_and_a_user_whose_files_are_no_certificates_are_told(tmp_path, pki, virga, which):
    flags, file = flags_with_one_broken(tmp_path, which, "--tls-ca", pki.ca, pki.member)
    async with agent(tmp_path, "node-1", "127.0.0.1:1", *flags) as task:
        with pytest.raises(OSError, match="no certificate .*" + re.escape(file)):
            await task
    result = await virga("node list", "127.0.0.1:1", *flags)
    assert result.code == 2 and file in result.err and "no certificate" in result.err


async def test_tokens_do_not_travel_in_clear(virga):
    result = await virga("node list", "192.0.2.1:7000")
    assert result.code == 2 and "off loopback" in result.err and "--tls-ca" in result.err


def test_client_certificates_are_asked_for_under_tls_only(tmp_path, pki):
    process = ControllerProcess(tmp_path, "127.0.0.1:1")
    assert process.start("--tls-client-ca", str(pki.ca[0])).wait(20) == 2
    assert "--tls-client-ca needs --tls-cert" in (tmp_path / "controller.log").read_text()
