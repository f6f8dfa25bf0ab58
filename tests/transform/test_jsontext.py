"""JSON text and values, against the standard library as an independent reader."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from json_values import any_json, any_text, calm, equal, exact

from etl.transform.jsontext import JsonTextError, dumps, dumps_indented, holdable, loads, parse

SURROGATE = '"\\ud800"'


def read_by_oracle(text: str) -> Any:
    """The standard library with every number as the decimal that was written; the last of equal keys wins."""
    return json.loads(text, parse_float=Decimal, parse_int=Decimal)


def nested(levels: int, innermost: str, opening: str = "[", closing: str = "]") -> str:
    return opening * levels + innermost + closing * levels


def texts_of(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for pair in value.items() for part in pair for text in texts_of(part)]
    return [text for part in value for text in texts_of(part)] if isinstance(value, list) else []


digits = st.text("0123456789", min_size=1, max_size=40)
number_texts = st.builds(
    lambda sign, whole, fraction, exponent: sign + whole + fraction + exponent,
    st.sampled_from(["", "-"]),
    digits.map(lambda text: text.lstrip("0") or "0"),
    st.one_of(st.just(""), digits.map(lambda text: f".{text}")),
    st.one_of(st.just(""), st.integers(-450, 450).map(lambda n: f"e{n}"), st.integers(0, 99).map(lambda n: f"E+0{n}")),
)


@pytest.mark.parametrize(
    "around", ["{}", " {}\n", "[{}]", "[ {} ]", '{{"a":{}}}', '{{"a" :\t{} }}', "[0,{}]", "[[],{}]"]
)
@calm
@given(number=number_texts)
@example(number="0.1000000000000000055511151231257827")
@example(number="1e-7")
@example(number="1e400")
@example(number="-1e-400")
@example(number="-0.0")
@example(number="-0")
@example(number="9007199254740993")
@example(number="18446744073709551615")
@example(number="18446744073709551616")
@example(number="-9223372036854775809")
@example(number="123456789012345.67")
@example(number="1" * 4_300)
@example(number="9" * 9_000)
@example(number="0." + "1" * 9_000)
@example(number="5e-324")
@example(number="2.4703282292062327208299439634110764502e-324")
@example(number="1.7976931348623158e308")
@example(number="1.7976931348623159e308")
def test_every_number_is_read_to_its_last_digit_wherever_it_stands(around: str, number: str) -> None:
    text = around.format(number)

    assert equal(read_by_oracle(text), parse(text.encode()).value)
    assert equal(read_by_oracle(text), loads(text))


@calm
@given(any_json())
def test_any_value_that_json_can_write_is_read_as_it_was_written(value: Any) -> None:
    for ascii_only in (True, False):
        text = json.dumps(value, ensure_ascii=ascii_only, default=str)
        body = text.encode("utf-8", "surrogatepass")

        assert equal(json.loads(text), parse(body).value)


@calm
@given(any_json())
@example([float("1e22"), float("1e23"), 10**23, Decimal("1e400"), -0.0, "\x00", "\ud800", "\U0001f600"])
@example({"\x00": 1, "\\u0000": 2, "\ud800": 3, "\\ud800": 4, "": 5})
def test_what_is_written_is_read_again_and_written_the_same(value: Any) -> None:
    text = dumps(value)

    assert equal(value, loads(text))
    assert equal(value, json.loads(text, parse_float=Decimal))
    assert text == dumps(loads(text))


@calm
@given(any_json())
@example(["\u2028 ü 😀", "\x7f", "\ud800", "\udfff\ud800"])
def test_indented_text_holds_the_same_value(value: Any) -> None:
    text = dumps_indented(value).decode()

    text.encode()  # is UTF-8: lone surrogates are escaped
    assert equal(value, loads(text))


@calm
@given(any_json(plain=True))
def test_the_fast_and_the_exact_path_give_the_same_value_and_text(value: Any) -> None:
    body = dumps(value).encode()
    fast = parse(body)
    slow = parse(b"[" + body + b"," + SURROGATE.encode() + b"]")

    assert fast.plain
    assert not slow.plain
    assert equal(fast.value, slow.value[0])
    assert dumps(fast.value) == dumps(slow.value[0])


@calm
@given(st.dictionaries(any_text(), any_json(), max_size=6), st.randoms())
def test_the_order_of_keys_leaves_no_trace_in_compact_text(value: dict[str, Any], random: Any) -> None:
    pairs = list(value.items())
    random.shuffle(pairs)

    assert dumps(value) == dumps(dict(pairs))


def test_indented_text_keeps_the_order_of_keys() -> None:
    for text in ('{"b":1,"a":2}', '{"b":1,"a":"\\ud800"}', '{"b":1,"a":1e400}'):
        assert list(json.loads(dumps_indented(loads(text)))) == ["b", "a"]


def test_of_equal_keys_the_last_one_wins_as_in_javascript() -> None:
    for last in ("2", SURROGATE, "1e400"):
        assert equal({"a": loads(last)}, loads(f'{{"a":1,"a":{last}}}'))


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "NaN", "[NaN]", "Infinity", "[-Infinity]", '{"a":Infinity}', "[1,]", "{'a':1}", "[01]", "[1.]", "[.5]",
        "[+1]", "[1e]", "[0x10]", "nul", '"\x00"', '"a\nb"', '["\\x41"]', '{"a"}', "[1] 2", "[", '"\\ud80', "[1e5",
        f"[{SURROGATE},NaN]", f"[{SURROGATE},01]", f'[{SURROGATE},"\n"]',
    ],
)  # fmt: skip
def test_what_is_not_json_is_refused(text: str) -> None:
    with pytest.raises(JsonTextError):
        parse(text.encode())


def test_bytes_that_are_not_utf8_are_refused() -> None:
    with pytest.raises(JsonTextError):
        parse(b'["\xff"]')


def test_a_number_whose_exponent_no_machine_holds_is_refused_and_does_not_crash() -> None:
    for exponent in ("9" * 19, "-" + "9" * 19):
        with pytest.raises(JsonTextError):
            parse(f"[1e{exponent}]".encode())


@pytest.mark.parametrize("innermost", ["", SURROGATE, "1e400", '"\\u0000"', str(2**70)])
@pytest.mark.parametrize("levels", [300, 900, 1_000])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_deep_nesting_is_read_held_and_written(levels: int, opening: str, closing: str, innermost: str) -> None:
    text = nested(levels, innermost or ("null" if closing == "}" else ""), opening, closing)
    value = parse(text.encode()).value

    for again in (loads(dumps(value)), loads(dumps_indented(value).decode())):
        depth = 0
        while isinstance(again, list | dict) and again:
            again = again["a"] if isinstance(again, dict) else again[0]
            depth += 1
        assert levels - (0 if innermost or closing == "}" else 1) == depth
    assert (holdable(value) is value) == (innermost in ("", "1e400", str(2**70)))


@pytest.mark.parametrize("innermost", ["0", SURROGATE, "1e400"])
@pytest.mark.parametrize("levels", [1_025, 3_000, 100_000])
def test_nesting_beyond_1024_levels_is_refused_on_every_path(levels: int, innermost: str) -> None:
    assert parse(nested(1_024, innermost).encode()) is not None
    with pytest.raises(JsonTextError):
        parse(nested(levels, innermost).encode())


def test_only_text_that_every_column_holds_is_called_plain() -> None:
    plain = ['{"a":"\\u00e4"}', "[18446744073709551]", "[0.1,1e-7,1e22]", '["\\\\u0001"]', "null", "12"]
    special = ['["\\u0000"]', f"[{SURROGATE}]", f"[{2**64}]", "[1e400]", "[0.1234567890123456789]"]

    assert [True] * len(plain) == [parse(text.encode()).plain for text in plain]
    assert [False] * len(special) == [parse(text.encode()).plain for text in special]


@calm
@given(any_json())
@example({"a\x00": [1], "b": Decimal("1e999999"), "c": "\ud800"})
@example([Decimal("1e-20000"), Decimal("1e16001"), Decimal("0." + "1" * 16_500)])
def test_what_is_made_holdable_has_nothing_left_that_a_column_cannot_hold(value: Any) -> None:
    before = dumps(value)
    held = holdable(value)

    assert before == dumps(value), "the value itself is not changed"
    assert held is holdable(held)
    assert not any(re.search("[\x00\ud800-\udfff]", text) for text in texts_of(held))
    if held is not value:
        assert not equal(value, held)


def test_a_holdable_value_is_given_back_itself() -> None:
    for value in ("ä", 5, 2**80, None, True, [1, {"a": [Decimal("1.5")]}], {}, [], Decimal("1e15999")):
        assert holdable(value) is value


def test_numbers_that_jsonb_refuses_become_null() -> None:
    refused = [Decimal("1e16000"), Decimal("-1e16000"), Decimal("1e-16000"), Decimal("0." + "3" * 16_100)]

    assert [None] * len(refused) == holdable(refused)


def test_values_of_two_numbers_are_equal_only_to_the_last_digit() -> None:
    """The oracle of these tests itself."""
    assert exact(0.1) == exact(Decimal("0.1"))
    assert exact(0.1) != exact(Decimal("0.1000000000000000055511151231257827"))
    assert exact(1e23) == exact(10**23)
    assert not equal(True, 1)
    assert not equal({"a": None}, {})
