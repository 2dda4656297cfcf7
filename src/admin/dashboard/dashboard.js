// The dashboard: shows each state of the event stream in the panels.

import { Causes } from "./causes.js";
import { Flow } from "./flow.js";
import { Jobs } from "./jobs.js";
import { showSaved, showToday, Tiles } from "./summary.js";
import { bySeries, CALLS, History, MINUTE, REQUESTS } from "./history.js";
import { Keys } from "./keys.js";
import { Members } from "./members.js";
import { element, setData, setText } from "./dom.js";
import { Plot } from "./plot.js";
import { Replicas } from "./replicas.js";
import { Stream } from "./stream.js";
import { clock, count, span } from "./format.js";

const tiles = new Tiles(element("tiles"));
const causes = new Causes(element("causes"));
const rejections = new Causes(element("rejections"));
const flow = new Flow(element("flow"));
const members = new Members(element("members"));
const replicas = new Replicas(element("replicas"));
const jobs = new Jobs(element("jobs"));
const keys = new Keys(element("keys"));
const requests = { series: REQUESTS, history: new History(REQUESTS), plot: plot("requests", REQUESTS) };
const calls = { series: CALLS, history: new History(CALLS), plot: plot("calls", CALLS) };

function plot(name, series) {
  return new Plot(element(`${name}-plot`), element(`${name}-table`), series);
}

let latestState;
let minutes = 5;

function show(state) {
  latestState = state;
  const now = Date.parse(state.now);
  setText(element("about"), about(state));
  const { totals } = state;
  const made = Object.values(totals.calls).reduce((sum, number) => sum + number, 0);
  showSaved({ made, saved: totals.saved, failed: totals.errors, retries: totals.retries });
  showToday(state.saved_today);
  tiles.show(state, now);
  draw(requests, now, totals.requests);
  draw(calls, now, { ...totals.calls, saved: totals.saved });
  causes.show(totals.calls_by_cause);
  rejections.showReasons(totals.rejections);
  element("counts-panel").hidden = element("causes").hidden && element("rejections").hidden;
  members.show(state.members);
  // Otherwise the lists are empty, as the gateway was too busy: the last ones stay.
  if (state.complete) {
    jobs.show(state.jobs, state.routes, state.cluster);
    replicas.show(state.cluster);
    keys.show(state.keys);
    flow.show(state);
  }
  showNotice(state, now);
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
    history.columns(now, minutes * MINUTE),
    series.map(({ name }) => totals[name]),
  );
}

/** Screen readers announce the notice, so it changes only with the breaker, the outage and the phase. */
function showNotice({ upstream, phase, waits }, now) {
  const { breaker_open, outage, retry_for_seconds } = upstream;
  const cause = outage ? ` (${outage.cause})` : "";
  const isOut = breaker_open || Boolean(outage);
  const unreachable = breaker_open
    ? `The API is unreachable${cause}, and retries are delayed. Cached jobs are served, new requests are attempted.`
    : `The API is unreachable${cause}. Cached jobs are served, and polls are retried.`;
  const stopping = "The gateway is stopping: open waits get their responses, new connections are refused.";
  const isStopping = phase === "draining";
  setData(element("notices"), "level", isOut ? "bad" : isStopping ? "warn" : "none");
  setText(element("notice"), isOut ? unreachable : isStopping ? stopping : "");
  const out = outage ? (now - Date.parse(outage.since)) / 1000 : 0;
  const left = (retry_for_seconds ?? 0) - out;
  const held = waits.parked > 0 && left > 0 ? ` Waits from before it are held for at most ${span(Math.ceil(left))} more.` : "";
  setText(element("outage"), outage ? `Out for ${span(out)}.${held}` : "");
}

element("minutes").addEventListener("click", ({ target }) => {
  const chosen = Number(target.dataset.minutes);
  if (!chosen) return;
  minutes = chosen;
  for (const button of element("minutes").children) button.setAttribute("aria-pressed", String(button === target));
  if (latestState) show(latestState);
});

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
