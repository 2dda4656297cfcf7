// A browser on a line: reads a command a line, as JSON, and answers each with a line.
//
//   node browser.mjs DIRECTORY     where .ci/tools put what package.json names
//
// The browser is the system's Chromium, or what CHROMIUM names; it runs without a sandbox, as root it has none, and
// so must be shown pages of one's own only.

import { existsSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";

const require = createRequire(`${process.argv[2]}/`);
const { chromium } = require("playwright-core");

const PATIENCE_MS = 30_000;
const LOOK_EVERY_MS = 50;
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
/** What must not happen: complaints of the page's, and requests to anybody but its own origin. */
let faults = [];

async function open({ url, width, height, dark, login }) {
  const httpCredentials = login ? { username: login[0], password: login[1] } : undefined;
  const context = await browser.newContext({ viewport: { width, height }, httpCredentials });
  page = await context.newPage();
  page.setDefaultTimeout(PATIENCE_MS);
  await page.emulateMedia({ colorScheme: dark ? "dark" : "light" });
  faults = [];
  const { origin } = new URL(url);
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) faults.push(`${message.type()}: ${message.text()}`);
  });
  page.on("pageerror", (error) => faults.push(`uncaught: ${error.message}`));
  page.on("request", (request) => {
    const to = new URL(request.url());
    if (to.protocol !== "data:" && to.origin !== origin) faults.push(`asked ${to.origin}`);
  });
  const answer = await page.goto(url, { waitUntil: "load" });
  return answer.status();
}

async function look({ width, height, dark, reduced }) {
  await page.setViewportSize({ width, height });
  const reducedMotion = reduced ? "reduce" : "no-preference";
  await page.emulateMedia({ colorScheme: dark ? "dark" : "light", reducedMotion });
  await page.evaluate(() => new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn))));
}

/** Looks again and again: the page's policy lets in no functions of Playwright's that would. */
async function until({ js }) {
  for (const end = Date.now() + PATIENCE_MS; Date.now() < end; await sleep(LOOK_EVERY_MS)) {
    if (await page.evaluate(js)) return true;
  }
  throw new Error("it did not come about");
}

/** Rules that the page breaks, of those for WCAG 2.2 AA and good practice. */
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
    const seen = await page?.evaluate("document.body.innerText").catch(() => "");
    console.log(JSON.stringify({ error: `${error.message}\nThe page says: ${seen}` }));
  }
}
await browser.close();
