"""Plots as SVG, for light and dark pages. matplotlib is installed into its own venv."""

import subprocess
import sys

from .peers import ROOT

VENV = ROOT / "target" / "compare" / "python"
LIGHT = dict(ink="#1f2328", line="#d1d9e0", ours="#0969da", others="#8c959f", bare="#bc4c00")
DARK = dict(ink="#e6edf3", line="#3d444d", ours="#4493f8", others="#848d97", bare="#db8b46")
# Variants of the bare server, in one colour.
BARE = ("hyper", "logic", "logged", "merge", "proxy")


def draw(figures, folder):
    matplotlib = load()
    if matplotlib is None:
        print("skipping plots: matplotlib cannot be installed", file=sys.stderr)
        return
    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "clipgate", "font.family": "DejaVu Sans", "font.size": 10})
    import matplotlib.pyplot as pyplot

    from .show import NAMES

    for theme, colours in (("light", LIGHT), ("dark", DARK)):
        painter = Painter(pyplot, colours, NAMES)
        painter.comparison(figures, folder / f"comparison-{theme}.svg")
        painter.coalescer(figures, folder / f"coalescer-{theme}.svg")


def load():
    """Imports matplotlib from this Python, else from the venv."""
    try:
        import matplotlib

        return matplotlib
    except ImportError:
        pass
    try:
        if not (VENV / "bin" / "python3").exists():
            subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
            subprocess.run([VENV / "bin" / "python3", "-m", "pip", "install", "-q", "matplotlib"], check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    sys.path += map(str, VENV.glob("lib/python3*/site-packages"))
    import matplotlib

    return matplotlib


class Painter:
    def __init__(self, pyplot, colours, names):
        self.pyplot, self.colours, self.names = pyplot, colours, names

    def comparison(self, figures, path):
        """Draws five panels of bars: hits over HTTP/1.1 and HTTP/2, pass-through, delay of the last response, memory of a
        parked wait."""
        panels = [
            ("Cache hit over HTTP/1.1 with an access log: CPU µs", "hits", "cpu_us", dict(http=1, log=True), 1),
            ("Cache hit over HTTP/2 with an access log: CPU µs", "hits", "cpu_us", dict(http=2, log=True), 1),
            ("Pass-through with an access log: CPU µs", "passing", "cpu_us", dict(http=1, log=True), 1),
            ("10,000 identical waits: ms to the last response (p99)", "waits", "p99_ms", dict(waits=10_000), 1),
            (
                "10,000 identical waits over HTTP/1.1: kB per parked wait",
                "waits",
                "bytes",
                dict(waits=10_000),
                1000,
            ),
        ]
        panels = [panel for panel in panels if figures.of(panel[1], **panel[3])]
        if not panels:
            return
        rows = [len(figures.peers(scene, **wanted)) for _, scene, _, wanted, _ in panels]
        figure, axes = self.pyplot.subplots(
            len(panels),
            1,
            figsize=(8, 0.26 * sum(rows) + 0.5 * len(panels)),
            height_ratios=rows,
            squeeze=False,
        )
        for axis, (title, scene, key, wanted, by) in zip(axes[:, 0], panels):
            bars = [
                (peer, figures.median(key, scene, peer=peer, **wanted) / by) for peer in figures.peers(scene, **wanted)
            ]
            self.bars(axis, title, sorted(bars, key=lambda bar: -bar[1]))
        self.save(figure, path)

    def bars(self, axis, title, bars):
        ink = self.colours["ink"]
        axis.barh(
            [self.names[peer] for peer, _ in bars],
            [value for _, value in bars],
            color=[self.colour(peer) for peer, _ in bars],
            height=0.7,
        )
        for place, (peer, value) in enumerate(bars):
            weight = "bold" if peer == "clipgate" else "normal"
            axis.text(
                value,
                place,
                f" {value:,.0f}" if value >= 100 else f" {value:.1f}",
                va="center",
                color=ink,
                weight=weight,
            )
        axis.set_title(title, loc="left", color=ink, fontsize=10, weight="bold")
        axis.margins(x=0.1)
        axis.tick_params(colors=ink, length=0)
        axis.set_xticks([])
        for label, (peer, _) in zip(axis.get_yticklabels(), bars):
            label.set_weight("bold" if peer == "clipgate" else "normal")
        for side, spine in axis.spines.items():
            spine.set_visible(side == "left")
            spine.set_color(self.colours["line"])

    def colour(self, peer):
        return (
            self.colours["ours"]
            if peer == "clipgate"
            else self.colours["bare"]
            if peer in BARE
            else self.colours["others"]
        )

    def coalescer(self, figures, path):
        """Draws the cost of one input by the number of parked waits."""
        lines = [
            ("join, all on one clip", "join_on_one_clip", self.colours["ours"], "-"),
            ("join, each on its own clip", "join_where_each_has_its_clip", self.colours["ours"], "--"),
            ("leave, all on one clip", "leave_on_one_clip", self.colours["bare"], "-"),
            ("leave, each on its own clip", "leave_where_each_has_its_clip", self.colours["bare"], "--"),
            ("landing, per wait", "landing_for_each_wait", self.colours["ink"], "-"),
            ("landing, one of many clips", "landing_of_one_clip_of_many", self.colours["ink"], "--"),
        ]
        if not figures.of("coalescer"):
            return
        figure, axis = self.pyplot.subplots(figsize=(8, 4.2))
        ink = self.colours["ink"]
        for label, bench, colour, style in lines:
            records = figures.of("coalescer", bench=bench)
            each = [
                record["ns"] / (record["of"] if bench == "landing_for_each_wait" else 1) / 1e3 for record in records
            ]
            axis.plot(
                [record["of"] for record in records],
                each,
                style,
                color=colour,
                marker="o",
                markersize=4,
                label=label,
            )
        axis.set_xscale("log")
        axis.set_ylim(bottom=0)
        axis.set_title(
            "One input of the coalescer, µs, by the number of parked waits",
            loc="left",
            color=ink,
            fontsize=10,
            weight="bold",
        )
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axis.grid(axis="y", color=self.colours["line"], linewidth=0.6)
        axis.set_axisbelow(True)
        axis.tick_params(which="both", colors=ink, length=0)
        axis.legend(frameon=False, labelcolor=ink, fontsize=9)
        for spine in axis.spines.values():
            spine.set_visible(False)
        self.save(figure, path)

    def save(self, figure, path):
        figure.tight_layout()
        figure.savefig(path, transparent=True, metadata={"Date": None})
        self.pyplot.close(figure)
