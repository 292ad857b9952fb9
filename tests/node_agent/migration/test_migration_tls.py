"""The memory stream under TLS: both sides show certificates, and who has none of ours gets nothing."""

import asyncio

import pytest

from node_agent.migration import sides
from node_agent.migration.protocol import Source, Target
from node_agent.vmprocess import files
from node_agent.vmprocess.fakes import FakeMachines
from node_agent.vmprocess.process import VmProcess
from tests.node_agent.migration.test_sides import Pair, Ticks
from tests.servers.certificates import make_certificate, needs_openssl
from virga.vmm.v1 import vmm_pb2 as pb

pytestmark = needs_openssl


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    ca, other = make_certificate(folder, "ca"), make_certificate(folder, "other-ca")
    ours, theirs = make_certificate(folder, "node", ca), make_certificate(folder, "stranger", other)

    def files_of(pair, trusted):
        return pb.TlsFiles(ca=str(trusted[0]), cert=str(pair[0]), key=str(pair[1]))
    return files_of(ours, ca), files_of(theirs, ca)


@pytest.fixture
async def pair(tmp_path):
    made, clock = [], Ticks().clock()
    for name in ("source", "target"):
        folder = files.VmFolder(tmp_path / name / "vm1")
        folder.path.mkdir(parents=True)
        record = pb.VmRecord(format=1, generation=1, config=pb.VmConfig(
            uid="vm1", memory_bytes=4 << 20, cpus=1, append="count dirty=2", console_bytes=1 << 16))
        vm = VmProcess(folder, record, FakeMachines(), 0.0, clock)
        await vm.create()
        made.append(vm)
    await made[0].start()
    yield Pair(*made, None)
    for vm in made:
        if vm.migration is not None:
            vm.migration._hang_up()
            if getattr(vm.migration, "_listener", None) is not None:
                vm.migration._listener.close()
        await vm.close()
    await asyncio.sleep(0.05)


async def begin(pair, target_tls, source_tls):
    port = await sides.Incoming.begin(pair.target, pb.MigrateIn(id="m", token=b"t", tls=target_tls, offer_timeout_s=3))
    sides.Outgoing.begin(pair.source, pb.MigrateOut(id="m", host="127.0.0.1", port=port, token=b"t", tls=source_tls))


async def test_a_move_under_tls(pair, tls):
    await begin(pair, tls[0], tls[0])
    await pair.until(Source.PAUSED, Target.READY)
    await pair.decide(2, pair.target)
    await pair.counts_on(pair.target)


async def test_a_stranger_gets_nothing(pair, tls):
    await begin(pair, tls[0], tls[1])
    await pair.until(source=Source.BACK)
    assert pair.target.migration.state is Target.LISTENING
    await pair.counts_on(pair.source)
