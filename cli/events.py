"""`virga events`: what happened, oldest first.

Owns:    this verb. Never: changes anything. Threads: one.
"""

import json
import sys
from typing import Any

import click

from cli.options import Target, format_option, target_options
from cli.output import emit


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Go on with what happens, until Ctrl-C.")
@click.option("--for", "about", metavar="KIND/NAME", help="Only of one object: vm/web, node/node-1, image/debian-cloud.")
@format_option
@target_options
def events(target: Target, follow: bool, about: str | None, form: str) -> None:
    """What happened. Kept for a day."""
    from cli.api import every_page
    from cli.records import EVENT_COLUMNS, event_record
    from virga.v1 import event_pb2

    api = target.api()
    wanted = _object(about)
    if follow:
        _follow(api, wanted, form)
        return
    found = every_page(api, api.events.ListEvents, event_pb2.ListEventsRequest(object=wanted), "events")
    if form == "table":
        for event in found:
            click.echo(line(event_record(event)))
        if not found:
            print("nothing happened yet", file=sys.stderr)
    else:
        emit([event_record(event) for event in found], form, EVENT_COLUMNS)


def _object(about: str | None) -> Any:
    from virga.v1 import event_pb2

    if not about:
        return None
    kind, slash, name = about.partition("/")
    if kind not in ("vm", "node", "image", "migration") or not name:
        raise click.BadParameter("say KIND/NAME, as in vm/web (kinds: vm, node, image, migration)", param_hint="--for")
    return event_pb2.ObjectRef(kind=kind, name=name)


def _follow(api: Any, wanted: Any, form: str) -> None:
    from cli import waiting
    from cli.records import event_record
    from virga.v1 import event_pb2, vm_pb2

    with waiting.detachable("nothing was changed", "virga events -f"):
        for message in api.watch(api.events.WatchEvents, event_pb2.WatchEventsRequest(object=wanted)):
            if message.kind == vm_pb2.WATCH_KIND_PUT:
                record = event_record(message.event)
                click.echo(json.dumps(record) if form == "json" else line(record))


def line(record: dict[str, Any]) -> str:
    """12:04:07  vm/web  Started  …"""
    mark = "! " if record["severity"] == "WARNING" else ""
    return f"{record['time'][11:19]}  {record['object']:<20} {mark}{record['reason']:<18} {record['message']}".rstrip()
