"""What docker-compose.yml starts Flink with starts a real Flink; host names stand for this machine here."""

import os
import signal
import subprocess

from harness.stack import free_port, until
from local import fetch, flink_cluster
from local.process import kill_session
from settings import HERE, Settings
from tests.unit.test_docker import SERVICES, image_environment, site_packages


def command(service: str) -> list[str]:
    text = "\n".join(SERVICES[service]["command"])
    for inside, here in (
        ("=jobmanager", "=127.0.0.1"),
        ("=taskmanager", "=127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),
        ("/app/.local/venv/lib/python3.11/site-packages", str(site_packages())),
    ):
        text = text.replace(inside, here)
    return text.split("\n")


def test_flink_starts_with_the_commands_of_the_compose_file(tmp_path):
    settings = Settings(run_dir=tmp_path, flink_port=free_port(), flink_rpc_port=free_port())
    fetch.fetch_jars()
    flink_cluster.prepare_flink(settings)
    given = flink_cluster.flink_environment(settings)
    environment = os.environ | {name: given[name] for name in image_environment() if name in given}
    started = []
    try:
        for service in ("jobmanager", "taskmanager"):
            with (tmp_path / f"{service}.out").open("wb") as out:
                started.append(
                    subprocess.Popen(
                        command(service),
                        cwd=HERE,
                        env=environment,
                        stdout=out,
                        stderr=out,
                        start_new_session=True,
                    )
                )
        until(
            lambda: flink_cluster.rest(settings, "/overview")["slots-total"] == 4,
            90,
            "the TaskManager is known",
        )
        for process in started:
            process.send_signal(signal.SIGTERM)
        assert [process.wait(30) for process in started] == [143, 143]
    finally:
        for process in started:
            kill_session(process.pid)
