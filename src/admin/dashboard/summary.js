// The panel of saved calls, and the tiles of the current state.

import { bytes, count, counted, millisPair, percent, span } from "./format.js";
import { element, make, setData, setShare, setText } from "./dom.js";

/** Share of a limit from which a tile warns. */
const WARN_SHARE = 0.8;

/** Shows the share of the calls that clients alone would have made and the gateway saved. */
export function showSaved({ made, saved, failed, retries }) {
  const all = made + saved;
  setText(element("saved-share"), all ? percent(saved / all) : "Nothing yet");
  setText(element("saved-words"), all ? `of ${counted(all, "call")} that clients alone would have made` : "");
  setText(element("saved-count"), count(saved));
  setText(element("made-count"), count(made));
  setText(element("failed-count"), count(failed));
  setText(element("retries-count"), count(retries));
  setShare(element("split-made"), all ? made / all : 0);
  for (const part of ["hero", "split"]) setData(element(`saved-${part}`), "empty", String(all === 0));
}

/** Shows the savings since midnight, UTC. Older gateways do not send these. */
export function showToday(today) {
  setText(element("today-calls"), today ? count(today.calls) : "–");
  const hours = today ? today.held_seconds / 3600 : 0;
  setText(element("today-held"), today ? `${hours < 10 ? hours.toFixed(1) : count(hours)} h` : "–");
}

/** Lasts as a warning until the value is clearly good again. A tile that changes each second is not readable. */
class Hysteresis {
  #enter;
  #leave;
  #isOn = false;

  constructor(enter, leave) {
    this.#enter = enter;
    this.#leave = leave;
  }

  /** Returns if the share of failures is too large. */
  of(share) {
    this.#isOn = this.#isOn ? share > this.#leave : share >= this.#enter;
    return this.#isOn;
  }
}

/** Time over which the tile of the API counts failures. */
const FAILURES_MS = 60_000;

/** Share of failed calls in the last minute, from counters. */
class FailureShare {
  #samples = [];

  add(atMs, calls, failed) {
    if (this.#samples.at(-1)?.calls > calls) this.#samples = [];
    this.#samples.push({ atMs, calls, failed });
    while (this.#samples.length > 1 && this.#samples[1].atMs <= atMs - FAILURES_MS) this.#samples.shift();
    const [first] = this.#samples;
    return calls > first.calls ? (failed - first.failed) / (calls - first.calls) : undefined;
  }
}

class Tile {
  #box;
  #value;
  #bar;
  #more;

  constructor(parent, name, hasBar) {
    this.#value = make("dd", "value");
    this.#more = make("dd", "more");
    this.#box = make("div", "", make("dt", "", name), this.#value);
    if (hasBar) {
      this.#bar = make("span");
      const track = make("dd", "bar", this.#bar);
      track.setAttribute("aria-hidden", "true");
      this.#box.append(track);
    }
    this.#box.append(this.#more);
    parent.append(this.#box);
  }

  show(value, more, { level = "none", share } = {}) {
    setText(this.#value, value);
    setText(this.#more, more);
    setData(this.#box, "level", level);
    if (this.#bar) {
      setShare(this.#bar, share);
      setData(this.#bar.parentNode, "level", share >= 1 ? "bad" : share >= WARN_SHARE ? "warn" : "none");
    }
  }
}

export class Tiles {
  #waits;
  #polls;
  #cache;
  #upstream;
  #success;
  #fanout;
  #failures = new FailureShare();
  #isFailing = new Hysteresis(0.25, 0.1);
  #isPoor = new Hysteresis(0.05, 0.02);

  constructor(parent) {
    this.#waits = new Tile(parent, "Waits parked", true);
    this.#polls = new Tile(parent, "Polls open", true);
    this.#cache = new Tile(parent, "Cached jobs", true);
    this.#upstream = new Tile(parent, "The API", false);
    this.#success = new Tile(parent, "Success rate", false);
    this.#fanout = new Tile(parent, "Fan-out p50 / p99", false);
  }

  show({ waits, polls, cache, upstream, totals, success_rate, fanout }, nowMs) {
    this.#waits.show(count(waits.parked), `of ${count(waits.max)}`, { share: waits.parked / waits.max });
    const waiting = polls.waiting ? `, ${count(polls.waiting)} waiting` : "";
    const watches = polls.watches ? `, ${counted(polls.watches, "watch", "watches")}` : "";
    const ofMax = `of ${count(polls.max)}${waiting}${watches}`;
    this.#polls.show(count(polls.open), ofMax, { share: polls.open / polls.max });
    const size = `${bytes(cache.bytes)} of ${bytes(cache.max_bytes)}`;
    this.#cache.show(count(cache.entries), size, { share: cache.max_bytes ? cache.bytes / cache.max_bytes : 0 });
    const calls = Object.values(totals.calls).reduce((sum, number) => sum + number, 0);
    const failures = this.#failures.add(nowMs, calls, totals.errors);
    // Before the page saw a call, the last one decides.
    const lastFailed = upstream.failed && !(Date.parse(upstream.answered_at) > Date.parse(upstream.failed.at));
    const isFailing = this.#isFailing.of(failures ?? (lastFailed ? 1 : 0));
    const { value, more, level } = health(upstream, isFailing, nowMs);
    this.#upstream.show(value, more, { level });
    const hasRate = success_rate != null;
    const isPoor = this.#isPoor.of(hasRate ? 1 - success_rate : 0);
    this.#success.show(hasRate ? percent(success_rate) : "–", "below 500, in 5 min", { level: isPoor ? "warn" : "none" });
    const { p50_seconds: p50, p99_seconds: p99 } = fanout ?? {};
    const times = p50 == null ? "–" : millisPair(p50, p99);
    this.#fanout.show(times, "API to last wait, in 5 min");
  }
}

/** Returns the state of the API. Each state has a sign of its own, so that it does not depend on colour. */
function health({ breaker_open, answered_at, failed, outage }, isFailing, nowMs) {
  const ago = (at) => `${span((nowMs - Date.parse(at)) / 1000)} ago`;
  const answered = answered_at ? `answered ${ago(answered_at)}` : "no response yet";
  const failure = failed ? `last failed ${ago(failed.at)}: ${failed.code}` : "";
  if (breaker_open || outage) {
    const since = outage ? `${outage.cause}, for ${span((nowMs - Date.parse(outage.since)) / 1000)}` : failure || answered;
    return { value: "✕ unreachable", more: breaker_open ? `retries are delayed; ${since}` : since, level: "bad" };
  }
  if (failed && isFailing) {
    return { value: "! failing", more: failure, level: "warn" };
  }
  if (!answered_at) return { value: "– not used", more: answered, level: "none" };
  return { value: "✓ answering", more: [answered, failure].filter(Boolean).join("; "), level: "good" };
}
