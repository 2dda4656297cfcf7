// A stacked bar plot of the last minutes, with a table as its legend and its accessible alternative.

import { count, clock } from "./format.js";
import { make, setData, setLabel, setText } from "./dom.js";
import { MINUTE, STEP } from "./history.js";
import { onTheme } from "./theme.js";

/* global uPlot */

/** Smallest top of the scale, so that a single request does not fill the plot. */
const MIN_SCALE = 4;

export class Plot {
  #container;
  #series;
  #legend;
  #uplot;
  #columns;
  #totals;
  /** Font size of the last build. */
  #fontSize;

  constructor(container, table, series) {
    this.#container = container;
    this.#series = series;
    this.#legend = new Legend(table, series);
    this.#build();
    new ResizeObserver(() => this.#resize()).observe(container);
    // A canvas does not follow the colour scheme.
    onTheme(() => this.#rebuild());
  }

  /** Shows the columns of a History, and the count of each series since the start of the gateway. */
  show(columns, totals) {
    this.#columns = columns;
    this.#totals = totals;
    this.#uplot.setData(stacked(columns));
    this.#fillLegend();
    setLabel(this.#container, this.#summary());
  }

  #summary() {
    const minutes = this.#columns.times.length / MINUTE;
    const minute = this.#series.map(({ label }, at) => {
      const latest = this.#columns.counts[at].slice(-MINUTE);
      return `${label.toLowerCase()} ${count(sum(latest))}`;
    });
    return `Bars over the last ${minutes} minutes. In the last minute: ${minute.join(", ")}. The table below has the figures.`;
  }

  #fillLegend() {
    const index = this.#uplot.cursor.idx;
    const pointed = this.#uplot.cursor.left >= 0 && index != null ? index : undefined;
    this.#legend.show(this.#columns, this.#totals, pointed);
  }

  #size() {
    return { width: this.#container.clientWidth, height: this.#container.clientHeight };
  }

  #resize() {
    if (getComputedStyle(this.#container).fontSize === this.#fontSize) this.#uplot.setSize(this.#size());
    else this.#rebuild();
  }

  #rebuild() {
    this.#uplot.destroy();
    this.#build();
    if (this.#columns) this.#uplot.setData(stacked(this.#columns));
  }

  #build() {
    const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
    const { fontSize, fontFamily } = getComputedStyle(this.#container);
    const size = parseFloat(fontSize);
    this.#fontSize = fontSize;
    // uPlot scales a font by the pixel ratio, and reads whole pixels only.
    const axis = {
      font: `${Math.round(size * 0.82)}px ${fontFamily}`,
      stroke: colour("quiet"),
      grid: { stroke: colour("grid"), width: 1 },
      ticks: { show: false },
    };
    const bars = [...this.#series].reverse().map(({ name }) => ({
      fill: colour(name),
      width: 0,
      points: { show: false },
      paths: uPlot.paths.bars({ size: [0.82, Infinity], align: 1, disp: STACKED_BARS }),
    }));
    const options = {
      ...this.#size(),
      series: [{}, ...bars],
      scales: {
        x: { time: true, range: (_, from, to) => [from, to + STEP] },
        y: { range: (_, __, max) => [0, Math.max(MIN_SCALE, max * 1.08)] },
      },
      axes: [
        {
          ...axis,
          size: size * 1.7,
          space: size * 3,
          incrs: [60, 120, 300],
          values: (_, times) => times.map(hourAndMinute),
        },
        { ...axis, size: size * 3.2, space: size * 2.6, incrs: TICKS, values: (_, ticks) => ticks.map(count) },
      ],
      legend: { show: false },
      cursor: { y: false, points: { show: false }, drag: { x: false, y: false }, sync: { key: "minutes" } },
      hooks: { setCursor: [() => this.#columns && this.#fillLegend()] },
    };
    this.#uplot = new uPlot(options, [[], ...bars.map(() => [])], this.#container);
  }
}

/** Distances of ticks: whole numbers, as these are counts. */
const TICKS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5, 1e6];

/** Each bar starts at the end of the bar below, which belongs to the next series of uPlot. */
const STACKED_BARS = {
  y0: { unit: 1, values: (plot, at) => plot.data[at + 1] ?? plot.data[0].map(() => 0) },
  y1: { unit: 1, values: (plot, at) => plot.data[at] },
};

function hourAndMinute(seconds) {
  return clock(seconds * 1000).replace(/:00$/, "");
}

function sum(numbers) {
  return numbers.reduce((total, number) => total + number, 0);
}

/** Returns the data for uPlot: times, and for each series the sum up to it, the last series first. */
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
  #longHead;
  #rows;
  #foot;

  constructor(table, series) {
    this.#head = make("th", "", "1 min");
    this.#longHead = make("th", "", "5 min");
    const heads = [make("td"), this.#head, this.#longHead, make("th", "", "total")];
    heads.slice(1).forEach((head) => (head.scope = "col"));
    this.#rows = series.map(({ name, label }) => {
      const swatch = make("span", "swatch");
      swatch.dataset.series = name;
      return row(swatch, label);
    });
    this.#foot = row("Sum");
    const part = (tag, ...rows) => make(tag, "", ...rows);
    table.append(part("thead", make("tr", "", ...heads)), part("tbody", ...this.#rows), part("tfoot", this.#foot));
  }

  /** Shows the counts. With the index of a step under the pointer, its counts replace those of the last minute. */
  show({ times, counts }, totals, pointed) {
    setText(this.#head, pointed === undefined ? "1 min" : clock(times[pointed] * 1000));
    setText(this.#longHead, `${times.length / MINUTE} min`);
    const figures = counts.map((series, at) => [
      pointed === undefined ? sum(series.slice(-MINUTE)) : series[pointed],
      sum(series),
      totals[at],
    ]);
    figures.forEach((row, index) => fill(this.#rows[index], row));
    fill(
      this.#foot,
      [0, 1, 2].map((column) => sum(figures.map((row) => row[column]))),
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
