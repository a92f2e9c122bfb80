"""docker-compose.yml: no engine runs here, so its claims are held against what the native stack runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy import stack

ROOT = Path(__file__).resolve().parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
RUN_BY_THE_NATIVE_STACK = {"collector-config.yaml", "deploy/jaeger.yaml", "deploy/prometheus.yml"}
WITHOUT_A_SHELL = {"collector", "jaeger"}
"""Their images hold nothing to run a health check with; the shipper retries until they answer."""


def mounts() -> list[tuple[str, str, str]]:
    return [
        (name, *volume.split(":")[:2])
        for name, service in SERVICES.items()
        for volume in service.get("volumes", ())
    ]


def test_images_are_at_the_versions_that_the_native_stack_runs() -> None:
    assert SERVICES["collector"]["image"].endswith(f":{stack.COLLECTOR_VERSION}")
    assert SERVICES["jaeger"]["image"].endswith(f":{stack.JAEGER_VERSION}")
    manifest = (ROOT / "deploy" / "collector-manifest.yaml").read_text()
    assert set(re.findall(r"collector/(?:receiver|exporter|processor|connector)\S* v(\S+)", manifest)) == {
        stack.COLLECTOR_VERSION
    }


@pytest.mark.parametrize(("service", "source", "target"), mounts())
def test_every_mount_has_its_source(service: str, source: str, target: str) -> None:
    assert target.startswith("/")
    if source.startswith("./"):
        assert (ROOT / source).is_file()
    else:
        assert source in COMPOSE["volumes"]


def test_every_mounted_configuration_is_one_that_the_native_stack_runs() -> None:
    mounted = {source.removeprefix("./") for _, source, _ in mounts() if source.startswith("./")}
    assert mounted - RUN_BY_THE_NATIVE_STACK == {"deploy/targets/compose.yml"}
    text = (ROOT / "deploy" / "stack.py").read_text()
    for name in RUN_BY_THE_NATIVE_STACK:
        assert f'"{Path(name).name}"' in text


def test_prometheus_is_pointed_at_services_of_compose() -> None:
    groups = yaml.safe_load((ROOT / "deploy" / "targets" / "compose.yml").read_text())
    hosts = {target.split(":")[0] for group in groups for target in group["targets"]}
    assert hosts == {"gateway", "collector"} <= set(SERVICES)


def test_every_environment_variable_is_read_by_its_configuration() -> None:
    for service, file in (("collector", "collector-config.yaml"), ("jaeger", "deploy/jaeger.yaml")):
        text = (ROOT / file).read_text()
        for name in SERVICES[service]["environment"]:
            assert f"${{env:{name}:-" in text, f"{service}: {name}"


def test_ports_are_published_on_loopback_only() -> None:
    for service in SERVICES.values():
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:")


def test_every_service_restarts_and_says_how_its_health_is_known() -> None:
    for name, service in SERVICES.items():
        assert service["restart"] == "unless-stopped"
        assert ("healthcheck" in service) is (name not in WITHOUT_A_SHELL)


def test_the_image_holds_the_code_and_nothing_else() -> None:
    assert (ROOT / ".dockerignore").read_text().split()[0] == "*"
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert "--require-hashes" in dockerfile
    assert "USER spanbill" in dockerfile
