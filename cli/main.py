"""The `virga` command's entry: nouns and verbs, each loaded when it is used.

Owns:    the tree of commands, its help, and how errors leave the process.
Never:   imports grpc, rich or a stub itself: `virga --help` has to answer within 100 ms.
Threads: none.
"""

import importlib
import os
import sys
from typing import Any

import click

from cli.errors import CliError

# name -> (module:attribute, short help)
COMMANDS = {
    "up": ("cli.cloud:up", "start a cloud on this machine (or what of it died)"),
    "down": ("cli.cloud:down", "stop it, virtual machines included"),
    "status": ("cli.cloud:status", "what runs, where it listens, where its state is"),
    "vm": ("cli.vm:vm", "virtual machines: create, list, console, migrate …"),
    "node": ("cli.node:node", "nodes: list, cordon, drain …"),
    "image": ("cli.image:image", "images: build, import, list, delete"),
    "events": ("cli.events:events", "what happened"),
    "run": ("cli.run:run", "run one machine on this terminal, without a cloud"),
}


class LazyGroup(click.Group):
    """A group whose members are imported when called; their short help stands in the table above."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module, attribute = COMMANDS[name][0].split(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
             epilog="Exit codes: 0 done, 1 failure, 2 usage, 3 not found, 4 conflict, 5 refused, 6 timed out, "
                    "7 unreachable.  VIRGA_STATE names the cloud's folder, VIRGA_ENDPOINT another controller "
                    "(with VIRGA_TOKEN_FILE, and off loopback VIRGA_TLS_CA; VIRGA_TLS_CERT and VIRGA_TLS_KEY where it asks).")
@click.version_option(package_name="virga", message="%(prog)s %(version)s")
def virga() -> None:
    """Virga: a whole cloud in software. `virga up` starts one on this machine."""


def main(arguments: list[str] | None = None) -> None:
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """The exit code of one command line."""
    try:
        result: Any = virga.main(arguments, prog_name="virga", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except CliError as error:
        print_error(error)
        return error.code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.exceptions.Exit as leave:
        return leave.exit_code
    except (click.Abort, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())     # or the interpreter complains at exit
        return 0


def print_error(error: CliError) -> None:
    first, *rest = error.lines()
    if sys.stderr.isatty() and not os.environ.get("NO_COLOR"):
        first = click.style(first.split(":", 1)[0], fg="red") + ":" + first.split(":", 1)[1]
    print("\n".join([first, *rest]), file=sys.stderr)


if __name__ == "__main__":
    main()
