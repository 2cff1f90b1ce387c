"""Tables, goals and a plot of what `spool.py` measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

LIMIT_SHARE = 0.7  # of the bare loop's speed
MEMORY_MEBIBYTES = 150
FIRST_CLAIM_SECONDS = {1000: 0.3, 100_000: 15.0}
FLAT = 1.5  # times the cost at the shortest queue is "independent of its length", noise of the disk included
LOOKS = 0.01  # per file and scan is "none": the folder's own are left
STEPS = {"take": "drop taken in", "claim": "claimed", "finish": "finished"}


def tables(found: dict[str, Any]) -> str:
    """Everything as Markdown."""
    parts = [_steps(found), _slower(found), _peers(found), _scale(found), _scan(found), _goals(found)]
    return "\n\n".join(part for part in parts if part)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _steps(found: dict[str, Any]) -> str:
    """Each step beside the bare loop."""
    syncs = found["syncs"]
    rows = []
    for step, words in STEPS.items():
        for size in found["sizes"]:
            ours, bare = size[step], size[f"bare_{step}"]
            counted = [f"{syncs[who][step]:.0f}" if syncs else "?" for who in ("ours", "bare")]
            rows.append(
                [
                    words,
                    f"{size['jobs']:,}",
                    _rate(ours),
                    _rate(bare),
                    f"{bare / ours:.0%}",
                    f"{counted[0]} / {counted[1]}",
                ]
            )
    return _table(("step", "jobs waiting", "here, a second", "bare loop", "share of it", "syncs here / bare"), rows)


def _slower(found: dict[str, Any]) -> str:
    """The share of the bare loop where each sync takes longer."""
    slower = [(size, at) for size in found["sizes"] for at in size.get("slower", [])]
    if not slower:
        return ""
    disks = [("on this disk", size) for size, at in slower[:1]]
    disks += [(f"each sync {at['milliseconds']} ms longer", at) for _, at in slower]
    rows = [[words, *(f"{at[f'bare_{step}'] / at[step]:.0%}" for _, at in disks)] for step, words in STEPS.items()]
    return _table((f"share of the bare loop, {slower[0][0]['jobs']:,} jobs", *(words for words, _ in disks)), rows)


def _peers(found: dict[str, Any]) -> str:
    """Every queue's two steps: in, and out for good."""
    sizes = found["sizes"]
    head = ["queue", "syncs in / out", *(f"in, {size['jobs']:,}" for size in sizes)]
    head += [f"out, {size['jobs']:,}" for size in sizes]
    syncs = found["syncs"]
    ours = f"{syncs['ours']['take']:.0f} / {syncs['ours']['claim'] + syncs['ours']['finish']:.0f}" if syncs else "?"
    rows = [["this one", ours, *(_rate(size["take"]) for size in sizes), *(_rate(out(size)) for size in sizes)]]
    for name in sizes[0]["peers"]:
        counted = f"{syncs[name]['take']:g} / {syncs[name]['claim']:g}" if syncs else "?"
        measured = [size["peers"][name] for size in sizes]
        rows.append(
            [name, counted, *(_rate(item["take"]) for item in measured), *(_rate(item["job"]) for item in measured)]
        )
    return _table(head, rows)


def out(size: dict[str, Any]) -> float:
    """Seconds of a job's way out: claim and finish, video and all."""
    seconds: float = size["claim"] + size["finish"]
    return seconds


def _scale(found: dict[str, Any]) -> str:
    """What grows with the queue, or not."""
    rows = [
        _row("a drop judged (files read, picture decoded aside)", found, lambda size: _time(size["judge"])),
        _row("a job through the daemon's loop", found, lambda size: _time(size["job"])),
        _row("first claim after a start, cold", found, lambda size: _time(size["first_claim"])),
        _row("until the daemon has come to rest after that", found, lambda size: _time(size["settled"])),
        _row("memory of the daemon, that many waiting", found, lambda size: f"{size['memory']:.0f} MiB"),
        _row("its processor time while nothing happens", found, lambda size: f"{size['idle_percent']:.1f} %"),
        _row("`status`", found, lambda size: _time(size["status"])),
        _row("`status`, processor time", found, lambda size: _time(size["status_cpu"])),
    ]
    empty = found["empty"]
    shown = ["", "", "", _time(empty["settled"]), f"{empty['memory']:.0f} MiB", f"{empty['idle_percent']:.1f} %"]
    shown += [_time(empty["status"]), _time(empty["status_cpu"])]
    rows = [[row[0], value, *row[1:]] for row, value in zip(rows, shown, strict=True)]
    return _table(["", "empty", *(f"{size['jobs']:,} jobs" for size in found["sizes"])], rows)


