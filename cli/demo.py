"""`make demo`: a cloud of three nodes on this machine, from nothing to nothing, with every promise checked on the way.

Owns:    the story, step by step. Each step runs the commands a person would type, prints them and what they answer, and
         checks what it claims; the first claim that does not hold ends the demo with status 1.
Never:   uses anything but the `virga` command, and SIGKILL where the story wants a death. Leaves nothing running.
Threads: none.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cli import processes

COUNT = re.compile(r"^count (\d+)\r?$", re.M)
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")          # of a guest's shell, meant for a terminal of its own
LINUX_LOOP = "i=0; while :; do i=$((i+1)); echo count $i; usleep 50000; done"
BOLD, DIM, PLAIN = ("\x1b[1m", "\x1b[2m", "\x1b[0m") if sys.stdout.isatty() and not os.environ.get("NO_COLOR") else ("", "", "")


class Failed(Exception):
    """A claim of the story that did not hold."""


class Demo:
    """The cloud's folder, the clock, and the way commands are shown."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.began = time.monotonic()
        self.environment = {**os.environ, "VIRGA_STATE": str(folder)}
        self.linux = True

    def say(self, text: str) -> None:
        print(f"  {text}", flush=True)

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        start = time.monotonic()
        print(f"\n{BOLD}{title}{PLAIN}", flush=True)
        yield
        print(f"{DIM}  [{time.monotonic() - start:.1f} s; {time.monotonic() - self.began:.1f} s so far]{PLAIN}", flush=True)

    def start(self, line: str, *more: str) -> subprocess.Popen[str]:
        shown = " ".join([line, *(f"'{word}'" if " " in word else word for word in more)])
        print(f"  {DIM}${PLAIN} virga {shown}", flush=True)
        return subprocess.Popen([sys.executable, "-m", "cli.main", *line.split(), *more], env=self.environment, text=True,
                                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, errors="replace")

    def finish(self, running: subprocess.Popen[str], show: bool = True, may_fail: bool = False) -> str:
        out, err = running.communicate()
        for text in (out if show else "", err):
            for shown in ESCAPES.sub("", text).splitlines():
                self.say(shown.rstrip())
        if running.returncode and not may_fail:
            raise Failed(f"the command ended with status {running.returncode}")
        return out

    def virga(self, line: str, *more: str, show: bool = True) -> str:
        return self.finish(self.start(line, *more), show)

    def record(self, line: str, *more: str) -> Any:
        """What a command answers as JSON; not shown."""
        command = [sys.executable, "-m", "cli.main", *line.split(), *more, "-o", "json"]
        done = subprocess.run(command, env=self.environment, text=True, stdin=subprocess.DEVNULL, capture_output=True)
        if done.returncode and not done.stdout:
            raise Failed(f"virga {line}: {done.stderr.strip()}")
        return json.loads(done.stdout)

    def claim(self, holds: bool, text: str) -> None:
        self.say(f"{'✓' if holds else '✗'} {text}")
        if not holds:
            raise Failed(text)


def boot_cloud(demo: Demo) -> None:
    demo.virga("up --nodes 3")
    nodes = demo.record("node list")
    demo.virga("node list")
    demo.claim([node["state"] for node in nodes] == ["READY"] * 3, "three nodes are ready")


def make_image(demo: Demo) -> None:
    """Debian's kernel where it can be had; else the tiny guest plays every part, and the demo says so."""
    running = demo.start("image build debian-cloud")
    demo.finish(running, may_fail=True)
    demo.linux = running.returncode == 0
    if not demo.linux:
        demo.say("Debian's packages cannot be had here, so a tiny guest of our own plays all parts.")
        guest = subprocess.run([sys.executable, "-m", "node_agent", "guest", "path"], capture_output=True, text=True, check=True)
        demo.virga("image import tiny --kernel", guest.stdout.strip(), "--append", "count rate=20 prefix", "--ready-marker", "# ready")


def make_machines(demo: Demo) -> None:
    image = "debian-cloud" if demo.linux else "tiny"
    both = [demo.start(f"vm create web --count 3 --image {image}"), demo.start(f"vm create duo --cpus 2 --image {image}")]
    for running in both:
        demo.finish(running)
    demo.virga("vm list")
    vms = demo.record("vm list")
    demo.claim(len(vms) == 4 and {vm["state"] for vm in vms} == {"RUNNING"}, "four machines run, one of them with two processors")
    demo.claim(len({vm["node"] for vm in vms}) == 3, "the scheduler spread them over all nodes")


