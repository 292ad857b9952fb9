"""Every key in etcd.

Owns:    the layout below ROOT, and which record lives under which key.
Never:   I/O.
Threads: pure functions.

    /virga/vms/spec/UID            VmRecord           /virga/nodes/NAME           NodeRecord
    /virga/vms/status/UID          VmStatus           /virga/images/UID           ImageRecord
    /virga/vms/assign/UID          Assignment         /virga/image-names/NAME     Pointer
    /virga/vm-names/NAME           Pointer            /virga/migrations/UID       MigrationRecord
    /virga/vms/migration/UID       Pointer, while a migration of this VM is under way
    /virga/vms/gone/UID            Tombstone          /virga/events/UID           EventRecord
    /virga/requests/ID             Pointer            /virga/ctl/leader           Leader, with a lease
                                                      /virga/ctl/cluster          Cluster
"""

from controller.model import records

ROOT = "/virga/"
LEADER = ROOT + "ctl/leader"
CLUSTER = ROOT + "ctl/cluster"

VM_SPEC = ROOT + "vms/spec/"
VM_STATUS = ROOT + "vms/status/"
VM_ASSIGN = ROOT + "vms/assign/"
VM_MIGRATION = ROOT + "vms/migration/"
VM_GONE = ROOT + "vms/gone/"
VM_NAME = ROOT + "vm-names/"
NODE = ROOT + "nodes/"
IMAGE = ROOT + "images/"
IMAGE_NAME = ROOT + "image-names/"
MIGRATION = ROOT + "migrations/"
EVENT = ROOT + "events/"
REQUEST = ROOT + "requests/"

RECORDS: dict[str, type] = {
    VM_SPEC: records.VmRecord, VM_STATUS: records.VmStatus, VM_ASSIGN: records.Assignment,
    VM_MIGRATION: records.Pointer, VM_GONE: records.Tombstone, VM_NAME: records.Pointer,
    NODE: records.NodeRecord, IMAGE: records.ImageRecord, IMAGE_NAME: records.Pointer,
    MIGRATION: records.MigrationRecord, EVENT: records.EventRecord, REQUEST: records.Pointer,
    LEADER: records.Leader, CLUSTER: records.Cluster,
}


def split(key: str) -> tuple[str, str] | None:
    """(prefix, id) of a key of ours, or None: somebody else's, or a later version's."""
    if key in RECORDS:
        return key, ""
    prefix, slash, name = key.rpartition("/")
    prefix += slash
    return (prefix, name) if name and prefix in RECORDS else None
