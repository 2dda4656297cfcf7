"""The compared servers: starts each in front of the upstream, on its own core.

Each is a process tree, which ends with its root. All listen on 127.0.0.1 only.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
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
# An upstream that answers every request with the same bytes.
FIXED_UPSTREAM = 9001
ENGINE = 9002
# Servers with an access log have ports of their own, so that they run beside those without.
LOG_PORTS = 1000
# Limit on descriptors, for servers that do not raise it.
DESCRIPTORS = 20_000
HZ = os.sysconf("SC_CLK_TCK")


class Peer:
    """One kind of server."""

    def __init__(self, name, port, command, http2_port=None, program=None, has_log=False):
        self.name = name
        self.port, self.http2_port = port, http2_port
        self.command = command
        self.program = program
        # Whether an access log can be switched on.
        self.has_log = has_log

    def is_installed(self):
        return shutil.which(str(self.program)) is not None

    def start(self, hold=120, unreached_within=130, log=True, upstream=UPSTREAM):
        """Starts the server in front of an upstream that holds polls for `hold` seconds. Time-outs are a little longer.

        `log` switches a buffered access log on, if the server has one.
        """
        log = log and self.has_log
        shift = LOG_PORTS if log else 0
        values = dict(
            HTTP1=self.port + shift,
            HTTP2=self.http2_port and self.http2_port + shift,
            UPSTREAM=upstream,
            SECONDS=unreached_within,
            HOLD_MS=round(1000 * hold),
            LOG=log,
        )
        return Running(self, values)


class Running:
    """A running server."""

    def __init__(self, peer, values):
        self.peer, self.name, self.log = peer, peer.name, values["LOG"]
        self.port, self.http2_port = values["HTTP1"], values["HTTP2"]
        folder = f"{peer.name}-{self.port}"
        self.folder = RUN / folder
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.shm = SHM / folder
        shutil.rmtree(self.shm, ignore_errors=True)
        self.shm.mkdir(parents=True)
        values = dict(values, RUN=self.folder, SHM=self.shm)
        command, environment = peer.command(values)
        self.started = time.monotonic()
        # Output and logs stay in memory: they have millions of lines.
        self.process = pinned(SERVER_CORE, command, self.shm / "output", environment)
        try:
            wait_for_port(self.port, self.process)
        except RuntimeError:
            print((self.shm / "output").read_text(errors="replace")[-2000:])
            self.stop()
            raise
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

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


class Helper:
    """A program on the core for load."""

    def __init__(self, name, port, command):
        RUN.mkdir(parents=True, exist_ok=True)
        self.process = pinned(LOAD_CORE, command, RUN / f"{name}.log")
        wait_for_port(port, self.process)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        stop(self.process, [self.process.pid])


class Upstream(Helper):
    """The upstream that holds polls."""

    def __init__(self, hold=120, unreached=200):
        listen = ["--listen", f"127.0.0.1:{UPSTREAM}"]
        options = ["--hold", hold, "--unreached", unreached]
        super().__init__("upstream", UPSTREAM, [KIT_BUILD / "upstream", *listen, *options])


class FixedUpstream(Helper):
    """The upstream that answers at once, at the lowest cost."""

    def __init__(self):
        super().__init__("fixed", FIXED_UPSTREAM, [KIT_BUILD / "fixed", "--listen", f"127.0.0.1:{FIXED_UPSTREAM}"])

    def requests(self):
        """Returns the number of requests so far."""
        url = f"http://127.0.0.1:{FIXED_UPSTREAM}/kit/requests"
        return int(urllib.request.urlopen(url, timeout=10).read())


class Engine(Helper):
    """The store of replicas."""

    def __init__(self):
        options = ["--bind", "127.0.0.1", "--port", ENGINE, "--save", "", "--appendonly", "no"]
        super().__init__("engine", ENGINE, ["redis-server", *options])

    @staticmethod
    def is_installed():
        return shutil.which("redis-server") is not None


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


def clipgate(values, cluster="", binary=None):
    level = "info" if values["LOG"] else "warn"
    values = dict(values, ADMIN=values["HTTP1"] + 500, LEVEL=level, CLUSTER=cluster)
    return [binary or CLIPGATE, "serve", "--config", filled("clipgate.toml", values, values["RUN"])], None


def clustered(values):
    secret = "0123456789abcdef" * 2
    return clipgate(values, f'[cluster]\nurl = "redis://127.0.0.1:{ENGINE}"\nsecret = "{secret}"')


def plain(values):
    return clipgate(values, binary=PLAIN)


def nginx(values):
    log = f"{values['SHM']}/access.log combined buffer=64k flush=1s" if values["LOG"] else "off"
    config = filled("nginx.conf", dict(values, LOG=log), values["RUN"])
    return ["nginx", "-p", values["RUN"], "-c", config, "-g", "daemon off;"], None


def haproxy(values):
    # HAProxy has no buffered log to a file: each line is a write.
    log = "log stdout len 2048 format raw local0 info" if values["LOG"] else ""
    lines = "log global\n  option httplog" if values["LOG"] else ""
    return ["haproxy", "-db", "-f", filled("haproxy.cfg", dict(values, LOG=log, LINES=lines), values["RUN"])], None


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
    logging = 2 if values["LOG"] else 0
    root, values = values["RUN"] / "root", dict(values, RETRIES=100 * values["SECONDS"], LOGGING=logging)
    for folder in ("etc", "var", "run", "log", "cache"):
        (root / folder).mkdir(parents=True)
    etc = root / "etc"
    for path in Path("/etc/trafficserver").glob("*.yaml"):
        if path.name != "logging.yaml":
            shutil.copy(path, etc)
    shutil.copytree("/etc/trafficserver/body_factory", etc / "body_factory")
    line = "%<chi> - %<caun> [%<cqtn>] '%<cqtx>' %<pssc> %<pscl>"
    (etc / "logging.yaml").write_text(
        f'logging:\n  formats:\n  - name: common\n    format: "{line}"\n'
        "  logs:\n  - filename: access\n    format: common\n    mode: ascii\n"
    )
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
                f"logdir: {values['SHM']}",
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


HOST = subprocess.run(["rustc", "--print", "host-tuple"], capture_output=True, text=True, check=True).stdout.strip()
# Built by deploy/build, as it is distributed, and by cargo alone.
CLIPGATE = os.environ.get("CLIPGATE", ROOT / "target" / HOST / "release" / "clipgate")
PLAIN = ROOT / "target" / "release" / "clipgate"

PEERS = {
    peer.name: peer
    for peer in [
        Peer("hyper", 8100, bare("static"), 8110, KIT_BUILD / "bare"),
        Peer("logic", 8107, bare("logic"), 8117, KIT_BUILD / "bare"),
        Peer("logged", 8120, bare("logged"), 8130, KIT_BUILD / "bare"),
        Peer("proxy", 8121, bare("proxy"), 8131, KIT_BUILD / "bare"),
        Peer("merge", 8109, bare("merge"), 8119, KIT_BUILD / "bare"),
        Peer("clipgate", 8108, clipgate, 8108, CLIPGATE, has_log=True),
        Peer("plain", 8140, plain, 8140, PLAIN, has_log=True),
        Peer("clustered", 8104, clustered, 8104, CLIPGATE, has_log=True),
        Peer("nginx", 8101, nginx, 8111, "nginx", has_log=True),
        Peer("haproxy", 8103, haproxy, 8113, "haproxy", has_log=True),
        Peer("varnish", 8102, varnish, 8112, "varnishd"),
        Peer("trafficserver", 8105, trafficserver, None, "traffic_server", has_log=True),
        Peer("pingora", 8106, pingora, 8106, KIT_BUILD / "pingora-peer"),
    ]
}
