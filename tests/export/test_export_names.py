"""Every trace gets its own file inside the folder, by the rules of Linux, macOS and Windows."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from etl.export.names import MAX_BYTES, Wanted, clean, fold, unique_names

RESERVED = {"con", "prn", "aux", "nul"} | {f"{port}{n}" for port in ("com", "lpt") for n in "0123456789¹²³"}

NASTY = """ |.|..|../../x|CON|con.txt|Aux .b|COM¹|a/b\\c|a:b|x |x.|~|a~b|5|5~a|5~A|é|e\u0301|ß|SS|ss|ı|I|i|ſ|Σς|😀"""
nasty = st.sampled_from(
    [*NASTY.split("|"), "", "NUL\x00", "\u202egnp", "\ud800", "manifest", "MANIFEST", "x" * 300, "X" * 300, "中" * 100]
)
texts = st.one_of(nasty, st.text(max_size=6), st.text(st.characters(), max_size=300), st.text("aA.~ é", max_size=5))
ids = st.one_of(st.text("aAbB~", min_size=1, max_size=3), texts)


def assert_safe(name: str) -> None:
    encoded = name.encode()
    assert 0 < len(encoded) <= MAX_BYTES
    assert not re.search(r'[<>:"/\\|?*\x00-\x1f\x7f]', name)
    assert name not in (".", "..")
    assert not name.endswith((".", " "))
    assert name.partition(".")[0].rstrip(" ").lower() not in RESERVED
    assert not any(
        unicodedata.bidirectional(char) in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI") for char in name
    )


def one_file(name: str) -> set[str]:
    """Spellings that some system takes for the same file."""
    forms = [unicodedata.normalize(form, name) for form in ("NFC", "NFD")]
    return {
        unicodedata.normalize("NFC", change(form)) for form in forms for change in (str.lower, str.upper, str.casefold)
    }


@given(st.dictionaries(ids, texts, max_size=12))
@example({"a": "5", "A": "5", "b": "5~a", "c": "5~A"})
@example({"CON": "", "con": "x", "x": "con"})
def test_every_trace_gets_a_file_of_its_own(wanted: dict[str, str]) -> None:
    names = unique_names(
        {key: Wanted(text, key) for key, text in wanted.items()}, suffix=".json", taken=["manifest.json"]
    )

    assert set(wanted) == set(names)
    spellings = [one_file(name) for name in names.values()] + [{"manifest.json", "MANIFEST.JSON"}]
    assert len(set().union(*spellings)) == sum(map(len, spellings))
    for name in names.values():
        assert name.endswith(".json")
        assert_safe(name)


@given(st.dictionaries(ids, texts, min_size=1, max_size=8), st.randoms())
def test_names_do_not_depend_on_the_order(wanted: dict[str, str], random: object) -> None:
    items = list(wanted.items())
    random.shuffle(items)  # type: ignore[attr-defined]

    def names(pairs: list[tuple[str, str]]) -> dict[str, str]:
        return unique_names({key: Wanted(text, key) for key, text in pairs}, suffix=".json")

    assert names(list(wanted.items())) == names(items)


@given(texts)
def test_a_safe_name_stays_and_others_become_safe(text: str) -> None:
    name = clean(text)

    assert_safe(name)
    assert name == clean(name)


@given(texts, texts)
def test_names_that_fold_alike_are_one_file(one: str, other: str) -> None:
    if one_file(clean(one)) & one_file(clean(other)):
        assert fold(clean(one)) == fold(clean(other))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("17400353", "17400353"),
        ("会话-客服", "会话-客服"),
        ("👩‍👩‍👧", "👩‍👩‍👧"),
        ("a b", "a b"),
        ("../../x", "_.__.._x".replace("__.._", "_.._")),
        ("CON", "CON_"),
        ("aux.log", "aux_.log"),
        ("LPT9 .x", "LPT9_.x"),
        ("console", "console"),
        ("a/b\\c", "a_b_c"),
        ("x. .", "x___"),
        ("", "_"),
        (".hidden", "_hidden"),
        ("a\x00b", "a_b"),
        ("\u202egpj.exe", "_gpj.exe"),
        ("e\u0301", "é"),
        ("中" * 100, "中" * 85),
    ],
)
def test_cleaning_changes_only_what_is_unsafe(text: str, expected: str) -> None:
    assert expected == clean(text)


def test_all_that_share_a_name_get_their_tag() -> None:
    wanted = {
        "t1": Wanted("Five", "t1"),
        "t2": Wanted("five", "t2"),
        "t3": Wanted("FIVE", "t3"),
        "t4": Wanted("4", "t4"),
    }

    expected = {"t1": "Five~t1.json", "t2": "five~t2.json", "t3": "FIVE~t3.json", "t4": "4.json"}

    assert expected == unique_names(wanted, suffix=".json")


def test_a_tag_that_is_unsafe_or_taken_gives_way_to_a_digest() -> None:
    wanted = {"a/b": Wanted("5", "a/b"), "c": Wanted("5", "c"), "d": Wanted("5~c", "d")}

    names = unique_names(wanted)

    assert names["d"] == "5~c"
    assert re.fullmatch("5~[0-9a-f]{12}", names["a/b"])
    assert re.fullmatch("5~[0-9a-f]{12}", names["c"])


def test_a_long_name_leaves_room_for_its_tag() -> None:
    wanted = {tag: Wanted("x" * 300, tag) for tag in ("t1", "t2")}

    names = unique_names(wanted, suffix=".json")

    assert names == {"t1": "x" * 247 + "~t1.json", "t2": "x" * 247 + "~t2.json"}


def test_folders_with_a_cleaned_name_always_carry_their_digest() -> None:
    names = unique_names({key: Wanted(key, f"p/{key}") for key in ("a/b", "plain")}, tag_changed=True)

    assert names["plain"] == "plain"
    assert re.fullmatch("a_b~[0-9a-f]{12}", names["a/b"])
