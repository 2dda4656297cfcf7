"""Load generators on the core for load: requests per second of a server, and CPU per request."""

import json
import re
import resource
import subprocess
import urllib.request

from .peers import KIT_BUILD, LOAD_CORE

CLIP = "00000000-0000-4000-8000-000000000000"
HIT = f"/v2/generate/audio/suno-ai/clip?clip_id={CLIP}&status=completed"
PLAIN = "/plain"
CONNECTIONS = 64
# HTTP/2: the same number of concurrent requests on fewer connections.
HTTP2_CONNECTIONS, HTTP2_STREAMS = 8, 8
MILLISECONDS = {"us": 1e-3, "ms": 1, "s": 1e3, "m": 6e4}


def get(server, path, timeout=10):
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}{path}", headers={"Authorization": "Bearer k"})
    return urllib.request.urlopen(request, timeout=timeout).read()


def requests(server, path, seconds, http=1):
    """Runs one round. Returns the figures of the generator, and the CPU per request of server and generator in microseconds.

    A server that waits for the generator is cheaper: it rarely has to wake it. So its utilization is returned, too.
    """
    command = wrk if http == 1 else http2_load
    cpu, load = server.cpu(), children_cpu()
    output, read = command(server, path, seconds)
    cpu, load = server.cpu() - cpu, children_cpu() - load
    seen = read(output)
    if seen["n"] == 0 or seen["bad"]:
        raise RuntimeError(f"{server.name}: {seen['bad']} of {seen['n']} responses are wrong\n{output}")
    utilization = min(1, cpu * seen["rps"] / seen["n"])
    return dict(seen, cpu_us=1e6 * cpu / seen["n"], load_us=1e6 * load / seen["n"], utilization=utilization)


def children_cpu():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def wrk(server, path, seconds):
    url = f"http://127.0.0.1:{server.port}{path}"
    return run(
        "wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--latency", "-H", "Authorization: Bearer k", url
    ), of_wrk


def of_wrk(output):
    # Anchored: another column may also end in 50%.
    quantile = lambda of: milliseconds(re.search(rf"^\s+{of}%\s+(\S+)$", output, re.M)[1])
    bad = sum(int(text) for text in re.findall(r"Non-2xx or 3xx responses: (\d+)", output))
    for errors in re.findall(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", output):
        bad += sum(map(int, errors))
    return dict(
        n=int(re.search(r"(\d+) requests in", output)[1]),
        bad=bad,
        rps=float(re.search(r"Requests/sec:\s+([\d.]+)", output)[1]),
        p50_ms=quantile(50),
        p99_ms=quantile(99),
    )


def http2_load(server, path, seconds):
    """Compares each response with the length of one over HTTP/1.1."""
    body = get(server, path)
    return run(
        KIT_BUILD / "http2_load",
        *("--to", f"127.0.0.1:{server.http2_port}", "--target", path, "--body", len(body)),
        *("--connections", HTTP2_CONNECTIONS, "--streams", HTTP2_STREAMS, "--seconds", seconds),
    ), of_http2_load


def of_http2_load(output):
    try:
        seen = json.loads(output)
    except ValueError:
        return dict(n=0, bad=0, rps=0)
    return dict(n=seen["requests"], bad=seen["bad"], rps=seen["requests"] / seen["seconds"])


def run(*command):
    done = subprocess.run(["taskset", "-c", LOAD_CORE, *map(str, command)], capture_output=True, text=True)
    return done.stdout + done.stderr


def milliseconds(text):
    number, unit = re.match(r"([\d.]+)(us|ms|s|m)$", text).groups()
    return float(number) * MILLISECONDS[unit]
