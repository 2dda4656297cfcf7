// The gateway's state, each second, for as long as the page is open.

/** No state for so long means that the stream is down, whatever the browser thinks. */
const SILENCE_MS = 5000;
/** A browser gives up on a stream that is refused; it is asked for again after so long. */
const AGAIN_MS = 3000;

/**
 * Calls `onState(state)` for each state, and `onLink(link, since)` when it becomes "live" or "stale";
 * `since` is when the last state came, or undefined.
 */
export class Stream {
  #url;
  #onState;
  #onLink;
  #source;
  #heardAt;
  #link = "connecting";
  #silence;
  #again;

  constructor(url, onState, onLink) {
    this.#url = url;
    this.#onState = onState;
    this.#onLink = onLink;
    this.#open();
  }

  #open() {
    clearTimeout(this.#again);
    this.#source?.close();
    this.#source = new EventSource(this.#url);
    this.#source.addEventListener("state", (event) => this.#heard(JSON.parse(event.data)));
    this.#source.addEventListener("error", () => this.#lost());
    this.#listen();
  }

  #heard(state) {
    this.#heardAt = Date.now();
    this.#listen();
    this.#onState(state);
    this.#become("live");
  }

  /** Streams end now and then and are had again at once; the page is stale when that fails for a while. */
  #lost() {
    // Else the browser connects again by itself.
    if (this.#source.readyState === EventSource.CLOSED) {
      clearTimeout(this.#again);
      this.#again = setTimeout(() => this.#open(), AGAIN_MS);
    }
  }

  /** A connection may be dead without a word. */
  #listen() {
    clearTimeout(this.#silence);
    this.#silence = setTimeout(() => {
      this.#become("stale");
      this.#open();
    }, SILENCE_MS);
  }

  #become(link) {
    if (this.#link === link) return;
    this.#link = link;
    this.#onLink(link, this.#heardAt);
  }
}
