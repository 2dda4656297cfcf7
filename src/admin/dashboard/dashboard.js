// The dashboard: shows each state of the event stream in the panels.

import { Causes } from "./causes.js";
import { Jobs } from "./jobs.js";
import { showSaved, Tiles } from "./summary.js";
import { bySeries, CALLS, History, REQUESTS } from "./history.js";
import { Keys } from "./keys.js";
import { element, setData, setText } from "./dom.js";
import { Plot } from "./plot.js";
import { Stream } from "./stream.js";
import { clock, count, span } from "./format.js";

const tiles = new Tiles(element("tiles"));
const causes = new Causes(element("causes"));
const jobs = new Jobs(element("jobs"));
const keys = new Keys(element("keys"));
const requests = { series: REQUESTS, history: new History(REQUESTS), plot: plot("requests", REQUESTS) };
const calls = { series: CALLS, history: new History(CALLS), plot: plot("calls", CALLS) };

function plot(name, series) {
  return new Plot(element(`${name}-plot`), element(`${name}-table`), series);
}

let latestState;

function show(state) {
  latestState = state;
  const now = Date.parse(state.now);
  setText(element("about"), about(state));
  const { totals } = state;
  const made = Object.values(totals.calls).reduce((sum, number) => sum + number, 0);
  showSaved({ made, saved: totals.saved, failed: totals.errors, retries: totals.retries });
  tiles.show(state, now);
  draw(requests, now, totals.requests);
  draw(calls, now, { ...totals.calls, saved: totals.saved });
  causes.show(totals.calls_by_cause);
  // Otherwise the lists are empty, as the gateway was too busy: the last ones stay.
  if (state.complete) {
    jobs.show(state.jobs, state.routes);
    keys.show(state.keys);
  }
  showNotice(state.upstream);
  showHint(state);
  document.title = `${count(state.waits.parked)} waits, ${count(state.polls.open)} polls · clipgate`;
}

function about({ version, upstream, uptime_seconds, phase }) {
  const stopping = phase === "draining" ? ", stopping" : "";
  return `${version} in front of ${upstream.base_url}, up ${span(uptime_seconds)}${stopping}`;
}

function draw({ series, history, plot }, now, counters) {
  history.add(now, counters);
  const totals = bySeries(series, counters);
  plot.show(
    history.columns(now),
    series.map(({ name }) => totals[name]),
  );
}

/** Screen readers announce the notice, so it changes only with the breaker. */
function showNotice({ breaker_open }) {
  const unreachable =
    "The API is unreachable, and retries are delayed. Cached jobs are served, new requests are attempted, and waits are held for a while.";
  setData(element("notice"), "level", breaker_open ? "bad" : "none");
  setText(element("notice"), breaker_open ? unreachable : "");
}

function showHint({ totals, waits, listen, example }) {
  // Requests are counted when they end, so open waits count too.
  const isUnused = waits.parked === 0 && Object.values(totals.requests).every((number) => number === 0);
  element("hint").hidden = !isUnused;
  if (!isUnused) return;
  setText(element("hint-text"), `The gateway listens on ${listen.join(", ")}. Send a first request:`);
  setText(element("hint-code"), example);
}

function showLink(link, receivedAt) {
  setData(document.body, "link", link);
  const stale = receivedAt ? `stale since ${clock(receivedAt)}` : "no response yet";
  setText(element("link-text"), link === "live" ? "live" : stale);
  if (link === "live") loadHistory();
}

/** Loads the counts of the time before the connection. Without these the plots start empty. */
async function loadHistory() {
  const response = await fetch("api/history").catch(() => undefined);
  const samples = response?.ok ? await response.json() : [];
  requests.history.clear();
  calls.history.clear();
  for (const { at, totals } of samples) {
    requests.history.add(Date.parse(at), totals.requests);
    calls.history.add(Date.parse(at), { ...totals.calls, saved: totals.saved });
  }
  show(latestState);
}

new Stream("api/events", show, showLink);
