"""A file around 600 lines at most, a function around 40; past 900 and 80 somebody has to give a reason here."""

import ast

FILE_LINES, FUNCTION_LINES, README_LINES = 900, 80, 60
# path → reason; an entry that is no longer needed fails the test
LONG_FILES: dict[str, str] = {}
LONG_FUNCTIONS: dict[str, str] = {}
CODE = {".py", ".pyx", ".pxd", ".pxi", ".c", ".S", ".h", ".sh"}


def test_files(tree, root):
    long = {str(path) for path in tree if path.suffix in CODE and len((root / path).read_text().splitlines()) > FILE_LINES}
    assert not long - set(LONG_FILES), f"split them, or give a reason: {sorted(long - set(LONG_FILES))}"
    assert not set(LONG_FILES) - long, f"no longer long: {sorted(set(LONG_FILES) - long)}"


def test_functions(tree, root):
    long = set()
    for path in tree:
        if path.suffix == ".py":
            for node in ast.walk(ast.parse((root / path).read_text())):
                if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno is not None:
                    if node.end_lineno - node.lineno + 1 > FUNCTION_LINES:
                        long.add(f"{path}:{node.name}")
    assert not long - set(LONG_FUNCTIONS), f"split them, or give a reason: {sorted(long - set(LONG_FUNCTIONS))}"
    assert not set(LONG_FUNCTIONS) - long, f"no longer long: {sorted(set(LONG_FUNCTIONS) - long)}"


def test_each_part_has_a_short_readme(root):
    for part in ("cli", "controller", "node_agent", "vcpu", "proto", "bench", "docs", "tests"):
        readme = root / part / "README.md"
        assert readme.exists(), f"{part}/README.md is missing"
        assert len(readme.read_text().splitlines()) <= README_LINES, f"{part}/README.md is long"
