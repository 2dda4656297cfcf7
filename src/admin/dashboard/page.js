// Putting things into the page. What comes from outside gets in as text only, and what has not changed is not touched:
// focus, selection and screen readers stay where they are.

export function element(id) {
  return document.getElementById(id);
}

/** A new element with a class, and text or children in it. */
export function make(tag, className = "", ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children);
  return made;
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

/** How much of a bar is full, 0 to 1. */
export function setShare(bar, share) {
  const width = `${Math.round(Math.min(1, Math.max(0, share)) * 1000) / 10}%`;
  if (bar.style.width !== width) bar.style.width = width;
}

/**
 * Children of `parent`, one for each item, in their order. An item keeps its child as long as it is there.
 * `create(item)` makes a child, `fill(child, item)` brings it up to date.
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
      const place = before ? before.nextSibling : this.#parent.firstChild;
      if (place !== child) this.#parent.insertBefore(child, place);
      before = child;
    }
    for (const key of gone) {
      this.#children.get(key).remove();
      this.#children.delete(key);
    }
  }
}
