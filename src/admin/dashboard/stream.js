// Stream of the gateway's states, one per second, with reconnects.

/** Time without a state after which the stream is stale. The browser does not notice every dead connection. */
const STALE_AFTER_MS = 5000;
/** Pause before a new stream: the browser gives up on a rejected one. */
const RECONNECT_MS = 3000;

/**
 * Calls `onState(state)` for each state, and `onLink(link, receivedAt)` when the link becomes "live" or
 * "stale"; `receivedAt` is the time of the last state, or undefined.
 */
export class Stream {
  #url;
  #onState;
  #onLink;
  #source;
  #receivedAt;
  #link = "connecting";
  #staleTimer;
  #reconnectTimer;

  constructor(url, onState, onLink) {
    this.#url = url;
    this.#onState = onState;
    this.#onLink = onLink;
    this.#open();
  }

  #open() {
    clearTimeout(this.#reconnectTimer);
    this.#source?.close();
    this.#source = new EventSource(this.#url);
    this.#source.addEventListener("state", (event) => this.#onEvent(JSON.parse(event.data)));
    this.#source.addEventListener("error", () => this.#onError());
    this.#restartTimer();
  }

  #onEvent(state) {
    this.#receivedAt = Date.now();
    this.#restartTimer();
    this.#onState(state);
    this.#setLink("live");
  }

  /** A short interruption is not shown: the page is stale only after STALE_AFTER_MS. */
  #onError() {
    // In other states the browser reconnects by itself.
    if (this.#source.readyState === EventSource.CLOSED) {
      clearTimeout(this.#reconnectTimer);
      this.#reconnectTimer = setTimeout(() => this.#open(), RECONNECT_MS);
    }
  }

  #restartTimer() {
    clearTimeout(this.#staleTimer);
    this.#staleTimer = setTimeout(() => {
      this.#setLink("stale");
      this.#open();
    }, STALE_AFTER_MS);
  }

  #setLink(link) {
    if (this.#link === link) return;
    this.#link = link;
    this.#onLink(link, this.#receivedAt);
  }
}