def talk_to_them(demo: Demo) -> None:
    if not demo.linux:
        demo.claim("count" in demo.virga("vm console web-1 --read-only --until", "count [0-9]+", show=False), "the guest speaks")
        return
    told = demo.virga("vm console web-1 --send", "uname -a", "--until", "Linux .*GNU/Linux")
    demo.claim("GNU/Linux" in told, "that is Debian's own kernel")
    told = demo.virga("vm console duo --send", "echo processors: $(nproc)", "--until", "processors: [0-9]+")
    demo.claim("processors: 2" in told, "duo's Linux sees two processors")


def count_aloud(demo: Demo) -> None:
    if demo.linux:
        demo.virga("vm console web-2 --send", LINUX_LOOP, "--until", "count 5", show=False)


def numbers(demo: Demo) -> list[int]:
    return [int(number) for number in COUNT.findall(demo.virga("vm log web-2", show=False))]


def claim_counting(demo: Demo, after: int, when: str) -> int:
    """web-2 has counted on beyond `after`, without a number missing or twice; the last number."""
    seen = numbers(demo)
    for _ in range(50):
        if seen and seen[-1] > after:
            break
        time.sleep(0.2)
        seen = numbers(demo)
    demo.claim(bool(seen) and seen[-1] > after and seen == list(range(1, seen[-1] + 1)),
               f"{when}: it counted on to {seen[-1] if seen else 0}, no number missing or twice")
    return seen[-1]


def move_it_live(demo: Demo) -> None:
    last = claim_counting(demo, 0, "before")
    before = demo.record("vm show web-2")
    demo.say(f"{DIM}${PLAIN} virga vm migrate web-2")
    moved = demo.record("vm migrate web-2")
    demo.claim(moved["phase"] == "SUCCEEDED", f"the migration {moved['phase'].lower()} {moved['message'] or ''}".rstrip())
    demo.say(f"moved {moved['source']} → {moved['target']} in {moved['total_ms']:.0f} ms: {moved['rounds']} rounds, "
             f"{moved['bytes'] / 2**20:.1f} MiB; gap {moved['gap_ms']:.1f} ms, {moved['decision_ms']:.1f} ms of it the decision")
    after = demo.record("vm show web-2")
    demo.claim(after["node"] == moved["target"] != before["node"] and after["run"] == before["run"], "the same run, another node")
    claim_counting(demo, last + 5, "after the move")


def kill_and_heal(demo: Demo) -> None:
    last = claim_counting(demo, 0, "before")
    node = demo.record("vm show web-2")["node"]
    for victim in (f"agent-{node}", "controller"):
        components = {part["name"]: part for part in demo.record("status")["components"]}
        demo.say(f"kill -9 of {victim} (pid {components[victim]['pid']})")
        os.kill(components[victim]["pid"], signal.SIGKILL)
        time.sleep(1.0)
        demo.virga("up")
        last = claim_counting(demo, last + 20, f"without its {victim.split('-')[0]} for a while")
    vms = demo.record("vm list")
    demo.claim([vm["run"] for vm in vms] == [1] * 4 and {vm["state"] for vm in vms} == {"RUNNING"},
               "all four still run, none was started again")


def look_inside(demo: Demo) -> None:
    demo.virga("vm exits web-1")
    demo.virga("events --for vm/web-2")


def take_down(demo: Demo) -> None:
    demo.virga("down")
    demo.claim(not processes.belonging_to(demo.folder), "nothing is left running")


STEPS = (("A cloud of three nodes", boot_cloud), ("An image from Debian's own packages", make_image),
         ("Four machines", make_machines), ("At their consoles", talk_to_them), ("One of them counts aloud", count_aloud),
         ("… and moves to another node meanwhile", move_it_live), ("An agent and the controller are killed", kill_and_heal),
         ("What the hypervisor saw", look_inside), ("All taken down", take_down))


def main() -> int:
    folder = Path(tempfile.mkdtemp(prefix="virga-demo-"))
    demo = Demo(folder)
    try:
        for title, play in STEPS:
            with demo.step(title):
                play(demo)
    except (Failed, KeyboardInterrupt, OSError, ValueError, KeyError) as error:
        print(f"\nThe demo failed: {error or type(error).__name__}\n  logs and state: {folder}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "cli.main", "down", "--force"], env=demo.environment, stdout=subprocess.DEVNULL)
        return 1
    shutil.rmtree(folder)
    print(f"\nThat was Virga, in {time.monotonic() - demo.began:.0f} s. Your own cloud: .venv/bin/virga up")
    return 0


if __name__ == "__main__":
    sys.exit(main())
