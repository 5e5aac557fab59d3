"""The tables and plots of benchmarks/results/loop.json."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt

from harness.markdown import table

GOALS = {
    "row_udf": 250,
    "kafka_python": 6,
    "quix": 4,
    "bytewax": 4,
    "river": 4,
    "confluent_txn": 1.2,
    "flink_json": 1.1,
    "flink_raw": 0.85,
}
THREADS = {  # of the TaskManager: what for, and how Linux names them
    "Kafka read": ("Source Data Fet",),
    "first task: decoding, Arrow out and in": ("Source: KafkaSo",),
    "second task: records for the sinks": ("DataStreamToTab",),
    "to and from the worker (gRPC)": ("grpc-",),
    "Kafka write": ("kafka-producer",),
    "compiling by the JVM, less with time": ("C1 Compiler", "C2 Compiler"),
    "garbage collection": ("VM Thread",),
}

LEARNERS = {
    "default": "**the default**",
    "default_10": "the default, in batches of 10",
    "sgd": "the original's SGD",
    "river_logistic": "River: logistic",
    "river_softmax": "River: softmax",
    "river_tree": "River: Hoeffding tree",
    "river_knn": "River: 5 nearest neighbours",
    "products": "degree-2 products, averaged",
    "products_copies": "degree-2 products, rehearsing copies",
    "fourier_copies": "2,000 Fourier features, rehearsing copies",
}


def tables(results: dict[str, Any]) -> str:
    """Return what was measured as Markdown tables."""
    parts = [
        make(results)
        for name, make in (
            ("throughput", _throughput),
            ("freshness", _freshness),
            ("growth", _growth),
        )
        if name in results
    ]
    return "\n\n".join(parts)


def accuracy(figures: dict[str, dict]) -> str:
    """Return how often each learner is right, as a Markdown table."""
    head = [
        "learner",
        "digits, prequential",
        "pen strokes, never taught",
        "samples/s",
        "log loss",
        "calibration",
        "shuffles",
    ]
    rows = [
        [
            LEARNERS[name],
            f"{row['mean']:.4f} ± {row['sd']:.4f}",
            f"{row['strokes_mean']:.3f} ± {row['strokes_sd']:.3f}",
            f"{row['samples_per_s']:,}",
            row.get("log_loss", ""),
            row.get("calibration", {}).get("error", ""),
            row["shuffles"],
        ]
        for name, row in figures.items()
    ]
    return table(head, rows)


def faults(found: dict[str, Any]) -> str:
    """Return what a run of the faults showed, as Markdown."""
    rows = [
        [name, row["times"], f"{row['median']:.1f} s", f"{row['max']:.1f} s"]
        for name, row in found["recovery_s"].items()
    ]
    return (
        f"{found['messages']:,} messages, **{found['lost']} lost, {found['twice']} learned twice**. "
        f"Of {found['commits']:,} commits, {found['compared']:,} hold bit for bit the model that one process trains on the "
        f"same batches. {found['skipped']:,} messages were skipped deliberately with `accept`, after retention had deleted "
        f"them or the topic had been recreated. {found['outputs_twice']:,} outputs may stand twice, after submissions "
        f"without `-s`.\n\n" + table(["fault", "times", "recovery, median", "recovery, max"], rows)
    )


def _throughput(results: dict[str, Any]) -> str:
    rows = []
    for name, row in results["throughput"].items():
        ratio = results["ratios"].get(name, "")
        spread = f"{row['min']:,.0f} to {row['max']:,.0f}"
        rows.append(
            [
                row["title"],
                row["guarantee"],
                f"{row['median']:,.0f}",
                spread,
                ratio,
                GOALS.get(name, ""),
            ]
        )
    alone = results.get("partial_fit_alone")
    if alone:
        rows.append(
            [
                alone["title"],
                "none",
                f"{alone['median']:,.0f}",
                f"{alone['min']:,.0f} to {alone['max']:,.0f}",
                "",
                "",
            ]
        )
    head = ["contender", "delivery", "samples/s, median", "min to max", "ours / theirs", "goal"]
    return "\n\n".join([table(head, rows), *_where_time_goes(results)])


def _where_time_goes(results: dict[str, Any]) -> list[str]:
    rows = [[part, us] for part, us in profile(results)]
    return (
        [table(["where the time goes (ours)", "CPU, microseconds a sample"], rows)] if rows else []
    )


def profile(results: dict[str, Any]) -> list[tuple[str, float]]:
    """Return each part of ours and its microseconds a sample: processes, the TaskManager's threads, steps of the task."""
    ours = results.get("throughput", {}).get("ours", {})
    if "threads_us_per_sample" not in ours:
        return []
    threads = ours["threads_us_per_sample"]
    found = []
    for process, us in ours["cpu_us_per_sample"].items():
        found.append((process, us))
        if process == "taskmanager":
            found += [
                (
                    f"- {part}",
                    round(sum(us for name, us in threads.items() if name.startswith(names)), 2),
                )
                for part, names in THREADS.items()
            ]
        if process == "python worker":
            batch = results.get("growth", {}).get("batches", {}).get("5000", {})
            found += [
                (f"- {part} (timed alone, batch 5,000)", round(ms / 5, 2))
                for part, ms in batch.get("ms_per_batch", {}).items()
            ]
    return found


def _freshness(results: dict[str, Any]) -> str:
    rows = [
        [
            learner,
            f"{int(rate):,}",
            *(row[kind][p] for kind in ("stored_ms", "served_ms") for p in ("p50", "p99", "max")),
        ]
        for learner, table in results["freshness"].items()
        for rate, row in table.items()
    ]
    return table(
        ["learner", "samples/s", "stored p50, ms", "p99", "max", "served p50, ms", "p99", "max"],
        rows,
    )


