// Table of the jobs in flight.

import { age, count, decimal } from "./format.js";
import { Filter } from "./filter.js";
import { element, make, Rows, setData, setText } from "./dom.js";
import { shortName } from "./replicas.js";

export class Jobs {
  #table;
  #rows;
  #filter;

  constructor(table) {
    this.#table = table;
    this.#rows = new Rows(table.tBodies[0], create, fill);
    this.#filter = new Filter("jobs");
  }

  /** `total` includes jobs that are not listed. The ladder of a route has the rungs that can be requested, lowest first. */
  show({ items, total }, routes, cluster) {
    const ownName = cluster?.members.find((member) => member.self)?.name;
    this.#table.tHead.rows[0].cells[HOLDER].hidden = !cluster;
    const ladders = new Map(routes.map(({ name, ladder }) => [name, ladder]));
    const isOne = routes.length === 1;
    this.#filter.show(
      items.map((job) => ({ ...job, ladder: ladders.get(job.route) ?? [], isOneRoute: isOne, ownName, isShared: Boolean(cluster) })),
      total,
      (job) => `${job.route} ${job.key} ${job.id} ${job.rest ?? ""} ${job.rung ?? "unknown"}`,
      (shown) => this.#rows.show(shown, (job) => `${job.route} ${job.key} ${job.id} ${job.rest ?? ""}`),
    );
    showRoutes(routes);
    element("jobs-none").hidden = total > 0;
  }
}

/** Column of the replicas that make the polls, with `[cluster]` only. */
const HOLDER = 5;

/** Shows the routes, unless all that there is to say is the name of the only one. */
function showRoutes(routes) {
  const texts = routes.map(({ name, pace }) => `${name} ${pace ? `never holds: polled ${every(pace)}` : "holds requests"}`);
  const isNews = routes.length > 1 || routes.some(({ pace }) => pace);
  element("routes").hidden = !isNews;
  setText(element("routes"), isNews ? texts.join(" · ") : "");
}

function every({ min_seconds, max_seconds }) {
  const isFixed = min_seconds === max_seconds;
  return isFixed ? `every ${decimal(min_seconds)} s` : `every ${decimal(min_seconds)} to ${decimal(max_seconds)} s`;
}

function create({ id, rest = "", route, key, ladder, isOneRoute }) {
  const name = make("span", "cut mono", id);
  name.title = rest ? `${id} ${rest}` : id;
  const under = make("span", "under cut", ...(isOneRoute ? [] : [`${route} · `]), make("span", "mono", key));
  const head = make("th", "id", name, under);
  head.scope = "row";
  const steps = make("span", "ladder", ...ladder.map(() => make("span")));
  steps.setAttribute("aria-hidden", "true");
  [...steps.children].forEach((step, index) => (step.style.height = `${(100 * (index + 1)) / ladder.length}%`));
  const state = make("div", "progress", steps, make("span", "name"));
  return make("tr", "", head, make("td", "rung", state), ...["waits", "polls", "age"].map(() => make("td", "number")), make("td", "holder"));
}

function fill(tr, { rung, asked, waits, polls, age_seconds, ladder, replicas = [], ownName, isShared }) {
  const [, state, waitsCell, pollsCell, ageCell, holder] = tr.cells;
  const [steps, rungName] = state.firstChild.children;
  const reached = ladder.indexOf(rung);
  // A rung outside of the ladder is a failure.
  const hasFailed = rung !== null && reached < 0;
  [...steps.children].forEach((step, index) => {
    const progress = index <= reached ? "reached" : asked.includes(ladder[index]) ? "asked" : "ahead";
    setData(step, "step", hasFailed ? "failed" : progress);
  });
  setText(rungName, rung ?? "unknown");
  setText(waitsCell, count(waits));
  setText(pollsCell, count(polls));
  setText(ageCell, age(age_seconds));
  holder.hidden = !isShared;
  setText(holder, replicas.map((name) => (name === ownName ? "this one" : shortName(name))).join(", ") || "–");
}
