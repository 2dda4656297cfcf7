// Jobs in flight, a row each.

import { age, count } from "./words.js";
import { element, make, Rows, setData, setText } from "./page.js";

export class Jobs {
  #rows;

  constructor(table) {
    this.#rows = new Rows(table.tBodies[0], create, fill);
  }

  /** `total` counts those too that are not listed; `ladder` names the rungs that may be asked for, the lowest first. */
  show({ items, total }, ladder) {
    this.#rows.show(
      items.map((job) => ({ ...job, ladder })),
      (job) => `${job.key} ${job.id}`,
    );
    const more = total > items.length ? `${count(items.length)} of ${count(total)}` : count(total);
    setText(element("jobs-count"), total ? more : "");
    element("jobs-none").hidden = total > 0;
  }
}

function create({ id, key, ladder }) {
  const name = make("span", "cut mono", id);
  name.title = id;
  const head = make("th", "id", name, make("span", "under cut mono", key));
  head.scope = "row";
  const steps = make("span", "ladder", ...ladder.map(() => make("span")));
  steps.setAttribute("aria-hidden", "true");
  [...steps.children].forEach((step, at) => (step.style.height = `${(100 * (at + 1)) / ladder.length}%`));
  const climb = make("div", "climb", steps, make("span", "word"));
  return make("tr", "", head, make("td", "rung", climb), ...["waits", "polls", "age"].map(() => make("td", "number")));
}

function fill(tr, { rung, asked, waits, polls, age_seconds, ladder }) {
  const [, state, waitsCell, pollsCell, ageCell] = tr.cells;
  const [steps, word] = state.firstChild.children;
  const reached = ladder.indexOf(rung);
  // One that nobody may ask for is a failure.
  const hasFailed = rung !== null && reached < 0;
  [...steps.children].forEach((step, at) => {
    const passed = at <= reached ? "reached" : asked.includes(ladder[at]) ? "asked" : "ahead";
    setData(step, "step", hasFailed ? "failed" : passed);
  });
  setText(word, rung ?? "not known");
  setText(waitsCell, count(waits));
  setText(pollsCell, count(polls));
  setText(ageCell, age(age_seconds));
}
