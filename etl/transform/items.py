"""The objects of an answer as text: what is stored already is known by its text, and nothing more of it is parsed.

msgspec finds where each object begins and ends, and reads its key and its time, in a fifth of the time that parsing
takes. What it refuses although it is JSON (lone surrogates, deep nesting, keys that are no text) is cut here, in the
same places.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from operator import attrgetter
from typing import Any, NamedTuple

import msgspec

from etl.errors import RowError
from etl.transform.jsontext import JsonTextError, Parsed, dumps_bytes, parse

Text = bytes | bytearray | msgspec.Raw
Fields = dict[str, Text]

# What tells an object from others, and its time. Whatever else than text stands there is left to the parser.
_KEY_NAMES = frozenset({"id", "traceId", "timestamp", "startTime", "createdAt"})
_Text = str | None | msgspec.UnsetType
_Keys = msgspec.defstruct("_Keys", [(name, _Text, msgspec.UNSET) for name in sorted(_KEY_NAMES)])
_NULL = msgspec.Raw(b"null")


class _ListedTexts(msgspec.Struct, rename={"deprecation": "_deprecation"}):
    data: list[msgspec.Raw]
    meta: msgspec.Raw = _NULL
    deprecation: msgspec.Raw = _NULL


class _ListedKeys(msgspec.Struct):
    data: list[_Keys]  # type: ignore[valid-type]


_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_TEXTS, _KEYS = msgspec.json.Decoder(list[msgspec.Raw]), msgspec.json.Decoder(list[_Keys])  # type: ignore[valid-type]
_LISTED_TEXTS, _LISTED_KEYS = msgspec.json.Decoder(_ListedTexts), msgspec.json.Decoder(_ListedKeys)
_REFUSED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
# Finds where a value ends; its integers may be too long for Python.
_SCANNER = json.JSONDecoder(parse_int=float)
_SPACE = re.compile(r"[ \t\n\r]*")
_ABSENT = object()


class Listing(NamedTuple):
    """The objects of an answer, and the texts of what else Langfuse says there; `null` where it does not."""

    items: list[Item]
    meta: Text
    deprecation: Text


class Item(Mapping[str, Any]):
    """One object. Its key and its time are at hand; whoever asks for anything else parses all of it, once.

    That may show that it cannot be read, with a `RowError`: what was cut out without being parsed may be no UTF-8, or
    nested too deeply.

    Attributes:
        text: Its JSON text in UTF-8; a lone surrogate may stand there in three bytes.
    """

    __slots__ = ("_keys", "_value", "text")

    def __init__(self, text: Text, keys: Any = None) -> None:
        self.text = text
        self._keys = keys
        self._value: dict[str, Any] | None = None

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Item:
        """An object that did not come as text."""
        return cls(dumps_bytes(dict(value)))

    def get(self, name: str, default: Any = None) -> Any:
        if self._keys is None or name not in _KEY_NAMES:
            return self._whole().get(name, default)
        value = getattr(self._keys, name)
        return default if value is msgspec.UNSET else value

    def __getitem__(self, name: str) -> Any:
        value = self.get(name, _ABSENT)
        if value is _ABSENT:
            raise KeyError(name)
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._whole())

    def __len__(self) -> int:
        return len(self._whole())

    def fields(self) -> Fields:
        """The text of the value of each field."""
        try:
            return fields_of(self.text)
        except JsonTextError as error:
            raise _unreadable(error) from None

    def text_but(self, ignored: frozenset[str]) -> bytes:
        """What the other fields say, in the order of their names; the same bytes for the same texts alone."""
        fields = self.fields()
        names, spelled = _names_but(ignored, tuple(fields))
        return b"\0".join([spelled, *map(fields.__getitem__, names)])  # no JSON text holds a NUL

    def with_fields(self, values: Mapping[str, Any]) -> Item:
        """The same with other values for some fields."""
        return _put_together(self.fields() | _texts(values))

    def with_defaults(self, values: Mapping[str, Any]) -> Item:
        """The same with these fields, where it has none of their name."""
        return _put_together(_texts(values) | self.fields())

    def without(self, *names: str) -> Item:
        """The same without some fields."""
        return _put_together({name: text for name, text in self.fields().items() if name not in names})

    def _whole(self) -> dict[str, Any]:
        if self._value is None:
            try:
                self._value = value_of(self.text)
            except JsonTextError as error:
                raise _unreadable(error) from None
        return self._value


def at_hand(items: Sequence[Item], name: str) -> list[Any]:
    """The value of `name`, a key or a time, in each object; None where there is none."""
    keys = [item._keys for item in items]
    if not all(keys):
        return [item.get(name) for item in items]
    return [None if value is msgspec.UNSET else value for value in map(attrgetter(name), keys)]


def value_of(text: Text) -> Any:
    """The value of a JSON text.

    Raises:
        JsonTextError: As `jsontext.parse`.
    """
    return parse(bytes(text)).value


def fields_of(text: Text) -> Fields:
    """The text of the value of each field of a JSON object.

    Raises:
        JsonTextError: `text` is no JSON object.
    """
    try:
        return dict(_FIELDS.decode(text))
    except _REFUSED:
        return _fields_slowly(text)


def listing_of(body: bytes | bytearray) -> Listing:
    """The objects of the field `data` of a JSON object.

    Raises:
        JsonTextError: `body` is no JSON object, or has no such list.
    """
    try:
        listed, keys = _LISTED_TEXTS.decode(body), _LISTED_KEYS.decode(body)
        return Listing(list(map(Item, listed.data, keys.data)), listed.meta, listed.deprecation)
    except _REFUSED:
        return _listing_slowly(body)


def items_of(text: Text) -> list[Item]:
    """The objects of a JSON list.

    Raises:
        JsonTextError: It is no list, or holds something else.
    """
    try:
        return list(map(Item, _TEXTS.decode(text), _KEYS.decode(text)))
    except _REFUSED:
        return _items_slowly(text)


def listed_text(items: Sequence[Item]) -> bytes:
    """The JSON list of these objects, as `items_of` reads it."""
    return b"[" + b",".join([item.text for item in items]) + b"]"


def parsed(items: Sequence[Item]) -> list[Parsed]:
    """Each object with its value.

    Raises:
        RowError: One of them cannot be read.
    """
    try:
        values, plain = parse(listed_text(items))
        if plain:
            return [Parsed(value, plain=True) for value in values]
        del values  # they may be large
        return [parse(bytes(item.text)) for item in items]
    except JsonTextError as error:
        raise _unreadable(error) from None


def _unreadable(error: JsonTextError) -> RowError:
    return RowError(f"an object that Langfuse answered cannot be read: {error}")


@lru_cache(maxsize=256)
def _spelled(name: str) -> bytes:
    return dumps_bytes(name)


@lru_cache(maxsize=256)
def _names_but(ignored: frozenset[str], names: tuple[str, ...]) -> tuple[list[str], bytes]:
    """The other names in order, and as text."""
    others = sorted(set(names) - ignored)
    return others, dumps_bytes(others)


def _texts(values: Mapping[str, Any]) -> Fields:
    return {name: dumps_bytes(value) for name, value in values.items()}


def _put_together(fields: Fields) -> Item:
    members = [_spelled(name) + b":" + bytes(text) for name, text in fields.items()]
    return Item(b"{" + b",".join(members) + b"}")


def _fields_slowly(text: Text) -> Fields:
    return {part.name: part.text.encode("utf-8", "surrogatepass") for part in _parts(_checked(text, "{"))}


def _listing_slowly(text: Text) -> Listing:
    fields = {part.name: part.text for part in _parts(_checked(text, "{"))}
    listed = fields.pop("data", "null")
    if not listed.startswith("["):
        raise JsonTextError("no list of objects")
    meta, deprecation = (fields.get(name, "null").encode("utf-8", "surrogatepass") for name in ("meta", "_deprecation"))
    return Listing(_items_in(listed), meta, deprecation)


def _items_slowly(text: Text) -> list[Item]:
    return _items_in(_checked(text, "["))


def _checked(text: Text, opening: str) -> str:
    """The text of an object or a list, which begins with `opening`, and nothing around it.

    Raises:
        JsonTextError: `text` is no JSON, or something else.
    """
    body = bytes(text) if isinstance(text, msgspec.Raw) else text
    parse(body)
    bare = body.decode("utf-8", "surrogatepass").removeprefix("\ufeff").strip()
    if not bare.startswith(opening):
        raise JsonTextError("neither an object nor a list of them")
    return bare


def _items_in(text: str) -> list[Item]:
    items: list[Item] = []
    for part in _parts(text):
        if part.keys is None:
            raise JsonTextError("not a list of objects")
        are_text = all(isinstance(key, str | None) for key in part.keys.values())
        items.append(Item(part.text.encode("utf-8", "surrogatepass"), _Keys(**part.keys) if are_text else None))
    return items


class _Part(NamedTuple):
    """A member of an object, with its name, or an element of a list; and its keys if it is an object itself."""

    name: str
    text: str
    keys: dict[str, Any] | None


def _parts(text: str) -> Iterator[_Part]:
    """What an object or a list consists of; `text` is known to be JSON."""
    is_object = text[0] == "{"
    at = _after_space(text, 1)
    while at < len(text) - 1:
        name = ""
        if is_object:
            name, at = _SCANNER.raw_decode(text, at)
            at = _after_space(text, _after_space(text, at) + 1)
        keys, end = _keys_and_end(text, at)
        yield _Part(name, text[at:end], keys)
        at = _after_space(text, _after_space(text, end) + 1)  # behind a comma, or the end


def _keys_and_end(text: str, at: int) -> tuple[dict[str, Any] | None, int]:
    value, end = _SCANNER.raw_decode(text, at)
    keys = {name: value[name] for name in _KEY_NAMES & value.keys()} if isinstance(value, dict) else None
    return keys, end  # and the value, which may be large, is let go


def _after_space(text: str, at: int) -> int:
    return _SPACE.match(text, at).end()  # type: ignore[union-attr]
