"""A controller played by dictionaries: real gRPC on loopback, scripted virtual machines.

Each VM goes through the states that its script says, one step per message that a watch sends; so the command line's
waiting is tested without time passing.
"""

import queue
import threading
from concurrent import futures

import grpc
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from virga.v1 import event_pb2, event_pb2_grpc, image_pb2, image_pb2_grpc, migration_pb2, migration_pb2_grpc
from virga.v1 import node_pb2, node_pb2_grpc, vm_pb2, vm_pb2_grpc

TOKEN = "right"
STATES = vm_pb2.VmState


def refuse(context, code, reason, message, *details):
    """End the call as the controller does: a google.rpc.Status with ErrorInfo and more."""
    packed = []
    for detail in (error_details_pb2.ErrorInfo(reason=reason, domain="virga.v1"), *details):
        one = any_pb2.Any()
        one.Pack(detail)
        packed.append(one)
    context.abort_with_status(rpc_status.to_status(status_pb2.Status(
        code=code_pb2.Code.Value(code), message=message, details=packed)))


def missing(context, kind, name):
    refuse(context, "NOT_FOUND", f"{kind.upper()}_NOT_FOUND", f"no {kind} is called {name}",
           error_details_pb2.ResourceInfo(resource_type=kind, resource_name=name))


