"""Objects as a reader gives them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from etl.transform.items import Item


def as_read(objects: Iterable[Mapping[str, Any]]) -> list[Item]:
    return [Item.of(one) for one in objects]
