"""Options that many commands share, and values people write: sizes, key=value pairs, durations.

Owns:    --state, --endpoint …, -o, --timeout, --no-wait; parsing of sizes.
Never:   connects before a command asks (Target.api).
Threads: none.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli import output, state
from cli.tls import TlsFiles

if TYPE_CHECKING:
    from cli.api import Api

_FILE = click.Path(path_type=Path)
UNITS_MIB = {"K": 1 / 1024, "M": 1, "G": 1024, "T": 1024 * 1024}


@dataclass(frozen=True)
class Target:
    """Which cloud a command speaks to."""

    folder: Path
    endpoint: str | None
    token_file: Path | None
    tls: TlsFiles

    def api(self) -> "Api":
        from cli.api import connect
        return connect(self.folder, self.endpoint, self.token_file, self.tls)


def state_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--state", "folder", metavar="DIR", type=click.Path(), callback=lambda c, p, v: state.folder(v),
                        help="The cloud's folder (VIRGA_STATE; by default in the XDG state directory).")(command)


def target_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--state, --endpoint, --token-file, --tls-… → one argument `target`."""
    import functools

    @functools.wraps(command)
    def wrapped(folder: Path, endpoint: str | None, token_file: Path | None, tls_ca: Path | None, tls_cert: Path | None,
                tls_key: Path | None, **rest: Any) -> Any:
        return command(target=Target(folder, endpoint, token_file, TlsFiles(tls_ca, tls_cert, tls_key)), **rest)

    for name in ("tls-key", "tls-cert", "tls-ca", "token-file"):
        variable = "VIRGA_" + name.upper().replace("-", "_")
        wrapped = click.option(f"--{name}", envvar=variable, metavar="FILE", hidden=True, type=_FILE)(wrapped)
    wrapped = click.option("--endpoint", envvar="VIRGA_ENDPOINT", metavar="HOST:PORT", hidden=True)(wrapped)
    return state_option(wrapped)


def format_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("-o", "--output", "form", type=click.Choice(output.FORMATS), default="table", show_default=True,
                        help="How to print the result.")(command)


def wait_options(seconds: float) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """--timeout S and --no-wait. A time-out ends the waiting, never what was asked for."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        command = click.option("--no-wait", is_flag=True, help="Return at once.")(command)
        return click.option("--timeout", type=click.FloatRange(min=0.1), default=seconds, show_default=True, metavar="S",
                            help="Wait at most this many seconds; what was asked for goes on.")(command)

    return decorate


class MemoryType(click.ParamType):
    """256M, 2G, 512 (MiB) → MiB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        text = str(value).strip().upper().removesuffix("B").removesuffix("I")
        unit = text[-1:] if text[-1:] in UNITS_MIB else ""
        try:
            mib = float(text.removesuffix(unit)) * (UNITS_MIB[unit] if unit else 1)
        except ValueError:
            self.fail(f"{value!r} is no size; say 256M or 2G", param, ctx)
        if not 1 <= mib <= 1 << 20:
            self.fail(f"{value} is not between 1M and 1T", param, ctx)
        return int(mib)


def pairs(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """key=value, several by commas or by repeating the option."""
    found = {}
    for item in (item for value in values for item in value.split(",") if item):
        key, equals, value = item.partition("=")
        if not key or not equals:
            raise click.BadParameter(f"{item!r} is not KEY=VALUE", ctx, param)
        found[key] = value
    return found
