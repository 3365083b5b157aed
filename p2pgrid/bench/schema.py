"""The JSON schema of a benchmark's document: `python -m p2pgrid.bench.schema > docs/benchmarks/schema.json`."""

import sys

import msgspec

from p2pgrid.bench.document import Document


def schema() -> bytes:
    """Formatted, with a line's end: the text of docs/benchmarks/schema.json."""
    return msgspec.json.format(msgspec.json.encode(msgspec.json.schema(Document), order="sorted")) + b"\n"


if __name__ == "__main__":
    sys.stdout.write(schema().decode())
