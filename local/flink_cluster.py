"""Flink as ``make run`` starts it: configuration, processes, REST calls and ``flink`` command."""

import http.client
import json
import os
import re
import shlex
import shutil
import sys
import urllib.error
import urllib.request
import zipfile
from functools import cache
from pathlib import Path

from local.environment import BUSY_JAVA, LEAN_JAVA, VENV_BIN, child_environment, java_home
from local.fetch import JARS
from local.process import Process, StackError, run_to_end
from settings import HERE, Settings, jaas_text

REST_GUARD_SERVICE = "org.apache.flink.runtime.io.network.netty.InboundChannelHandlerFactory"


@cache
def flink_home() -> Path:
    """Return the folder of the distribution inside the apache-flink wheel."""
    return next(
        Path(folder) / "pyflink"
        for folder in sys.path
        if (Path(folder) / "pyflink" / "bin").is_dir()
    )


# Sizes in MiB. The heap has room for a checkpoint and for Kafka's fetches of large messages.
# The Python workers are processes outside it.
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
    """Return the JVM options that Java 21 needs, most of them from Flink's own configuration."""
    shipped = (flink_home() / "conf" / "config.yaml").read_text()
    found = re.search(r"^\s+all:\s+(--add-.+)$", shipped, re.MULTILINE)
    if not found:
        raise StackError("Flink's own config.yaml has no env.java.opts.all, which Java 21 needs.")
    return [*found.group(1).split(), "-Djava.security.manager=allow"]


def flink_configuration(settings: Settings) -> dict[str, object]:
    """Return Flink's options: all addresses are 127.0.0.1, all files are in the run folder."""
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
        # After two failed heartbeats a TaskManager counts as dead, so the job restarts after 4 s
        # and not after the timeout of 20 s.
        "heartbeat.interval": "2 s",
        "heartbeat.timeout": "20 s",
        # Without a TaskManager the job waits for the next one instead of using up its restarts.
        # Flink accepts 248 days at most.
        "resourcemanager.standalone.start-up-time": "200 d",
        "taskmanager.numberOfTaskSlots": 4,
        "taskmanager.cpu.cores": 4.0,
        **{f"taskmanager.memory.{name}": f"{size}m" for name, size in TASKMANAGER_MIB.items()},
        "jobmanager.memory.heap.size": f"{JOBMANAGER_MIB['heap']}m",
        "jobmanager.memory.jvm-metaspace.size": f"{JOBMANAGER_MIB['metaspace']}m",
        "parallelism.default": 1,
        # flink-python and the connector are in the lib folder, so all jobs share one class loader.
        # A class loader per job would use up the metaspace after about nine jobs.
        "classloader.resolve-order": "parent-first",
        "io.tmp.dirs": str(run / "flink" / "tmp"),
        "state.backend.type": "hashmap",
        # Not as_uri(): Flink does not decode %20 in what follows file://.
        "execution.checkpointing.dir": f"file://{run / 'checkpoints'}",
        "execution.checkpointing.savepoint-dir": f"file://{run / 'savepoints'}",
        # The JobManager reads this option, not the job. The job sets its other checkpoint options.
        "execution.checkpointing.num-retained": 3,
    }


# Flink starts each Python worker with a bash script that does not quote paths.
BEFORE_WORKER = Path("local") / "java" / "before_worker.bash"

FLINK_LOGGING = """\
rootLogger.level = INFO
rootLogger.appenderRef.console.ref = Console
appender.console.name = Console
appender.console.type = CONSOLE
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d{yyyy-MM-dd HH:mm:ss,SSS} %-5p %c{1} %x - %m%n
# At INFO, each checkpoint logs several lines, every two seconds.
logger.kafka.name = org.apache.kafka
logger.kafka.level = WARN
logger.checkpoints.name = org.apache.flink.runtime.checkpoint
logger.checkpoints.level = WARN
# When a Python worker dies, this logger writes the worker's environment, including passwords.
logger.workers.name = org.apache.beam.runners.fnexecution.control.DefaultJobBundleFactory
logger.workers.level = OFF
"""


def prepare_flink(settings: Settings) -> None:
    """Write Flink's conf folder, its lib folder of links and the guard of its REST API."""
    flink = settings.run_dir / "flink"
    conf = flink / "conf"
    for folder in ("conf", "lib", "tmp"):
        (flink / folder).mkdir(parents=True, exist_ok=True)
    write_flink_configuration(settings)
    (conf / "log4j-console.properties").write_text(FLINK_LOGGING)
    client_logging = "log4j-cli.properties"
    shutil.copyfile(flink_home() / "conf" / client_logging, conf / client_logging)
    for link in (flink / "lib").iterdir():
        link.unlink()
    jars = [
        *flink_home().glob("lib/*.jar"),
        *flink_home().glob("opt/flink-python-*.jar"),
        *JARS.glob("flink/*.jar"),
    ]
    for jar in jars:
        (flink / "lib" / jar.name).symlink_to(jar)
    make_rest_guard(settings)


def write_flink_configuration(settings: Settings) -> None:
    """Write Flink's config.yaml, with values in JSON, which is valid YAML."""
    conf = settings.run_dir / "flink" / "conf"
    conf.mkdir(parents=True, exist_ok=True)
    configuration = flink_configuration(settings).items()
    lines = "".join(f"{key}: {json.dumps(value)}\n" for key, value in configuration)
    (conf / "config.yaml").write_text(lines)


