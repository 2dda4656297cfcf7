"""Clients that wait, and control of their clip at the upstream."""

import json
import subprocess
import time
import urllib.request
import uuid

from .peers import KIT_BUILD, LOAD_CORE, UPSTREAM


class Clip:
    """An unfinished clip at the upstream."""

    def __init__(self):
        self.id = str(uuid.uuid4())
        self.put("streaming")

    def put(self, word):
        ask(f"/kit/clips/{self.id}/{word}", "PUT")

    def counts(self):
        return json.loads(ask(f"/kit/clips/{self.id}"))

    def target(self):
        return f"/v2/generate/audio/suno-ai/clip?clip_id={self.id}&status=completed"


def ask(path, method="GET"):
    request = urllib.request.Request(f"http://127.0.0.1:{UPSTREAM}{path}", method=method)
    return urllib.request.urlopen(request, timeout=10).read()


class Waiters:
    """Clients that wait for one clip. With `streams`, they share HTTP/2 connections, with this number of streams on each."""

    def __init__(self, server, clip, waits, pause_us=100, streams=None):
        port = server.http2_port if streams else server.port
        command = [
            "taskset",
            "-c",
            LOAD_CORE,
            KIT_BUILD / "waiters",
            "--to",
            f"127.0.0.1:{port}",
            "--target",
            clip.target(),
            "--waits",
            waits,
            "--pause",
            pause_us,
            *(("--streams", streams) if streams else ()),
        ]
        self.waits = waits
        self.process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True)

    def wait_until_sent(self):
        line = self.process.stdout.readline()
        if line != "sent\n":
            raise RuntimeError(f"unexpected output of the waiters: {line!r}")

    def responses(self, within=60):
        """Returns all responses, after the last."""
        output, _ = self.process.communicate(timeout=within)
        lines = [line.split() for line in output.splitlines() if line != "sent"]
        if len(lines) != self.waits:
            raise RuntimeError(f"{len(lines)} of {self.waits} waiters got a response")
        return [Response(int(sent), int(answered), int(status), word) for sent, answered, status, word in lines]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


class Response:
    def __init__(self, sent_ns, answered_ns, status, word):
        self.sent_ns, self.answered_ns, self.status, self.word = sent_ns, answered_ns, status, word

    def is_reached(self):
        return (self.status, self.word) == (200, "completed")

    def waited(self):
        """Returns the seconds from request to response."""
        return (self.answered_ns - self.sent_ns) / 1e9


def wait_until_done(clip, within=5):
    """Waits until the upstream has answered the first poll. Returns that time in nanoseconds."""
    until = time.monotonic() + within
    while time.monotonic() < until:
        if answered := clip.counts()["answered_ns"]:
            return answered
        time.sleep(0.01)
    raise RuntimeError("the upstream has answered no poll")
