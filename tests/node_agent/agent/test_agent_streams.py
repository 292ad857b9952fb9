"""Console and log, stats and metrics, and agents that must not work."""

import asyncio
import urllib.request

import grpc
import pytest

from node_agent.agent.fakes import FakeController
from node_agent.agent.node_files import NodeFilesError
from node_agent.console.ring import RingReader
from tests.servers.certificates import make_certificate, needs_openssl
from tests.servers.etcd import free_port
from virga.agent.v1 import agent_pb2 as agent
from virga.v1 import vm_pb2 as v1


def console(session, **more):
    return agent.ControllerMessage(open_stream=agent.OpenStream(
        session=session, kind=agent.STREAM_KIND_CONSOLE, vm_uid="vm1", **more))


def log(session, **more):
    return agent.ControllerMessage(open_stream=agent.OpenStream(
        session=session, kind=agent.STREAM_KIND_LOG, vm_uid="vm1", **more))


async def first(controller, session):
    async with asyncio.timeout(10):
        while session not in controller.relays:
            await asyncio.sleep(0.005)
        return await controller.relays[session].get()


async def output(controller, session, enough):
    text = b""
    async with asyncio.timeout(10):
        while not enough(text):
            message = await controller.relays[session].get()
            if message is None:
                break
            text += message.output if isinstance(message, agent.AttachConsoleRequest) else message.data
    return text


@pytest.fixture
async def running(nodes, controller):
    await nodes.start("n1")
    controller.want("n1", [nodes.vm("vm1", append="hello")])
    await nodes.until_state("n1", "vm1", v1.VM_STATE_RUNNING)
    ring = RingReader(nodes.state("n1") / "vms" / "vm1" / "console")
    while not ring.written:
        await asyncio.sleep(0.01)
    ring.close()
    return nodes


async def test_a_console_both_ways_and_a_second_writer(running, controller):
    controller.send("n1", console("s1", writer=True, replay_bytes=100))
    assert not (await first(controller, "s1")).HasField("error")
    controller.inputs["s1"].put_nowait(b"typed")
    assert await output(controller, "s1", lambda t: t.endswith(b"typed")) == b"hello\ntyped"
    controller.send("n1", console("s2", writer=True))
    assert (await first(controller, "s2")).error.reason == "CONSOLE_BUSY"
    controller.send("n1", console("s3", writer=True, steal=True, replay_bytes=5))
    assert not (await first(controller, "s3")).HasField("error")
    assert await output(controller, "s3", bool) == b"typed"
    controller.inputs["s3"].put_nowait(None)                          # the user leaves
    async with asyncio.timeout(5):
        while True:                                                   # and the writer's place is free again
            controller.send("n1", console("s4", writer=True))
            if not (await first(controller, "s4")).HasField("error"):
                break
            del controller.relays["s4"]
            await asyncio.sleep(0.05)


async def test_a_console_ends_with_the_run_and_the_log_stays(running, controller):
    controller.send("n1", console("s1"))
    await first(controller, "s1")
    controller.want("n1", [running.vm("vm1", append="hello", power=v1.POWER_STATE_STOPPED)])
    await output(controller, "s1", lambda t: False)
    await running.until_state("n1", "vm1", v1.VM_STATE_STOPPED)
    controller.send("n1", log("s2"))
    assert not (await first(controller, "s2")).HasField("error")
    assert await output(controller, "s2", lambda t: False) == b"hello\n"
    controller.send("n1", console("s3", writer=True))
    assert (await first(controller, "s3")).error.reason == "VM_NOT_RUNNING"


async def test_a_log_is_followed_over_a_new_run(running, controller):
    controller.send("n1", log("s1", follow=True))
    await first(controller, "s1")
    assert await output(controller, "s1", lambda t: t == b"hello\n")
    controller.want("n1", [running.vm("vm1", append="hello", run=2)])
    assert await output(controller, "s1", lambda t: t == b"hello\n")


async def test_streams_of_a_vm_that_is_not_here(running, controller):
    for session, make in (("s1", console), ("s2", log)):
        message = make(session)
        message.open_stream.vm_uid = "other"
        controller.send("n1", message)
        assert (await first(controller, session)).error.reason == "VM_NOT_HERE"


