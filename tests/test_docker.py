"""The containers, as far as they can be checked where no Docker engine runs: by hadolint, by the Compose
specification's schema, and by what must hold of them (docker/README.md says what was started by hand)."""

import re
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "docker"
DOCKERFILES = [DOCKER / "Dockerfile", DOCKER / "servers.Dockerfile"]
COMPOSE_FILES = [DOCKER / "compose.yaml", DOCKER / "compose.gpu.yaml"]
ONCE = {"bucket", "deployments"}  # services that do something and end
SECRET = re.compile("PASSWORD|SECRET|AUTH_STRING|TOKEN")


def compose(path: Path = COMPOSE_FILES[0]) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


SERVICES: dict[str, dict[str, Any]] = compose()["services"]


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """Return `("RUN", "...")`, ..., without comments, continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", dockerfile.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in text.splitlines() if line)]


def pins(path: Path) -> dict[str, str]:
    """Return the versions of packages by their normalised names."""
    lines = [line for line in path.read_text().splitlines() if "==" in line]
    return {re.sub("[-_.]+", "-", name.lower()): version for name, version in (line.split("==") for line in lines)}


def tool(name: str, *arguments: str | Path) -> None:
    """Run a program that pip installed beside this Python; its complaints become the test's."""
    done = subprocess.run([Path(sys.executable).with_name(name), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_finds_nothing(dockerfile: Path) -> None:
    tool("hadolint", "--no-color", "--failure-threshold", "style", dockerfile)


def test_the_compose_files_follow_the_compose_specification() -> None:
    tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", *COMPOSE_FILES)


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_base_images_are_pinned_by_digest_and_are_the_same(dockerfile: Path) -> None:
    bases = [rest.split()[0] for word, rest in instructions(dockerfile) if word == "FROM" and rest.split()[0] != "base"]
    assert bases == [rest.split()[0] for word, rest in instructions(DOCKERFILES[0]) if word == "FROM"][:1]
    assert re.fullmatch(r"python:3\.11\.\d+-slim-bookworm@sha256:[0-9a-f]{64}", bases[0])


def test_images_are_pinned_by_digest_or_built_here_with_our_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    services = [*SERVICES.values(), *compose(COMPOSE_FILES[1])["services"].values()]
    for service in services:
        name, _, tag = service["image"].partition(":")
        if "build" in service:
            assert name.startswith("mapet"), service["image"]
            assert tag.startswith(version), service["image"]
        else:
            assert re.search(r":[\w.-]*\d[\w.-]*@sha256:[0-9a-f]{64}$", service["image"]), service["image"]


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_containers_do_not_run_as_root(dockerfile: Path) -> None:
    last_stage = instructions(dockerfile)
    while any(word == "FROM" for word, _ in last_stage[1:]):
        last_stage = last_stage[1:]
    assert [int(rest) for word, rest in last_stage if word == "USER"][-1] > 0


@pytest.mark.parametrize("name", [name for name in SERVICES if "build" in SERVICES[name]])
def test_containers_of_our_images_have_no_rights_of_root(name: str) -> None:
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not service.get("privileged")


def test_nothing_but_what_is_needed_is_copied_into_an_image() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    admitted = {rule[1:] for rule in rules if rule[0] == "!"}
    copied = {
        source
        for dockerfile in DOCKERFILES
        for word, rest in instructions(dockerfile)
        if word == "COPY" and "--from" not in rest
        for source in rest.split()[:-1]
    }
    assert rules[0] == "*"
    assert copied == admitted
    assert all((ROOT / name).exists() for name in copied)
    assert not any(fnmatch(name, "*.env*") for name in copied)


def test_every_port_is_bound_to_loopback_unless_asked() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(ports) == 2
    assert all(port.startswith("${BIND:-127.0.0.1}:") for port in ports)
    assert not any("network_mode" in service for service in SERVICES.values())


@pytest.mark.parametrize("name", ["postgres", "minio"])
def test_the_stores_are_on_a_network_without_a_way_out(name: str) -> None:
    assert SERVICES[name]["networks"] == ["stores"]
    assert compose()["networks"]["stores"] == {"internal": True}


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_a_health_check_or_ends_by_itself(name: str) -> None:
    service = SERVICES[name]
    assert ("healthcheck" in service) != (name in ONCE)
    assert service["restart"] == ("no" if name in ONCE else "unless-stopped")


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_waits_until_those_it_needs_work(name: str) -> None:
    for needed, how in SERVICES[name].get("depends_on", {}).items():
        assert how == {"condition": "service_completed_successfully" if needed in ONCE else "service_healthy"}
    hosts = set(re.findall(r"(?://|@)(postgres|minio|mlflow|prefect-server):", str(SERVICES[name]["environment"])))
    assert hosts <= _needed(name), "it calls a service that it does not wait for"


def _needed(name: str) -> set[str]:
    direct = set(SERVICES[name].get("depends_on", {}))
    return direct.union(*(_needed(other) for other in direct))


def test_starting_again_keeps_what_was_changed_in_prefect() -> None:
    [command] = SERVICES["deployments"]["command"]
    assert "flows.register" in command
    assert "--overwrite" not in command
    assert "deploy --all" not in command


def test_no_password_is_written_down_and_none_has_a_default() -> None:
    for name, service in SERVICES.items():
        for variable, value in service["environment"].items():
            if SECRET.search(variable):
                assert re.fullmatch(r"(mapet:)?\$\{\w+:\?set it in docker/\.env\}", value), f"{name}: {variable}"
    for path in [*COMPOSE_FILES, DOCKER / "mlflow_auth.ini", *DOCKERFILES]:
        assert not re.search(r"://[^/\s@]*:[^/\s@]*@", path.read_text()), f"{path.name}: a password in an address"


def test_the_example_names_every_variable_and_gives_no_value_to_a_secret() -> None:
    example = (DOCKER / ".env.example").read_text()
    required = set(re.findall(r"\$\{(\w+):\?", COMPOSE_FILES[0].read_text()))
    optional = dict(re.findall(r"\$\{(\w+):-([^}]*)\}", COMPOSE_FILES[0].read_text()))
    assert set(re.findall(r"^(\w+)=$", example, re.MULTILINE)) == required
    assert set(re.findall(r"^# (\w+)=\S", example, re.MULTILINE)) == set(optional)
    assert all(SECRET.search(name) for name in required)
    assert not any(SECRET.search(name) for name in optional)


def test_the_servers_have_the_versions_that_the_tests_run_with() -> None:
    constraints, servers = pins(ROOT / "constraints.txt"), pins(DOCKER / "servers.txt")
    assert {"prefect", "mlflow"} <= set(servers)
    assert servers == servers | {name: constraints[name] for name in servers.keys() & constraints.keys()}


def test_everything_of_the_gpu_image_is_pinned() -> None:
    optional = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    constraints = pins(ROOT / "constraints.txt")
    assert all("==" in requirement or requirement in constraints for requirement in optional["gpu"])


def test_the_gpu_override_changes_the_pipelines_services_only() -> None:
    override = compose(COMPOSE_FILES[1])["services"]
    assert set(override) == {name for name in SERVICES if SERVICES[name]["image"].startswith("mapet:")}
    assert all(service["image"].endswith("-gpu") for service in override.values())
    devices = override["worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices == [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]
