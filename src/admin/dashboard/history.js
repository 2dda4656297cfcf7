// What was counted in each of the last few moments, made of counters that only grow.

/** The series of the plot of requests, from the ground up: what they are called, and the outcomes in them. */
export const REQUESTS = [
  { name: "hit", label: "From the cache", of: ["hit"] },
  { name: "coalesced", label: "Coalesced", of: ["coalesced"] },
  { name: "stream", label: "Event streams", of: ["event_stream"] },
  { name: "opened", label: "Opened a poll", of: ["opened"] },
  { name: "passed", label: "Passed through", of: ["passthrough"] },
  { name: "other", label: "Client closed, preflights", of: ["client_closed", "preflight"] },
  { name: "rejected", label: "Rejected", of: ["rejected"] },
];

/** The same of the plot of calls to the API. */
export const CALLS = [
  { name: "opened", label: "Polls", of: ["poll"] },
  { name: "stream", label: "Snapshots at a deadline", of: ["snapshot"] },
  { name: "passed", label: "Passed through", of: ["passthrough"] },
  { name: "saved", label: "Saved", of: ["saved"] },
];

/** How long a moment is, and how far back they are kept. */
const STEP_MS = 5000;
const KEPT = 60;

/** Counters as series: `{ hit: 3, … }`, each the sum of its words. */
export function gathered(series, counters) {
  const sum = (words) => words.reduce((total, word) => total + (counters[word] ?? 0), 0);
  return Object.fromEntries(series.map(({ name, of }) => [name, sum(of)]));
}

export class History {
  #series;
  #last;
  #moments = new Map();

  constructor(series) {
    this.#series = series;
  }

  /** Forgets all. */
  clear() {
    this.#last = undefined;
    this.#moments.clear();
  }

  /** The counters stood so at this time; times only grow. What came since the last time counts for the middle. */
  add(atMs, counters) {
    const now = { atMs, counts: gathered(this.#series, counters) };
    const last = this.#last ?? now;
    const moment = Math.floor((last.atMs + atMs) / 2 / STEP_MS) * STEP_MS;
    const counts = this.#moments.get(moment) ?? gathered(this.#series, {});
    for (const { name } of this.#series) counts[name] += Math.max(0, now.counts[name] - last.counts[name]);
    this.#moments.set(moment, counts);
    this.#last = now;
    for (const old of this.#moments.keys()) {
      if (old <= moment - KEPT * STEP_MS) this.#moments.delete(old);
    }
  }

  /** The times of the moments up to this one, in seconds, and each series' counts in them. */
  columns(nowMs) {
    const end = Math.floor(nowMs / STEP_MS) * STEP_MS;
    const times = Array.from({ length: KEPT }, (_, back) => end - (KEPT - 1 - back) * STEP_MS);
    const counts = this.#series.map(({ name }) => times.map((at) => this.#moments.get(at)?.[name] ?? 0));
    return { times: times.map((at) => at / 1000), counts };
  }
}

/** A step's length in seconds. */
export const STEP = STEP_MS / 1000;
/** How many steps are a minute. */
export const MINUTE = 60 / STEP;
