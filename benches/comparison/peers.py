"""The compared servers: starts each in front of the upstream, on its own core.

Each is a process tree, which ends with its root. All listen on 127.0.0.1 only.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KIT = ROOT / "benches" / "kit"
CONF = KIT / "conf"
KIT_BUILD = ROOT / "target" / "kit" / "release"
RUN = ROOT / "target" / "compare"
# In memory, for servers with a file cache.
SHM = Path("/dev/shm/clipgate-compare")

SERVER_CORE, LOAD_CORE = "0", "1"
UPSTREAM = 9000
# Limit on descriptors, for servers that do not raise it.
DESCRIPTORS = 20_000
HZ = os.sysconf("SC_CLK_TCK")


class Peer:
    """One kind of server."""

    def __init__(self, name, port, command, http2_port=None, program=None):
        self.name = name
        self.port, self.http2_port = port, http2_port
        self.command = command
        self.program = program

    def is_installed(self):
        return shutil.which(str(self.program)) is not None

    def start(self, hold=120, unreached_within=130):
        """Starts the server in front of an upstream that holds polls for `hold` seconds. Time-outs are a little longer."""
        values = dict(HTTP1=self.port, HTTP2=self.http2_port, UPSTREAM=UPSTREAM, SECONDS=unreached_within, HOLD=hold)
        return Running(self, values)


class Running:
    """A running server."""

    def __init__(self, peer, values):
        self.peer, self.name = peer, peer.name
        self.folder = RUN / peer.name
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.shm = SHM / peer.name
        shutil.rmtree(self.shm, ignore_errors=True)
        self.shm.mkdir(parents=True)
        values = dict(values, RUN=self.folder, SHM=self.shm)
        command, environment = peer.command(values)
        self.started = time.monotonic()
        self.process = pinned(SERVER_CORE, command, self.folder / "log", environment)
        wait_for_port(peer.port, self.process)
        self.ready_after = time.monotonic() - self.started

    def tree(self):
        return tree(self.process.pid)

    def cpu(self):
        """Returns the CPU seconds so far, including children."""
        return sum(cpu(pid) for pid in self.tree())

    def resident(self):
        """Returns the resident bytes. Shared pages count once."""
        return sum(resident(pid) for pid in self.tree())

    def settle(self, within=60):
        """Waits until the server has been idle for a third of a second."""
        until, before, quiet = time.monotonic() + within, self.cpu(), 0
        while quiet < 3 and time.monotonic() < until:
            time.sleep(0.1)
            now = self.cpu()
            quiet = quiet + 1 if now - before < 0.015 else 0
            before = now

    def stop(self):
        stop(self.process, self.tree())
        shutil.rmtree(self.shm, ignore_errors=True)
        # Access logs have millions of lines.
        log = self.folder / "log"
        if log.stat().st_size > 1 << 20:
            log.unlink()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


class Upstream:
    """The upstream, on the core for load."""

    def __init__(self, hold=120, unreached=200):
        RUN.mkdir(parents=True, exist_ok=True)
        command = [
            KIT_BUILD / "upstream",
            "--listen",
            f"127.0.0.1:{UPSTREAM}",
            "--hold",
            hold,
            "--unreached",
            unreached,
        ]
        self.process = pinned(LOAD_CORE, command, RUN / "upstream.log")
        wait_for_port(UPSTREAM, self.process)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        stop(self.process, [self.process.pid])


def pinned(core, command, log, environment=None):
    with open(log, "wb") as out:
        return subprocess.Popen(
            ["taskset", "-c", core, *map(str, command)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env={**os.environ, **(environment or {})},
        )


def wait_for_port(port, process, within=20):
    until = time.monotonic() + within
    while time.monotonic() < until:
        if process.poll() is not None:
            raise RuntimeError(f"{process.args} ended with {process.returncode}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.002)
    raise RuntimeError(f"{process.args} does not listen on {port}")


def stop(process, pids):
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        pass
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    process.wait()


def stat(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return None


def tree(pid):
    """Returns the process and its descendants."""
    children = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (fields := stat(entry)):
            children.setdefault(int(fields[1]), []).append(int(entry))
    found, todo = [], [pid]
    while todo:
        next_one = todo.pop()
        found.append(next_one)
        todo += children.get(next_one, [])
    return found


def cpu(pid):
    fields = stat(pid)
    return (int(fields[11]) + int(fields[12])) / HZ if fields else 0.0


def resident(pid):
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def filled(name, values, folder):
    """Writes the template with its values into the directory of the server."""
    text = (CONF / name).read_text()
    for key, value in values.items():
        text = text.replace(f"@{key}@", str(value))
    path = folder / name
    path.write_text(text)
    return path


def bare(mode):
    def command(values):
        return [
            KIT_BUILD / "bare",
            mode,
            "--listen",
            f"127.0.0.1:{values['HTTP1']}",
            "--listen-http2",
            f"127.0.0.1:{values['HTTP2']}",
            "--upstream",
            f"127.0.0.1:{values['UPSTREAM']}",
        ], None

    return command


def clipgate(values):
    config = filled("clipgate.toml", dict(values, ADMIN=9098), values["RUN"])
    return [CLIPGATE, "serve", "--config", config], None


def nginx(values):
    config = filled("nginx.conf", values, values["RUN"])
    return ["nginx", "-p", values["RUN"], "-c", config, "-g", "daemon off;"], None


def haproxy(values):
    return ["haproxy", "-db", "-f", filled("haproxy.cfg", values, values["RUN"])], None


def varnish(values):
    vcl = filled("varnish.vcl", values, values["RUN"])
    options = [
        "feature=+http2",
        "thread_pools=1",
        "thread_pool_min=100",
        "thread_pool_max=4000",
        "timeout_idle=600",
        f"first_byte_timeout={values['SECONDS']}",
        f"between_bytes_timeout={values['SECONDS']}",
        "listen_depth=4096",
        "thread_pool_stack=80k",
    ]
    return [
        "varnishd",
        "-F",
        "-j",
        "none",
        "-n",
        values["RUN"] / "v",
        "-a",
        f"127.0.0.1:{values['HTTP1']}",
        "-a",
        f"h2=127.0.0.1:{values['HTTP2']},HTTP",
        "-T",
        "none",
        "-f",
        vcl,
        "-s",
        "malloc,256m",
        *(word for option in options for word in ("-p", option)),
    ], None


def pingora(values):
    return [
        KIT_BUILD / "pingora-peer",
        f"127.0.0.1:{values['HTTP1']}",
        f"127.0.0.1:{values['UPSTREAM']}",
        values["SECONDS"],
    ], None


def trafficserver(values):
    """Uses its own root directory, and a cache in memory."""
    root, values = values["RUN"] / "root", dict(values, RETRIES=100 * values["SECONDS"])
    for folder in ("etc", "var", "run", "log", "cache"):
        (root / folder).mkdir(parents=True)
    etc = root / "etc"
    for path in Path("/etc/trafficserver").glob("*.yaml"):
        if path.name != "logging.yaml":
            shutil.copy(path, etc)
    shutil.copytree("/etc/trafficserver/body_factory", etc / "body_factory")
    (root / "runroot.yaml").write_text(
        "\n".join(
            [
                "prefix: /usr",
                "exec_prefix: /usr",
                "bindir: /usr/bin",
                "sbindir: /usr/sbin",
                f"sysconfdir: {etc}",
                f"datadir: {root}/cache",
                "includedir: /usr/include",
                "libdir: /usr/lib/trafficserver",
                "libexecdir: /usr/lib/trafficserver/modules",
                f"localstatedir: {root}/var",
                f"runtimedir: {root}/run",
                f"logdir: {root}/log",
                f"cachedir: {root}/cache",
                "",
            ]
        )
    )
    filled("trafficserver.records", values, values["RUN"]).rename(etc / "records.config")
    upstream = f"http://127.0.0.1:{values['UPSTREAM']}/"
    (etc / "remap.config").write_text(f"map / {upstream} @plugin=cachekey.so @pparam=--include-headers=Authorization\n")
    (etc / "storage.config").write_text(f"{values['SHM']} 256M\n")
    (etc / "cache.config").write_text("dest_domain=. ttl-in-cache=1h\n")
    # The server drops root privileges.
    for path in [values["SHM"], *root.parents[:3], root, *root.rglob("*")]:
        path.chmod(path.stat().st_mode | (0o777 if path.is_dir() else 0o666))
    return ["traffic_server", f"--run-root={root}/runroot.yaml"], {"TS_RUNROOT": f"{root}/runroot.yaml"}


CLIPGATE = os.environ.get("CLIPGATE", ROOT / "target" / "release" / "clipgate")

PEERS = {
    peer.name: peer
    for peer in [
        Peer("hyper", 8100, bare("static"), 8110, KIT_BUILD / "bare"),
        Peer("logic", 8107, bare("logic"), 8117, KIT_BUILD / "bare"),
        Peer("logged", 8120, bare("logged"), 8130, KIT_BUILD / "bare"),
        Peer("proxy", 8121, bare("proxy"), 8131, KIT_BUILD / "bare"),
        Peer("merge", 8109, bare("merge"), 8119, KIT_BUILD / "bare"),
        Peer("clipgate", 8108, clipgate, 8108, CLIPGATE),
        Peer("nginx", 8101, nginx, 8111, "nginx"),
        Peer("haproxy", 8103, haproxy, 8113, "haproxy"),
        Peer("varnish", 8102, varnish, 8112, "varnishd"),
        Peer("trafficserver", 8105, trafficserver, None, "traffic_server"),
        Peer("pingora", 8106, pingora, 8106, KIT_BUILD / "pingora-peer"),
    ]
}
