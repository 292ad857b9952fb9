"""What is committed: nothing generated, no binaries, nobody's paths or registries, no promises instead of code."""

import os
import re
import subprocess

GENERATED = re.compile(r"(_pb2(_grpc)?\.pyi?|\.so|\.o|\.elf|\.img|\.deb|\.pyc)$|^(build|virga|\.venv)/|egg-info")
# put together from pieces, so that this file does not find itself
REGISTRIES = re.compile("|".join(["py" + r"pi\.(org|io)", "python" + r"hosted\.org", "npm" + r"js\.(org|com)",
                                  "crates" + r"\.io"]))
PROMISES = re.compile(r"#\s*(TO" + "DO|FIX" + "ME|X" + "XX)|raise Not" + "ImplementedError")
TEXT = {".py", ".pyx", ".pxd", ".pxi", ".md", ".toml", ".proto", ".sh", ".S", ".c", ".h", ".ld", ""}


def lines_of(tree, root, suffixes=TEXT):
    for path in tree:
        if path.suffix in suffixes:
            for number, line in enumerate((root / path).read_text().splitlines(), 1):
                yield path, number, line


def test_nothing_generated_is_committed(root):
    tracked = subprocess.run(["git", "ls-files"], cwd=root, capture_output=True, text=True, check=True).stdout.split()
    assert not [name for name in tracked if GENERATED.search(name)]


def test_no_binaries(tree, root):
    assert not [str(path) for path in tree if b"\0" in (root / path).read_bytes()[:8192]]


def test_no_registry_and_no_home_of_ours(tree, root):
    home = re.compile(re.escape(str(root)) + r"(/|\b)")
    found = [f"{path}:{number}" for path, number, line in lines_of(tree, root) if REGISTRIES.search(line) or home.search(line)]
    assert not found, found


def test_no_promises_instead_of_code(tree, root):
    code = TEXT - {".md"}
    found = [f"{path}:{number}: {line.strip()}" for path, number, line in lines_of(tree, root, code) if PROMISES.search(line)]
    assert not found, found


def test_ci_calls_what_the_readme_says(root):
    run = root / ".ci" / "run"
    assert os.access(run, os.X_OK) and "make test" in run.read_text()
    readme = (root / "README.md").read_text()
    assert "make demo" in readme and "make test" in readme


def test_every_target_of_the_makefile_explains_itself(root):
    makefile = (root / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.M).group(1).split()
    shown = subprocess.run(["make", "help"], cwd=root, capture_output=True, text=True, check=True).stdout
    hidden = {"tools"}                                    # part of build, not for people
    assert {line.split()[1] for line in shown.splitlines() if line.split()[:1] == ["make"]} == set(phony) - hidden


def test_test_files_have_names_of_their_own(tree):
    """Tests outside packages are imported by their bare name; two of one name cannot be collected together."""
    names = [path.name for path in tree if path.parts[0] == "tests" and path.name.startswith("test_")]
    assert sorted(set(names)) == sorted(names), [name for name in set(names) if names.count(name) > 1]
