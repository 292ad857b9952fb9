"""The wire contract as text: every service, message, field and number. `python -m tests.golden.describe` prints it."""

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor, FileDescriptor

from virga.agent.v1 import agent_pb2
from virga.v1 import event_pb2, image_pb2, migration_pb2, node_pb2, vm_pb2

FILES = (vm_pb2, node_pb2, image_pb2, migration_pb2, event_pb2, agent_pb2)
TYPES = {getattr(FieldDescriptor, name): name.removeprefix("TYPE_").lower() for name in dir(FieldDescriptor)
         if name.startswith("TYPE_")}


def describe() -> str:
    return "\n".join(line for module in FILES for line in _file(module.DESCRIPTOR)) + "\n"


def _file(file: FileDescriptor) -> list[str]:
    lines = [f"file {file.name}"]
    for service in file.services_by_name.values():
        for method in service.methods:
            streams = ("stream " * method.client_streaming, "stream " * method.server_streaming)
            lines.append(f"  rpc {service.full_name}/{method.name}({streams[0]}{method.input_type.name}) "
                         f"returns ({streams[1]}{method.output_type.name})")
    for message in file.message_types_by_name.values():
        lines += _message(message)
    for enum in file.enum_types_by_name.values():
        lines += _enum(enum)
    return lines


def _message(message: Descriptor) -> list[str]:
    lines = [f"  message {message.full_name}"]
    for field in message.fields:
        kind = (field.message_type or field.enum_type).full_name if field.message_type or field.enum_type \
            else TYPES[field.type]
        own_oneof = field.containing_oneof and field.containing_oneof.name == f"_{field.name}"
        marks = "repeated " if field.is_repeated else "optional " if own_oneof else ""
        lines.append(f"    {field.number} {marks}{kind} {field.name}")
    for nested in message.nested_types:
        lines += _message(nested)
    return lines


def _enum(enum: EnumDescriptor) -> list[str]:
    return [f"  enum {enum.full_name}", *(f"    {value.number} {value.name}" for value in enum.values)]


if __name__ == "__main__":
    print(describe(), end="")
