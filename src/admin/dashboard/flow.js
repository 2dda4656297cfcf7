// The drawing of the README, alive: waits run into polls, and polls to the API. A job that got its answer lights up.

import { count, counted } from "./format.js";
import { shortName } from "./replicas.js";
import { Rows, setData, setLabel, setText, element } from "./dom.js";

/** Bounds of the drawing: jobs, and waits of a job. At most 16 * (16 + 6) shapes. */
const MIN_JOBS = 6;
const MAX_JOBS = 16;
const MAX_WAITS = 16;

/** Height of the captions, and smallest height of a job, in pixels, where there is room for more than MIN_JOBS. */
const CAPTION = 16;
const ROW = 22;

/** Time for which an answered job stays, lit up. */
const LANDED_MS = 2500;

const SVG = "http://www.w3.org/2000/svg";

export class Flow {
  #svg;
  #rows;
  #jobs = new Map();
  #latest;
  #parts;

  constructor(svg) {
    this.#svg = svg;
    const group = shape("g");
    const api = shape("rect", { class: "api", rx: 6, y: 8, width: 64 });
    const [name, none, polls] = ["API", "", "polls"].map((text) => caption(text, { "text-anchor": "middle" }));
    const waits = caption("waits", { x: 46, y: 11 });
    polls.setAttribute("y", 11);
    svg.append(group, api, name, none, waits, polls);
    this.#parts = { api, name, none, waits, polls };
    this.#rows = new Rows(group, create, (row, job) => fill(row, job, this.#width()));
    new ResizeObserver(() => this.#draw()).observe(svg);
    document.addEventListener("visibilitychange", () => setData(svg, "paused", String(document.hidden)));
  }

  show({ jobs, waits, polls, upstream, cluster }) {
    const now = Date.now();
    const isBad = upstream.breaker_open || Boolean(upstream.outage);
    setData(this.#svg, "level", isBad ? "bad" : "none");
    const ownName = cluster?.members.find((member) => member.self)?.name;
    this.#update(jobs.items, now, isBad, this.#most(), ownName);
    this.#latest = [...this.#jobs.values()];
    this.#draw();
    const shown = this.#latest.filter(({ landedAt }) => landedAt === undefined).length;
    const number = shown < jobs.total ? `${shown} of ${count(jobs.total)} jobs` : counted(jobs.total, "job");
    setText(element("flow-count"), jobs.total ? number : "");
    setLabel(this.#svg, `${counted(waits.parked, "wait")} on ${counted(polls.open, "poll")} at the API`);
  }

  /** Jobs keep their rows. An answered job stays until its light ends, then the job with the most waits follows. */
  #update(items, now, isBad, most, ownName) {
    const present = new Map(items.map((job) => [`${job.route} ${job.key} ${job.id} ${job.rest ?? ""}`, job]));
    for (const [key, row] of this.#jobs) {
      const job = present.get(key);
      if (job) Object.assign(row, looks(job, ownName), { landedAt: undefined });
      else if (isBad || document.hidden || now - (row.landedAt ??= now) >= LANDED_MS) this.#jobs.delete(key);
    }
    const others = [...present].filter(([key]) => !this.#jobs.has(key)).sort(([, a], [, b]) => b.waits - a.waits);
    for (const [key, job] of others.slice(0, Math.max(0, most - this.#jobs.size))) {
      this.#jobs.set(key, { key, ...looks(job, ownName) });
    }
    // The window became smaller.
    for (const key of [...this.#jobs.keys()].slice(most)) this.#jobs.delete(key);
  }

  /** Returns the number of jobs that the drawing has room for. */
  #most() {
    return Math.min(MAX_JOBS, Math.max(MIN_JOBS, Math.floor((this.#svg.clientHeight - CAPTION) / ROW)));
  }

  #width() {
    return Math.max(240, this.#svg.clientWidth);
  }

  #draw() {
    const width = this.#width();
    const height = Math.max(100, this.#svg.clientHeight);
    const { api, name, none, waits, polls } = this.#parts;
    this.#svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    api.setAttribute("height", height - 16);
    for (const text of [name, none]) text.setAttribute("y", height / 2 + 5);
    api.setAttribute("x", width - 66);
    name.setAttribute("x", width - 34);
    none.setAttribute("x", (width - 66) / 2);
    const jobs = this.#latest ?? [];
    setText(none, jobs.length ? "" : "No waits");
    setText(waits, jobs.length ? "waits" : "");
    setText(polls, jobs.length ? "polls" : "");
    polls.setAttribute("x", middleOf(width));
    const step = (height - CAPTION) / Math.max(1, jobs.length);
    this.#rows.show(
      jobs.map((job, at) => ({ ...job, y: CAPTION + step * (at + 0.5) })),
      ({ key }) => key,
    );
  }
}

/** Returns the figures of a job's row. `holder` is the sibling that makes its polls. */
function looks({ waits, polls, replicas }, ownName) {
  const isAway = replicas?.length > 0 && !replicas.includes(ownName);
  return { waits, polls, holder: isAway ? shortName(replicas[0]) : "" };
}

/** Place of the polls between waits and API. */
function middleOf(width) {
  return width * 0.58;
}

function caption(text, attributes) {
  const node = shape("text", attributes);
  node.textContent = text;
  return node;
}

function shape(name, attributes = {}) {
  const node = document.createElementNS(SVG, name);
  for (const [attribute, value] of Object.entries(attributes)) node.setAttribute(attribute, value);
  return node;
}

function create() {
  const row = shape("g");
  const text = () => shape("text", { "text-anchor": "end" });
  row.append(shape("path", { class: "wire" }), shape("path", { class: "pulse" }), shape("circle", { class: "node", r: 6 }), text(), shape("g"), shape("text", { class: "holder" }));
  return row;
}

function fill(row, { waits, polls, holder, landedAt, y }, width) {
  setData(row, "landed", String(landedAt !== undefined));
  setData(row, "away", String(holder !== ""));
  const [wire, pulse, node, more, dots, name] = row.children;
  const shown = Math.min(waits, MAX_WAITS, Math.floor((width * 0.5 - 60) / 13));
  while (dots.childElementCount > shown) dots.lastChild.remove();
  while (dots.childElementCount < shown) dots.append(shape("circle", { class: "wait", r: 4.5 }));
  const middle = middleOf(width);
  const from = 48 + shown * 13;
  [...dots.children].forEach((dot, at) => place(dot, 50 + at * 13, y));
  place(node, middle, y);
  more.setAttribute("x", 38);
  more.setAttribute("y", y + 4);
  setText(more, count(waits));
  const line = `M ${from} ${y} H ${middle - 6} M ${middle + 6} ${y} H ${width - 66}`;
  wire.setAttribute("d", line);
  pulse.setAttribute("d", `M ${middle + 6} ${y} H ${width - 66}`);
  pulse.style.display = polls ? "" : "none";
  name.setAttribute("x", middle + 12);
  name.setAttribute("y", y + 4);
  setText(name, holder);
}

function place(circle, x, y) {
  circle.setAttribute("cx", x);
  circle.setAttribute("cy", y);
}
