"""The benchmark itself runs, and compares like with like."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("api", ["v3", "v4"])
def test_floor_and_sync_store_the_same_rows_and_every_ratio_is_told(tmp_path: Path, api: str) -> None:
    figures = tmp_path / "figures.json"
    command = [sys.executable, "-m", "tests.bench", "--traces", "200", "--rounds", "1", "--database", "sqlite"]
    done = subprocess.run(
        [*command, "--api", api, "--json", figures], cwd=_ROOT, capture_output=True, text=True, check=True
    )

    result = json.loads(figures.read_text())["databases"]["sqlite"]
    assert result["rows"]["floor"] == result["rows"]["first_sync"]
    assert result["rows"]["floor"]["traces"] == 200
    assert result["rows_written_by_read_again"] == 0
    assert all(ratio["wall"] > 0 and ratio["cpu"] > 0 for ratio in result["ratios"].values())
    assert set(result["ratios"]) == {"first_sync / floor", "read_again / parse", "floor / download"}
    assert "practical floor" in done.stdout


def test_an_export_is_compared_with_a_script_that_writes_the_same_files(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    command = [sys.executable, "-m", "tests.bench", "--export", "--traces", "180", "--rounds", "1"]
    done = subprocess.run(
        [*command, "--database", "sqlite", "--json", figures], cwd=_ROOT, capture_output=True, text=True, check=True
    )

    result = json.loads(figures.read_text())["databases"]["sqlite"]
    assert result["traces"]["large"] > 150 > 50 > result["traces"]["small"] > 0
    assert result["different_files"] == 0
    assert set(result["ratios"]) == {"row / script", "full / script"}
    assert all(ratio["wall"] > 0 and ratio["cpu"] > 0 for ratio in result["ratios"].values())
    assert "script by hand" in done.stdout
