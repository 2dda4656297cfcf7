"""Scenes. Each yields records: dicts with scene, round, peer and figures."""

import os
import shutil
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from . import load, parts
from .load import get
from .peers import FIXED_UPSTREAM, LOAD_CORE, PEERS, ROOT, RUN, Engine, FixedUpstream, Upstream
from .waits import Clip, Waiters, wait_until_done

CACHES = ("clipgate", "nginx", "haproxy", "varnish", "trafficserver", "pingora")
# Late joiners, ten times faster than real time. Half a second lies between the end of the clip, the ends of polls and waits, and
# the starts of waits: what happens at one moment has no order.
LATE_HOLD, LATE_DONE, LATE_WAITS = 12.5, 15, 17
# Tolerance, in seconds, for the time of a wait that ended at its deadline.
LATE_SLACK = 0.2


def in_turn(peers, number):
    """Alternates the order, so that drift affects all servers alike."""
    return peers if number % 2 == 0 else peers[::-1]


def installed(names, options):
    return [name for name in names if name in options.peers and PEERS[name].is_installed()]


def hits(options):
    """Measures cache hits over HTTP/1.1 and HTTP/2: all servers without an access log, and those that have one with it."""
    with Upstream(), Servers() as servers:
        servers.start(installed(("hyper", "logic", "logged"), options))
        caches = installed(("plain", *CACHES), options)
        servers.start(caches, log=False)
        servers.start([name for name in caches if PEERS[name].has_log])
        yield from loaded("hits", servers, load.HIT, options, (1, 2))


def passing(options):
    """Measures requests that pass through to the upstream."""
    names = installed(("plain", "clipgate", "nginx", "haproxy"), options)
    with FixedUpstream() as upstream, Servers() as servers:
        servers.start(installed(["proxy"], options), log=False, upstream=FIXED_UPSTREAM)
        servers.start(names, log=False, upstream=FIXED_UPSTREAM)
        servers.start(names, upstream=FIXED_UPSTREAM)
        before = upstream.requests()
        passed = 0
        for record in loaded("passing", servers, load.PLAIN, options, (1,)):
            passed += record["n"]
            yield record
        if upstream.requests() - before < passed:
            raise RuntimeError("a server answered from its cache")


def cluster(options):
    """Measures hits with `[cluster]` configured, and without."""
    if not Engine.is_installed():
        print("skipping cluster: redis-server is not installed", file=sys.stderr)
        return
    with Upstream(), Engine(), Servers() as servers:
        servers.start(installed(("clipgate", "clustered"), options))
        yield from loaded("cluster", servers, load.HIT, options, (1,))


class Servers:
    """Servers that run side by side."""

    def __init__(self):
        self.running = []

    def start(self, names, **options):
        for name in names:
            self.running.append(PEERS[name].start(**options))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for server in self.running:
            server.stop()


def loaded(scene, servers, path, options, versions):
    for server in servers.running:
        for _ in range(20):
            get(server, path)
    for http in versions:
        fit = [server for server in servers.running if http == 1 or server.http2_port]
        for server in fit:
            load.requests(server, path, 1, http)
        for number in range(options.rounds):
            for server in in_turn(fit, number):
                seen = load.requests(server, path, options.seconds, http)
                # The bare server of this name always writes its line.
                log = server.log or server.name == "logged"
                yield dict(scene=scene, http=http, log=log, round=number, peer=server.name, **seen)


def waits(options):
    """Measures identical waits: upstream requests, delay of the last response, CPU and memory per wait."""
    names = installed(("clipgate", "merge", "nginx", "varnish", "trafficserver", "pingora"), options)
    for number in range(options.rounds):
        # The smaller numbers vary less.
        for count in (100, 1_000, 10_000) if number < 2 else (10_000,):
            for name in in_turn(names, number):
                yield dict(scene="waits", waits=count, round=number, peer=name, **fan_out(PEERS[name], count))


def streams(options):
    """Measures identical waits as HTTP/2 streams, a thousand on a connection."""
    names = installed(("clipgate", "merge", "nginx"), options)
    for number in range(options.rounds):
        for name in in_turn(names, number):
            seen = fan_out(PEERS[name], 10_000, streams=1_000)
            yield dict(scene="streams", waits=10_000, round=number, peer=name, **seen)


def fan_out(peer, count, streams=None):
    with Upstream(), peer.start() as server:
        for _ in range(3):
            get(server, load.HIT)
        server.settle()
        clip, cpu, resident = Clip(), server.cpu(), server.resident()
        with Waiters(server, clip, count, streams=streams) as waiters:
            waiters.wait_until_sent()
            server.settle()
            parked = (server.resident() - resident) / count
            clip.put("completed")
            responses = waiters.responses()
        server.settle()
        return dict(
            delays(clip, responses),
            bytes=parked,
            cpu_us=1e6 * (server.cpu() - cpu) / count,
            calls=clip.counts()["calls"],
            wrong=sum(not one.is_reached() for one in responses),
        )


def delays(clip, responses):
    """Returns the delays of the clients after the upstream's response, in milliseconds."""
    answered = wait_until_done(clip)
    late = sorted((one.answered_ns - answered) / 1e6 for one in responses)
    return dict(p50_ms=statistics.median(late), p99_ms=late[int(0.99 * (len(late) - 1))], max_ms=late[-1])


