// Table of the replicas that share polls, and the state of the link to their engine.

import { count } from "./format.js";
import { element, make, Rows, setData, setText } from "./dom.js";

/** States of the link, each with a sign of its own, so that it does not depend on colour. */
const LINKS = {
  near: { text: "✓ sharing", title: "The engine answers in time.", level: "good" },
  far: { text: "! engine slow", title: "New polls do not wait for the engine.", level: "warn" },
  apart: { text: "✕ no engine", title: "This replica makes all its polls itself.", level: "warn" },
};

/** Number of shown digits of a name: enough to distinguish replicas. */
const SHORT = 8;

export class Replicas {
  #rows;

  constructor(table) {
    this.#rows = new Rows(table.tBodies[0], create, fill);
  }

  /** Without `[cluster]` there is nothing to show. */
  show(cluster) {
    element("replicas-panel").hidden = !cluster;
    if (!cluster) return;
    const { link, id, members } = cluster;
    const { text, title, level } = LINKS[link];
    setData(element("engine"), "level", level);
    setText(element("engine"), `${text} · group ${id}`);
    element("engine").title = title;
    setText(element("replicas-count"), count(members.length));
    this.#rows.show(members, ({ name }) => name);
  }
}

/** Returns the short name of a replica: the rest of the name is random too. */
export function shortName(name) {
  return name.slice(0, SHORT);
}

function create({ name, self: isSelf }) {
  const cut = make("span", "cut", make("span", "mono", shortName(name)), isSelf ? " this one" : "");
  cut.title = name;
  const head = make("th", "id", cut);
  head.scope = "row";
  return make("tr", "", head, make("td", "number"), make("td", "number"));
}

function fill(tr, { seconds_since_beat, polls, self: isSelf }) {
  setText(tr.cells[1], isSelf ? "–" : `${seconds_since_beat.toFixed(1)} s ago`);
  setText(tr.cells[2], count(polls));
}