def make_rest_guard(settings: Settings) -> None:
    """Compile local/java/guard into a jar in Flink's lib folder; raises ``StackError``.

    The guard makes Flink's REST API refuse requests from other sites' pages. Flink brings the
    compiler, which takes a quarter of a second.
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
    argv = [*compiler, *build, source_file, str(classes)]
    code, _ = run_to_end(argv, child_environment(settings), log)
    if code:
        raise StackError(
            f"The guard of Flink's REST API could not be compiled; the log says why: {log}"
        )
    with zipfile.ZipFile(flink / "lib" / "rest-guard.jar", "w") as jar:
        jar.writestr(f"META-INF/services/{REST_GUARD_SERVICE}", "restguard.RestGuard\n")
        for compiled in classes.rglob("*.class"):
            jar.write(compiled, compiled.relative_to(classes))


def flink_environment(settings: Settings) -> dict[str, str]:
    """Return the environment of Flink's processes, from which the workers inherit the secrets."""
    flink = settings.run_dir / "flink"
    password = settings.kafka_sasl_password.get_secret_value()
    return child_environment(settings) | {
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
    """Return the command that starts a Flink process.

    Flink's bin/*.sh end in the same command, but start three other JVMs first.
    """
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
    """Return the JSON answer of Flink's REST API; raises ``OSError`` without a complete answer.

    With ``body`` the request is a POST.
    """
    request = urllib.request.Request(
        f"http://{settings.flink_host}:{settings.flink_port}{path}",
        None if body is None else json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
            return json.load(answer)
    except (http.client.HTTPException, ValueError) as error:  # it ended meanwhile
        raise ConnectionError(f"Flink's answer broke off ({type(error).__name__})") from error


def rest_is_guarded(settings: Settings) -> bool:
    """Return whether Flink refuses a foreign host name.

    Flink starts without the guard if it cannot load it, and only logs that.
    """
    address = f"http://{settings.flink_host}:{settings.flink_port}/overview"
    foreign = urllib.request.Request(address, headers={"Host": "guard.invalid"})
    try:
        with urllib.request.urlopen(foreign, timeout=10):  # noqa: S310
            return False
    except urllib.error.HTTPError as error:
        return error.code == 403


def jobmanager(settings: Settings) -> Process:
    """Return Flink's JobManager, with its REST API and page on FLINK_PORT."""

    def is_up() -> bool:
        return "taskmanagers" in rest(settings, "/overview") and rest_is_guarded(settings)

    process = Process(
        name="JobManager",
        argv=[],
        env=flink_environment(settings),
        run_dir=settings.run_dir,
        check=is_up,
        ports={settings.flink_port: "FLINK_PORT", settings.flink_rpc_port: "FLINK_RPC_PORT"},
        prepare=lambda: prepare_flink(settings),
    )
    sizes = [
        f"-Xmx{JOBMANAGER_MIB['heap']}m",
        f"-XX:MaxMetaspaceSize={JOBMANAGER_MIB['metaspace']}m",
    ]
    main_class = "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint"
    process.argv = [
        *flink_argv(settings, main_class, [*LEAN_JAVA, *sizes], process.log),
        "--executionMode",
        "cluster",
    ]
    return process


def taskmanager(settings: Settings) -> Process:
    """Return Flink's TaskManager, the parent of the Python workers; it needs the JobManager."""
    process = Process(
        name="TaskManager",
        argv=[],
        env=flink_environment(settings),
        run_dir=settings.run_dir,
        check=lambda: rest(settings, "/overview")["slots-total"] > 0,
    )
    size = TASKMANAGER_MIB
    heap = size["framework.heap.size"] + size["task.heap.size"]
    direct = size["framework.off-heap.size"] + size["task.off-heap.size"] + size["network.max"]
    options = [
        *BUSY_JAVA,
        f"-Xmx{heap}m",
        f"-XX:MaxDirectMemorySize={direct}m",
        f"-XX:MaxMetaspaceSize={size['jvm-metaspace.size']}m",
    ]
    process.argv = flink_argv(
        settings, "org.apache.flink.runtime.taskexecutor.TaskManagerRunner", options, process.log
    )
    return process


def write_flink_launcher() -> Path:
    """Write the ``flink`` command into the environment's bin and return its path.

    It needs no environment variable and no Java on PATH.
    """
    variables = {
        "FLINK_HOME": flink_home(),
        "FLINK_OPT_DIR": flink_home() / "opt",
        "FLINK_PLUGINS_DIR": flink_home() / "plugins",
        "JAVA_HOME": java_home(),
    }
    lines = [
        "#!/bin/sh",
        "# Written by make run: Flink's command line with this environment's Java and Python.",
        *(f"export {name}={shlex.quote(str(value))}" for name, value in variables.items()),
        f"default={shlex.quote(str(HERE / '.local'))} bin={shlex.quote(str(VENV_BIN))}",
        'run="${RUN_DIR:-$default}"',
        'export FLINK_CONF_DIR="${FLINK_CONF_DIR:-$run/flink/conf}"',
        'export PYFLINK_CLIENT_EXECUTABLE="${PYFLINK_CLIENT_EXECUTABLE:-$bin/python}"',
        'export PATH="$bin:$PATH" LC_ALL=C.UTF-8',
        "# The client unpacks files into its own folder, which is deleted when it ends.",
        'mkdir -p "$run/tmp" && TMPDIR="$(mktemp -d "$run/tmp/flink.XXXXXX")" || exit',
        "export TMPDIR",
        "trap 'rm -rf \"$TMPDIR\"' EXIT",
        f'"$JAVA_HOME/bin/java" {shlex.join([*LEAN_JAVA, *flink_options()])} \\',
        '  -Djava.io.tmpdir="$TMPDIR" \\',
        '  -Dlog.file="$run/log/flink-client.log" \\',
        "  -Dlog4j.configurationFile=log4j-cli.properties \\",
        '  -cp "$FLINK_CONF_DIR:$run/flink/lib/*" \\',
        '  org.apache.flink.client.cli.CliFrontend "$@" <&0 &',
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
