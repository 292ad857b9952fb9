"""`virga run`: one machine on this terminal. All of it is the hypervisor's; this only starts it.

Owns:    nothing. Never: parses the machine's arguments. Threads: none.
"""

import os
import sys

import click


@click.command(context_settings={"ignore_unknown_options": True, "help_option_names": []}, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def run(arguments: tuple[str, ...]) -> None:
    """Run one machine on this terminal, without a cloud. Ctrl-A X leaves it."""
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "node_agent", "run", *arguments])
