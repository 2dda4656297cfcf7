// Updates of the page. Values of the gateway are inserted as text only, and unchanged nodes are not touched: focus,
// selection and screen readers keep their position.

export function element(id) {
  return document.getElementById(id);
}

/** Creates an element. Children can be text or nodes. */
export function make(tag, className = "", ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...children);
  return node;
}

export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function setData(node, name, value) {
  if (node.dataset[name] !== value) node.dataset[name] = value;
}

export function setLabel(node, text) {
  if (node.getAttribute("aria-label") !== text) node.setAttribute("aria-label", text);
}

/** Fills a bar, 0 to 1. */
export function setShare(bar, share) {
  const width = `${Math.round(Math.min(1, Math.max(0, share)) * 1000) / 10}%`;
  if (bar.style.width !== width) bar.style.width = width;
}

/**
 * Children of `parent`, one for each item, in order. The child of an item is kept while the item exists.
 * `create(item)` returns a child, `fill(child, item)` updates it.
 */
export class Rows {
  #parent;
  #create;
  #fill;
  #children = new Map();

  constructor(parent, create, fill) {
    this.#parent = parent;
    this.#create = create;
    this.#fill = fill;
  }

  show(items, keyOf) {
    const gone = new Set(this.#children.keys());
    let before = null;
    for (const item of items) {
      const key = keyOf(item);
      gone.delete(key);
      const child = this.#children.get(key) ?? this.#create(item);
      this.#children.set(key, child);
      this.#fill(child, item);
      const position = before ? before.nextSibling : this.#parent.firstChild;
      if (position !== child) this.#parent.insertBefore(child, position);
      before = child;
    }
    for (const key of gone) {
      this.#children.get(key).remove();
      this.#children.delete(key);
    }
  }
}
