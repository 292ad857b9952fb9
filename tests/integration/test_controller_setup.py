"""A controller that cannot start says why, in one line of its log, and ends with status 3; nothing is destroyed."""

import json
import socket
import subprocess
import sys
import time
from concurrent import futures

import grpc
import pytest

from tests.servers.controller import ControllerProcess
from tests.servers.etcd import EtcdServer, free_port
from virga.etcd import rpc_pb2, rpc_pb2_grpc


class OldCluster(rpc_pb2_grpc.MaintenanceServicer, rpc_pb2_grpc.ClusterServicer):
    """Three members of an etcd that is known to corrupt itself."""

    def Status(self, request, context):
        return rpc_pb2.StatusResponse(version="3.5.2")

    def MemberList(self, request, context):
        return rpc_pb2.MemberListResponse(members=[rpc_pb2.Member(ID=i) for i in (1, 2, 3)])


@pytest.fixture(scope="module")
def etcd(tmp_path_factory):
    server = EtcdServer(tmp_path_factory.mktemp("etcd"), fsync=False)
    server.start()
    yield server.endpoint
    server.kill()


def ended(controller, why, *more):
    """Start it and wait for its end; the last line of the log says why."""
    assert controller.start(*more).wait(20) == 3
    last = controller.log()[-1]
    assert last["level"] == "error" and why in last["message"], last


def test_an_etcd_known_to_corrupt_is_refused(tmp_path):
    server = grpc.server(futures.ThreadPoolExecutor(2))
    rpc_pb2_grpc.add_MaintenanceServicer_to_server(OldCluster(), server)
    rpc_pb2_grpc.add_ClusterServicer_to_server(OldCluster(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        ended(ControllerProcess(tmp_path, f"127.0.0.1:{port}"), "13766")
    finally:
        server.stop(None).wait()


def test_a_port_in_use(tmp_path, etcd):
    controller = ControllerProcess(tmp_path, etcd)
    for address in (controller.address, controller.metrics):
        with socket.create_server(("127.0.0.1", int(address.rpartition(":")[2]))):
            ended(controller, address)


def test_two_controllers_on_one_state(tmp_path, etcd):
    first, second = ControllerProcess(tmp_path, etcd), ControllerProcess(tmp_path, etcd)
    process = first.start()
    try:
        for _ in range(100):
            if any(line["message"] == "leading" for line in first.log()):
                break
            time.sleep(0.1)
        ended(second, "another controller")
        assert process.poll() is None
    finally:
        first.stop()


@pytest.mark.parametrize("file, content", [("token", ""), ("agents.json", "{broken")])
def test_broken_token_files(tmp_path, etcd, file, content):
    controller = ControllerProcess(tmp_path, etcd)
    (tmp_path / file).write_text(content)
    ended(controller, file if content == "" else "cannot read tokens")
    assert (tmp_path / file).read_text() == content


def test_off_loopback_only_with_tls(tmp_path):
    done = subprocess.run([sys.executable, "-m", "controller", "--state", tmp_path, "--listen", f"0.0.0.0:{free_port()}",
                           "--etcd-endpoints", "127.0.0.1:1", "--token-file", "t", "--agent-tokens", "a"],
                          capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 2 and "--tls-cert" in done.stderr


def test_an_etcd_that_comes_later_is_waited_for(tmp_path):
    server = EtcdServer(tmp_path, fsync=False)
    controller = ControllerProcess(tmp_path / "state", server.endpoint)
    controller.start()
    try:
        time.sleep(3.0)
        server.start()
        for _ in range(100):
            lines = [json.dumps(line) for line in controller.log()]
            if any("leading" in line for line in lines):
                break
            time.sleep(0.1)
        assert any("waiting for etcd" in line for line in lines) and any("leading" in line for line in lines)
    finally:
        assert controller.stop() == 0
        server.kill()
