// Table of keys and members, with the rest of their quotas.

import { count } from "./format.js";
import { Filter } from "./filter.js";
import { element, make, Rows, setData, setShare, setText } from "./dom.js";

/** Share of a quota below which a bar warns. */
const WARN_SHARE = 0.2;

export class Keys {
  #rows;
  #filter;

  constructor(table) {
    this.#rows = new Rows(table.tBodies[0], create, fill);
    this.#filter = new Filter("keys");
  }

  show({ items, total }) {
    const text = ({ name, key }) => `${key} ${name}`;
    this.#filter.show(items, total, text, (shown) => this.#rows.show(shown, text));
    element("keys-none").hidden = total > 0;
  }
}

/** Members can share a key. Outside of team mode the name is the digest of the key. */
function create({ name, key }) {
  const cut = make("span", name === key ? "cut mono" : "cut", name);
  cut.title = name;
  const head = make("th", "id", cut);
  if (name !== key) head.append(make("span", "under cut mono", key));
  head.scope = "row";
  return make("tr", "", head, quota(), quota(), make("td", "number"));
}

function quota() {
  const bar = make("div", "bar", make("span"));
  bar.setAttribute("aria-hidden", "true");
  return make("td", "quota", make("span"), bar);
}

function fill(tr, { requests, calls, waits }) {
  fillQuota(tr.cells[1], requests);
  fillQuota(tr.cells[2], calls);
  setText(tr.cells[3], count(waits));
}

function fillQuota(td, quota) {
  const [text, bar] = td.children;
  bar.hidden = !quota;
  setText(text, quota ? `${count(quota.left)} of ${count(quota.burst)}` : "–");
  const share = quota ? quota.left / quota.burst : 1;
  setShare(bar.firstChild, share);
  const level = share === 0 ? "bad" : share < WARN_SHARE ? "warn" : "none";
  setData(bar, "level", level);
  setData(td, "level", level);
}
