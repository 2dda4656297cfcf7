"""Clients that wait, and the upstream's side of their clip."""

import json
import subprocess
import time
import urllib.request
import uuid

from .peers import KIT_BUILD, LOAD_CORE, UPSTREAM


class Clip:
    """A clip at the upstream that is being made."""

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
    """So many clients that wait for one clip; over HTTP/2 if they share connections, so many streams on each."""

    def __init__(self, peer, clip, waits, pause_us=250, streams=None):
        port = peer.http2_port if streams else peer.port
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

    def have_asked(self):
        line = self.process.stdout.readline()
        if line != "asked\n":
            raise RuntimeError(f"the waiters say {line!r}")

    def told(self, within=60):
        """Each one's answer, once the last has come."""
        output, _ = self.process.communicate(timeout=within)
        lines = [line.split() for line in output.splitlines() if line != "asked"]
        if len(lines) != self.waits:
            raise RuntimeError(f"{len(lines)} of {self.waits} waiters were told")
        return [Told(int(asked), int(answered), int(status), word) for asked, answered, status, word in lines]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


class Told:
    def __init__(self, asked_ns, answered_ns, status, word):
        self.asked_ns, self.answered_ns, self.status, self.word = asked_ns, answered_ns, status, word

    def is_reached(self):
        return (self.status, self.word) == (200, "completed")

    def waited(self):
        """Seconds."""
        return (self.answered_ns - self.asked_ns) / 1e9


def wait_until_done(clip, within=5):
    """Until the upstream has answered its first poll; when that was, in nanoseconds."""
    until = time.monotonic() + within
    while time.monotonic() < until:
        if answered := clip.counts()["answered_ns"]:
            return answered
        time.sleep(0.01)
    raise RuntimeError("the upstream has answered nobody")
