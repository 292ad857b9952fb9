"""The wire contract's habits: package = path, zero values unspecified, own messages per RPC, each RPC commented."""

import re
from pathlib import Path

FOREIGN = {Path("proto/virga/etcd")}                      # names and numbers of etcd's wire, not ours


def ours(tree, root):
    for path in tree:
        if path.suffix == ".proto" and not any(folder in path.parents for folder in FOREIGN):
            yield path, (root / path).read_text()


def test_package_is_path(tree, root):
    for path, source in ours(tree, root):
        assert f"package {'.'.join(path.parts[1:-1])};" in source, path


def test_enums_begin_unspecified(tree, root):
    for path, source in ours(tree, root):
        for name, body in re.findall(r"enum (\w+) \{(.*?)\n\}", source, re.S):
            first = re.sub(r"//.*", "", body).split(";")[0].split()
            assert first[0].endswith("_UNSPECIFIED") and first[-1] == "0", f"{path}: {name}"


def test_each_rpc_has_messages_of_its_own(tree, root):
    for path, source in ours(tree, root):
        if "/agent/" in str(path):
            continue                                      # its stream's messages are a conversation, not pairs
        for name, request, answer in re.findall(r"rpc (\w+)\((?:stream )?(\w+)\) returns \((?:stream )?(\w+)\)", source):
            assert (request, answer) == (f"{name}Request", f"{name}Response"), f"{path}: {name}"
