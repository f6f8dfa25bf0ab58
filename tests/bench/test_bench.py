"""The benchmark itself runs, and compares like with like."""

import json
from pathlib import Path

import pytest

from tests.bench.__main__ import main

pytestmark = pytest.mark.long


@pytest.mark.parametrize("api", ["v3", "v4"])
def test_floor_and_sync_store_the_same_rows_and_every_ratio_is_told(
    tmp_path: Path, api: str, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = tmp_path / "figures.json"
    words = ["--traces", "200", "--rounds", "1", "--database", "sqlite", "--api", api]

    assert main([*words, "--json", str(figures)]) == 0

    result = json.loads(figures.read_text())["databases"]["sqlite"]
    assert result["rows"]["floor"] == result["rows"]["first_sync"]
    assert result["rows"]["floor"]["traces"] == 200
    assert result["rows_written_by_read_again"] == 0
    assert all(ratio["wall"] > 0 and ratio["cpu"] > 0 for ratio in result["ratios"].values())
    assert set(result["ratios"]) == {"first_sync / floor", "read_again / parse", "floor / download"}
    assert "practical floor" in capsys.readouterr().out


def test_an_export_is_compared_with_a_script_that_writes_the_same_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = tmp_path / "figures.json"
    words = ["--export", "--traces", "180", "--rounds", "1", "--database", "sqlite"]

    assert main([*words, "--json", str(figures)]) == 0

    result = json.loads(figures.read_text())["databases"]["sqlite"]
    assert result["traces"]["large"] > 150 > 50 > result["traces"]["small"] > 0
    assert result["different_files"] == 0
    assert set(result["ratios"]) == {"row / script", "full / script"}
    assert all(ratio["wall"] > 0 and ratio["cpu"] > 0 for ratio in result["ratios"].values())
    assert "script by hand" in capsys.readouterr().out
