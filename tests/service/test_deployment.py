"""Dockerfile, compose file, systemd unit and alert rules, as far as they can be judged without running them."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from instances import Instance, Setup
from jsonschema import Draft202012Validator
from prometheus_client.parser import text_string_to_metric_families

from etl.config import VARIABLES, load_config
from etl.demo import PUBLIC_KEY, SECRET_KEY

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
RULES: dict[str, Any] = yaml.safe_load((ROOT / "docs" / "prometheus-rules.yml").read_text())
OURS = ("service", "demo", "mock")


def test_the_compose_file_is_valid_by_the_schema_of_the_compose_specification() -> None:
    validator = Draft202012Validator(json.loads((HERE / "compose-spec.json").read_text()))
    assert [error.message for error in validator.iter_errors(COMPOSE)] == []
    broken = COMPOSE | {"services": {"service": COMPOSE["services"]["service"] | {"restarts": "always"}}}
    assert not validator.is_valid(broken), "it would find a slip of the pen"


def test_everything_that_the_compose_file_refers_to_is_there() -> None:
    for service in COMPOSE["services"].values():
        assert set(service.get("secrets", ())) <= set(COMPOSE["secrets"])
        named = {volume.partition(":")[0] for volume in service.get("volumes", ())}
        assert named <= set(COMPOSE["volumes"])
        for name, condition in service.get("depends_on", {}).items():
            assert condition == {"condition": "service_healthy"}
            assert "healthcheck" in COMPOSE["services"][name]
    files = {secret["file"] for secret in COMPOSE["secrets"].values()}
    text = (ROOT / "docs" / "production.md").read_text()
    for file in files:
        assert f"> {file.removeprefix('./')}\n" in text, "the page says how to make it"


def test_our_containers_are_locked_down_and_end_in_time() -> None:
    for name in OURS:
        service = COMPOSE["services"][name]
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
        variables = {one for one in service.get("environment", {}) if one.startswith("LANGFUSE_ETL_")}
        assert variables <= set(VARIABLES)
        if service["command"] == ["run"]:
            assert service["stop_grace_period"] == "15s"


def test_the_settings_of_the_compose_file_are_taken(tmp_path: Path) -> None:
    secrets = {"postgres_password": "x", "langfuse_public_key": PUBLIC_KEY, "langfuse_secret_key": SECRET_KEY}
    secrets["database_url"] = "postgresql://langfuse_etl:x-y-z@postgres:5432/langfuse_etl"
    for name, value in secrets.items():
        (tmp_path / name).write_text(value)
    for name in ("service", "demo"):
        environ = {
            variable: re.sub(r"\$\{\w+:-(.*)\}", r"\1", value).replace("/run/secrets", str(tmp_path))
            for variable, value in COMPOSE["services"][name]["environment"].items()
        }
        config = load_config(None, environ)
        assert config.service.address == ("0.0.0.0", 9464)  # noqa: S104
        (project,) = config.projects
        assert project.has_keys
    assert COMPOSE["services"]["demo"]["environment"]["LANGFUSE_PUBLIC_KEY"] == PUBLIC_KEY
    assert COMPOSE["services"]["demo"]["environment"]["LANGFUSE_SECRET_KEY"] == SECRET_KEY


def test_what_the_dockerfile_copies_is_there_and_is_let_through() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        source
        for line in dockerfile.splitlines()
        if line.startswith("COPY ") and "--from" not in line
        for source in line.split()[1:-1]
    }
    assert copied == allowed
    assert all((ROOT / source).exists() for source in copied)
    wheel_needs = {"README.md", "LICENSE", "migrations", "etl"}  # pyproject.toml names them
    assert wheel_needs <= copied
    assert re.search(r"^USER 10001", dockerfile, re.MULTILINE)


def test_the_health_check_of_the_image_tells_a_service_from_none(setup: Setup) -> None:
    text = (ROOT / "Dockerfile").read_text()
    command = json.loads(re.search(r"HEALTHCHECK[^\[]*(\[.*\])", text)[1])  # type: ignore[index]
    with Instance(setup) as service:
        here = [word.replace("9464", service.url.rpartition(":")[2]) for word in command]
        service.wait_for(lambda: subprocess.run(here, check=False).returncode == 0)
        service.stop()
        assert subprocess.run(here, check=False, capture_output=True).returncode != 0


def test_the_systemd_unit_is_understood_and_hardened() -> None:
    path = ROOT / "docs" / "langfuse-etl.service"
    unit = path.read_text()
    for line in ("Restart=on-failure", "RestartPreventExitStatus=2 3 4", "ExecReload=/bin/kill -HUP $MAINPID"):
        assert line in unit
    (command,) = re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)
    assert shlex.split(command)[-1] == "run"
    assert set(re.findall(r"^Environment=(LANGFUSE_ETL_\w+)=", unit, re.MULTILINE)) <= set(VARIABLES)
    if (analyze := shutil.which("systemd-analyze")) is not None:
        said = subprocess.run([analyze, "verify", path], capture_output=True, text=True, check=False).stderr
        # That the program is not installed here is no fault of the unit.
        assert [line for line in said.splitlines() if "is not executable" not in line and path.name in line] == []


@pytest.fixture(scope="module")
def documented() -> dict[str, set[str]]:
    """The metrics of docs/production.md and their labels."""
    text = (ROOT / "docs" / "production.md").read_text()
    rows = re.findall(r"^\| (`langfuse_etl_.*?) \| (.*?) \|", text, re.MULTILINE)
    return {
        name: {label.strip() for label in labels.split(",")} - {"none"}
        for names, labels in rows
        for name in re.findall(r"langfuse_etl_\w+", names)
    }


def test_rules_and_docs_name_the_metrics_that_there_are(setup: Setup, documented: dict[str, set[str]]) -> None:
    with Instance(setup) as service:
        service.wait_for(lambda: service.runs("shop") >= 2)
        families = list(text_string_to_metric_families(service.get("/metrics").text))
        assert service.stop() == 0
    samples = {s.name: set(s.labels) - {"le"} for f in families for s in f.samples if s.name.startswith("langfuse")}
    endings = {"info": "_info", "counter": "_total"}
    shown = {f.name + endings.get(f.type, ""): f for f in families if f.name.startswith("langfuse")}
    assert set(documented) == set(shown)
    for name, family in shown.items():
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        assert documented[name] == labels, name
    rules = [rule for group in RULES["groups"] for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules) >= 8
    for rule in rules:
        used = set(re.findall(r"langfuse_etl_\w+", rule["expr"]))
        assert used
        assert used <= set(samples)
        for labels in re.findall(r"(?:by|on) \(([^)]*)\)", rule["expr"]):
            assert {label.strip() for label in labels.split(",")} <= set().union(*(samples[name] for name in used))
        assert {"summary", "action"} == set(rule["annotations"])
