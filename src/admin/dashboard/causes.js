// Tables of counts by label since the start of the gateway: API calls by cause, and rejections by reason.

import { count } from "./format.js";
import { make, Rows, setText } from "./dom.js";

/** Values of the metric label `cause`, each with its name on the page. */
const CAUSES = {
  wait: "Wait for a job",
  batch: "Wait for several jobs",
  reopen: "Poll opened again after the hold",
  snapshot: "Current state",
  "no-cache": "Current state, no-cache",
  deadline: "Deadline of a wait",
  watch: "Watch on a job",
  retry: "Retry",
  passthrough: "Passed through",
};

export class Causes {
  #table;
  #rows;

  constructor(table) {
    this.#table = table;
    this.#rows = new Rows(table.tBodies[0], create, fill);
  }

  /** Shows the causes of at least one call. */
  show(counts) {
    this.#show(Object.keys(CAUSES).map((cause) => ({ name: CAUSES[cause], number: counts[cause] ?? 0 })));
  }

  /** Shows the reasons of at least one rejection, the most frequent first. */
  showReasons(counts = {}) {
    const items = Object.entries(counts).map(([name, number]) => ({ name, number }));
    this.#show(items.sort((one, other) => other.number - one.number));
  }

  #show(items) {
    const some = items.filter(({ number }) => number > 0);
    this.#rows.show(some, ({ name }) => name);
    this.#table.hidden = some.length === 0;
  }
}

function create({ name }) {
  const head = make("th", "", name);
  head.scope = "row";
  return make("tr", "", head, make("td"));
}

function fill(tr, { number }) {
  setText(tr.cells[1], count(number));
}
