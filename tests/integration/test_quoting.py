"""Each setting arrives unchanged through SQL, JAAS, properties, YAML, the shell and redis.conf."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import redis
from pydantic import SecretStr

from harness.stack import make_stack
from local import brokers, fetch, flink_cluster
from local.environment import child_environment
from loop.transactions import transactional_prefix
from online_learning import kafka_properties, tables
from settings import HERE, Settings, of_a_job

NASTY = "a'b''c\"d\\e\\u0041${env:HOME}$f#g%h{i}`j é"
FOLDER = NASTY.replace("${env:HOME}", "").replace("\\", "")
LISTS = ",:;\nk"  # what a list of folders can't hold
SASL = {"kafka_security_protocol": "SASL_PLAINTEXT"}

READ_BACK = """
import json, sys
from pyflink.java_gateway import get_gateway
from pyflink.table import EnvironmentSettings, TableEnvironment

java = get_gateway().jvm
kafka = java.org.apache.flink.kafka.shaded.org.apache.kafka.common
table_env = TableEnvironment.create(EnvironmentSettings.in_streaming_mode())
answers = {}
for field, case in json.load(open(sys.argv[1])).items():
    options = {}
    for statement in case["tables"]:
        table_env.execute_sql(statement)
    catalog = table_env._j_tenv.getCatalog("default_catalog").get()
    for table in table_env.list_tables():
        path = java.org.apache.flink.table.catalog.ObjectPath("default_database", table)
        options[table] = dict(catalog.getTable(path).getOptions())
        catalog.dropTable(path, False)
    password = kafka.config.types.Password(case["jaas"])
    context = kafka.security.JaasContext.loadClientContext({"sasl.jaas.config": password})
    login = context.configurationEntries()[0].getOptions()
    properties = java.java.util.Properties()
    stream = java.java.io.FileInputStream(case["properties"])
    properties.load(stream)
    stream.close()
    config = java.org.apache.flink.configuration.GlobalConfiguration.loadConfiguration(case["conf"])
    answers[field] = {
        "tables": options,
        "login": dict(login),
        "properties": dict(properties),
        "flink": dict(config.toMap()),
    }
json.dump(answers, open(sys.argv[2], "w"))
"""


def given(field: str, tmp_path: Path) -> Settings:
    """Return settings with the worst possible text in one of them."""
    values: dict = dict(SASL)
    if field == "run_dir":
        values[field] = tmp_path / FOLDER
    elif field == "kafka_bootstrap_servers":
        values[field] = re.sub(r"[\s:/\[\]]", "", NASTY) + ":9092"
    elif is_text(field):
        values[field] = NASTY + LISTS
    elif Settings.model_fields[field].annotation is Path:
        values[field] = tmp_path / (NASTY + LISTS)
    elif field == "page_hosts":
        values[field] = (NASTY, "b")
    return Settings(**({"run_dir": tmp_path / field} | values))


def is_text(field: str) -> bool:
    info = Settings.model_fields[field]
    pattern = any(getattr(rule, "pattern", None) for rule in info.metadata)
    return info.annotation in (str, SecretStr) and not pattern


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> dict[str, Settings]:
    folder = tmp_path_factory.mktemp("quoting")
    return {field: given(field, folder) for field in Settings.model_fields}


@pytest.fixture(scope="module")
def read(cases, tmp_path_factory) -> dict[str, dict]:
    """What Java reads of every case's files and texts."""
    folder = tmp_path_factory.mktemp("read")
    asked = {}
    for field, settings in cases.items():
        flink_cluster.write_flink_configuration(settings)
        inside = settings.model_copy(
            update={
                "kafka_security_protocol": "PLAINTEXT",
                "kafka_bootstrap_servers": "127.0.0.1:9092",
            }
        )
        brokers.prepare_kafka(inside, ["true"])
        environment = flink_cluster.flink_environment(settings)
        jaas = kafka_properties(settings)["sasl.jaas.config"]
        for name in (
            "KAFKA_SASL_PASSWORD_JAAS",
            "KAFKA_SASL_PASSWORD",
        ):  # as the connector does in the task
            jaas = jaas.replace(f"${{env:{name}}}", environment.get(name, ""))
        asked[field] = {
            "tables": tables(settings, "s"),
            "jaas": jaas,
            "properties": str(settings.run_dir / "kafka" / "server.properties"),
            "conf": str(settings.run_dir / "flink" / "conf"),
        }
    (folder / "asked.json").write_text(json.dumps(asked))
    (folder / "read_back.py").write_text(READ_BACK)
    plain = Settings(run_dir=folder / "run")
    fetch.fetch_jars()
    flink_cluster.prepare_flink(plain)
    argv = [
        sys.executable,
        *(str(folder / name) for name in ("read_back.py", "asked.json", "answers.json")),
    ]
    done = subprocess.run(
        argv, cwd=HERE, env=flink_cluster.flink_environment(plain), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "answers.json").read_text())


