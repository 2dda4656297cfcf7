// The dashboard: takes the gateway's state, each second, to the panels.

import { Jobs } from "./jobs.js";
import { showSaved, Tiles } from "./figures.js";
import { CALLS, gathered, History, REQUESTS } from "./history.js";
import { Keys } from "./keys.js";
import { element, setData, setText } from "./page.js";
import { Plot } from "./plot.js";
import { Stream } from "./stream.js";
import { clock, count, span } from "./words.js";

const tiles = new Tiles(element("tiles"));
const jobs = new Jobs(element("jobs"));
const keys = new Keys(element("keys"));
const requests = { series: REQUESTS, history: new History(REQUESTS), plot: plot("requests", REQUESTS) };
const calls = { series: CALLS, history: new History(CALLS), plot: plot("calls", CALLS) };

function plot(name, series) {
  return new Plot(element(`${name}-plot`), element(`${name}-table`), series);
}

/** The newest state. */
let latest;

function show(state) {
  latest = state;
  const now = Date.parse(state.now);
  setText(element("about"), about(state));
  const { totals } = state;
  const made = Object.values(totals.calls).reduce((sum, number) => sum + number, 0);
  showSaved({ made, saved: totals.saved, failed: totals.errors, retried: totals.retries });
  tiles.show(state, now);
  draw(requests, now, totals.requests);
  draw(calls, now, { ...totals.calls, saved: totals.saved });
  // Else the gateway is too busy to tell what is under way.
  if (state.complete) {
    jobs.show(state.jobs, state.ladder);
    keys.show(state.keys);
  }
  showNotice(state.upstream);
  showHint(state);
  document.title = `${count(state.waits.parked)} waits, ${count(state.polls.open)} polls · clipgate`;
}

function about({ version, upstream, uptime_seconds, phase }) {
  const stopping = phase === "draining" ? ", stopping" : "";
  return `${version} before ${upstream.base_url}, up ${span(uptime_seconds)}${stopping}`;
}

function draw({ series, history, plot }, now, counters) {
  history.add(now, counters);
  const totals = gathered(series, counters);
  plot.show(
    history.columns(now),
    series.map(({ name }) => totals[name]),
  );
}

/** Said aloud to who listens to the page, so it changes only when the breaker does. */
function showNotice({ breaker_open }) {
  const heldBack =
    "The API cannot be reached, and retries are held back. What is kept is served, new requests are tried, and waits are held for a while.";
  setData(element("notice"), "level", breaker_open ? "bad" : "none");
  setText(element("notice"), breaker_open ? heldBack : "");
}

function showHint({ totals, waits, listen, example }) {
  // Requests are counted when they end.
  const isNew = waits.parked === 0 && Object.values(totals.requests).every((number) => number === 0);
  element("hint").hidden = !isNew;
  if (!isNew) return;
  setText(element("hint-text"), `The gateway listens on ${listen.join(", ")}. To make a first one:`);
  setText(element("hint-code"), example);
}

function showLink(link, heardAt) {
  setData(document.body, "link", link);
  setText(element("link-text"), link === "live" ? "live" : heardAt ? `stale since ${clock(heardAt)}` : "no answer yet");
  if (link === "live") recall();
}

/** What was counted while this page did not look. Without it the plots begin now. */
async function recall() {
  const answer = await fetch("api/history").catch(() => undefined);
  const moments = answer?.ok ? await answer.json() : [];
  requests.history.clear();
  calls.history.clear();
  for (const { at, totals } of moments) {
    requests.history.add(Date.parse(at), totals.requests);
    calls.history.add(Date.parse(at), { ...totals.calls, saved: totals.saved });
  }
  show(latest);
}

new Stream("api/events", show, showLink);
