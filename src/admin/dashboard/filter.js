// The filter box of a table, and the number of shown rows in its heading.

import { count } from "./format.js";
import { element, setText } from "./dom.js";

/** Number of rows up to which a table needs no filter. */
const SHORT = 8;

export class Filter {
  #input;
  #count;
  #again = () => {};

  constructor(name) {
    this.#input = element(`${name}-filter`);
    this.#count = element(`${name}-count`);
    this.#input.addEventListener("input", () => this.#again());
  }

  /** Calls `showRows` with the items whose text contains the filter. `total` includes items that are not listed. */
  show(items, total, textOf, showRows) {
    this.#again = () => {
      const wanted = this.#input.value.trim().toLowerCase();
      const shown = wanted ? items.filter((item) => textOf(item).toLowerCase().includes(wanted)) : items;
      showRows(shown);
      const number = shown.length < total ? `${count(shown.length)} of ${count(total)}` : count(total);
      setText(this.#count, total ? number : "");
      const isUsed = this.#input.value !== "" || document.activeElement === this.#input;
      this.#input.hidden = total <= SHORT && !isUsed;
    };
    this.#again();
  }
}
