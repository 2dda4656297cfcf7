"""Benches of the parts: the output of divan as records."""

import re
import subprocess

from .peers import ROOT, SERVER_CORE

NANOSECONDS = {"ns": 1, "µs": 1e3, "ms": 1e6, "s": 1e9}


def coalescer(_options):
    """Measures a join, a leave and a landing by the number of waits and clips."""
    yield from timed("coalescer")


def hub(_options):
    """Measures joins and responses of the hub task."""
    yield from timed("hub")


def timed(bench):
    command = ["taskset", "-c", SERVER_CORE, "cargo", "bench", "--locked", "--bench", bench]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    yield from (dict(scene=bench, **record) for record in of_divan(done.stdout))


def of_divan(output):
    """Parses lines of a name or argument, then fastest, slowest, median and mean. Rates follow on the next line."""
    name, record = None, None
    for line in output.splitlines():
        found = re.match(r"([│ ]*)[├╰]─ (\S+)\s*(.*)", line)
        columns = [column.strip() for column in (found[3] if found else line.strip("│ ")).split("│")]
        if found and columns[0]:
            if record:
                yield record
            of = int(found[2]) if found[1] else None
            record = dict(bench=name if found[1] else found[2], of=of, ns=time(columns[2]))
        elif found:
            name = found[2]
        elif record and "item/s" in line:
            record["items_per_second"] = rate(columns[2])
    if record:
        yield record


def time(text):
    number, unit = text.split()
    return float(number) * NANOSECONDS[unit]


def rate(text):
    number, unit = text.split()
    return float(number) * {"item/s": 1, "Kitem/s": 1e3, "Mitem/s": 1e6, "Gitem/s": 1e9}[unit]
