"""Column types that hold the same value on SQLite and Postgres."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import BigInteger, Boolean, Cast, ColumnElement, Dialect, Double, Text, cast
from sqlalchemy.dialects.postgresql import TIMESTAMP
from sqlalchemy.types import TypeDecorator, TypeEngine, UserDefinedType

from etl.transform.fields import Kind


def instant_text(moment: datetime) -> str:
    """`YYYY-MM-DDTHH:MM:SS.sssZ`, the form of the API and of SQLite columns.

    Raises:
        ValueError: `moment` has no time zone.
    """
    if moment.tzinfo is None:
        raise ValueError("an instant needs a time zone")
    return f"{moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec='milliseconds')}Z"


class _TimestampColumn(TypeDecorator[Any]):
    """`timestamptz` on Postgres, text on SQLite."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(TIMESTAMP(timezone=True) if dialect.name == "postgresql" else Text())


class InstantText(_TimestampColumn):
    """An instant of the API; text in Python, so no parsing on the way."""

    cache_ok = True

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any] | None:
        # Rows have half a dozen of these; the usual way to a value takes longer than reading it.
        return _read_instant if dialect.name == "postgresql" else None


def _read_instant(value: Any) -> Any:
    if not isinstance(value, datetime):
        return value
    text = value.isoformat(timespec="milliseconds")
    return f"{text[:-6]}Z" if text.endswith("+00:00") else instant_text(value)


class Instant(_TimestampColumn):
    """An instant of our own: an aware `datetime` in Python."""

    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        return None if value is None else instant_text(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        if isinstance(value, str):
            return datetime.fromisoformat(value)
        return None if value is None else value.astimezone(UTC)


class _RawJsonb(UserDefinedType[str]):
    """`jsonb` bound as text, which `jsontext.dumps` wrote once; SQLAlchemy's own type would write it a second time."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "JSONB"


class JsonText(TypeDecorator[str]):
    """JSON as text in Python: `jsonb` on Postgres, text on SQLite (whose `JSON` affinity turns `123` to a number)."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(_RawJsonb() if dialect.name == "postgresql" else Text())

    def column_expression(self, column: ColumnElement[Any]) -> Cast[str]:
        return cast(column, Text)


COLUMN_TYPES: dict[Kind, type[TypeEngine[Any]]] = {
    Kind.TEXT: Text,
    Kind.INSTANT: InstantText,
    Kind.NUMBER: Double,
    Kind.INTEGER: BigInteger,
    Kind.FLAG: Boolean,
    Kind.JSON: JsonText,
}
