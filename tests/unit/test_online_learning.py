"""What the client makes of settings before it submits the job."""

from pathlib import Path

from online_learning import jar_addresses


def test_several_jars_are_sent_with_the_job():
    assert jar_addresses("/opt/a b.jar") == "file:///opt/a%20b.jar"
    assert (
        jar_addresses("connector.jar, /opt/zstd.jar")
        == f"{Path.cwd().as_uri()}/connector.jar;file:///opt/zstd.jar"
    )
