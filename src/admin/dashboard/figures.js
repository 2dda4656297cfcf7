// The figures at the top: what was saved, and how it stands now.

import { bytes, count, counted, percent, span } from "./words.js";
import { element, make, setData, setShare, setText } from "./page.js";

/** From this share of a limit on, it is worth a look. */
const NEARLY = 0.8;

/** What was saved, of what clients alone would have cost. */
export function showSaved({ made, saved, failed, retried }) {
  const all = made + saved;
  setText(element("saved-share"), all ? percent(saved / all) : "Nothing yet");
  setText(element("saved-words"), all ? `of ${counted(all, "call")} that clients alone would have made` : "");
  setText(element("saved-count"), count(saved));
  setText(element("made-count"), count(made));
  setText(element("failed-count"), count(failed));
  setText(element("retried-count"), count(retried));
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
      setData(this.#bar.parentNode, "level", share >= 1 ? "bad" : share >= NEARLY ? "warn" : "none");
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
    const inLine = polls.waiting ? `, ${count(polls.waiting)} in line` : "";
    this.#polls.show(count(polls.open), `of ${count(polls.max)}${inLine}`, { share: polls.open / polls.max });
    const size = `${bytes(cache.bytes)} of ${bytes(cache.max_bytes)}`;
    this.#cache.show(count(cache.entries), size, { share: cache.max_bytes ? cache.bytes / cache.max_bytes : 0 });
    const { word, more, level } = health(upstream, nowMs);
    this.#upstream.show(word, more, { level });
  }
}

/** How the API does, in a word or two. Each has a mark of its own, for who cannot tell colours. */
function health({ breaker_open, answered_at, failed }, nowMs) {
  const ago = (at) => `${span((nowMs - Date.parse(at)) / 1000)} ago`;
  const answered = answered_at ? `answered ${ago(answered_at)}` : "has not answered yet";
  const failure = failed ? `last failed ${ago(failed.at)}: ${failed.code}` : "";
  if (breaker_open) {
    return { word: "✕ unreachable", more: `retries are held back; ${failure || answered}`, level: "bad" };
  }
  if (failed && !(Date.parse(answered_at) > Date.parse(failed.at))) {
    return { word: "! failing", more: failure, level: "warn" };
  }
  if (!answered_at) return { word: "– not asked", more: answered, level: "none" };
  return { word: "✓ answering", more: [answered, failure].filter(Boolean).join("; "), level: "good" };
}
