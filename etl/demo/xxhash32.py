"""xxHash32 (seed 0) in plain Python: ClickHouse's `xxHash32`, by which GET /v2/observations orders its ties."""

from functools import lru_cache

_MASK = 0xFFFFFFFF
_P1, _P2, _P3, _P4, _P5 = 2654435761, 2246822519, 3266489917, 668265263, 374761393


def _rotate(value: int, bits: int) -> int:
    return ((value << bits) | (value >> (32 - bits))) & _MASK


@lru_cache(maxsize=1 << 18)
def xxhash32(text: str) -> int:
    """Of the UTF-8 bytes; lone surrogates as they are."""
    data = text.encode("utf-8", "surrogatepass")
    length, at = len(data), 0
    if length >= 16:
        lanes = [(_P1 + _P2) & _MASK, _P2, 0, -_P1 & _MASK]
        while at <= length - 16:
            for lane in range(4):
                word = int.from_bytes(data[at : at + 4], "little")
                lanes[lane] = _rotate((lanes[lane] + word * _P2) & _MASK, 13) * _P1 & _MASK
                at += 4
        value = sum(_rotate(lane, bits) for lane, bits in zip(lanes, (1, 7, 12, 18), strict=True)) & _MASK
    else:
        value = _P5
    value = (value + length) & _MASK
    while at <= length - 4:
        word = int.from_bytes(data[at : at + 4], "little")
        value = _rotate((value + word * _P3) & _MASK, 17) * _P4 & _MASK
        at += 4
    for byte in data[at:]:
        value = _rotate((value + byte * _P5) & _MASK, 11) * _P1 & _MASK
    value = (value ^ (value >> 15)) * _P2 & _MASK
    value = (value ^ (value >> 13)) * _P3 & _MASK
    return value ^ (value >> 16)
