"""`p2pgrid models`: get models onto this machine, see them, remove them."""

import re
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from rich.table import Table

from p2pgrid.cli.console import print_json, progress_bar, say, stdout
from p2pgrid.cli.console import show as show_line
from p2pgrid.cli.options import Json
from p2pgrid.cli.running import run_async
from p2pgrid.services import weights
from p2pgrid.storage.catalogue import catalogue
from p2pgrid.storage.models import ModelStore
from p2pgrid.storage.paths import data_dir
from p2pgrid.wire.manifest import Manifest

app = App(name="models", help="Get models onto this machine, see them, remove them.")


@app.command
def pull(name: str, /, *, json: Json = False) -> int:
    """Download a model of the catalogue.

    Doing it again is quick, and an interrupted download leaves nothing behind.

    Example: p2pgrid models pull smollm2-135m-instruct
    """
    with progress_bar(f"pulling {name}") as advance:
        obtained = run_async(partial(weights.pull, name, ModelStore(data_dir()), advance))
    return _tell(obtained, json)


@app.command(name="import")
def import_(
    file: Path,
    /,
    *,
    name: Annotated[str | None, Parameter(help="What to call it. Default: from the file's name.")] = None,
    json: Json = False,
) -> int:
    """Copy a checkpoint (a GGUF file) into the store.

    Example: p2pgrid models import my-model.gguf --name my-model
    """
    chosen = name or re.sub(r"[^a-z0-9._-]+", "-", file.stem.lower()).strip("-._")
    with progress_bar(f"importing {file.name}") as advance:
        obtained = run_async(partial(weights.import_file, file, chosen, ModelStore(data_dir()), advance))
    return _tell(obtained, json)


@app.command(name="list")
def list_(*, json: Json = False) -> int:
    """List the models on this machine, and those that can be pulled.

    Example: p2pgrid models list
    """
    here = ModelStore(data_dir()).models()
    names = {one.name for one in here}
    more = {name: entry for name, entry in catalogue().items() if name not in names}
    if json:
        models = [_described(one.name, one.model, one.manifest) | {"problem": one.problem or None} for one in here]
        print_json({"models": models, "catalogue": {name: entry.model for name, entry in more.items()}})
        return 0
    table = Table("name", "model id", "layers", "size", "")
    for one in here:
        layers, size = (str(one.manifest.layers), _megabytes(one.manifest.weights_bytes)) if one.manifest else ("", "")
        table.add_row(one.name, (one.model or "")[:12], layers, size, one.problem or "here")
    for name, entry in more.items():
        table.add_row(name, entry.model[:12], "", _megabytes(entry.bytes), f"get it: p2pgrid models pull {name}")
    stdout.print(table)
    return 0


@app.command
def show(name: str, /, *, json: Json = False) -> int:
    """Show what is known of a model on this machine, by its name or its id.

    Example: p2pgrid models show smollm2-135m-instruct
    """
    store = ModelStore(data_dir())
    model, manifest = store.manifest(name)
    document = _described(name, model, manifest) | {"checkpoint": str(store.checkpoint(model))}
    if json:
        print_json(document)
        return 0
    for key, value in document.items():
        show_line(f"{key.replace('_', ' '):>16}  {value}")
    return 0


@app.command
def remove(name: str, /, *, json: Json = False) -> int:
    """Forget a model; its file is deleted unless another name needs it.

    Example: p2pgrid models remove smollm2-135m-instruct
    """
    freed = ModelStore(data_dir()).remove(name)
    if json:
        print_json({"name": name, "freed_bytes": freed})
    else:
        say(f"removed {name}; this freed {_megabytes(freed)}")
    return 0


def _tell(obtained: weights.Obtained, json: bool) -> int:
    if json:
        print_json(obtained)
    elif obtained.already:
        say(f"{obtained.name} is already here: model {obtained.model[:12]}…")
    else:
        say(f"{obtained.name} is here: model {obtained.model[:12]}…, {_megabytes(obtained.nbytes)}")
    return 0


def _described(name: str, model: str | None, manifest: Manifest | None) -> dict[str, Any]:
    document: dict[str, Any] = {"name": name, "model": model}
    if manifest is not None:
        kinds = sorted({entry.kind for entry in manifest.tensors})
        document |= {
            "architecture": manifest.architecture,
            "layers": manifest.layers,
            "hidden": manifest.hidden,
            "heads": manifest.heads,
            "kv_heads": manifest.kv_heads,
            "vocab": manifest.vocab,
            "context": manifest.context,
            "kinds": kinds,
            "bytes": manifest.weights_bytes,
            "sha256": manifest.weights,
        }
    return document


def _megabytes(nbytes: int) -> str:
    return f"{nbytes / 1e6:.1f} MB"