def _growth(results: dict[str, Any]) -> str:
    growth, found = results["growth"], []
    for name, head in (("sizes", "size"), ("batches", "batch size")):
        rows = [
            [
                key,
                f"{row['samples_per_s']:,}",
                f"{row['model_bytes']:,}",
                *row["ms_per_batch"].values(),
            ]
            for key, row in growth.get(name, {}).items()
        ]
        if rows:
            parts = next(iter(growth[name].values()))["ms_per_batch"]
            columns = [
                "samples/s in the task",
                "model, bytes",
                *(f"{part}, ms a batch" for part in parts),
            ]
            found.append(table([head, *columns], rows))
    if "partitions" in growth:
        rows = [[count, f"{row['median']:,.0f}"] for count, row in growth["partitions"].items()]
        found.append(table(["partitions", "samples/s"], rows))
    if "transactions" in growth:
        row = growth["transactions"]
        rates = [f"{row[name]['median']:,.0f}" for name in ("plain", "transactional")]
        head = [
            "plain input, samples/s",
            f"transactions of {row['size']}, samples/s",
            "times the time",
        ]
        found.append(table(head, [[*rates, row["times_the_time"]]]))
    if "recovery" in growth:
        rows = [[name, row["median"], row["max"]] for name, row in growth["recovery"].items()]
        found.append(table(["killed", "first new commit after, s, median", "max"], rows))
    if "catching_up" in growth:
        row = growth["catching_up"]
        found.append(table([name.replace("_", " ") for name in row], [[*row.values()]]))
    if "memory" in growth:
        rows = [
            [
                name,
                row["first"],
                row["last"],
                row["max"],
                f"{100 * row['last_sixth_against_second']:+.1f} %",
            ]
            for name, row in growth["memory"]["parts"].items()
        ]
        head = ["memory, MiB", "first", "last", "max", "last sixth against the second"]
        found.append(table(head, rows))
    return "\n\n".join(found)


def plots(results: dict[str, Any], folder: Path) -> None:
    """Write one picture per topic into the folder."""
    mpl.use("Agg")
    folder.mkdir(exist_ok=True)
    if "throughput" in results:
        _bars(results, folder / "bench-throughput.png")
    if profile(results):
        _profile(results, folder / "bench-profile.png")
    if "freshness" in results:
        _ages(results, folder / "bench-freshness.png")
    if "memory" in results.get("growth", {}):
        _memory(results, folder / "bench-memory.png")


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _bars(results: dict[str, Any], path: Path) -> None:
    rows = sorted(results["throughput"].items(), key=lambda item: item[1]["median"])
    figure, axes = plt.subplots(figsize=(8, 0.45 * len(rows) + 1))
    colours = [
        "#c0392b"
        if name == "ours"
        else "#b8c4cc"
        if row["title"].startswith("limit")
        else "#5d7a8c"
        for name, row in rows
    ]
    medians = [row["median"] for _, row in rows]
    spread = [
        [row["median"] - row["min"] for _, row in rows],
        [row["max"] - row["median"] for _, row in rows],
    ]
    axes.barh([row["title"] for _, row in rows], medians, xerr=spread, color=colours, capsize=3)
    for place, value in enumerate(medians):
        axes.annotate(
            f" {value:,.0f}", (value, place), xytext=(4, 5), textcoords="offset points", fontsize=8
        )
    axes.set_xscale("log")
    axes.set_xlim(10, 6 * max(row["max"] for _, row in rows))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("samples/s, median of the rounds, whiskers from min to max")
    _save(figure, path)


def _profile(results: dict[str, Any], path: Path) -> None:
    parts = profile(results)[::-1]
    figure, axes = plt.subplots(figsize=(8, 0.35 * len(parts) + 1))
    colours = ["#b8c4cc" if name.startswith("-") else "#5d7a8c" for name, _ in parts]
    axes.barh([name for name, _ in parts], [us for _, us in parts], color=colours)
    axes.set_xlabel("CPU, microseconds per sample")
    _save(figure, path)


def _ages(results: dict[str, Any], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(7, 4))
    for number, (learner, rates) in enumerate(results["freshness"].items()):
        for kind, style in (("stored_ms", "-"), ("served_ms", "--")):
            for p, marker in (("p50", "o"), ("p99", "s")):
                label = f"{learner}: {kind.removesuffix('_ms')} {p}"
                axes.plot(
                    [int(rate) for rate in rates],
                    [row[kind][p] for row in rates.values()],
                    style + marker,
                    label=label,
                    color=f"C{number}",
                )
    axes.set_xscale("log")
    axes.set_yscale("log", subs=[2, 5])
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_minor_formatter("{x:,.0f}")
    axes.set_xlabel("samples/s")
    axes.set_ylabel("age, ms")
    axes.legend(fontsize=7)
    _save(figure, path)


def _memory(results: dict[str, Any], path: Path) -> None:
    memory = results["growth"]["memory"]
    figure, axes = plt.subplots(figsize=(7, 4))
    for name, row in memory["parts"].items():
        minutes = [
            memory["minutes"] * i / max(len(row["series"]) - 1, 1)
            for i in range(len(row["series"]))
        ]
        axes.plot(minutes, row["series"], label=name)
    axes.set_xlabel(f"minutes at {memory['samples_per_s']:,} samples/s")
    axes.set_ylabel("MiB")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    _save(figure, path)
