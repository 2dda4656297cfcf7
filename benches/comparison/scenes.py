"""Scenes. Each yields records: dicts with scene, round, peer and figures."""

import os
import shutil
import statistics
import subprocess
import time
import urllib.request

from . import load, parts
from .peers import LOAD_CORE, PEERS, ROOT, RUN, Upstream
from .waits import Clip, Waiters, wait_until_done

KEY = {"Authorization": "Bearer k"}
# Late joiners, ten times faster than real time.
LATE_HOLD, LATE_DONE, LATE_WAITS = 12, 15, 17
# Tolerance, in seconds, for the time of a wait that ended at its deadline.
LATE_SLACK = 0.2


def get(peer, path, timeout=10):
    request = urllib.request.Request(f"http://127.0.0.1:{peer.port}{path}", headers=KEY)
    return urllib.request.urlopen(request, timeout=timeout).read()


def in_turn(peers, number):
    """Alternates the order, so that drift affects all servers alike."""
    return peers if number % 2 == 0 else peers[::-1]


def started(names, **options):
    return [PEERS[name].start(**options) for name in names if PEERS[name].is_installed()]


def hits(options):
    """Measures cache hits over HTTP/1.1 and HTTP/2, server by server."""
    names = [name for name in options.peers if name not in ("merge", "proxy")]
    yield from loaded("hits", names, load.HIT, options, (1, 2))


def passing(options):
    """Measures requests that pass through to the upstream."""
    names = [name for name in ("clipgate", "proxy", "nginx", "haproxy") if name in options.peers]
    yield from loaded("passing", names, load.PLAIN, options, (1,))


def loaded(scene, names, path, options, versions):
    with Upstream():
        servers = started(names)
        try:
            for server in servers:
                for _ in range(20):
                    get(server.peer, path)
            for http in versions:
                fit = [server for server in servers if http == 1 or server.peer.http2_port]
                for server in fit:
                    load.requests(server, path, 1, http)
                for number in range(options.rounds):
                    for server in in_turn(fit, number):
                        seen = load.requests(server, path, options.seconds, http)
                        yield dict(scene=scene, http=http, round=number, peer=server.name, **seen)
        finally:
            for server in servers:
                server.stop()


def waits(options):
    """Measures identical waits: upstream requests, delay of the last response, CPU and memory per wait."""
    names = [
        name for name in ("clipgate", "merge", "nginx", "varnish", "trafficserver", "pingora") if name in options.peers
    ]
    for number in range(options.rounds):
        for count in (100, 1_000, 10_000):
            for name in in_turn(names, number):
                if PEERS[name].is_installed():
                    yield dict(scene="waits", waits=count, round=number, peer=name, **fan_out(PEERS[name], count))


def streams(options):
    """Measures identical waits as HTTP/2 streams, a thousand on a connection."""
    names = [name for name in ("clipgate", "merge", "nginx") if name in options.peers]
    for number in range(options.rounds):
        for name in in_turn(names, number):
            if PEERS[name].is_installed():
                seen = fan_out(PEERS[name], 10_000, streams=1_000)
                yield dict(scene="streams", waits=10_000, round=number, peer=name, **seen)


def fan_out(peer, count, streams=None):
    with Upstream(), peer.start() as server:
        for _ in range(3):
            get(peer, load.HIT)
        server.settle()
        clip, cpu, resident = Clip(), server.cpu(), server.resident()
        with Waiters(peer, clip, count, streams=streams) as waiters:
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
    """Measures 17 clients, one each second. The upstream ends polls after 12 s; the clip is finished after 15 s."""
    names = [name for name in ("clipgate", "nginx", "varnish", "trafficserver", "pingora") if name in options.peers]
    for unreached in (200, 504):
        for name in names:
            if PEERS[name].is_installed():
                yield dict(scene="late", unreached=unreached, peer=name, **join_late(PEERS[name], unreached))


def join_late(peer, unreached):
    with Upstream(LATE_HOLD, unreached), peer.start(hold=LATE_HOLD, unreached_within=LATE_HOLD + 1) as server:
        for _ in range(3):
            get(peer, load.HIT)
        server.settle()
        clip = Clip()
        began = time.monotonic()
        with Waiters(peer, clip, LATE_WAITS, pause_us=1_000_000) as waiters:
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
                get(peer, load.HIT)
            load.requests(server, load.HIT, 1)
            server.settle()
            clip, resident = Clip(), server.resident()
            before = [load.requests(server, load.HIT, options.seconds) for _ in range(2)]
            with Waiters(peer, clip, count, pause_us=50, streams=1_000) as waiters:
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
            get(peer, load.PLAIN)
            server.settle()
            idle = server.resident()
            url = f"http://127.0.0.1:{peer.port}/bytes/{mebibytes << 20}"
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
    for number in range(max(options.rounds, 9)):
        for name in in_turn([name for name in ("clipgate", "nginx", "haproxy") if name in options.peers], number):
            if PEERS[name].is_installed():
                with Upstream(), PEERS[name].start() as server:
                    time.sleep(1)
                    yield dict(
                        scene="starts",
                        round=number,
                        peer=name,
                        ready_ms=1e3 * server.ready_after,
                        idle=server.resident(),
                    )


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


SCENES = dict(
    hits=hits,
    waits=waits,
    late=late,
    streams=streams,
    crowd=crowd,
    passing=passing,
    bodies=bodies,
    starts=starts,
    build=build,
    coalescer=parts.coalescer,
    hub=parts.hub,
)
