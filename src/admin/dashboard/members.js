// Table of the members of a team.

import { age, count } from "./format.js";
import { Filter } from "./filter.js";
import { element, make, Rows, setText } from "./dom.js";

export class Members {
  #rows;
  #filter = new Filter("members");

  constructor(table) {
    this.#rows = new Rows(table.tBodies[0], create, fill);
  }

  show(members = []) {
    element("members-panel").hidden = members.length === 0;
    const nameOf = ({ name }) => name;
    this.#filter.show(members, members.length, nameOf, (shown) => this.#rows.show(shown, nameOf));
  }
}

function create({ name }) {
  const cut = make("span", "cut", name);
  cut.title = name;
  const head = make("th", "id", cut);
  head.scope = "row";
  return make("tr", "", head, ...Array.from({ length: 5 }, () => make("td", "number")));
}

function fill(tr, { requests, saved, waits, rejected, last_seen_seconds }) {
  [requests, saved, waits, rejected].forEach((number, at) => setText(tr.cells[at + 1], count(number)));
  setText(tr.cells[5], last_seen_seconds == null ? "never" : age(last_seen_seconds));
}
