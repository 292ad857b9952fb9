"""Builds what is generated: wire stubs from proto/, Cython extensions from vcpu/ and node_agent/.

    python setup.py build_proto                 stubs -> virga/
    python setup.py build_ext --inplace -j2     extensions, in parallel, next to their sources
    VIRGA_EXT=vcpu._core,... python setup.py build_ext --inplace     only those
    python setup.py build_all                   generator, stubs, then one process per extension: what `make build` runs

An extension is one .pyx, hand-written or generated into build/gen/ by `python vcpu/isa/generate.py`.
Each is built under a lock of its own, so that builds side by side don't disturb each other.
"""

import fcntl
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Command, Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
GEN = ROOT / "build" / "gen"

# module name -> source, relative to the root
EXTENSIONS = {
    "vcpu._core": "vcpu/_core.pyx",
    "vcpu.ops._integer": "build/gen/_integer.pyx",
    "vcpu.ops._system": "vcpu/ops/_system.pyx",
    "vcpu.ops._x87": "build/gen/_x87.pyx",
    "vcpu.ops._sse": "build/gen/_sse.pyx",
}

CFLAGS = ["-O2", "-g0", "-fno-stack-protector", "-fcf-protection=none", "-fno-strict-aliasing",
          "-foptimize-sibling-calls",
          # the rare half of a handler must not be inlined back into the hot one
          "-fno-inline-functions-called-once", "-fno-inline-small-functions",
          # each handler keeps a jump of its own: the host predicts them apart
          "-fno-crossjumping", "-fno-tree-tail-merge", "-fno-partial-inlining", "-fno-ipa-icf", "-fvisibility=hidden", "-w"]
DIRECTIVES = {
    "language_level": "3str", "boundscheck": False, "wraparound": False, "cdivision": True,
    "initializedcheck": False, "nonecheck": False, "overflowcheck": False, "binding": False,
    "freethreading_compatible": False,
}


class build_proto(Command):
    """Generate the Python stubs of every .proto into the top-level package virga/."""

    user_options: list[tuple[str, str, str]] = []

    def initialize_options(self) -> None: ...

    def finalize_options(self) -> None: ...

    def run(self) -> None:
        protos = sorted((ROOT / "proto").rglob("*.proto"))
        if not protos:
            return
        stamp = ROOT / "build" / "stubs.stamp"
        if stamp.exists() and all(p.stat().st_mtime < stamp.stat().st_mtime for p in protos):
            return
        subprocess.run([sys.executable, "-m", "grpc_tools.protoc", "-Iproto", "--python_out=.", "--pyi_out=.",
                        "--grpc_python_out=.", *(str(p.relative_to(ROOT)) for p in protos)], cwd=ROOT, check=True)
        stamp.parent.mkdir(exist_ok=True)
        stamp.touch()


class build_extensions(build_ext):
    """build_ext that runs the generator and Cython for one extension at a time, under a lock."""

    def finalize_options(self) -> None:
        super().finalize_options()
        # Cython is an import of the build alone; setuptools must not run it on its own
        for ext in self.extensions:
            ext._needs_stub = False

    def build_extension(self, ext: Extension) -> None:
        from Cython.Build import cythonize

        locks = ROOT / "build" / "lock"
        locks.mkdir(parents=True, exist_ok=True)
        with open(locks / ext.name, "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if EXTENSIONS[ext.name].startswith("build/gen/_"):
                family = Path(EXTENSIONS[ext.name]).stem[1:]
                subprocess.run([sys.executable, "vcpu/isa/generate.py", family], cwd=ROOT, check=True)
            (made,) = cythonize(
                [Extension(ext.name, [EXTENSIONS[ext.name]], extra_compile_args=CFLAGS, include_dirs=[str(ROOT)])],
                build_dir="build/cython", include_path=["."], compiler_directives=DIRECTIVES,
                language_level=3, quiet=True)
            ext.sources, ext.depends = made.sources, made.depends
            ext.include_dirs = made.include_dirs
            super().build_extension(ext)


class build_all(Command):
    """Everything generated or compiled, in place: a process per extension, because Cython holds the GIL."""

    user_options: list[tuple[str, str, str]] = []

    def initialize_options(self) -> None: ...

    def finalize_options(self) -> None: ...

    def run(self) -> None:
        self.run_command("build_proto")
        if (ROOT / "vcpu" / "isa" / "generate.py").exists():
            subprocess.run([sys.executable, "vcpu/isa/generate.py"], cwd=ROOT, check=True)
        names = [name for name, source in EXTENSIONS.items() if (ROOT / source).exists()]
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            failed = [name for name, ok in zip(names, pool.map(self.compile, names)) if not ok]
        if failed:
            raise SystemExit(f"virga: could not compile {', '.join(failed)}")

    def compile(self, name: str) -> bool:
        start = time.monotonic()
        done = subprocess.run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=ROOT, text=True,
                              env={**os.environ, "VIRGA_EXT": name}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        print(f"virga:   {name} {time.monotonic() - start:.0f} s", flush=True)
        if done.returncode:
            print(done.stdout, flush=True)
        return done.returncode == 0


class build_python(build_py):
    def run(self) -> None:
        self.run_command("build_proto")
        super().run()


def extensions() -> list[Extension]:
    wanted = os.environ.get("VIRGA_EXT")      # empty: none (the editable install compiles nothing)
    names = list(EXTENSIONS) if wanted is None else [name for name in wanted.split(",") if name]
    return [Extension(name, [EXTENSIONS[name]], extra_compile_args=CFLAGS)
            for name in names if (ROOT / EXTENSIONS[name]).exists() or "build/gen" in EXTENSIONS[name]]


setup(ext_modules=extensions(), cmdclass={"build_proto": build_proto, "build_ext": build_extensions,
                                          "build_all": build_all, "build_py": build_python})
