"""Tables and plots of benchmarks/results/loop.json."""

import math
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt

from harness.markdown import table

SHORT = "too short to measure"
PERCENTILES = ("p50", "p99", "max")
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
THREADS = {  # of the TaskManager: their task, and how Linux names them
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
    topics = {"throughput": _throughput, "freshness": _freshness, "growth": _growth}
    return "\n\n".join(make(results) for name, make in topics.items() if name in results)


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
    sentences = (
        f"{found['messages']:,} messages, **{found['lost']} lost, {found['twice']} learned "
        f"twice**. Of {found['commits']:,} commits, {found['compared']:,} hold bit for bit the "
        f"model that one process trains on the same batches. {found['skipped']:,} messages were "
        "skipped deliberately with `accept`, after retention had deleted them or the topic had "
        f"been recreated. {found['outputs_twice']:,} outputs may appear twice, after submissions "
        "without `-s`."
    )
    recoveries = table(["fault", "times", "recovery, median", "recovery, max"], rows)
    return f"{sentences}\n\n{recoveries}"


# --- throughput ---


def _throughput(results: dict[str, Any]) -> str:
    """Return the contenders' table, and where the time goes."""
    rows = [
        [row["title"], row["guarantee"], *_rates(row), ratio_of(results, name), GOALS.get(name, "")]
        for name, row in results["throughput"].items()
    ]
    measured = list(results["throughput"].values())
    if alone := results.get("partial_fit_alone"):
        rows.append([alone["title"], "none", *_rates(alone), "", ""])
        measured.append(alone)
    head = ["contender", "delivery", "samples/s, median", "min to max", "ours / theirs", "goal"]
    with_host(head, rows, [row.get("host") for row in measured])
    return "\n\n".join([table(head, rows), *_where_time_goes(results)])


def _rates(row: dict[str, Any]) -> list[str]:
    """Return a row's median and its range, or that its runs were too short.

    A median with a run whose rate was not stable when its warm-up ended says so.
    """
    if "median" not in row:
        return [SHORT, ""]
    unstable = "" if all(row.get("steady", ())) else " (not stable)"
    return [f"{row['median']:,.0f}{unstable}", f"{row['min']:,.0f} to {row['max']:,.0f}"]


def ratio_of(results: dict[str, Any], name: str) -> Any:
    """Return how often a contender's rate goes into this project's, or an empty string."""
    return results["ratios"].get(name, "")


def with_host(head: list[str], rows: list[list[Any]], hosts: list[Any]) -> None:
    """Append the host's stolen time and load to a table, where any row has them.

    Each entry of hosts is one run's figures, or a list of several runs', of which the largest
    are shown.
    """
    runs = [[host] if isinstance(host, dict) else host or [] for host in hosts]
    if not any(runs):
        return
    head += ["stolen, %", "load"]
    for row, of_row in zip(rows, runs, strict=True):
        row.append(_largest(of_row, "stolen_percent"))
        row.append(_largest(of_row, "load"))


def _largest(runs: list[dict[str, Any]], name: str) -> Any:
    """Return the largest of the runs' figures, or an empty string without any."""
    return max((run[name] for run in runs if run[name] is not None), default="")


def _where_time_goes(results: dict[str, Any]) -> list[str]:
    """Return the table of CPU time by part, or nothing where it was not measured."""
    rows = [[part, us] for part, us in profile(results)]
    if not rows:
        return []
    return [table(["where the time goes (ours)", "CPU, microseconds a sample"], rows)]


def profile(results: dict[str, Any]) -> list[tuple[str, float]]:
    """Return each part of this project's job and its microseconds of CPU a sample.

    Parts are processes, threads of the TaskManager, and steps of the task in the worker.
    """
    ours = results.get("throughput", {}).get("ours", {})
    if "threads_us_per_sample" not in ours:
        return []
    found = []
    for process, us in ours["cpu_us_per_sample"].items():
        found.append((process, us))
        if process == "taskmanager":
            found += _of_threads(ours["threads_us_per_sample"])
        if process == "python worker":
            batch = results.get("growth", {}).get("batches", {}).get("5000", {})
            found += [
                (f"- {part} (timed alone, batch 5,000)", round(ms / 5, 2))
                for part, ms in batch.get("ms_per_batch", {}).items()
            ]
    return found


def _of_threads(threads: dict[str, float]) -> list[tuple[str, float]]:
    """Return microseconds a sample by what the TaskManager's threads do."""
    found = []
    for part, names in THREADS.items():
        total = sum(us for name, us in threads.items() if name.startswith(names))
        found.append((f"- {part}", round(total, 2)))
    return found


# --- freshness ---


def _freshness(results: dict[str, Any]) -> str:
    """Return the ages by learner and rate."""
    rows, hosts = [], []
    for learner, rates in results["freshness"].items():
        for rate, row in rates.items():
            ages = [row[kind][p] for kind in ("stored_ms", "served_ms") for p in PERCENTILES]
            rows.append([learner, f"{int(rate):,}", *ages])
            hosts.append(row.get("host"))
    head = ["learner", "samples/s", "stored p50, ms", "p99", "max", "served p50, ms", "p99", "max"]
    with_host(head, rows, hosts)
    return table(head, rows)


# --- growth ---


def _growth(results: dict[str, Any]) -> str:
    """Return a table of each step that was measured."""
    growth = results["growth"]
    steps = {
        "sizes": lambda rows: _task_cost("size", rows),
        "batches": lambda rows: _task_cost("batch size", rows),
        "partitions": _partitions,
        "transactions": _transactions,
        "recovery": _recovery,
        "catching_up": _catching_up,
        "memory": _memory_table,
    }
    found = [make(growth[name]) for name, make in steps.items() if growth.get(name)]
    if hosts := results.get("growth_hosts"):
        rows = [[name.replace("_", " "), *host.values()] for name, host in hosts.items()]
        found.append(table(["step", "stolen, %", "load"], rows))
    return "\n\n".join(found)


def _task_cost(head: str, costs: dict[str, Any]) -> str:
    """Return what a batch costs inside the task, by size or by batch size."""
    rows = []
    for key, row in costs.items():
        figures = [f"{row['samples_per_s']:,}", f"{row['model_bytes']:,}"]
        rows.append([key, *figures, *row["ms_per_batch"].values()])
    parts = next(iter(costs.values()))["ms_per_batch"]
    columns = ["samples/s in the task", "model, bytes", *(f"{part}, ms a batch" for part in parts)]
    return table([head, *columns], rows)


def _partitions(counts: dict[str, Any]) -> str:
    """Return the rate by number of partitions."""
    return table(["partitions", "samples/s"], [[n, _rates(row)[0]] for n, row in counts.items()])


def _transactions(row: dict[str, Any]) -> str:
    """Return the rates on plain and on transactional input."""
    rates = [_rates(row[name])[0] for name in ("plain", "transactional")]
    head = ["plain input, samples/s", f"transactions of {row['size']}, samples/s", "times the time"]
    return table(head, [[*rates, row["times_the_time"] or ""]])


def _recovery(kills: dict[str, Any]) -> str:
    """Return the seconds without a commit by what was killed."""
    rows = [[name, row["median"], row["max"]] for name, row in kills.items()]
    return table(["killed", "first new commit after, s, median", "max"], rows)


def _catching_up(row: dict[str, Any]) -> str:
    """Return how long the waiting samples took, and the page's answer times meanwhile."""
    figures = [SHORT if figure is None else figure for figure in row.values()]
    return table([name.replace("_", " ") for name in row], [figures])


def _memory_table(memory: dict[str, Any]) -> str:
    """Return the memory of each process at begin and end."""
    rows = []
    for name, row in memory["parts"].items():
        change = f"{100 * row['last_sixth_against_second']:+.1f} %"
        rows.append([name, row["first"], row["last"], row["max"], change])
    head = ["memory, MiB", "first", "last", "max", "last sixth against the second"]
    return table(head, rows)


# --- plots ---


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
    for learner, course in results.get("freshness_over_time", {}).items():
        _course(learner, course, folder / course_plot(learner))
    if "memory" in results.get("growth", {}):
        _memory(results, folder / "bench-memory.png")


def course_plot(learner: str) -> str:
    """Return the name of the plot of a learner's age over time."""
    return f"bench-age-{learner}.png"


def _save(figure: Any, path: Path) -> None:
    """Write a figure as a PNG."""
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _bars(results: dict[str, Any], path: Path) -> None:
    """Draw the contenders' rates, this project's in red and the limits in a lighter colour."""
    measured = {name: row for name, row in results["throughput"].items() if "median" in row}
    rows = sorted(measured.items(), key=lambda item: item[1]["median"])
    if not rows:
        return
    titles = [row["title"] for _, row in rows]
    medians = [row["median"] for _, row in rows]
    spread = [
        [row["median"] - row["min"] for _, row in rows],
        [row["max"] - row["median"] for _, row in rows],
    ]
    colours = [_colour(name, row["title"]) for name, row in rows]
    figure, axes = plt.subplots(figsize=(8, 0.45 * len(rows) + 1))
    axes.barh(titles, medians, xerr=spread, color=colours, capsize=3)
    for place, value in enumerate(medians):
        above = {"xytext": (4, 5), "textcoords": "offset points"}
        axes.annotate(f" {value:,.0f}", (value, place), fontsize=8, **above)
    axes.set_xscale("log")
    axes.set_xlim(10, 6 * max(row["max"] for _, row in rows))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("samples/s, median of the rounds, whiskers from min to max")
    _save(figure, path)


def _colour(name: str, title: str) -> str:
    """Return a contender's colour."""
    if name == "ours":
        return "#c0392b"
    return "#b8c4cc" if title.startswith("limit") else "#5d7a8c"


def _profile(results: dict[str, Any], path: Path) -> None:
    """Draw where the time goes."""
    parts = profile(results)[::-1]
    figure, axes = plt.subplots(figsize=(8, 0.35 * len(parts) + 1))
    colours = ["#b8c4cc" if name.startswith("-") else "#5d7a8c" for name, _ in parts]
    axes.barh([name for name, _ in parts], [us for _, us in parts], color=colours)
    axes.set_xlabel("CPU, microseconds per sample")
    _save(figure, path)


def _ages(results: dict[str, Any], path: Path) -> None:
    """Draw the ages by rate, a colour for each learner."""
    figure, axes = plt.subplots(figsize=(7, 4))
    for number, (learner, rates) in enumerate(results["freshness"].items()):
        at = [int(rate) for rate in rates]
        for kind, line in (("stored_ms", "-"), ("served_ms", "--")):
            for p, marker in (("p50", "o"), ("p99", "s")):
                ages = [row[kind][p] for row in rates.values()]
                label = f"{learner}: {kind.removesuffix('_ms')} {p}"
                axes.plot(at, ages, line + marker, label=label, color=f"C{number}")
    axes.set_xscale("log")
    axes.set_yscale("log", subs=[2, 5])
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_minor_formatter("{x:,.0f}")
    axes.set_xlabel("samples/s")
    axes.set_ylabel("age, ms")
    axes.legend(fontsize=7)
    _save(figure, path)


def _course(learner: str, course: dict[str, Any], path: Path) -> None:
    """Draw the age over time, from the job's start on, with what may delay a commit."""
    figure, axes = plt.subplots(figsize=(9, 4))
    for kind, colour in (("served_ms", "C1"), ("stored_ms", "C0")):
        name = kind.removesuffix("_ms")
        for statistic, line in (("p50", "-"), ("max", ":")):
            ages = [math.nan if age is None else age for age in course[kind][statistic]]
            at = [course["bin_s"] * (i + 0.5) for i in range(len(ages))]
            axes.plot(at, ages, line, color=colour, label=f"{name}, {statistic}", linewidth=1)
    for spans, colour, name in (
        (course["checkpoints_s"], "0.85", "checkpoint"),
        (course["rewrites_s"], "C3", "Redis rewrites its file"),
    ):
        for number, (begin, end) in enumerate(spans):
            label = name if number == 0 else None
            axes.axvspan(begin, max(end, begin + 0.1), color=colour, alpha=0.5, label=label)
    axes.axvline(course["measured_from_s"], color="k", linewidth=1, label="end of the warm-up")
    axes.set_yscale("log", subs=[2, 5])
    for formatted in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        formatted("{x:,.0f}")
    host = course["host"]
    axes.set_xlabel(
        f"seconds since the job was submitted; LEARNER={learner}, {course['rate']:,} samples/s; "
        f"{course['finished'][:10]}, host: {host['stolen_percent']} % stolen, load {host['load']}"
    )
    axes.set_ylabel(f"age in {course['bin_s']} s, ms")
    axes.legend(fontsize=7, loc="upper right")
    _save(figure, path)


def _memory(results: dict[str, Any], path: Path) -> None:
    """Draw each process's memory over time."""
    memory = results["growth"]["memory"]
    figure, axes = plt.subplots(figsize=(7, 4))
    for name, row in memory["parts"].items():
        series = row["series"]
        step = memory["minutes"] / max(len(series) - 1, 1)
        axes.plot([step * i for i in range(len(series))], series, label=name)
    axes.set_xlabel(f"minutes at {memory['samples_per_s']:,} samples/s")
    axes.set_ylabel("MiB")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    _save(figure, path)
