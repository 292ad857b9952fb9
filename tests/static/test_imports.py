"""Imports point one way: cli → stubs; controller → stubs; node_agent → stubs, vcpu; vcpu → nothing of ours."""

import ast

ALLOWED = {"cli": {"cli", "virga"}, "controller": {"controller", "virga"}, "node_agent": {"node_agent", "virga", "vcpu"},
           "vcpu": {"vcpu"}, "bench": {"bench", "virga", "vcpu", "node_agent"}}
OURS = {"cli", "controller", "node_agent", "vcpu", "virga", "tests", "bench"}


def imported(source: str) -> set[tuple[str, int]]:
    """Top-level names that a module imports, also inside functions, with their lines."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {(alias.name.split(".")[0], node.lineno) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            found.add((node.module.split(".")[0], node.lineno))
    return found


def test_no_edge_points_the_wrong_way(tree, root):
    wrong = []
    for path in tree:
        part = path.parts[0]
        if path.suffix == ".py" and part in ALLOWED:
            wrong += [f"{path}:{line}: {part} → {name}" for name, line in imported((root / path).read_text())
                      if name in OURS - ALLOWED[part]]
    assert not wrong, "\n".join(wrong)


def test_cython_of_vcpu_names_nothing_of_ours_but_vcpu(tree, root):
    wrong = []
    for path in tree:
        if path.suffix in (".pyx", ".pxd", ".pxi") and path.parts[0] == "vcpu":
            for number, line in enumerate((root / path).read_text().splitlines(), 1):
                words = line.split()
                if words[:1] in (["cimport"], ["from"], ["import"]) and words[1].split(".")[0] in OURS - {"vcpu"}:
                    wrong.append(f"{path}:{number}: {line.strip()}")
    assert not wrong, "\n".join(wrong)


def test_the_vm_process_never_loads_grpc(tree, root):
    """It is forked from the zygote, which must stay small and without threads (docs/architecture.md)."""
    for part in ("zygote", "vmprocess", "machine", "devices", "boot", "run"):
        for path in tree:
            if path.suffix == ".py" and path.parts[:2] == ("node_agent", part):
                assert "grpc" not in {name for name, _ in imported((root / path).read_text())}, path


def test_the_reader_of_imports_sees_the_hidden_ones():
    assert imported("def f():\n    from controller.api import x\n    import cli.main, os") == {
        ("controller", 2), ("cli", 3), ("os", 3)}
