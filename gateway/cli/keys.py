"""Keys: the command line's way to virtual keys, on the database itself, beside gateways that run or not.

A new secret is the only line on standard output, so that `KEY=$(spanbill keys create --user alice)` has it;
what there is to say besides goes to standard error.
"""

from __future__ import annotations

import getpass
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Final, Literal

import msgspec
import typer
from msgspec import UNSET

from gateway.assembly import plane_of
from gateway.cli.printing import display, table_of
from gateway.cli.stopping import settings_or_stop, stop
from gateway.control.following import SPREAD_S
from gateway.control.keys import Keys, Made, Wanted
from gateway.control.makers import Maker
from gateway.control.records import Record, State, instant, shown
from gateway.control.terms import Fields
from gateway.core.errors import CallerError, SpanbillError
from gateway.settings import SettingsError

NOTHING: Final = "-"
"""What takes a value away."""
UNITS: Final = {"m": 60, "h": 3_600, "d": 86_400, "w": 7 * 86_400}

app = typer.Typer(no_args_is_help=True, help="Virtual keys: create, list, show, change and end them.")

KeyId = Annotated[str, typer.Argument(help="Public id of the key.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
Name = Annotated[str | None, typer.Option(help="What to call the key.")]
UserName = Annotated[str | None, typer.Option(help="Display name of the owner.")]
Team = Annotated[str | None, typer.Option(help="Team that it is billed to.")]
Project = Annotated[str | None, typer.Option(help="Project that it is billed to.")]
Tags = Annotated[list[str] | None, typer.Option("--tag", help="Tag on its bills; more than once.")]
Models = Annotated[
    list[str] | None, typer.Option("--model", help="Model it may name, or pattern with `*`; more than once.")
]
Endpoints = Annotated[
    list[str] | None, typer.Option("--endpoint", help="Endpoint it may use; more than once.")
]
Expires = Annotated[
    str | None, typer.Option(help="When it ends: 90d, 12h, 30m, or a time such as 2027-01-31T00:00:00Z.")
]
OnDisconnect = Annotated[Literal["drain", "cancel"] | None, typer.Option(help="When a caller leaves.")]
Unpriced = Annotated[Literal["serve", "refuse"] | None, typer.Option(help="For models without a rate.")]
MayCreate = Annotated[
    bool | None, typer.Option("--may-create-keys/--may-not-create-keys", help="Within what it has itself.")
]


@app.command()
def create(
    user: Annotated[str, typer.Option(help="Owner of the key.")],
    name: Name = None,
    user_name: UserName = None,
    team: Team = None,
    project: Project = None,
    tag: Tags = None,
    model: Models = None,
    endpoint: Endpoints = None,
    expires: Expires = None,
    on_disconnect: OnDisconnect = None,
    unpriced: Unpriced = None,
    may_create_keys: MayCreate = None,
    json: Json = False,
) -> None:
    """Make a key and print it; nobody can have it again."""
    fields = _fields(
        user=user,
        name=name,
        user_name=user_name,
        team=team,
        project=project,
        tags=tag,
        models=model,
        endpoints=endpoint,
        expires_at=expires,
        on_disconnect=on_disconnect,
        unpriced=unpriced,
        may_create_keys=may_create_keys,
    )
    with _keys() as (keys, maker):
        _tell(keys.create(fields, maker), json)


@app.command("list")
def list_(
    user: Annotated[str | None, typer.Option(help="Only keys of this owner.")] = None,
    team: Annotated[str | None, typer.Option(help="Only keys of this team.")] = None,
    project: Annotated[str | None, typer.Option(help="Only keys of this project.")] = None,
    created_by: Annotated[str | None, typer.Option(help="Only keys that this key made.")] = None,
    state: Annotated[State | None, typer.Option(help="Only keys in this state.")] = None,
    after: Annotated[str | None, typer.Option(help="Only keys that come after this one.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many at most.")] = 100,
    json: Json = False,
) -> None:
    """List keys, newest first."""
    wanted = Wanted(
        user=user, team=team, project=project, created_by=created_by, state=state, after=after, limit=limit
    )
    with _keys() as (keys, maker):
        page = keys.listed(wanted, maker)
    rows = [shown(record, time.time_ns()) for record in page.records]
    if json:
        _print({"object": "list", "data": rows, "has_more": page.more})
        return
    columns = ("id", "state", "name", "user", "team", "project", "models", "endpoints", "expires_at")
    table = table_of(*columns)
    for row in rows:
        table.add_row(*[_cell(row[column]) for column in columns])
    display(table)
    if page.more:
        print(f"there are more: --after {rows[-1]['id']}", file=sys.stderr)


@app.command()
def show(key_id: KeyId, json: Json = False) -> None:
    """Show all that is known of a key."""
    with _keys() as (keys, maker):
        _tell(keys.get(key_id, maker), json, changed=False)


@app.command()
def update(
    key_id: KeyId,
    user: Annotated[str | None, typer.Option(help="Another owner, from now on.")] = None,
    name: Name = None,
    user_name: UserName = None,
    team: Team = None,
    project: Project = None,
    tag: Tags = None,
    model: Models = None,
    endpoint: Endpoints = None,
    expires: Expires = None,
    on_disconnect: OnDisconnect = None,
    unpriced: Annotated[
        Literal["serve", "refuse", "-"] | None, typer.Option(help="For models without a rate.")
    ] = None,
    may_create_keys: MayCreate = None,
    json: Json = False,
) -> None:
    """Change what a key is for: what is left out stays, and `-` takes a value or a bound away."""
    fields = _fields(
        user=user,
        name=name,
        user_name=user_name,
        team=team,
        project=project,
        tags=tag,
        models=model,
        endpoints=endpoint,
        expires_at=expires,
        on_disconnect=on_disconnect,
        unpriced=unpriced,
        may_create_keys=may_create_keys,
    )
    with _keys() as (keys, maker):
        _tell(keys.update(key_id, fields, maker), json)


@app.command()
def disable(key_id: KeyId, json: Json = False) -> None:
    """Let a key open nothing until it is enabled; gateways know within a second."""
    with _keys() as (keys, maker):
        _tell(keys.disable(key_id, maker), json)


@app.command()
def enable(key_id: KeyId, json: Json = False) -> None:
    """Let a disabled key open again what it did."""
    with _keys() as (keys, maker):
        _tell(keys.enable(key_id, maker), json)


@app.command()
def rotate(
    key_id: KeyId,
    grace: Annotated[str, typer.Option(help="How long the old secret is good, too: 10m, 24h.")] = "0m",
    json: Json = False,
) -> None:
    """Give a key another secret and print it; its id and its bills go on."""
    with _keys() as (keys, maker):
        _tell(keys.rotate(key_id, maker, _seconds(grace, "--grace")), json)


@app.command()
def revoke(key_id: KeyId, json: Json = False) -> None:
    """End a key for good; its record stays, for its bills."""
    with _keys() as (keys, maker):
        _tell(keys.revoke(key_id, maker), json)


def _fields(**said: Any) -> Fields:
    """Return what the options say; none is unset, and `-` is null, or an empty list of tags."""
    for name, value in said.items():
        if value is None:
            said[name] = UNSET
        elif value in (NOTHING, [NOTHING]) and name not in ("user", "on_disconnect"):
            said[name] = [] if name == "tags" else None
    expires = said["expires_at"]
    if isinstance(expires, str) and expires[-1:] in UNITS:
        said["expires_at"] = instant(time.time_ns() + _seconds(expires, "--expires") * 1_000_000_000)
    return Fields(**said)


def _seconds(text: str, option: str) -> int:
    found = re.fullmatch(r"([0-9]{1,6})([mhdw])", text)
    if found is None:
        stop(f"{option}: say it as 30m, 12h, 90d or 2w", 2)
    return int(found[1]) * UNITS[found[2]]


@contextmanager
def _keys() -> Iterator[tuple[Keys, Maker]]:
    """Open the keys for one command; what is wrong ends the process with 2, or 78 where they are away."""
    settings = settings_or_stop()
    try:
        plane = plane_of(settings)
    except SettingsError as fault:
        stop(str(fault))
    try:
        yield plane.keys, Maker(who=f"cli:{_user()}")
    except CallerError as fault:
        stop(fault.message, 2)
    except SpanbillError as fault:
        stop(f"{fault.message}: {fault.__cause__}")
    finally:
        plane.close()


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return "nameless"


def _tell(outcome: Record | Made, json: bool, *, changed: bool = True) -> None:
    if changed:
        time.sleep(SPREAD_S)
    record = outcome.record if isinstance(outcome, Made) else outcome
    secret = outcome.secret if isinstance(outcome, Made) else None
    row = shown(record, time.time_ns())
    if json:
        _print(row if secret is None else {**row, "key": secret.reveal()})
        return
    table = table_of("", record.id)
    for name, value in row.items():
        if name not in ("object", "id") and value not in (None, [], False):
            table.add_row(name, _cell(value))
    display(table, to_errors=secret is not None)
    if secret is not None:
        print("The key itself, which is shown this once:", file=sys.stderr, flush=True)
        print(secret.reveal())


def _cell(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(value)
    return "" if value is None else "yes" if value is True else str(value)


def _print(document: dict[str, Any]) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(document) + b"\n")