class Vms(vm_pb2_grpc.VmServiceServicer):
    """scripts: name → list of functions that change the VM, one applied per watch step."""

    def __init__(self, cloud):
        self.cloud = cloud
        self.vms: dict[str, vm_pb2.Vm] = {}
        self.scripts: dict[str, list] = {}
        self.requests: list = []
        self.unavailable = 0                     # this many calls fail first
        self.console_input = b""
        self.hang = False                        # watches send nothing after the list

    def _find(self, name, context):
        found = [vm for vm in self.vms.values() if name in (vm.name, vm.uid) or (len(name) >= 4 and vm.uid.startswith(name))]
        if not found:
            missing(context, "vm", name)
        return found[0]

    def add(self, name, state="RUNNING", node="node-1", run=1):
        vm = vm_pb2.Vm(uid=f"01vm{len(self.vms):04d}{name}", name=name, image_name="img",
                       spec=vm_pb2.VmSpec(image="img", memory_mib=256, cpus=1),
                       status=vm_pb2.VmStatus(state=STATES.Value(f"VM_STATE_{state}"), node=node, run=run))
        vm.create_time.GetCurrentTime()
        self.vms[vm.uid] = vm
        return vm

    def CreateVm(self, request, context):
        self.requests.append(request)
        if self.unavailable:
            self.unavailable -= 1
            context.abort(grpc.StatusCode.UNAVAILABLE, "restarting")
        if any(vm.name == request.name for vm in self.vms.values()):
            refuse(context, "ALREADY_EXISTS", "VM_EXISTS", f"a VM is called {request.name}",
                   error_details_pb2.ResourceInfo(resource_type="vm", resource_name=request.name))
        if request.spec.append == "bad":
            field = error_details_pb2.BadRequest.FieldViolation(field="spec.append", description="is bad")
            refuse(context, "INVALID_ARGUMENT", "INVALID_FIELD", "the request is malformed",
                   error_details_pb2.BadRequest(field_violations=[field]))
        vm = self.add(request.name, "PENDING", "", 1)
        vm.spec.MergeFrom(request.spec)
        return vm_pb2.CreateVmResponse(vm=vm)

    def GetVm(self, request, context):
        return vm_pb2.GetVmResponse(vm=self._find(request.vm, context))

    def ListVms(self, request, context):
        """One VM a page, so that paging is always at work."""
        vms = [vm for vm in self.vms.values() if not request.states or vm.status.state in request.states]
        at = int(request.page_token or 0)
        return vm_pb2.ListVmsResponse(vms=vms[at:at + 1], next_page_token=str(at + 1) if at + 1 < len(vms) else "")

    def _script(self, name, context, *steps):
        vm = self._find(name, context)
        self.scripts.setdefault(vm.name, list(steps))
        return vm

    def StartVm(self, request, context):
        return vm_pb2.StartVmResponse(vm=self._script(request.vm, context, run_again, phase("placed", 0.1, "node-2"),
                                                      become("RUNNING"), phase("user_space", 1.3)))

    def StopVm(self, request, context):
        self.requests.append(request)
        return vm_pb2.StopVmResponse(vm=self._script(request.vm, context, become("STOPPING"), become("STOPPED")))

    def PauseVm(self, request, context):
        return vm_pb2.PauseVmResponse(vm=self._script(request.vm, context, become("PAUSED")))

    def ResetVm(self, request, context):
        vm = self._find(request.vm, context)
        if vm.status.state != vm_pb2.VM_STATE_RUNNING:
            refuse(context, "FAILED_PRECONDITION", "VM_NOT_RUNNING", f"{vm.name} does not run")
        return vm_pb2.ResetVmResponse(vm=vm)

    def DeleteVm(self, request, context):
        self.requests.append(request)
        if request.forget:
            return vm_pb2.DeleteVmResponse(vm=self.vms.pop(self._find(request.vm, context).uid))
        return vm_pb2.DeleteVmResponse(vm=self._script(request.vm, context, become("DELETING"), "delete"))

    def WatchVms(self, request, context):
        yield vm_pb2.WatchVmsResponse(kind=vm_pb2.WATCH_KIND_RESET)
        wanted = [vm for vm in self.vms.values() if request.vm in ("", vm.uid, vm.name)]
        for vm in wanted:
            yield vm_pb2.WatchVmsResponse(kind=vm_pb2.WATCH_KIND_PUT, vm=vm)
        yield vm_pb2.WatchVmsResponse(kind=vm_pb2.WATCH_KIND_SYNCED)
        for vm in wanted:
            for step in self.scripts.pop(vm.name, []):
                if step == "break":
                    context.abort(grpc.StatusCode.UNAVAILABLE, "restarting")
                if step == "delete":
                    del self.vms[vm.uid]
                    yield vm_pb2.WatchVmsResponse(kind=vm_pb2.WATCH_KIND_DELETED, vm=vm_pb2.Vm(uid=vm.uid, name=vm.name))
                    continue
                step(vm)
                yield vm_pb2.WatchVmsResponse(kind=vm_pb2.WATCH_KIND_PUT, vm=vm)
        while self.hang and context.is_active():
            self.cloud.stopping.wait(0.05)
            if self.cloud.stopping.is_set():
                return
        if not self.hang:
            context.abort(grpc.StatusCode.UNAVAILABLE, "restarting")

    def ExplainPlacement(self, request, context):
        if request.spec.memory_mib > 8192:
            report = vm_pb2.PlacementReport(nodes=2, summary="2 nodes: 2 too little memory", hint="largest free: node-1, 7.2 GiB")
            return vm_pb2.ExplainPlacementResponse(
                nodes=[vm_pb2.NodeVerdict(node=f"node-{i}", refusals=["too little memory"]) for i in (1, 2)], report=report)
        return vm_pb2.ExplainPlacementResponse(chosen_node="node-2", nodes=[
            vm_pb2.NodeVerdict(node="node-2", fits=True, score=0.9, scores={"spread": 0.9}),
            vm_pb2.NodeVerdict(node="node-1", refusals=["cordoned"])])

    def GetVmExits(self, request, context):
        self._find(request.vm, context)
        return vm_pb2.GetVmExitsResponse(retired_instructions=1500, memory_bytes=1 << 20, cpu_seconds=2.5, exits=[
            vm_pb2.ExitCount(reason="IO_INSTRUCTION", count=30), vm_pb2.ExitCount(reason="HLT", count=10)])

    def Console(self, requests, context):
        opening = next(requests).open
        self._find(opening.vm, context)
        if opening.writer and not opening.steal and self.console_input is None:
            refuse(context, "FAILED_PRECONDITION", "CONSOLE_BUSY", "somebody else has the keyboard")
        yield vm_pb2.ConsoleResponse(attached=True)
        arrived: queue.SimpleQueue = queue.SimpleQueue()
        threading.Thread(target=lambda: [arrived.put(message.input) for message in _quietly(requests)], daemon=True).start()
        while context.is_active() and not self.cloud.stopping.is_set():
            try:
                data = arrived.get(timeout=0.05)
            except queue.Empty:
                continue
            self.console_input += data
            yield vm_pb2.ConsoleResponse(output=b"guest says " + data)

    def StreamLog(self, request, context):
        self._find(request.vm, context)
        yield vm_pb2.StreamLogResponse(data=b"Linux version 6.1\r\n")
        yield vm_pb2.StreamLogResponse(data=b"\xff raw\n", offset=19)


