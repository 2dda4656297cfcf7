// Table of the API calls by cause, since the start of the gateway.

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
    const items = Object.keys(CAUSES).map((cause) => ({ cause, calls: counts[cause] ?? 0 }));
    const made = items.filter(({ calls }) => calls > 0);
    this.#rows.show(made, ({ cause }) => cause);
    this.#table.hidden = made.length === 0;
  }
}

function create({ cause }) {
  const head = make("th", "", CAUSES[cause]);
  head.scope = "row";
  return make("tr", "", head, make("td"));
}

function fill(tr, { calls }) {
  setText(tr.cells[1], count(calls));
}
