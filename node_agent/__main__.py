"""`python -m node_agent WHAT …`: the hypervisor's programs, each imported only when asked for.

Owns:    the names below. Never: anything else; each program parses its own arguments.
"""

import importlib
import sys

# name -> (module, what it is); a module has main(argv: list[str]) -> int
PROGRAMS = {
    "run": ("node_agent.run", "one machine without a cloud"),
    "agent": ("node_agent.agent.main", "the agent of a node"),
    "zygote": ("node_agent.zygote.main", "the process that VM processes are forked from"),
    "image": ("node_agent.image.main", "build guest images"),
    "guest": ("node_agent.guest.build", "the tiny guest: path, build"),
}


def main(argv: list[str]) -> int:
    if not argv or argv[0] not in PROGRAMS:
        print("usage: python -m node_agent WHAT …", file=sys.stderr)
        for name, (_, text) in PROGRAMS.items():
            print(f"  {name:8} {text}", file=sys.stderr)
        return 2
    return importlib.import_module(PROGRAMS[argv[0]][0]).main(argv[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
