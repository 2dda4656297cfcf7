"""The figures of docs/benchmarks.md: writes goals, tables and plots from the measured data."""

import re

from . import goals, plot
from .figures import Figures, number, spread, table
from .peers import ROOT

PAGE = ROOT / "docs" / "benchmarks.md"
NAMES = dict(
    clipgate="clipgate",
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
)


def write(run):
    figures = Figures(run)
    parts = dict(goals=goals.rows(figures), tables=tables(figures))
    text = PAGE.read_text()
    for name, part in parts.items():
        text = re.sub(
            rf"(<!-- {name}: .*? -->\n).*?(<!-- /{name} -->)",
            lambda found: f"{found[1]}\n{part}\n{found[2]}",
            text,
            flags=re.S,
        )
        print(part)
    PAGE.write_text(text)
    plot.draw(figures, PAGE.parent)


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
    head = ["server", "CPU µs per request", f"relative to {NAMES[base]}", "requests per second", "p99 ms"]
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
