// Driver of a browser: reads commands from stdin, one JSON object per line, and prints a line with the result of each.
//
//   node browser.mjs DIRECTORY     the directory where .ci/tools installed the packages of package.json
//
// The browser is Chromium from PATH or from the variable CHROMIUM. It runs without a sandbox, which root does not have,
// so it must open trusted pages only.

import { existsSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";

const require = createRequire(`${process.argv[2]}/`);
const { chromium } = require("playwright-core");

const TIMEOUT_MS = 30_000;
const POLL_INTERVAL_MS = 50;
const NAMES = ["chromium", "google-chrome"];
const FLAGS = [
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];

const inPath = (name) => process.env.PATH.split(":").map((dir) => `${dir}/${name}`);
const executablePath = process.env.CHROMIUM || NAMES.flatMap(inPath).find(existsSync);
const browser = await chromium.launch({ executablePath, args: FLAGS });
let page;
/** Errors and warnings of the page, and its requests to other origins. */
let faults = [];

async function open({ url, width, height, dark, login, scale = 1 }) {
  const httpCredentials = login ? { username: login[0], password: login[1] } : undefined;
  const context = await browser.newContext({ viewport: { width, height }, deviceScaleFactor: scale, httpCredentials });
  page = await context.newPage();
  page.setDefaultTimeout(TIMEOUT_MS);
  await page.emulateMedia({ colorScheme: dark ? "dark" : "light" });
  faults = [];
  const { origin } = new URL(url);
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) faults.push(`${message.type()}: ${message.text()}`);
  });
  page.on("pageerror", (error) => faults.push(`uncaught: ${error.message}`));
  page.on("request", (request) => {
    const to = new URL(request.url());
    if (to.protocol !== "data:" && to.origin !== origin) faults.push(`request to ${to.origin}`);
  });
  const response = await page.goto(url, { waitUntil: "load" });
  return response.status();
}

async function look({ width, height, dark, reduced }) {
  await page.setViewportSize({ width, height });
  const reducedMotion = reduced ? "reduce" : "no-preference";
  await page.emulateMedia({ colorScheme: dark ? "dark" : "light", reducedMotion });
  await page.evaluate(() => new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn))));
}

/** Evaluates the expression until it is true. The page's policy blocks the functions of Playwright that do this. */
async function until({ js }) {
  for (const end = Date.now() + TIMEOUT_MS; Date.now() < end; await sleep(POLL_INTERVAL_MS)) {
    if (await page.evaluate(js)) return true;
  }
  throw new Error("the condition was not met in time");
}

/** Returns the rules that the page breaks, of WCAG 2.2 AA and of good practice. */
async function axe() {
  await page.evaluate(readFileSync(require.resolve("axe-core/axe.min.js"), "utf8"));
  const { violations, passes } = await page.evaluate(() => globalThis.axe.run(document));
  const broken = violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html).join(" ")}`);
  return { broken, kept: passes.length };
}

const commands = {
  open,
  look,
  axe,
  eval: ({ js }) => page.evaluate(js),
  until,
  press: ({ key }) => page.keyboard.press(key),
  point: ({ at }) => page.hover(at),
  shot: ({ file }) => page.screenshot({ path: file, fullPage: true }).then(() => true),
  faults: () => faults,
};

for await (const line of createInterface({ input: process.stdin })) {
  const command = JSON.parse(line);
  try {
    const value = await commands[command.do](command);
    console.log(JSON.stringify({ value: value ?? null }));
  } catch (error) {
    const text = await page?.evaluate("document.body.innerText").catch(() => "");
    console.log(JSON.stringify({ error: `${error.message}\nText of the page: ${text}` }));
  }
}
await browser.close();
