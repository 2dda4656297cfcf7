"""What the gateway is to reach, each goal beside its figure."""

import statistics

from .figures import MEBIBYTE, number, spread, table

OURS = "clipgate"


def rows(figures):
    found = [goal(figures) for goal in GOALS]
    return table(["goal", "limit", "measured", "met"], [row for row in found if row])


def row(what, limit, measured, is_met):
    return [what, limit, measured, "yes" if is_met else "**no**"]


def ratio(what, key, beside, scene, most, **wanted):
    """What it has by what another has, in pairs of one round."""

    def read(figures):
        found = figures.ratio(key, OURS, beside, scene, **wanted)
        return found and row(what, f"≤ {most:.2f}×", spread(found), found[0] <= most)

    return read


def median(what, key, scene, most=None, least=None, unit=1, digits=0, **wanted):
    """The median of what it has, in units of so much."""

    def read(figures):
        found = figures.median(key, scene, **wanted)
        if found is None:
            return None
        limit = f"≤ {number(most)}" if least is None else f"≥ {number(least)}"
        is_met = found / unit <= most if least is None else found / unit >= least
        return row(what, limit, number(found / unit, digits), is_met)

    return read


def crowd(figures):
    """CPU, since the rate is that of whoever has least of it."""
    cpu = lambda rounds: statistics.median(seen["cpu_us"] for seen in rounds)
    shares = sorted(cpu(record["alone"]) / cpu(record["beside"]) for record in figures.of("crowd"))
    if not shares:
        return None
    middle = statistics.median(shares)
    what = "hits a CPU second beside 100,000 parked waits, by those without"
    return row(what, "> 0.90×", spread((middle, shares[0], shares[-1])), middle > 0.9)


def late(figures):
    """As the real API gives up; after an error the gateway has a failed poll, and looks, too."""
    found = figures.of("late", peer=OURS, unreached=200)
    if not found:
        return None
    calls, max_open, cut = (found[-1][key] for key in ("calls", "max_open", "cut"))
    measured = f"{calls} calls, {max_open} open at once, {cut} cut short"
    return row("late joiners", "2 calls, 1 open at once, 0 cut short", measured, (calls, max_open, cut) == (2, 1, 0))


def bodies(figures):
    grown = {record["mebibytes"]: record["most"] - record["idle"] for record in figures.of("bodies")}
    if not grown:
        return None
    measured = ", ".join(f"{grown[size] / MEBIBYTE:.1f} MiB for {size:,} MiB" for size in sorted(grown))
    is_met = max(grown.values()) < 8 * MEBIBYTE
    return row("memory while a body streams through", "independent of its size", measured, is_met)


TEN_THOUSAND = dict(scene="waits", waits=10_000)

GOALS = [
    ratio("a hit over HTTP/1.1: CPU, by bare hyper's", "cpu_us", "hyper", "hits", most=1.15, http=1),
    ratio("… by nginx's", "cpu_us", "nginx", "hits", most=0.6, http=1),
    ratio("a hit over HTTP/2: CPU, by bare hyper's", "cpu_us", "hyper", "hits", most=1.2, http=2),
    median("10,000 identical waits: upstream calls", "calls", most=1, peer=OURS, **TEN_THOUSAND),
    ratio("… the last answer (p99), by the minimal merge's", "p99_ms", "merge", most=1.1, **TEN_THOUSAND),
    ratio("… by nginx's", "p99_ms", "nginx", most=0.7, **TEN_THOUSAND),
    median("… CPU a waiter, µs", "cpu_us", most=85, peer=OURS, **TEN_THOUSAND),
    median(
        "100 identical waits: the last answer (p99), ms", "p99_ms", "waits", most=10, digits=1, peer=OURS, waits=100
    ),
    median("a parked wait over HTTP/1.1, kB", "bytes", most=9, unit=1000, digits=1, peer=OURS, **TEN_THOUSAND),
    median("a parked wait as an HTTP/2 stream, kB", "bytes", "streams", most=3, unit=1000, digits=1, peer=OURS),
    crowd,
    median(
        "joins a second through the hub, on one core with its clients",
        "items_per_second",
        "hub",
        least=50_000,
        bench="joins",
    ),
    late,
    ratio("pass-through: CPU, by nginx's", "cpu_us", "nginx", "passing", most=1.1),
    bodies,
    median("from start to ready, ms", "ready_ms", "starts", most=100, peer=OURS),
    median("resident when idle, MB", "idle", "starts", most=15, unit=1e6, digits=1, peer=OURS),
    median("release build from cold on two cores, s", "seconds", "build", most=300),
]