def _quietly(requests):
    try:
        yield from requests
    except grpc.RpcError:
        return


def become(state, reason="", message=""):
    def step(vm):
        vm.status.state = STATES.Value(f"VM_STATE_{state}")
        vm.status.reason, vm.status.message = reason, message
    return step


def phase(name, seconds, detail=""):
    def step(vm):
        vm.status.phases.add(name=name, seconds=seconds, detail=detail)
        if name == "placed":
            vm.status.node = detail
    return step


def run_again(vm):
    """The controller changes a status's run together with its state."""
    vm.status.run += 1
    vm.status.state = vm_pb2.VM_STATE_SCHEDULED
    del vm.status.phases[:]


def unplaceable(vm):
    vm.status.placement.CopyFrom(vm_pb2.PlacementReport(
        nodes=3, summary="3 nodes: 2 too little memory, 1 cordoned", hint="largest free: node-1, 7.2 GiB"))


BOOT = [phase("placed", 0.1, "node-3"), become("CREATING"), phase("image", 0.2, "cached"), phase("process", 0.3),
        become("RUNNING"), phase("kernel", 0.4, "Linux 6.1"), phase("user_space", 1.3)]


class Nodes(node_pb2_grpc.NodeServiceServicer):
    def __init__(self):
        self.nodes = [node_pb2.Node(uid=f"01node{i}", name=f"node-{i}", status=node_pb2.NodeStatus(
            state=node_pb2.NODE_STATE_READY, memory_mib=4096, memory_free_mib=1024 * i, cpus=4, cpus_free=4)) for i in (1, 2, 3)]

    def _find(self, name, context):
        return next((n for n in self.nodes if name in (n.name, n.uid)), None) or missing(context, "node", name)

    def ListNodes(self, request, context):
        return node_pb2.ListNodesResponse(nodes=self.nodes)

    def GetNode(self, request, context):
        return node_pb2.GetNodeResponse(node=self._find(request.node, context))

    def DeleteNode(self, request, context):
        self._find(request.node, context)
        refuse(context, "FAILED_PRECONDITION", "NODE_HAS_VMS", f"{request.node} holds 1 VMs")

    def CordonNode(self, request, context):
        node = self._find(request.node, context)
        node.spec.cordoned = True
        return node_pb2.CordonNodeResponse(node=node)

    def DrainNode(self, request, context):
        node = self._find(request.node, context)
        node.spec.cordoned = node.spec.draining = True
        return node_pb2.DrainNodeResponse(node=node)

    def WatchNodes(self, request, context):
        node = self._find(request.node, context)
        for moved in range(3):
            node.status.drain.CopyFrom(node_pb2.DrainStatus(moved=moved, remaining=2 - moved))
            yield node_pb2.WatchNodesResponse(kind=vm_pb2.WATCH_KIND_PUT, node=node, revision=moved + 1)


