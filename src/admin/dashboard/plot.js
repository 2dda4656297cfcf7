// A stacked plot over the last minutes, and the table that is its legend, its figures and its alternative.

import { count, clock } from "./words.js";
import { make, setData, setLabel, setText } from "./page.js";
import { MINUTE, STEP } from "./history.js";

/* global uPlot */

/** The least height that stands for something, so that an idle gateway's plot is no noise. */
const LEAST = 4;

export class Plot {
  #place;
  #series;
  #legend;
  #uplot;
  #columns;
  #totals;
  /** What it was built with. */
  #fontSize;

  constructor(place, table, series) {
    this.#place = place;
    this.#series = series;
    this.#legend = new Legend(table, series);
    this.#build();
    new ResizeObserver(() => this.#resize()).observe(place);
    // A canvas takes its colours once.
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#rebuild());
  }

  /** `columns` of a History, and each series' count since the gateway started. */
  show(columns, totals) {
    this.#columns = columns;
    this.#totals = totals;
    this.#uplot.setData(stacked(columns));
    this.#fillLegend();
    setLabel(this.#place, this.#summary());
  }

  #summary() {
    const minute = this.#series.map(({ label }, at) => {
      const latest = this.#columns.counts[at].slice(-MINUTE);
      return `${label.toLowerCase()} ${count(sum(latest))}`;
    });
    return `Bars over the last five minutes. In the last minute: ${minute.join(", ")}. The table below has the figures.`;
  }

  #fillLegend() {
    const at = this.#uplot.cursor.idx;
    const pointed = this.#uplot.cursor.left >= 0 && at != null ? at : undefined;
    this.#legend.show(this.#columns, this.#totals, pointed);
  }

  #size() {
    return { width: this.#place.clientWidth, height: this.#place.clientHeight };
  }

  #resize() {
    if (getComputedStyle(this.#place).fontSize === this.#fontSize) this.#uplot.setSize(this.#size());
    else this.#rebuild();
  }

  #rebuild() {
    this.#uplot.destroy();
    this.#build();
    if (this.#columns) this.#uplot.setData(stacked(this.#columns));
  }

  #build() {
    const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
    const { fontSize, fontFamily } = getComputedStyle(this.#place);
    const size = parseFloat(fontSize);
    this.#fontSize = fontSize;
    const axis = {
      font: `${size * 0.82}px ${fontFamily}`,
      stroke: colour("quiet"),
      grid: { stroke: colour("grid"), width: 1 },
      ticks: { show: false },
    };
    const bars = [...this.#series].reverse().map(({ name }) => ({
      fill: colour(name),
      width: 0,
      points: { show: false },
      paths: uPlot.paths.bars({ size: [0.82, Infinity], align: 1, disp: PARTS }),
    }));
    const options = {
      ...this.#size(),
      series: [{}, ...bars],
      scales: {
        x: { time: true, range: (_, from, to) => [from, to + STEP] },
        y: { range: (_, __, most) => [0, Math.max(LEAST, most * 1.08)] },
      },
      axes: [
        {
          ...axis,
          size: size * 1.7,
          space: size * 3,
          incrs: [60, 120, 300],
          values: (_, times) => times.map(hourAndMinute),
        },
        { ...axis, size: size * 3.2, space: size * 2.6, incrs: STEPS, values: (_, ticks) => ticks.map(count) },
      ],
      legend: { show: false },
      cursor: { y: false, points: { show: false }, drag: { x: false, y: false }, sync: { key: "minutes" } },
      hooks: { setCursor: [() => this.#columns && this.#fillLegend()] },
    };
    this.#uplot = new uPlot(options, [[], ...bars.map(() => [])], this.#place);
  }
}

/** Whole numbers only: nothing counted is half. */
const STEPS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5, 1e6];

/** Each bar begins where the one below it ends, which is the next series. */
const PARTS = {
  y0: { unit: 1, values: (plot, at) => plot.data[at + 1] ?? plot.data[0].map(() => 0) },
  y1: { unit: 1, values: (plot, at) => plot.data[at] },
};

function hourAndMinute(seconds) {
  return clock(seconds * 1000).replace(/:00$/, "");
}

function sum(numbers) {
  return numbers.reduce((total, number) => total + number, 0);
}

/** As uPlot takes them: times, and the sums of all series up to each, the last one first. */
function stacked({ times, counts }) {
  const sums = [];
  for (const series of counts) {
    const below = sums.at(-1);
    sums.push(series.map((number, at) => number + (below ? below[at] : 0)));
  }
  return [times, ...sums.reverse()];
}

class Legend {
  #head;
  #rows;
  #foot;

  constructor(table, series) {
    this.#head = make("th", "", "1 min");
    const heads = [make("td"), this.#head, make("th", "", "5 min"), make("th", "", "in all")];
    heads.slice(1).forEach((head) => (head.scope = "col"));
    this.#rows = series.map(({ name, label }) => {
      const swatch = make("span", "swatch");
      swatch.dataset.series = name;
      return row(swatch, label);
    });
    this.#foot = row("Together");
    const part = (tag, ...rows) => make(tag, "", ...rows);
    table.append(part("thead", make("tr", "", ...heads)), part("tbody", ...this.#rows), part("tfoot", this.#foot));
  }

  /** With the figures of one moment in place of the last minute's, if one is pointed at. */
  show({ times, counts }, totals, pointed) {
    setText(this.#head, pointed === undefined ? "1 min" : clock(times[pointed] * 1000));
    const figures = counts.map((series, at) => [
      pointed === undefined ? sum(series.slice(-MINUTE)) : series[pointed],
      sum(series),
      totals[at],
    ]);
    figures.forEach((three, at) => fill(this.#rows[at], three));
    fill(
      this.#foot,
      [0, 1, 2].map((column) => sum(figures.map((three) => three[column]))),
    );
  }
}

function row(...name) {
  const head = make("th", "", ...name);
  head.scope = "row";
  return make("tr", "", head, make("td"), make("td"), make("td"));
}

function fill(tr, figures) {
  figures.forEach((figure, at) => setText(tr.cells[at + 1], count(figure)));
  setData(tr, "empty", String(figures.at(-1) === 0));
}
