// Table of the jobs in flight.

import { age, count, decimal } from "./format.js";
import { element, make, Rows, setData, setText } from "./dom.js";

export class Jobs {
  #rows;

  constructor(table) {
    this.#rows = new Rows(table.tBodies[0], create, fill);
  }

  /** `total` includes jobs that are not listed. The ladder of a route has the rungs that can be requested, lowest first. */
  show({ items, total }, routes) {
    const ladders = new Map(routes.map(({ name, ladder }) => [name, ladder]));
    const isOne = routes.length === 1;
    this.#rows.show(
      items.map((job) => ({ ...job, ladder: ladders.get(job.route) ?? [], isOneRoute: isOne })),
      (job) => `${job.route} ${job.key} ${job.id} ${job.rest ?? ""}`,
    );
    showRoutes(routes);
    const more = total > items.length ? `${count(items.length)} of ${count(total)}` : count(total);
    setText(element("jobs-count"), total ? more : "");
    element("jobs-none").hidden = total > 0;
  }
}

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
  return make("tr", "", head, make("td", "rung", state), ...["waits", "polls", "age"].map(() => make("td", "number")));
}

function fill(tr, { rung, asked, waits, polls, age_seconds, ladder }) {
  const [, state, waitsCell, pollsCell, ageCell] = tr.cells;
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
}
