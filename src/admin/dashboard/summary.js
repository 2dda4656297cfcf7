// The panel of saved calls, and the tiles of the current state.

import { bytes, count, counted, percent, span } from "./format.js";
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

  constructor(parent) {
    this.#waits = new Tile(parent, "Waits parked", true);
    this.#polls = new Tile(parent, "Polls open", true);
    this.#cache = new Tile(parent, "Cached jobs", true);
    this.#upstream = new Tile(parent, "The API", false);
  }

  show({ waits, polls, cache, upstream }, nowMs) {
    this.#waits.show(count(waits.parked), `of ${count(waits.max)}`, { share: waits.parked / waits.max });
    const waiting = polls.waiting ? `, ${count(polls.waiting)} waiting` : "";
    const watches = polls.watches ? `, ${counted(polls.watches, "watch", "watches")}` : "";
    const ofMax = `of ${count(polls.max)}${waiting}${watches}`;
    this.#polls.show(count(polls.open), ofMax, { share: polls.open / polls.max });
    const size = `${bytes(cache.bytes)} of ${bytes(cache.max_bytes)}`;
    this.#cache.show(count(cache.entries), size, { share: cache.max_bytes ? cache.bytes / cache.max_bytes : 0 });
    const { value, more, level } = health(upstream, nowMs);
    this.#upstream.show(value, more, { level });
  }
}

/** Returns the state of the API. Each state has a sign of its own, so that it does not depend on colour. */
function health({ breaker_open, answered_at, failed }, nowMs) {
  const ago = (at) => `${span((nowMs - Date.parse(at)) / 1000)} ago`;
  const answered = answered_at ? `answered ${ago(answered_at)}` : "no response yet";
  const failure = failed ? `last failed ${ago(failed.at)}: ${failed.code}` : "";
  if (breaker_open) {
    return { value: "✕ unreachable", more: `retries are delayed; ${failure || answered}`, level: "bad" };
  }
  if (failed && !(Date.parse(answered_at) > Date.parse(failed.at))) {
    return { value: "! failing", more: failure, level: "warn" };
  }
  if (!answered_at) return { value: "– not used", more: answered, level: "none" };
  return { value: "✓ answering", more: [answered, failure].filter(Boolean).join("; "), level: "good" };
}
