"""Ends what tests with real zygotes and VM processes leave."""

import contextlib
import os
import signal

from node_agent.vmprocess import files
from node_agent.vmprocess.identity import ProcessId
from virga.vmm.v1 import vmm_pb2 as pb


def end_all(folder):
    """SIGKILL to every zygote and VM process of the nodes under `folder`; no zombies stay."""
    for state in folder.iterdir():
        for record in [*state.glob("vms/*/process.pb"), *state.glob("zygote.pb")] if state.is_dir() else ():
            with contextlib.suppress(files.CorruptRecord):
                r = files.read_record(record, pb.ProcessRecord)
                ProcessId(r.pid, r.start_time).signal(signal.SIGKILL)
    while True:
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(-1, os.WNOHANG)[0]:
                continue
        break
