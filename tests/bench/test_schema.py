"""The schema that is published is the one of the code."""

import json
from pathlib import Path

import msgspec
import pytest

from p2pgrid.bench.document import Document, Row
from p2pgrid.bench.schema import schema

PUBLISHED = Path(__file__).resolve().parents[2] / "docs" / "benchmarks" / "schema.json"


def test_the_published_schema_is_that_of_the_documents() -> None:
    """When it is not: python -m p2pgrid.bench.schema > docs/benchmarks/schema.json"""
    assert PUBLISHED.read_bytes() == schema()


def test_every_field_of_a_document_is_in_the_schema() -> None:
    kinds = json.loads(PUBLISHED.read_text())["$defs"]
    assert set(kinds) == {"Document", "Row", "Ratio", "Limit", "Target", "Environment"}
    for kind in (Document, Row):
        assert set(kinds[kind.__name__]["properties"]) == set(kind.__struct_fields__)


def test_a_document_that_lacks_a_field_or_is_of_another_format_is_refused() -> None:
    for broken in (b"{}", b'{"format": 2}'):
        with pytest.raises(msgspec.ValidationError):
            msgspec.json.decode(broken, type=Document)
