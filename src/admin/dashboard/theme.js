// The light and the dark theme. The choice of the reader is kept, otherwise the page follows the system.

import { element, setText } from "./dom.js";

const KEPT = "clipgate-theme";
const system = matchMedia("(prefers-color-scheme: dark)");
const listeners = [];
let chosen = read();

/** Calls `listener` after each change of the theme. */
export function onTheme(listener) {
  listeners.push(listener);
}

/** Browsers that block storage throw here. */
function read() {
  try {
    return localStorage.getItem(KEPT);
  } catch {
    return null;
  }
}

function keep(theme) {
  try {
    localStorage.setItem(KEPT, theme);
  } catch {
    // The choice lasts until the page is closed.
  }
}

function isDark() {
  return chosen ? chosen === "dark" : system.matches;
}

function apply() {
  element("dark").media = chosen ? (isDark() ? "all" : "not all") : "(prefers-color-scheme: dark)";
  element("theme").setAttribute("aria-pressed", String(isDark()));
  setText(element("theme"), "Dark");
  listeners.forEach((listener) => listener());
}

element("theme").addEventListener("click", () => {
  chosen = isDark() ? "light" : "dark";
  keep(chosen);
  apply();
});
system.addEventListener("change", apply);
apply();
