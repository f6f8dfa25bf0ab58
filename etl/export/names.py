"""File and folder names that are safe on Linux, macOS and Windows, whatever the data says; pure.

Two names are the same if they differ only in case or in Unicode normalisation: Windows and macOS keep one file for
both.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Hashable, Mapping
from typing import NamedTuple, TypeVar

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
    name = _UNSAFE.sub("_", unicodedata.normalize("NFC", text))
    if name.startswith("."):
        name = "_" + name[1:]
    name = _without_bad_end(_cut(name, max_bytes))
    base, dot, rest = name.partition(".")
    if _RESERVED.fullmatch(base.rstrip(" ")):
        name = _without_bad_end(_cut(f"{base.rstrip(' ')}_{dot}{rest}", max_bytes))
    return name or "_"


def unique_names(
    wanted: Mapping[Key, Wanted], *, suffix: str = "", taken: Collection[str] = (), tag_changed: bool = False
) -> dict[Key, str]:
    """A name for each key, no two the same; it depends on the set of keys, not on their order.

    A name that only one key wants is that key's; all keys that want the same name get `<name>~<tag>`, and where the tag
    is not safe in a name or that name is taken as well, a digest in place of the tag.

    Args:
        wanted: What each key would like to be called.
        suffix: Ends each name, such as `.json`; counts for the length.
        taken: Names that nobody may have.
        tag_changed: Whether a name that had to be cleaned gets its tag in any case, so that it is the same name
            whatever else is named with it.
    """
    room = MAX_BYTES - len(suffix)
    stems = {key: clean(one.text, room) for key, one in wanted.items()}
    folds = {key: fold(stem + suffix) for key, stem in stems.items()}
    counts = Counter(folds.values())
    used = {fold(name) for name in taken}
    names: dict[Key, str] = {}
    for key, stem in stems.items():
        changed = tag_changed and stem != wanted[key].text
        if counts[folds[key]] == 1 and folds[key] not in used and not changed:
            names[key] = stem + suffix
    used |= {folds[key] for key in names}
    attempt = 0
    while len(names) < len(wanted):
        open_keys = [key for key in wanted if key not in names]
        tried = {key: _tagged(stems[key], wanted[key], attempt, room) + suffix for key in open_keys}
        tried_folds = {key: fold(name) for key, name in tried.items()}
        counts = Counter(tried_folds.values())
        names |= {
            key: tried[key] for key in open_keys if counts[tried_folds[key]] == 1 and tried_folds[key] not in used
        }
        used |= {tried_folds[key] for key in open_keys if key in names}
        attempt += 1
    return names


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