def _scan(found: dict[str, Any]) -> str:
    """The inbox of lone files."""

    def per_file(name: str) -> Callable[[dict[str, Any]], str]:
        return lambda size: f"{size[name]:.3g}" if name in size else "?"

    rows = [
        _row("first scan", found, lambda size: _time(size["scan_first"])),
        _row("every later scan", found, lambda size: _time(size["scan"])),
        _row("stat calls of it, per file", found, per_file("scan_looks")),
        _row("files opened by it, per file", found, per_file("scan_opens")),
        _row("a scan when no name has changed for 2 s", found, lambda size: _time(size["calm"])),
        _row("stat calls of it, per file", found, per_file("calm_looks")),
        _row("watchdog's polling (DirectorySnapshot and diff)", found, lambda size: _time(size["watchdog"])),
        _row("stat calls of it, per file", found, per_file("watchdog_looks")),
        _row("idle daemon, as many refused jobs beside", found, lambda size: f"{size['lone']['idle_percent']:.1f} %"),
        _row("its memory", found, lambda size: f"{size['lone']['memory']:.0f} MiB"),
    ]
    return _table(["inbox of lone files", *(f"{size['jobs']:,} files" for size in found["sizes"])], rows)


def _row(words: str, found: dict[str, Any], value: Callable[[dict[str, Any]], str]) -> list[str]:
    return [words, *(value(size) for size in found["sizes"])]


def _goals(found: dict[str, Any]) -> str:
    """What was to be reached."""
    sizes = found["sizes"]
    first, last = sizes[0], sizes[-1]
    growth = last["claim"] / first["claim"]
    shares = {step: min(size[f"bare_{step}"] / size[step] for size in sizes) for step in STEPS}
    rows = [
        ["claim costs the same at any length", growth <= FLAT, f"{growth:.2f} times at {last['jobs']:,}"],
        [f"{LIMIT_SHARE:.0%} of the bare loop", min(shares.values()) >= LIMIT_SHARE, _shares(shares)],
        *_goals_on_slower(sizes),
        ["ahead of every peer that syncs", not _ahead(found), "; ".join(_ahead(found)) or "at each length"],
        [f"below {MEMORY_MEBIBYTES} MiB", last["memory"] < MEMORY_MEBIBYTES, f"{last['memory']:.0f} MiB"],
    ]
    for size in sizes:
        if bound := FIRST_CLAIM_SECONDS.get(size["jobs"]):
            words = f"first claim within {bound:g} s at {size['jobs']:,}"
            rows.append([words, size["first_claim"] < bound, _time(size["first_claim"])])
    larger = [size for size in sizes if size["jobs"] > 1 / LOOKS] or sizes
    looks = max(max(size.get("calm_looks", 0.0), size.get("calm_opens", 0.0)) for size in larger)
    percent = last["lone"]["idle_percent"]
    words = f"{looks:.2g} looks a file and scan; idle daemon {percent:.1f} % of a core"
    rows.append(["a lone or refused file costs nothing", looks < LOOKS, words])
    return _table(("goal", "met", "measured"), [[words, "yes" if met else "no", said] for words, met, said in rows])


def _goals_on_slower(sizes: list[dict[str, Any]]) -> list[list[Any]]:
    """The goal beside the bare loop where each sync takes longer."""
    rows: list[list[Any]] = []
    for at in (at for size in sizes for at in size.get("slower", [])):
        shares = {step: at[f"bare_{step}"] / at[step] for step in STEPS}
        words = f"the same, each sync {at['milliseconds']} ms longer"
        rows.append([words, min(shares.values()) >= LIMIT_SHARE, _shares(shares)])
    return rows


