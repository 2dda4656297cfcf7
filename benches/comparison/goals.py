"""Goals of the gateway, each with its measured figure."""

import statistics

from .figures import MEBIBYTE, number, spread, table

OURS = "clipgate"


def rows(figures, text):
    """Returns the table. A goal that was not measured keeps its row of `text`, the table so far."""
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    kept = {row[0]: row for row in cells}
    found = [goal(figures) or kept.get(goal.what) for goal in GOALS]
    return table(["goal", "limit", "measured", "met"], [row for row in found if row])


def row(what, limit, measured, is_met):
    return [what, limit, measured, "yes" if is_met else "**no**"]


def ratio(what, key, beside, scene, most, **wanted):
    """Returns the row of a ratio of two servers within a round."""

    def read(figures):
        found = figures.ratio(key, OURS, beside, scene, **wanted)
        return found and row(what, f"≤ {most:.2f}×", spread(found), found[0] <= most)

    return named(what, read)


def median(what, key, scene, most=None, least=None, unit=1, digits=0, **wanted):
    """Returns the row of a median in the given unit."""

    def read(figures):
        found = figures.median(key, scene, **wanted)
        if found is None:
            return None
        limit = f"≤ {number(most)}" if least is None else f"≥ {number(least)}"
        is_met = found / unit <= most if least is None else found / unit >= least
        return row(what, limit, number(found / unit, digits), is_met)

    return named(what, read)


def named(what, read):
    read.what = what
    return read


def crowd(figures):
    """Compares CPU, because the rate is limited by the slowest part."""
    cpu = lambda rounds: statistics.median(seen["cpu_us"] for seen in rounds)
    shares = sorted(cpu(record["alone"]) / cpu(record["beside"]) for record in figures.of("crowd"))
    if not shares:
        return None
    middle = statistics.median(shares)
    return row(crowd.what, "≥ 0.95×", spread((middle, shares[0], shares[-1])), middle >= 0.95)


crowd.what = "hits per CPU second with 100,000 parked waits, relative to none"


def cluster(figures):
    found = figures.ratio("cpu_us", OURS, "clustered", "cluster")
    return found and row(cluster.what, "≥ 0.95×", spread(found), found[0] >= 0.95)


cluster.what = "hits per CPU second with `[cluster]` configured, relative to without"


def late(figures):
    """Uses the runs in which the upstream ends a poll with 200, as the API does."""
    found = figures.of("late", peer=OURS, unreached=200)
    if not found:
        return None
    calls, max_open, cut = (found[-1][key] for key in ("calls", "max_open", "cut"))
    measured = f"{calls} upstream requests, {max_open} open at once, {cut} cut short"
    return row(
        late.what, "2 upstream requests, 1 open at once, 0 cut short", measured, (calls, max_open, cut) == (2, 1, 0)
    )


late.what = "late joiners"


def bodies(figures):
    grown = {record["mebibytes"]: record["most"] - record["idle"] for record in figures.of("bodies")}
    if not grown:
        return None
    measured = ", ".join(f"{grown[size] / MEBIBYTE:.1f} MiB for {size:,} MiB" for size in sorted(grown))
    is_met = max(grown.values()) < 8 * MEBIBYTE
    return row(bodies.what, "independent of its size", measured, is_met)


bodies.what = "memory while a body streams through"


TEN_THOUSAND = dict(scene="waits", waits=10_000)

LOGGED, QUIET = dict(log=True), dict(log=False)

GOALS = [
    ratio(
        "cache hit over HTTP/1.1: CPU, relative to nginx, both with an access log",
        "cpu_us",
        "nginx",
        "hits",
        0.75,
        http=1,
        **LOGGED,
    ),
    ratio(
        "cache hit over HTTP/1.1: CPU, relative to nginx, both without", "cpu_us", "nginx", "hits", 0.8, http=1, **QUIET
    ),
    ratio(
        "cache hit over HTTP/2: CPU, relative to nginx, both with an access log",
        "cpu_us",
        "nginx",
        "hits",
        0.7,
        http=2,
        **LOGGED,
    ),
    ratio("pass-through: CPU, relative to nginx, both with an access log", "cpu_us", "nginx", "passing", 1.0, **LOGGED),
    ratio("pass-through: CPU, relative to nginx, both without", "cpu_us", "nginx", "passing", 1.1, **QUIET),
    ratio(
        "pass-through: CPU, relative to HAProxy, both with an access log", "cpu_us", "haproxy", "passing", 1.0, **LOGGED
    ),
    median("10,000 identical waits: upstream requests", "calls", most=1, peer=OURS, **TEN_THOUSAND),
    ratio(
        "10,000 identical waits: last response (p99), relative to minimal coalescing",
        "p99_ms",
        "merge",
        most=1.1,
        **TEN_THOUSAND,
    ),
    ratio(
        "10,000 identical waits: last response (p99), relative to nginx", "p99_ms", "nginx", most=0.7, **TEN_THOUSAND
    ),
    median("10,000 identical waits: CPU per wait, µs", "cpu_us", most=60, peer=OURS, **TEN_THOUSAND),
    median("100 identical waits: last response (p99), ms", "p99_ms", "waits", most=10, digits=1, peer=OURS, waits=100),
    median("parked wait over HTTP/1.1, kB", "bytes", most=6, unit=1000, digits=1, peer=OURS, **TEN_THOUSAND),
    median("parked wait as an HTTP/2 stream, kB", "bytes", "streams", most=3, unit=1000, digits=1, peer=OURS),
    crowd,
    cluster,
    median(
        "joins per second through the hub, on one core with its clients",
        "items_per_second",
        "hub",
        least=50_000,
        bench="joins",
    ),
    late,
    bodies,
    median("from start to ready, ms", "ready_ms", "starts", most=100, peer=OURS),
    median("resident when idle, MB", "idle", "starts", most=15, unit=1e6, digits=1, peer=OURS),
    median("release build from cold on two cores, s", "seconds", "build", most=300),
]
