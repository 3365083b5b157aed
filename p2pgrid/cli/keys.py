"""`p2pgrid keys`: who may use this machine's gateways."""

import time
from typing import Annotated, Any

from cyclopts import App, Parameter
from rich.table import Table
from rich.text import Text

from p2pgrid.cli.console import print_json, say, show, stdout
from p2pgrid.cli.options import Json
from p2pgrid.errors import BadInput
from p2pgrid.gateway.keys import NAME_MAX, SCOPES, KeyRecord, KeyStore, Scope, new_key
from p2pgrid.storage.paths import data_dir

app = App(
    name="keys", help="API keys for the gateways of this machine. Only a hash of each is kept.", help_format="plaintext"
)


@app.command
def add(
    name: Annotated[str, Parameter(help="Whose it is: a word to know it by.")],
    *,
    scope: Annotated[
        list[Scope] | None, Parameter(negative=(), help="What it is good for; several are fine. Default: not admin.")
    ] = None,
    requests_per_min: Annotated[int, Parameter(help="0 = as many as there is room for.")] = 0,
    tokens_per_day: Annotated[int, Parameter(help="Of prompts and answers, until midnight UTC; 0 = any.")] = 0,
    json: Json = False,
) -> None:
    """Make a key and show it, this once. Running gateways know it at once.

    Example: p2pgrid keys add alice --requests-per-min 60
    """
    if not 0 < len(name) <= NAME_MAX or not name.isprintable():
        raise BadInput(f"a key's name has 1 to {NAME_MAX} letters, on one line")
    if requests_per_min < 0 or tokens_per_day < 0:
        raise BadInput("--requests-per-min and --tokens-per-day take 0 (no limit) or more")
    scopes = tuple(dict.fromkeys(scope or [each for each in SCOPES if each != "admin"]))
    key, record = new_key(
        name, scopes, requests_per_min=requests_per_min, tokens_per_day=tokens_per_day, now_s=time.time()
    )
    KeyStore(data_dir()).add(record)
    if json:
        print_json({"key": key, **_document(record)})
    else:
        show(key)
        say(f"good for {', '.join(scopes)}; it is not kept here, so keep it yourself. Its id is {record.id}")


@app.command(name="list")
def list_keys(*, json: Json = False) -> None:
    """Show the keys that there are; what they are is not kept.

    Example: p2pgrid keys list
    """
    records = KeyStore(data_dir()).records()
    if json:
        print_json({"keys": [_document(record) for record in records]})
        return
    table = Table()
    for column in ("id", "name", "good for", "requests a minute", "tokens a day", "made"):
        table.add_column(column, overflow="fold")
    for record in records:
        made = time.strftime("%Y-%m-%d", time.gmtime(record.created_at_s))
        limits = [str(limit) if limit else "any" for limit in (record.requests_per_min, record.tokens_per_day)]
        table.add_row(record.id, Text(record.name), ", ".join(record.scopes), *limits, made)
    stdout.print(table)


@app.command
def revoke(
    key_id: Annotated[str, Parameter(help="The key's id, as `p2pgrid keys list` shows it.")], *, json: Json = False
) -> None:
    """Make a key worthless, in running gateways too.

    Example: p2pgrid keys revoke 1f2e3d4c5b
    """
    KeyStore(data_dir()).revoke(key_id)
    if json:
        print_json({"revoked": key_id})
    else:
        say(f"the key {key_id} is no longer good")


def _document(record: KeyRecord) -> dict[str, Any]:
    return {
        "id": record.id,
        "name": record.name,
        "scopes": list(record.scopes),
        "requests_per_min": record.requests_per_min,
        "tokens_per_day": record.tokens_per_day,
        "created_at_s": record.created_at_s,
    }
