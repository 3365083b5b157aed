"""The page at `/`: static files of this package, sent with a content security policy that lets nothing else in."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

START = "index.html"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
CACHE = "no-cache"
"""Kept by browsers, but asked for each time: an unchanged file costs an answer without a body."""

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": CACHE,
}


@dataclass(frozen=True)
class File:
    """One file of the page, in memory."""

    body: bytes
    kind: str

    @property
    def etag(self) -> str:
        return f'"{hashlib.sha256(self.body).hexdigest()[:32]}"'


def routes() -> list[Route]:
    """A route to each file of the page, and `/` to the first one. Nobody can ask for anything else."""
    files = read_files(resources.files("p2pgrid.gateway") / "page")
    return [_route("/", files[START]), *(_route(f"/page/{name}", file) for name, file in files.items())]


def read_files(folder: Traversable) -> Mapping[str, File]:
    """The files of `folder` by name, those of unknown types left out."""
    found = {}
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        kind = TYPES.get("." + entry.name.rpartition(".")[2])
        if kind is not None:
            found[entry.name] = File(entry.read_bytes(), kind)
    return found


def _route(path: str, file: File) -> Route:
    headers = {**HEADERS, "ETag": file.etag}

    async def send(request: Request) -> Response:
        if file.etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(file.body, media_type=file.kind, headers=headers)

    return Route(path, send, methods=["GET"])
