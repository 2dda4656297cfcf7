"""benches/README.md's figures: the goals, the tables and the plots, made of what was measured."""

import re

from . import plot
from .figures import Figures
from .peers import ROOT

README = ROOT / "benches" / "README.md"
NAMES = dict(
    clipgate="clipgate",
    hyper="bare hyper, fixed body",
    logic="bare hyper + parse, hash, quota, lookup",
    merge="minimal merge on bare hyper",
    nginx="nginx",
    haproxy="HAProxy",
    varnish="Varnish",
    trafficserver="Traffic Server",
    pingora="Pingora",
)
MEBIBYTE = 1 << 20


def write(run):
    figures = Figures(run)
    parts = dict(goals=goals(figures), tables=tables(figures))
    text = README.read_text()
    for name, part in parts.items():
        text = re.sub(
            rf"(<!-- {name}: .*? -->\n).*?(<!-- /{name} -->)",
            lambda found: f"{found[1]}\n{part}\n{found[2]}",
            text,
            flags=re.S,
        )
        print(part)
    README.write_text(text)
    plot.draw(figures, ROOT / "benches")


def number(value, digits=0):
    return "–" if value is None else f"{value:,.{digits}f}"


def spread(ratio):
    if ratio is None:
        return "–"
    middle, least, most = ratio
    return f"{middle:.2f} ({least:.2f} to {most:.2f})"


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join(["---"] * len(head)) + " |"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def goals(figures):
    """Each goal beside its figure."""
    rows = []

    def goal(what, limit, value, text=None):
        if value is not None:
            rows.append([what, limit[0], text or number(value, 2), "yes" if limit[1](value) else "**no**"])

    def at_most(most, unit="", digits=2):
        return f"≤ {number(most, digits)}{unit}", lambda value: value <= most

    def ratio(what, most, *args, **wanted):
        found = figures.ratio(*args, **wanted)
        goal(what, at_most(most, "×"), found and found[0], spread(found))

    def median(what, limit, key, scene, by=1, digits=0, **wanted):
        found = figures.median(key, scene, peer="clipgate", **wanted)
        goal(what, limit, found and found / by, number(found and found / by, digits))

    for http, most in ((1, 1.15), (2, 1.2)):
        version = "HTTP/1.1" if http == 1 else "HTTP/2"
        ratio(
            f"a hit over {version}: CPU, by bare hyper's",
            most,
            "cpu_us",
            "clipgate",
            "hyper",
            "hits",
            http=http,
        )
    ratio("a hit over HTTP/1.1: CPU, by nginx's", 0.6, "cpu_us", "clipgate", "nginx", "hits", http=1)
    exactly = lambda value: (str(value), lambda found: found == value)
    median("10,000 identical waits: upstream calls", exactly(1), "calls", "waits", waits=10_000)
    ratio(
        "… the last answer (p99), by the minimal merge's",
        1.1,
        "p99_ms",
        "clipgate",
        "merge",
        "waits",
        waits=10_000,
    )
    ratio("… by nginx's", 0.7, "p99_ms", "clipgate", "nginx", "waits", waits=10_000)
    median("… CPU a waiter, µs", at_most(85, digits=0), "cpu_us", "waits", waits=10_000)
    median(
        "100 identical waits: the last answer (p99), ms",
        at_most(10, digits=0),
        "p99_ms",
        "waits",
        waits=100,
        digits=1,
    )
    median(
        "a parked wait over HTTP/1.1, kB",
        at_most(9, digits=0),
        "bytes",
        "waits",
        by=1000,
        digits=1,
        waits=10_000,
    )
    median(
        "a parked wait as an HTTP/2 stream, kB", at_most(3, digits=0), "bytes", "streams", by=1000, digits=1
    )
    beside = [best(record["beside"]) / best(record["alone"]) for record in figures.of("crowd")]
    if beside:
        beside.sort()
        middle = beside[len(beside) // 2]
        text = f"{middle:.2f} ({beside[0]:.2f} to {beside[-1]:.2f})"
        goal(
            "hits beside 100,000 parked waits, by those without",
            ("> 0.90×", lambda value: value > 0.9),
            middle,
            text,
        )
    # As the real API gives up; after an error the gateway has a failed poll and asks for a snapshot, too.
    for seen in figures.of("late", peer="clipgate", unreached=200)[-1:]:
        text = f"{seen['calls']} calls, {seen['max_open']} open, {seen['cut']} cut short"
        is_met = lambda _: (seen["calls"], seen["max_open"], seen["cut"]) == (2, 1, 0)
        goal("late joiners", ("2 calls, 1 open, 0 cut short", is_met), 0, text)
    ratio("pass-through: CPU, by nginx's proxy_pass", 1.1, "cpu_us", "clipgate", "nginx", "passing", http=1)
    grown = {
        record["mebibytes"]: (record["most"] - record["idle"]) / MEBIBYTE for record in figures.of("bodies")
    }
    if grown:
        text = ", ".join(f"{more:.1f} MiB for {size} MiB" for size, more in sorted(grown.items()))
        most = max(grown.values())
        goal(
            "memory while a body streams through",
            ("independent of its size", lambda value: value < 8),
            most,
            text,
        )
    median("from start to ready, ms", at_most(100, digits=0), "ready_ms", "starts", digits=0)
    median("resident when idle, MB", at_most(15, digits=0), "idle", "starts", by=1e6, digits=1)
    return table(["goal", "limit", "measured", "met"], rows)


def best(rounds):
    return max(seen["rps"] for seen in rounds)


def tables(figures):
    parts = [
        hits(figures, 1),
        hits(figures, 2),
        waits(figures),
        streams(figures),
        late(figures),
        passing(figures),
        starts(figures),
    ]
    return "\n\n".join(part for part in parts if part)


def hits(figures, http):
    version = "HTTP/1.1, 64 connections" if http == 1 else "HTTP/2, 8 connections of 8 streams"
    return loaded(figures, f"Cached hits over {version}", "hits", "hyper", http)


def passing(figures):
    return loaded(figures, "Passed through, 2.5 kB", "passing", "nginx", 1)


def loaded(figures, title, scene, base, http):
    peers = figures.peers(scene, http=http)
    if not peers:
        return None
    cpu = {peer: figures.median("cpu_us", scene, peer=peer, http=http) for peer in peers}
    rows = [
        [
            NAMES[peer],
            number(cpu[peer], 1),
            spread(figures.ratio("cpu_us", peer, base, scene, http=http)),
            number(figures.rate(scene, peer=peer, http=http)),
            number(figures.median("p99_ms", scene, peer=peer, http=http), 1),
        ]
        for peer in sorted(peers, key=cpu.get)
    ]
    head = ["server", "CPU µs a request", f"by {NAMES[base]}", "requests a second", "p99 ms"]
    return f"{title} ({figures.rounds(scene, http=http)} rounds):\n\n{table(head, rows)}"


def waits(figures):
    peers = figures.peers("waits")
    if not peers:
        return None
    at = lambda key, peer, count, digits: number(figures.median(key, "waits", peer=peer, waits=count), digits)
    rows = [
        [
            NAMES[peer],
            *(at("calls", peer, count, 0) for count in (100, 1_000, 10_000)),
            *(at("p99_ms", peer, count, 0) for count in (100, 1_000, 10_000)),
            at("cpu_us", peer, 10_000, 0),
            at("bytes", peer, 10_000, 0),
        ]
        for peer in sorted(
            peers, key=lambda peer: figures.median("p99_ms", "waits", peer=peer, waits=10_000) or 0
        )
    ]
    head = [
        "identical waits",
        "calls at 100",
        "at 1k",
        "at 10k",
        "p99 ms at 100",
        "at 1k",
        "at 10k",
        "CPU µs a waiter",
        "bytes a parked wait",
    ]
    return f"Identical waits over HTTP/1.1 ({figures.rounds('waits')} rounds):\n\n{table(head, rows)}"


def streams(figures):
    rows = [
        [
            NAMES[peer],
            *(
                number(figures.median(key, "streams", peer=peer))
                for key in ("calls", "p99_ms", "cpu_us", "bytes")
            ),
        ]
        for peer in figures.peers("streams")
    ]
    head = ["10,000 waits as HTTP/2 streams", "calls", "p99 ms", "CPU µs a waiter", "bytes a parked wait"]
    return table(head, rows) if rows else None


def late(figures):
    rows = [
        [
            NAMES[seen["peer"]],
            str(seen["unreached"]),
            *(str(seen[key]) for key in ("calls", "max_open", "reached", "own_time", "cut")),
        ]
        for seen in figures.of("late")
    ]
    head = [
        "late joiners",
        "given up with",
        "calls",
        "open at once",
        "told of the end",
        "own time ran out",
        "cut short",
    ]
    return table(head, rows) if rows else None


def starts(figures):
    rows = [
        [
            NAMES[peer],
            number(figures.median("ready_ms", "starts", peer=peer)),
            number((figures.median("idle", "starts", peer=peer) or 0) / 1e6, 1),
        ]
        for peer in figures.peers("starts")
    ]
    return table(["server", "ms from start to ready", "MB resident when idle"], rows) if rows else None
