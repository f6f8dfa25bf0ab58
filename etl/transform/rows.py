"""One object of the API to one row of a table, and back without loss.

A row is a dict of column to value as the database takes and gives it: text, float, int, bool, None; instants as
`YYYY-MM-DDTHH:MM:SS.sssZ`; JSON as text. What a column cannot hold goes to `exact`, unknown fields go to `extra`.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import MAXYEAR, MINYEAR, UTC, datetime
from decimal import Decimal
from types import MappingProxyType
from typing import Any

import xxhash

from etl.errors import RowError
from etl.transform.fields import Field, Kind, Shape, snake_case
from etl.transform.items import Item
from etl.transform.jsontext import JsonTextError, dumps, dumps_bytes, holdable, loads

Row = dict[str, Any]

_ABSENT = object()
_UNHELD = object()
_INT64 = 2**63
_EXACT_IN_DOUBLE = 2**53
# Nearly all instants; the few of the last days of a month are looked at more closely.
_is_surely_canonical = re.compile(
    r"[12][0-9]{3}-(?:0[1-9]|1[0-2])-(?:0[1-9]|1[0-9]|2[0-8])T(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]\.[0-9]{3}Z"
).fullmatch
# Members of an Enum are looked up slowly, and these are compared for every value.
_TEXT, _INSTANT, _NUMBER, _INTEGER, _FLAG, _JSON = Kind
# To be raised when the same object becomes another row than before, so that stored rows are looked at anew.
_HASH_SEED = 1


def from_api(
    item: Mapping[str, Any],
    shape: Shape,
    *,
    project_id: str,
    read_from: str,
    plain: bool,
    hashed: str | None = None,
    verbatim: Mapping[str, Any] = MappingProxyType({}),
) -> Row:
    """The row that holds all of `item`.

    Args:
        item: One object as the API answered it, parsed by `jsontext`.
        shape: The fields the endpoint answers; columns outside it are not in the row, so they are never overwritten.
        project_id: The project that was asked; the row belongs to it whatever the object says.
        read_from: Which API gave it: `traces`, `observations` or `trace_copy`.
        plain: Whether `item` is surely free of NUL, lone surrogates and numbers beyond 64 bits.
        hashed: The content hash, where it is that of another form of the object; else that of `item` written as text.
        verbatim: Fields of `shape` whose value goes to `exact` as well, whatever the column holds.
    Raises:
        RowError: A key is missing or no text.
    """
    row: Row = dict(zip(shape.columns, map(item.get, shape.names), strict=True))
    unheld = {name: _as_base64(value) for name, value in verbatim.items()}
    others: Sequence[Field] = shape.fields
    if plain:
        json_columns, instant_columns, others = shape.to_be_held(tuple(map(type, row.values())))
        for column in json_columns:
            row[column] = dumps(row[column])
        if not all(map(_is_surely_canonical, map(row.__getitem__, instant_columns))):
            others = (*others, *(field for field in shape.fields if field.kind is _INSTANT))
    for name, column, kind in others:
        value = row[column]
        if value is None:
            continue
        held = _hold(value, kind, plain)
        if held is _UNHELD:
            held = _nearest(value, kind)
            unheld[name] = _as_base64(value)
        row[column] = held
    for name in shape.optional:
        if item.get(name, _ABSENT) is None:  # where null is not the same as nothing
            unheld.setdefault(name, _as_base64(None))
    absent, strange = shape.absent_and_unknown(tuple(item))
    row["extra"] = None
    if strange:
        unknown = {name: item[name] for name in strange}
        extra = unknown if plain else holdable(unknown)
        if extra is not unknown:
            unheld[""] = _as_base64(unknown)
        row["extra"] = dumps(extra)
    _set_keys(row, item, shape, project_id, unheld)
    row["exact"] = exact_text(unheld, absent)
    row["content_hash"] = content_hash(Item.of(item), shape) if hashed is None else hashed
    row["read_from"] = read_from
    return row


def to_api(row: Mapping[str, Any], shape: Shape, *, read_json: Callable[[str], Any] = loads) -> dict[str, Any]:
    """The object that `from_api` was given: the same fields with the same values, in the order of `shape`.

    Args:
        read_json: Reads what columns of JSON hold.
    """
    item: dict[str, Any] = dict(zip(shape.names, map(row.get, shape.columns), strict=True))
    if held := [name for name in shape.json_names if item[name] is not None]:
        item.update(zip(held, _read_all([item[name] for name in held], read_json), strict=True))
    for name in shape.flag_names:
        if item[name] is not None:
            item[name] = bool(item[name])
    if item.get("traceId") == "" and shape.table == "observations":
        item["traceId"] = None
    values: dict[str, str] = {}
    if row.get("exact"):
        values = exact_values(row)
        for name in loads(row["exact"]).get("absent", ()):
            item.pop(name, None)
        item.update({name: _from_base64(text) for name, text in values.items() if name in item})
    for name in shape.optional:
        if item.get(name, _ABSENT) is None and name not in values:
            del item[name]
    if "" in values:
        item.update(_from_base64(values[""]))
    elif row.get("extra"):
        item.update(loads(row["extra"]))
    return item


def _read_all(texts: list[str], read_json: Callable[[str], Any]) -> list[Any]:
    """What each JSON text holds; they are read as one list, which takes less time than several readings."""
    try:
        values: list[Any] = read_json(f"[{','.join(texts)}]")
        if len(values) == len(texts):
            return values
    except JsonTextError:  # a value nested so deeply that it may not be in a list as well
        pass
    return [read_json(text) for text in texts]


def content_hash(item: Item, shape: Shape) -> str:
    """32 hex digits over the text of an object without the ignored fields; the same on every database and in every run.

    Two texts may say the same (in another order, with other spaces), so unequal hashes are no proof of a change.
    """
    text = item.text_but(shape.ignored) if shape.ignored else item.text
    return xxhash.xxh3_128_hexdigest(text, _HASH_SEED)


def row_hash(row: Row) -> str:
    """The content hash of a row that was put together here, not answered by an API."""
    return xxhash.xxh3_128_hexdigest(dumps_bytes(row), _HASH_SEED)


def exact_values(row: Mapping[str, Any]) -> dict[str, str]:
    """What `exact` holds of fields that are there: the API's name to the value's JSON text in base64."""
    values: dict[str, str] = loads(row["exact"]).get("values", {}) if row.get("exact") else {}
    return {pointer[1:].replace("~1", "/").replace("~0", "~"): text for pointer, text in values.items()}


def exact_text(unheld: Mapping[str, str], absent: Collection[str] = ()) -> str | None:
    """The column `exact` for what `exact_values` gives back, and for known fields that are absent."""
    parts: dict[str, Any] = {}
    if unheld:
        parts["values"] = {_pointer(name): text for name, text in unheld.items()}
    if absent:
        parts["absent"] = sorted(set(absent))
    return dumps(parts) if parts else None


def merged_exact(new: str | None, old: str | None, columns: Collection[str]) -> str | None:
    """The column `exact` of a row that was stored with `old` when only `columns` are replaced, by a row with `new`."""
    if old is None:
        return new
    values, absent = exact_values({"exact": old}), loads(old).get("absent", ())
    kept = {name: text for name, text in values.items() if _column_of(name) not in columns}
    newest = loads(new).get("absent", []) if new else []
    return exact_text(
        kept | exact_values({"exact": new}), [*newest, *(name for name in absent if _column_of(name) not in columns)]
    )


def held_instant(value: Any) -> str | None:
    """What a column of instants holds for `value`."""
    if type(value) is not str:
        return None
    return value if _is_surely_canonical(value) else canonical_instant(value)


def canonical_instant(text: str) -> str | None:
    """`text` as `YYYY-MM-DDTHH:MM:SS.sssZ`, cut to milliseconds as the server does; None if it is no instant."""
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            return None
        utc = moment.astimezone(UTC)
        if not MINYEAR < utc.year < MAXYEAR:  # in another time zone Python could not read it back from Postgres
            return None
        return f"{utc.replace(tzinfo=None).isoformat(timespec='milliseconds')}Z"
    except (ValueError, OverflowError):
        return None


def _hold(value: Any, kind: Kind, plain: bool) -> Any:
    """What the column holds for `value`, or `_UNHELD` if that would not be all of it."""
    if kind is _JSON:
        if plain or holdable(value) is value:
            return dumps(value)
    elif kind is _INSTANT:
        if held_instant(value) == value:
            return value
    elif kind is _INTEGER:
        if type(value) is int and -_INT64 <= value < _INT64:
            return value
    elif kind is _NUMBER:
        if type(value) is float or (type(value) is int and -_EXACT_IN_DOUBLE <= value <= _EXACT_IN_DOUBLE):
            return float(value)
    elif kind is _TEXT:
        if type(value) is str and (plain or holdable(value) is value):
            return value
    elif type(value) is bool:
        return value
    return _UNHELD


def _nearest(value: Any, kind: Kind) -> Any:
    """The closest thing the column can hold, for people who read it with SQL; None if nothing is close."""
    if kind is _JSON:
        return dumps(holdable(value))
    if kind is _TEXT:
        return holdable(value) if isinstance(value, str) else dumps(holdable(value))
    if kind is _INSTANT:
        return held_instant(value)
    if kind in (_NUMBER, _INTEGER) and isinstance(value, int | float | Decimal) and type(value) is not bool:
        try:
            number = float(value)
        except OverflowError:
            return None
        if abs(number) == float("inf"):
            return None
        return number if kind is _NUMBER else (int(number) if abs(number) < _EXACT_IN_DOUBLE else None)
    return None


def _set_keys(row: Row, item: Mapping[str, Any], shape: Shape, project_id: str, unheld: dict[str, str]) -> None:
    if "projectId" in item and item["projectId"] != project_id and "projectId" not in unheld:
        unheld["projectId"] = _as_base64(item["projectId"])
    row["project_id"] = project_id
    if not isinstance(item.get("id"), str):
        raise RowError(f"an object of {shape.table} has no id")
    if shape.table == "observations" and row["trace_id"] is None:
        row["trace_id"] = ""
    elif shape.table == "observations" and row["trace_id"] == "":
        unheld["traceId"] = _as_base64("")


def _column_of(api_name: str) -> str:
    return snake_case(api_name) if api_name else "extra"


def _pointer(api_name: str) -> str:
    """RFC 6901; the empty pointer stands for all fields that have no column."""
    return "/" + api_name.replace("~", "~0").replace("/", "~1") if api_name else ""


def _as_base64(value: Any) -> str:
    return base64.b64encode(dumps(value).encode()).decode()


def _from_base64(text: str) -> Any:
    return loads(base64.b64decode(text).decode())
