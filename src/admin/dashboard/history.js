// Counts per step of the last minutes, computed from counters that only grow.

/** Series of the plot of requests, from bottom to top, each with its label and outcomes. */
export const REQUESTS = [
  { name: "hit", label: "From the cache", of: ["hit"] },
  { name: "proven", label: "Answered from proof", of: ["proven"] },
  { name: "coalesced", label: "Coalesced", of: ["coalesced"] },
  { name: "stream", label: "Event streams", of: ["event_stream"] },
  { name: "opened", label: "Opened a poll", of: ["opened"] },
  { name: "passed", label: "Passed through", of: ["passthrough"] },
  { name: "other", label: "Client closed, preflights", of: ["client_closed", "preflight"] },
  { name: "rejected", label: "Rejected", of: ["rejected"] },
];

/** Series of the plot of calls, each with its kinds of calls. */
export const CALLS = [
  { name: "opened", label: "Polls", of: ["poll"] },
  { name: "stream", label: "Snapshots", of: ["snapshot"] },
  { name: "passed", label: "Passed through", of: ["passthrough"] },
  { name: "saved", label: "Saved", of: ["saved"] },
];

/** Length of a step, and number of steps that are kept. */
const STEP_MS = 5000;
const MAX_STEPS = 180;

/** Sums the counters of each series: `{ hit: 3, … }`. */
export function bySeries(series, counters) {
  const sum = (labels) => labels.reduce((total, label) => total + (counters[label] ?? 0), 0);
  return Object.fromEntries(series.map(({ name, of }) => [name, sum(of)]));
}

export class History {
  #series;
  #last;
  #steps = new Map();

  constructor(series) {
    this.#series = series;
  }

  clear() {
    this.#last = undefined;
    this.#steps.clear();
  }

  /** Adds the counters of a time, which must not be before the last one. The difference counts for the middle. */
  add(atMs, counters) {
    const now = { atMs, counts: bySeries(this.#series, counters) };
    const last = this.#last ?? now;
    const step = Math.floor((last.atMs + atMs) / 2 / STEP_MS) * STEP_MS;
    const counts = this.#steps.get(step) ?? bySeries(this.#series, {});
    for (const { name } of this.#series) counts[name] += Math.max(0, now.counts[name] - last.counts[name]);
    this.#steps.set(step, counts);
    this.#last = now;
    for (const old of this.#steps.keys()) {
      if (old <= step - MAX_STEPS * STEP_MS) this.#steps.delete(old);
    }
  }

  /** Returns the start of each of the last steps in seconds, up to now, and the counts of each series. */
  columns(nowMs, steps) {
    const end = Math.floor(nowMs / STEP_MS) * STEP_MS;
    const times = Array.from({ length: steps }, (_, index) => end - (steps - 1 - index) * STEP_MS);
    const counts = this.#series.map(({ name }) => times.map((at) => this.#steps.get(at)?.[name] ?? 0));
    return { times: times.map((at) => at / 1000), counts };
  }
}

/** Length of a step in seconds. */
export const STEP = STEP_MS / 1000;
/** Number of steps in a minute. */
export const MINUTE = 60 / STEP;