async def test_a_flooding_guest_and_a_slow_reader(nodes, controller):
    await nodes.start("n1")
    controller.want("n1", [nodes.vm("vm1", append="flood"), nodes.vm("vm2")])
    await nodes.until_state("n1", "vm1", v1.VM_STATE_RUNNING)
    controller.send("n1", log("s1", follow=True))
    await first(controller, "s1")
    text = await output(controller, "s1", lambda t: b"are lost here" in t)
    assert b"xxxx" in text
    await nodes.until_state("n1", "vm2", v1.VM_STATE_RUNNING)
    controller.want("n1", [nodes.vm("vm1", append="flood", power=v1.POWER_STATE_STOPPED, force_stop=True)])
    await nodes.until_state("n1", "vm1", v1.VM_STATE_STOPPED)


async def test_stats_on_demand_and_metrics(nodes, controller):
    port = free_port()
    await nodes.start("n1", metrics=f"127.0.0.1:{port}")
    controller.want("n1", [nodes.vm("vm1")])
    await nodes.until_state("n1", "vm1", v1.VM_STATE_RUNNING)
    controller.send("n1", agent.ControllerMessage(stats_request=agent.StatsRequest(vm_uid="vm1")))
    await controller.until(lambda: "vm1" in controller.stats and controller.stats["vm1"].exits.get("HLT"))

    def scrape():
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            return answer.read().decode()
    text = await asyncio.to_thread(scrape)
    assert 'virga_agent_vms{node="n1",state="running"} 1.0' in text
    assert 'virga_vm_retired_instructions_total{node="n1",uid="vm1",vm="vm1"}' in text
    assert 'virga_vm_exits_total{node="n1",reason="HLT",uid="vm1",vm="vm1"}' in text
    assert 'virga_agent_rpc_seconds_count{method="FetchImage"} 1.0' in text
    with pytest.raises(OSError):
        await nodes.start("n2", metrics=f"127.0.0.1:{port}")
    del nodes.tasks["n2"]


async def test_one_agent_per_folder(nodes, controller):
    await nodes.start("n1")
    task, stop = nodes.tasks["n1"]
    with pytest.raises(NodeFilesError, match="another agent"):
        await nodes.start("n1")
    nodes.tasks["n1"] = (task, stop)


async def test_a_broken_node_file_is_told_and_kept(nodes, controller):
    nodes.state("n1").mkdir()
    path = nodes.state("n1") / "node.json"
    path.write_text("{broken")
    with pytest.raises(NodeFilesError, match="nothing was changed"):
        await nodes.start("n1")
    del nodes.tasks["n1"]
    assert path.read_text() == "{broken"


async def test_a_controller_of_another_cluster_is_not_obeyed(nodes, controller):
    await nodes.start("n1")
    await controller.until(lambda: controller.hellos)
    await asyncio.sleep(0.1)
    await nodes.stop("n1")
    other = FakeController("another cluster")
    await other.start()
    nodes.controller = other
    other.want("n1", [nodes.vm("vm1")])
    await nodes.start("n1")
    await asyncio.sleep(0.3)
    assert not (nodes.state("n1") / "vms" / "vm1").exists()
    await nodes.stop("n1")
    await other.stop()
    nodes.controller = controller


async def test_a_wrong_token_is_not_let_in(nodes, controller):
    (nodes.folder / "token").write_text("guessed")
    starting = asyncio.create_task(nodes.start("n1"))
    await asyncio.sleep(0.5)
    assert not controller.hellos
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)




@needs_openssl
async def test_an_agent_under_tls(nodes, controller, tmp_path):
    ca, other = make_certificate(tmp_path, "ca"), make_certificate(tmp_path, "other-ca")
    cert, key = make_certificate(tmp_path, "controller", ca)
    secure = FakeController()
    await secure.start(credentials=grpc.ssl_server_credentials([(key.read_bytes(), cert.read_bytes())]))
    nodes.controller = secure
    secure.add_image(nodes.kernel)
    await nodes.start("n1", tls_ca=ca[0])
    secure.want("n1", [nodes.vm("vm1")])
    await nodes.until_state("n1", "vm1", v1.VM_STATE_RUNNING)
    starting = asyncio.create_task(nodes.start("n2", tls_ca=other[0]))
    await asyncio.sleep(0.5)
    assert [hello.node for hello in secure.hellos] == ["n1"], "a controller with a stranger's certificate is not obeyed"
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    await nodes.stop("n2")
    await nodes.stop("n1")
    await secure.stop()
