"""File and folder names that are safe on Linux, macOS and Windows, whatever the data says; pure.

Two names are the same if they differ only in case or in Unicode normalisation: Windows and macOS keep one file for
both.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from typing import NamedTuple, TypeVar

from etl.export.fingerprints import Fingerprints, fingerprint

MAX_BYTES = 255
_TAG = "~"
_DIGEST_DIGITS = 12
# What may be left of a name if its tag is long; the rest of `MAX_BYTES` is for the tag.
_SHORTEST_STEM_BYTES = 40

# Separators and wildcards of the three systems, control characters, line separators, the marks that change the
# direction of text (a name must not look like another), byte order marks, and half characters.
_UNSAFE = re.compile(
    r'[<>:"/\\|?*\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ufffe\uffff\ud800-\udfff]'
)
# learn.microsoft.com, "Naming Files, Paths, and Namespaces": reserved with any extension, too.
_RESERVED = re.compile(r"(?:con|prn|aux|nul|conin\$|conout\$|clock\$|com[0-9¹²³]|lpt[0-9¹²³])", re.IGNORECASE)

# Nearly all names are of this kind, and need no closer look.
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")

Key = TypeVar("Key", bound=Hashable)


class Wanted(NamedTuple):
    """A name as the data says it, and what to add if another one wants the same."""

    text: str
    tag: str


def fold(name: str) -> str:
    """Equal for names that are one file on Windows or macOS."""
    if name.isascii():
        return name.lower()
    # Upper case first: NTFS compares by it, and it joins some letters that case folding keeps apart.
    upper = unicodedata.normalize("NFD", name).upper()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", upper.casefold()))


def clean(text: str, max_bytes: int = MAX_BYTES) -> str:
    """The nearest name that every system takes; `text` itself if it is one.

    Args:
        text: Anything.
        max_bytes: The longest name in bytes of UTF-8.
    """
    if _PLAIN.fullmatch(text) and len(text) <= max_bytes and not _RESERVED.fullmatch(text):
        return text
    name = _UNSAFE.sub("_", unicodedata.normalize("NFC", text))
    if name.startswith("."):
        name = "_" + name[1:]
    name = _without_bad_end(_cut(name, max_bytes))
    base, dot, rest = name.partition(".")
    if _RESERVED.fullmatch(base.rstrip(" ")):
        name = _without_bad_end(_cut(f"{base.rstrip(' ')}_{dot}{rest}", max_bytes))
    return name or "_"


def agree_on_names(
    wanted: Callable[[], Iterable[Wanted]], *, suffix: str = "", taken: Collection[str] = (), tag_changed: bool = False
) -> Names:
    """Names for many, no two the same; they depend on what is wanted, not on its order.

    A name that only one wants is its; all that want the same name get `<name>~<tag>`, and where the tag is not safe in
    a name or that name is taken as well, a digest in place of the tag.

    Args:
        wanted: What each would like to be called, tags being different; called once for each try, and again as long
            as some names are wanted by several. None of it is kept but eight bytes for each.
        suffix: Ends each name, such as `.json`; counts for the length.
        taken: Names that nobody may have.
        tag_changed: Whether a name that had to be cleaned gets its tag in any case, so that it is the same name
            whatever else is named with it.
    """
    names = Names(suffix, tag_changed)
    while names.try_once(wanted(), Fingerprints(fingerprint(fold(name)) for name in taken)):
        pass
    return names


class Names:
    """What `agree_on_names` found: the first spelling of each that nobody else has or wants."""

    def __init__(self, suffix: str, tag_changed: bool) -> None:
        self._suffix = suffix
        self._tag_changed = tag_changed
        # For each try the fingerprints of the spellings that are not to be had.
        self._contested: list[set[int]] = []

    def name(self, wanted: Wanted) -> str:
        """The name of one of those that were agreed on."""
        for number in range(len(self._contested)):
            spelling = self._spelling(wanted, number)
            if self._is_free(wanted, spelling, number):
                return spelling
        raise LookupError("no name was agreed on")

    def try_once(self, everything: Iterable[Wanted], used: Fingerprints) -> bool:
        """Finds who cannot have the next spelling; returns whether somebody is still without a name."""
        number = len(self._contested)
        tried = Fingerprints()
        someone_waits = False
        for wanted in everything:
            for earlier in range(number):
                spelling = self._spelling(wanted, earlier)
                if self._is_free(wanted, spelling, earlier):
                    used.add(fingerprint(fold(spelling)))
                    break
            else:
                tried.add(fingerprint(fold(self._spelling(wanted, number))))
                someone_waits = someone_waits or self._must_be_tagged(wanted, number)
        self._contested.append(tried.repeated() | tried.common(used))
        return someone_waits or bool(self._contested[-1])

    def _is_free(self, wanted: Wanted, spelling: str, number: int) -> bool:
        contested = self._contested[number]
        is_contested = bool(contested) and fingerprint(fold(spelling)) in contested
        return not (is_contested or self._must_be_tagged(wanted, number))

    def _must_be_tagged(self, wanted: Wanted, number: int) -> bool:
        return self._tag_changed and number == 0 and self._stem(wanted) != wanted.text

    def _spelling(self, wanted: Wanted, number: int) -> str:
        stem = self._stem(wanted)
        return (_tagged(stem, wanted, number - 1, self._room) if number else stem) + self._suffix

    def _stem(self, wanted: Wanted) -> str:
        return clean(wanted.text, self._room)

    @property
    def _room(self) -> int:
        return MAX_BYTES - len(self._suffix)


def unique_names(
    wanted: Mapping[Key, Wanted], *, suffix: str = "", taken: Collection[str] = (), tag_changed: bool = False
) -> dict[Key, str]:
    """`agree_on_names` for a few: a name for each key."""
    names = agree_on_names(wanted.values, suffix=suffix, taken=taken, tag_changed=tag_changed)
    return {key: names.name(one) for key, one in wanted.items()}


def _tagged(stem: str, wanted: Wanted, attempt: int, room: int) -> str:
    """`<stem>~<tag>` first, then with a digest that is another one for each attempt."""
    tag = wanted.tag
    if attempt or clean(tag, room - _SHORTEST_STEM_BYTES) != tag:
        # The text tells apart what the tag alone might not; a half character has no UTF-8 of its own.
        content = "\0".join((str(attempt), wanted.tag, wanted.text)).encode("utf-8", "surrogatepass")
        tag = hashlib.blake2b(content).hexdigest()[:_DIGEST_DIGITS]
    return _cut(stem, room - len(f"{_TAG}{tag}".encode())) + _TAG + tag


def _without_bad_end(name: str) -> str:
    """Windows drops dots and spaces at the end; each becomes `_`, so that names stay apart."""
    kept = name.rstrip(". ")
    return kept + "_" * (len(name) - len(kept))


def _cut(name: str, max_bytes: int) -> str:
    return name.encode()[:max_bytes].decode(errors="ignore")
