"""Medians over rounds, and ratios of two servers within a round, because the speed of the machine drifts."""

import json
import statistics

# Minimum utilization of a server for a round to count: below, the load generator was the limit.
BUSY = 0.95
MEBIBYTE = 1 << 20


class Figures:
    """Records of the last measurement, by scene."""

    def __init__(self, run):
        self.records = []
        for path in sorted(run.glob("*.json")):
            self.records += [json.loads(line) for line in path.read_text().splitlines()]

    def of(self, scene, **wanted):
        """Returns the records of a scene with these values."""
        fits = lambda record: all(record.get(key) == value for key, value in wanted.items())
        return [record for record in self.records if record["scene"] == scene and fits(record)]

    def peers(self, scene, **wanted):
        return list(dict.fromkeys(record["peer"] for record in self.of(scene, **wanted)))

    def values(self, key, scene, **wanted):
        return [record[key] for record in self.of(scene, **wanted) if record.get(key) is not None]

    def has(self, scene, **wanted):
        return bool(self.of(scene, **wanted))

    def median(self, key, scene, **wanted):
        return median(self.values(key, scene, **wanted))

    def ratio(self, key, peer, beside, scene, **wanted):
        """Returns the median, minimum and maximum of the ratios of two servers, each within a round."""
        other = {record["round"]: record[key] for record in self.of(scene, peer=beside, **wanted) if is_busy(record)}
        pairs = [
            record[key] / other[record["round"]]
            for record in self.of(scene, peer=peer, **wanted)
            if is_busy(record) and other.get(record["round"])
        ]
        return (median(pairs), min(pairs), max(pairs)) if pairs else None

    def rate(self, scene, **wanted):
        """Returns the median requests per second of the rounds in which the server was busy."""
        return median([record["rps"] for record in self.of(scene, **wanted) if is_busy(record)])

    def rounds(self, scene, **wanted):
        return len({record["round"] for record in self.of(scene, **wanted)})


def is_busy(record):
    """Returns whether the server was busy all the time. Records without load have no utilization."""
    return record.get("utilization", 1) >= BUSY


def median(values):
    return statistics.median(values) if values else None


def number(value, digits=0):
    return "–" if value is None else f"{value:,.{digits}f}"


def spread(ratio):
    """Formats a ratio with its minimum and maximum."""
    return "–" if ratio is None else "{:.2f} ({:.2f} to {:.2f})".format(*ratio)


def table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