@pytest.mark.parametrize("field", Settings.model_fields)
def test_java_reads_each_setting_as_it_was_given(cases, read, field):
    settings, found = cases[field], read[field]
    source = found["tables"]["samples"]
    assert source["topic"] == settings.input_topic
    assert source["properties.group.id"] == settings.kafka_group
    assert source["properties.bootstrap.servers"] == settings.kafka_bootstrap_servers
    for table, topic in (
        ("predictions", settings.predict_topic),
        ("rejects", settings.reject_topic),
    ):
        assert found["tables"][table]["topic"] == topic
        assert found["tables"][table]["sink.transactional-id-prefix"] == transactional_prefix(
            settings, topic, "s"
        )
    assert found["login"]["username"] == settings.kafka_sasl_username
    assert found["login"]["password"] == settings.kafka_sasl_password.get_secret_value()
    assert found["properties"]["log.dirs"] == str(settings.run_dir / "kafka" / "data")
    assert found["flink"]["io.tmp.dirs"] == str(settings.run_dir / "flink" / "tmp")


@pytest.mark.parametrize("field", Settings.model_fields)
def test_each_setting_reaches_a_child_as_it_was_given(cases, field):
    argv = [sys.executable, "-c", "from settings import settings; print(repr(settings()))"]
    child = subprocess.run(
        argv,
        cwd=HERE,
        env=child_environment(cases[field]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.stdout.strip() == repr(cases[field]), child.stderr


def test_the_flink_command_runs_from_a_folder_of_any_name(tmp_path, monkeypatch):
    folder = tmp_path / FOLDER
    folder.mkdir()
    fetch.fetch_jars()
    flink_cluster.prepare_flink(Settings(run_dir=folder / ".local"))
    monkeypatch.setattr("local.flink_cluster.HERE", folder)
    monkeypatch.setattr("local.flink_cluster.VENV_BIN", folder)
    argv = [str(flink_cluster.write_flink_launcher()), "--version"]
    done = subprocess.run(
        argv,
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Version: 2.3.0" in done.stdout, done.stderr


def test_redis_keeps_its_data_in_a_folder_of_any_name(tmp_path):
    with make_stack(tmp_path / FOLDER) as stack:
        stack.start("redis")
        with redis.Redis(**stack.settings.redis_client()) as client:
            client.set("a", 1)
        assert list((stack.settings.run_dir / "redis").rglob("appendonly*"))


@pytest.mark.parametrize("sign", [*LISTS[:4], "${x}", "\\"])
def test_a_run_folder_that_java_can_not_list_is_one_sentence(sign, tmp_path):
    with pytest.raises(ValueError, match="choose another folder"):
        Settings(run_dir=tmp_path / f"a{sign}b")


def test_a_worker_reads_files_where_its_own_environment_says(monkeypatch):
    sent = Settings(
        model_signing_key_file=Path("/client/key"), kafka_ssl_cafile="/client/ca.pem"
    ).public()
    monkeypatch.setenv("MODEL_SIGNING_KEY_FILE", "/worker/key")
    monkeypatch.setenv("INPUT_TOPIC", "not_the_jobs")
    worker = of_a_job(sent)
    assert worker.model_signing_key_file == Path("/worker/key")
    assert worker.kafka_ssl_cafile == "/client/ca.pem"
    assert worker.input_topic == Settings.model_fields["input_topic"].default
