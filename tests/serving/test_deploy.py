"""The files of `deploy/`: each can be read, names options that `msm4sr serve` has, and metrics that it exports."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from fastapi.testclient import TestClient
from service import serving

from msm4sr.cli import app as command_line
from msm4sr.data.dataset import load_dataset
from msm4sr.serving.app import create_app
from msm4sr.serving.service import ServeSettings

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE = ("compose.yaml", "compose.replicas.yaml")
METRIC = re.compile(r"\bmsm4sr_\w+")


def compose(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DEPLOY / name).read_text())
    return found


def dockerfile(instruction: str) -> list[str]:
    """The last value of an instruction of the Dockerfile, in JSON."""
    lines = re.findall(rf"^{instruction} (?:CMD )?(\[.*\])$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    words: list[str] = json.loads(lines[-1])
    return words


def unit() -> dict[str, list[str]]:
    """The settings of the systemd unit."""
    settings: dict[str, list[str]] = {}
    for line in (DEPLOY / "msm4sr.service").read_text().splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            settings.setdefault(name, []).append(value)
    return settings


def started() -> list[tuple[str, list[str]]]:
    """Every command line of `msm4sr`, without its first word, and the file that has it."""
    found = [("Dockerfile", dockerfile("CMD")), ("msm4sr.service", shlex.split(unit()["ExecStart"][0])[1:])]
    for name in COMPOSE:
        services = compose(name)["services"].values()
        found += [(name, shlex.split(service["command"])) for service in services if service["image"] == "msm4sr"]
    return found


def parsed(words: list[str]) -> dict[str, Any]:
    group = typer.main.get_command(command_line)
    assert words[0] == "serve"
    command = group.commands["serve"]  # type: ignore[attr-defined]
    options: dict[str, Any] = command.make_context("serve", words[1:]).params
    return options


def seconds(duration: str) -> float:
    return float(duration.removesuffix("s"))


@pytest.mark.parametrize(("file", "words"), started())
def test_every_command_line_is_one_of_msm4sr_serve(file: str, words: list[str]) -> None:
    assert parsed(words)["folder"].name == "current", file


def test_a_wrong_option_would_be_found() -> None:
    with pytest.raises(Exception, match="No such option"):
        parsed(["serve", "run", "--no-such-option"])


@pytest.mark.parametrize("name", COMPOSE)
def test_compose_files_name_files_and_volumes_that_exist(name: str) -> None:
    described = compose(name)
    for service in described["services"].values():
        for volume in service["volumes"]:
            source = re.sub(r"\$\{.*\}", "given", volume).split(":")[0]
            assert source in {"given", *described["volumes"]} or (DEPLOY / source).is_file(), source
        for other in service.get("depends_on", []):
            assert other in described["services"]
        if "build" in service:
            assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
        if service["image"] == "msm4sr":
            drain = parsed(shlex.split(service["command"]))["drain"]
            assert seconds(service["stop_grace_period"]) >= drain + 10


def test_replicas_are_those_that_nginx_and_prometheus_ask() -> None:
    services = compose("compose.replicas.yaml")["services"]
    replicas = {f"{name}:8000" for name, service in services.items() if service["image"] == "msm4sr"}
    assert len(replicas) == 2
    assert set(re.findall(r"server (\S+)", (DEPLOY / "upstream.replicas.conf").read_text())) == replicas
    scraped = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"][0]["static_configs"]
    assert set(scraped[0]["targets"]) == replicas
    for name, service in services.items():
        if f"{name}:8000" in replicas:
            options = parsed(shlex.split(service["command"]))
            assert str(options["state"]).startswith("postgresql:")
            assert options["host"] == "0.0.0.0"


def test_the_image_copies_what_exists_and_checks_its_health(run_folder: Path, tmp_path: Path) -> None:
    text, ignored = (DEPLOY / "Dockerfile").read_text(), (ROOT / ".dockerignore").read_text().split()
    for names in re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.MULTILINE):
        for name in names.split():
            assert (ROOT / name).exists()
            assert f"!{name}" in ignored
    extras = set(re.findall(r"'\.\[(.*)\]'", text)[0].split(","))
    project = (ROOT / "pyproject.toml").read_text()
    assert all(re.search(rf"^{extra} = \[", project, re.MULTILINE) for extra in extras)
    python, *check = dockerfile("HEALTHCHECK")
    with serving(run_folder, tmp_path / "state") as server:
        check[-1] = check[-1].replace("http://127.0.0.1:8000", server.url)
        assert (python, subprocess.run([sys.executable, *check]).returncode) == ("python", 0)
        server.kill()
        assert subprocess.run([sys.executable, *check], capture_output=True).returncode != 0


def exported(client: TestClient, item_id: str) -> dict[str, str]:
    """The metrics of /metrics after a recommendation, by the names of their samples, and their families."""
    assert client.post("/recommend", json={"history": [item_id]}).status_code == 200
    families = re.findall(r"^# TYPE (\S+) (\S+)", client.get("/metrics").text, re.MULTILINE)
    names = {}
    for family, kind in families:
        if not family.endswith("_created"):
            parts = ("_bucket", "_sum", "_count") if kind == "histogram" else ("",)
            names |= {family + part: family for part in parts}
    return names


@pytest.fixture(scope="module")
def metrics(run_folder: Path, toyshop: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    app = create_app(ServeSettings(run=run_folder, state=tmp_path_factory.mktemp("state")))
    return exported(TestClient(app), load_dataset(toyshop).item_ids[0])


def test_the_dashboard_shows_every_metric(metrics: dict[str, str]) -> None:
    dashboard = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
    shown = {name for panel in dashboard["panels"] for one in panel["targets"] for name in METRIC.findall(one["expr"])}
    assert shown <= set(metrics)
    assert {metrics[name] for name in shown} == set(metrics.values())
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard["panels"]}
    assert len(places) == len(dashboard["panels"])


def test_alerts_are_about_metrics_that_exist(metrics: dict[str, str]) -> None:
    scrape = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    rules = [
        rule
        for name in scrape["rule_files"]
        for group in yaml.safe_load((DEPLOY / name).read_text())["groups"]
        for rule in group["rules"]
    ]
    assert len({rule["alert"] for rule in rules}) == len(rules)
    asked = {name for rule in rules for name in METRIC.findall(rule["expr"])}
    assert asked
    assert asked <= set(metrics)


def test_the_unit_is_valid_and_hardened(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze")
    program = unit()["ExecStart"][0].split()[0]
    file = tmp_path / "msm4sr.service"
    file.write_text((DEPLOY / "msm4sr.service").read_text().replace(program, sys.executable))
    verify = subprocess.run(["systemd-analyze", "verify", "--man=no", str(file)], capture_output=True, text=True)
    assert (verify.returncode, [line for line in verify.stderr.splitlines() if "msm4sr.service" in line]) == (0, [])
    rating = ["systemd-analyze", "security", "--offline=true", "--threshold=25", str(file)]
    done = subprocess.run(rating, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
