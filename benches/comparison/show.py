"""The figures of docs/benchmarks.md: writes goals, tables and plots from the measured data."""

import re

from . import goals, plot
from .figures import Figures, number, spread, table
from .peers import ROOT

PAGE = ROOT / "docs" / "benchmarks.md"
NAMES = dict(
    clipgate="clipgate",
    plain="clipgate, built by cargo alone",
    hyper="bare hyper, fixed body",
    logic="bare hyper + parse, hash, quota, lookup",
    logged="bare hyper + lookup, header fields, log line",
    proxy="bare hyper, client and server",
    merge="minimal coalescing on bare hyper",
    nginx="nginx",
    haproxy="HAProxy",
    varnish="Varnish",
    trafficserver="Traffic Server",
    pingora="Pingora",
    clustered="clipgate with `[cluster]`",
)


def write(run, is_final=True):
    """Prints the measured tables and, if they are final, replaces those of the page. The others stay."""
    figures = Figures(run)
    page = PAGE.read_text()
    for name, part in TABLES.items():
        found = re.search(rf"(<!-- {name}: .*? -->\n)(.*?)(<!-- /{name} -->)", page, flags=re.S)
        if text := part(figures, found[2]):
            page = f"{page[: found.end(1)]}\n{text}\n{page[found.start(3) :]}"
            print(text)
    if is_final:
        PAGE.write_text(page)
        plot.draw(figures, PAGE.parent)


def measured(part):
    return lambda figures, _text: part(figures)


def hits(figures, http):
    version = "HTTP/1.1, 64 connections" if http == 1 else "HTTP/2, 8 connections of 8 streams"
    return loaded(figures, f"Cached hits over {version}", "hits", http)


def passing(figures):
    return loaded(figures, "Passed through, 2.5 kB over HTTP/1.1, 64 connections", "passing", 1)


def loaded(figures, title, scene, http):
    """Returns two tables: all servers without an access log, and those that have one with it."""
    parts = []
    for log, how in ((False, "no server writes an access log"), (True, "each writes an access log")):
        wanted = dict(http=http, log=log)
        peers = figures.peers(scene, **wanted)
        cpu = {peer: figures.median("cpu_us", scene, peer=peer, **wanted) for peer in peers}
        rows = [
            [
                NAMES[peer],
                number(cpu[peer], 1),
                spread(figures.ratio("cpu_us", peer, "nginx", scene, **wanted)),
                number(figures.median("utilization", scene, peer=peer, **wanted), 2),
                number(figures.rate(scene, peer=peer, **wanted)),
                number(figures.median("p99_ms", scene, peer=peer, **wanted), 1),
            ]
            for peer in sorted(peers, key=cpu.get)
        ]
        if rows:
            head = ["server", "CPU µs per request", "relative to nginx", "busy", "requests per second", "p99 ms"]
            parts.append(f"{title}; {how} ({figures.rounds(scene, **wanted)} rounds):\n\n{table(head, rows)}")
    return "\n\n".join(parts)


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
        for peer in sorted(peers, key=lambda peer: figures.median("p99_ms", "waits", peer=peer, waits=10_000) or 0)
    ]
    head = [
        "identical waits",
        "requests at 100",
        "at 1k",
        "at 10k",
        "p99 ms at 100",
        "at 1k",
        "at 10k",
        "CPU µs per wait",
        "bytes per parked wait",
    ]
    return f"Identical waits over HTTP/1.1 ({figures.rounds('waits')} rounds):\n\n{table(head, rows)}"


def streams(figures):
    rows = [
        [
            NAMES[peer],
            *(number(figures.median(key, "streams", peer=peer)) for key in ("calls", "p99_ms", "cpu_us", "bytes")),
        ]
        for peer in figures.peers("streams")
    ]
    head = ["10,000 waits as HTTP/2 streams", "upstream requests", "p99 ms", "CPU µs per wait", "bytes per parked wait"]
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
        "upstream ends polls with",
        "upstream requests",
        "open at once",
        "answered with the end",
        "own deadline passed",
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


TABLES = dict(
    goals=goals.rows,
    hits=measured(lambda figures: "\n\n".join(filter(None, [hits(figures, 1), hits(figures, 2)]))),
    passing=measured(passing),
    waits=measured(waits),
    streams=measured(streams),
    late=measured(late),
    starts=measured(starts),
)