class Images(image_pb2_grpc.ImageServiceServicer):
    def __init__(self):
        self.images = {"img": image_pb2.Image(uid="01img", name="img", kind=1, ready_marker="ready")}
        self.received: dict[int, bytes] = {}

    def GetImage(self, request, context):
        return image_pb2.GetImageResponse(image=self.images.get(request.image) or missing(context, "image", request.image))

    def ListImages(self, request, context):
        return image_pb2.ListImagesResponse(images=self.images.values())

    def FindMissingFiles(self, request, context):
        return image_pb2.FindMissingFilesResponse(sha256=request.sha256[:1])

    def UploadImage(self, requests, context):
        image = next(requests).open.image
        for message in requests:
            chunk = message.chunk
            assert chunk.offset == len(self.received.get(chunk.role, b""))
            self.received[chunk.role] = self.received.get(chunk.role, b"") + chunk.data
        self.images[image.name] = image
        return image_pb2.UploadImageResponse(image=image)

    def DeleteImage(self, request, context):
        refuse(context, "FAILED_PRECONDITION", "IMAGE_IN_USE", "2 VMs are made from it")


class Migrations(migration_pb2_grpc.MigrationServiceServicer):
    def __init__(self):
        self.fails = False

    def CreateMigration(self, request, context):
        if request.target_node == "node-9":
            missing(context, "node", "node-9")
        return migration_pb2.CreateMigrationResponse(migration=self._record(1))

    def _record(self, phase):
        done = phase == migration_pb2.MIGRATION_PHASE_SUCCEEDED
        return migration_pb2.Migration(uid="01mig", vm_name="web", source_node="node-1", target_node="node-2", phase=phase,
                                       rounds=3 if done else 0, bytes=1 << 24, total_ms=812.5, gap_ms=8.25, decision_ms=2.5)

    def WatchMigrations(self, request, context):
        for phase in (2, 3, 7) if self.fails else (2, 3, 4, 6):
            yield migration_pb2.WatchMigrationsResponse(kind=vm_pb2.WATCH_KIND_PUT, migration=self._record(phase), revision=phase)


class Events(event_pb2_grpc.EventServiceServicer):
    def ListEvents(self, request, context):
        events = [event_pb2.Event(uid="e1", reason="Started", message="on node-1", severity=1,
                                  object=event_pb2.ObjectRef(kind="vm", name="web")),
                  event_pb2.Event(uid="e2", reason="NodeLost", severity=2, object=event_pb2.ObjectRef(kind="node", name="node-2"))]
        wanted = request.object
        return event_pb2.ListEventsResponse(events=[e for e in events if not wanted.kind or
                                                    (e.object.kind, e.object.name) == (wanted.kind, wanted.name)])


class Authorised(grpc.ServerInterceptor):
    def intercept_service(self, continuation, details):
        if ("authorization", f"Bearer {TOKEN}") in [(m.key, m.value) for m in details.invocation_metadata]:
            return continuation(details)
        return grpc.unary_unary_rpc_method_handler(
            lambda request, context: context.abort(grpc.StatusCode.UNAUTHENTICATED, "wrong token"))


class FakeCloud:
    def __init__(self):
        self.stopping = threading.Event()
        self.vms, self.nodes, self.images = Vms(self), Nodes(), Images()
        self.migrations, self.events = Migrations(), Events()
        self.server = grpc.server(futures.ThreadPoolExecutor(8), interceptors=[Authorised()])
        vm_pb2_grpc.add_VmServiceServicer_to_server(self.vms, self.server)
        node_pb2_grpc.add_NodeServiceServicer_to_server(self.nodes, self.server)
        image_pb2_grpc.add_ImageServiceServicer_to_server(self.images, self.server)
        migration_pb2_grpc.add_MigrationServiceServicer_to_server(self.migrations, self.server)
        event_pb2_grpc.add_EventServiceServicer_to_server(self.events, self.server)
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()

    def stop(self):
        self.stopping.set()
        self.server.stop(None).wait()