def _shares(shares: dict[str, float]) -> str:
    return ", ".join(f"{STEPS[step]} {share:.0%}" for step, share in shares.items())


def _ahead(found: dict[str, Any]) -> list[str]:
    """Peers that sync in each step and are faster, with where."""
    ahead = []
    for name in found["sizes"][0]["peers"]:
        counted = found["syncs"].get(name, {})
        for step, key, ours in (("in", "take", lambda size: size["take"]), ("out", "job", out)):
            if counted.get("take" if step == "in" else "claim", 0.0) < 1:
                continue
            where = [f"{size['jobs']:,}" for size in found["sizes"] if size["peers"][name][key] < ours(size)]
            if where:
                ahead.append(f"{name} is faster {step} at {', '.join(where)}")
    return ahead


def _rate(seconds: float) -> str:
    rate = 1 / seconds
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"  # noqa: PLR2004  two digits


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"


def plot(found: dict[str, Any], file: Path) -> None:
    """Six small pictures over the number of jobs."""
    import matplotlib as mpl  # noqa: PLC0415  needed for the picture alone

    mpl.use("agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    sizes = found["sizes"]
    jobs = [size["jobs"] for size in sizes]
    figure, grid = plt.subplots(2, 3, figsize=(15, 9), layout="constrained")
    axes = list(grid.flat)
    _curves(axes[0], jobs, "drops taken in, a second", _rates(sizes, "take", lambda size: size["take"]))
    axes[0].plot(jobs, [1 / size["bare_take"] for size in sizes], "k--", label="bare loop", zorder=5)
    _curves(axes[1], jobs, "taken out for good, a second", _rates(sizes, "job", out))
    bare_out = [1 / (size["bare_claim"] + size["bare_finish"]) for size in sizes]
    axes[1].plot(jobs, bare_out, "k--", label="bare loop", zorder=5)
    steps = {
        f"{words}, share of the bare loop": [100 * s[f"bare_{k}"] / s[k] for s in sizes] for k, words in STEPS.items()
    }
    _curves(axes[2], jobs, "%", steps)
    axes[2].set_ylim(top=110)
    axes[2].axhline(100 * LIMIT_SHARE, color="k", linestyle=":", label="goal")
    single = {
        "first claim after a start, cold": "first_claim",
        "`status`": "status",
        "scan of as many lone files": "scan",
    }
    single |= {"watchdog's polling of them": "watchdog"}
    _curves(axes[3], jobs, "seconds", {words: [size[key] for size in sizes] for words, key in single.items()})
    memory = {"that many waiting": [size["memory"] for size in sizes]}
    memory["that many refused, and lone files"] = [size["lone"]["memory"] for size in sizes]
    _curves(axes[4], jobs, "memory of the daemon, MiB", memory)
    axes[4].axhline(MEMORY_MEBIBYTES, color="k", linestyle=":", label="goal")
    idle = {"that many waiting": [size["idle_percent"] for size in sizes]}
    idle["that many refused, and lone files"] = [size["lone"]["idle_percent"] for size in sizes]
    _curves(axes[5], jobs, "processor time of the idle daemon, % of a core", idle)
    for axis in axes[:2] + axes[3:4]:
        axis.set_yscale("log")
    for axis in (axes[2], *axes[4:]):
        axis.set_ylim(bottom=0)
    for axis in axes:
        axis.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)
    figure.savefig(file, dpi=100)
    plt.close(figure)


def _rates(sizes: list[dict[str, Any]], key: str, ours: Callable[[dict[str, Any]], float]) -> dict[str, list[float]]:
    lines = {"this one": [1 / ours(size) for size in sizes]}
    return lines | {name: [1 / size["peers"][name][key] for size in sizes] for name in sizes[0]["peers"]}


def _curves(axis: Any, jobs: list[int], label: str, lines: dict[str, list[float]]) -> None:
    for words, values in lines.items():
        own = words == "this one"
        axis.plot(jobs, values, "o-", label=words, linewidth=2.5 if own else 1.2, markersize=3, zorder=6 if own else 3)
    axis.set_xscale("log")
    axis.set_xlabel("jobs")
    axis.set_ylabel(label)
    axis.grid(alpha=0.3)