def late(options):
    """Measures 17 clients, one each second. The upstream ends polls after 12.5 s; the clip is finished after 15 s."""
    names = installed(("clipgate", "nginx", "varnish", "trafficserver", "pingora"), options)
    for unreached in (200, 504):
        # Side by side: they are idle nearly all of the time.
        with Upstream(LATE_HOLD, unreached), Servers() as servers:
            servers.start(names, hold=LATE_HOLD, unreached_within=round(LATE_HOLD + 1))
            for server in servers.running:
                for _ in range(3):
                    get(server, load.HIT)
                server.settle()
            with ThreadPoolExecutor(len(names)) as pool:
                for server, seen in zip(servers.running, pool.map(join_late, servers.running)):
                    yield dict(scene="late", unreached=unreached, peer=server.name, **seen)


def join_late(server):
    clip = Clip()
    began = time.monotonic()
    with Waiters(server, clip, LATE_WAITS, pause_us=1_000_000) as waiters:
        time.sleep(max(0, began + LATE_DONE - time.monotonic()))
        clip.put("completed")
        responses = waiters.responses()
    short = [one for one in responses if not one.is_reached()]
    cut = sum(one.waited() < LATE_HOLD - LATE_SLACK for one in short)
    counts = clip.counts()
    return dict(
        calls=counts["calls"],
        max_open=counts["max_open"],
        reached=len(responses) - len(short),
        cut=cut,
        own_time=len(short) - cut,
    )


def crowd(options):
    """Measures hits while 100,000 waits are parked, and hits without them, in the same process."""
    count = 100_000
    peer = PEERS["clipgate"]
    for number in range(options.rounds):
        with Upstream(), peer.start() as server:
            for _ in range(20):
                get(server, load.HIT)
            load.requests(server, load.HIT, 1)
            server.settle()
            clip, resident = Clip(), server.resident()
            before = [load.requests(server, load.HIT, options.seconds) for _ in range(2)]
            with Waiters(server, clip, count, pause_us=50, streams=1_000) as waiters:
                waiters.wait_until_sent()
                server.settle()
                parked = (server.resident() - resident) / count
                beside = [load.requests(server, load.HIT, options.seconds) for _ in range(2)]
                clip.put("completed")
                responses = waiters.responses(within=120)
            seen, calls = delays(clip, responses), clip.counts()["calls"]
        yield dict(
            scene="crowd",
            round=number,
            peer=peer.name,
            waits=count,
            bytes=parked,
            wrong=sum(not one.is_reached() for one in responses),
            calls=calls,
            alone=before,
            beside=beside,
            **seen,
        )


def bodies(options):
    """Measures memory while a body streams to a client that reads at once."""
    peer = PEERS["clipgate"]
    for mebibytes in (16, 256, 4096):
        with Upstream(), peer.start() as server:
            get(server, load.PLAIN)
            server.settle()
            idle = server.resident()
            url = f"http://127.0.0.1:{server.port}/bytes/{mebibytes << 20}"
            reader = subprocess.Popen(["taskset", "-c", LOAD_CORE, "curl", "-sS", "-o", "/dev/null", url])
            peak = idle
            while reader.poll() is None:
                peak = max(peak, server.resident())
                time.sleep(0.02)
            if reader.returncode:
                raise RuntimeError(f"curl ended with {reader.returncode}")
            yield dict(scene="bodies", peer=peer.name, mebibytes=mebibytes, idle=idle, most=peak)


def starts(options):
    """Measures the time from start to the first accepted connection, and memory when idle."""
    for number in range(options.rounds):
        for name in in_turn(installed(("clipgate", "nginx", "haproxy"), options), number):
            with Upstream(), PEERS[name].start() as server:
                time.sleep(1)
                ready, idle = 1e3 * server.ready_after, server.resident()
                yield dict(scene="starts", round=number, peer=name, ready_ms=ready, idle=idle)


def build(_options):
    """Measures a release build from cold on all cores. Crates are downloaded before."""
    folder = RUN / "cold"
    shutil.rmtree(folder, ignore_errors=True)
    cpu, began = os.times(), time.monotonic()
    command = ["cargo", "build", "--release", "--locked", "--quiet", "--target-dir", folder]
    subprocess.run(command, check=True, cwd=ROOT)
    took, after = time.monotonic() - began, os.times()
    shutil.rmtree(folder)
    spent = after.children_user + after.children_system - cpu.children_user - cpu.children_system
    yield dict(scene="build", peer="clipgate", seconds=took, cpu_seconds=spent, cores=os.cpu_count())


# The comparison, in the order of its tables.
COMPARISON = dict(
    hits=hits,
    passing=passing,
    cluster=cluster,
    waits=waits,
    streams=streams,
    crowd=crowd,
    late=late,
    bodies=bodies,
    starts=starts,
)
# Each builds the gateway in another way first, which takes minutes.
PARTS = dict(build=build, coalescer=parts.coalescer, hub=parts.hub)
SCENES = dict(**COMPARISON, **PARTS)
