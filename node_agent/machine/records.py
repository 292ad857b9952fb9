"""Machine state to bytes and back: frozen records by name and version, plain values inside.

A record of a newer version than ours is refused; fields that we don't know are ignored, and those that the writer didn't
know take our default.

Owns:    the list of record types that may cross.
Never:   makes anything but the listed records out of bytes from outside.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from node_agent.devices import acpi_pm, debug, i8042, ioapic, pic, pit, rtc, uart
from node_agent.devices.pci import function, host, msix
from node_agent.devices.virtio import console, queue, transport
from node_agent.machine.spec import MachineState
from virga.vmm.v1 import state_pb2 as pb

RECORDS = {record.__name__: record for record in (
    MachineState, pic.PicState, pic.ChipState, ioapic.IoapicState, pit.PitState, pit.ChannelState, rtc.RtcState,
    uart.UartState, i8042.I8042State, acpi_pm.AcpiPmState, debug.DebugState, host.PciHostState, function.PciState,
    msix.MsixState, transport.VirtioState, queue.QueueState, console.ConsoleState)}


class StateError(ValueError):
    """The bytes are no state that this version can take."""


def encode_state(state: MachineState) -> bytes:
    return encode(state).SerializeToString(deterministic=True)


def decode_state(data: bytes) -> MachineState:
    value = pb.StateValue()
    try:
        value.ParseFromString(data)
    except Exception as error:             # protobuf's DecodeError differs between its implementations
        raise StateError(f"the machine's state is damaged: {error}") from None
    state = decode(value)
    if not isinstance(state, MachineState):
        raise StateError("the bytes hold no machine's state")
    return state


def encode(value: Any) -> pb.StateValue:
    if value is None:
        return pb.StateValue(none=True)
    if isinstance(value, int):
        return pb.StateValue(signed=value) if value < 0 else pb.StateValue(unsigned=int(value))
    if isinstance(value, (bytes, bytearray, memoryview)):
        return pb.StateValue(data=bytes(value))
    if isinstance(value, str):
        return pb.StateValue(text=value)
    if isinstance(value, float):
        return pb.StateValue(real=value)
    if isinstance(value, (list, tuple)):
        return pb.StateValue(list=pb.StateList(items=[encode(item) for item in value]))
    if isinstance(value, dict):
        return pb.StateValue(record=pb.StateRecord(fields={key: encode(item) for key, item in value.items()}))
    kind = type(value)
    if RECORDS.get(kind.__name__) is not kind:
        raise TypeError(f"{kind.__name__} is no state record")
    fields = {field.name: encode(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return pb.StateValue(record=pb.StateRecord(type=kind.__name__, version=kind.VERSION, fields=fields))


def decode(value: pb.StateValue) -> Any:
    kind = value.WhichOneof("kind")
    if kind == "list":
        return tuple(decode(item) for item in value.list.items)
    if kind == "record":
        return decode_record(value.record)
    return None if kind in (None, "none") else getattr(value, kind)


def decode_record(record: pb.StateRecord) -> Any:
    if not record.type:
        return {key: decode(item) for key, item in record.fields.items()}
    kind = RECORDS.get(record.type)
    if kind is None:
        raise StateError(f"unknown record {record.type}")
    if record.version > kind.VERSION:
        raise StateError(f"{record.type} has version {record.version}, we know {kind.VERSION}")
    names = {field.name for field in dataclasses.fields(kind)}
    try:
        return kind(**{key: decode(item) for key, item in record.fields.items() if key in names})
    except TypeError as error:
        raise StateError(f"{record.type} is incomplete: {error}") from None
