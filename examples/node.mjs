// Creates a clip, waits for it with a long-poll, and prints the finished clip.
//
//   AIMLAPI_KEY=... node examples/node.mjs "night drive"
//
// CLIPGATE_URL is the gateway, http://127.0.0.1:8080 by default. Needs Node 18 or later.

const base = process.env.CLIPGATE_URL ?? "http://127.0.0.1:8080";
const headers = { Authorization: `Bearer ${process.env.AIMLAPI_KEY}`, "Content-Type": "application/json" };
const sleep = (seconds) => new Promise((resolve) => setTimeout(resolve, seconds * 1000));

// Sends a request. After 429 and 503 it waits as long as Retry-After says, and sends the request again.
async function call(path, options = {}, attempts = 5) {
  const url = new URL(`/v2/generate/audio/suno-ai/${path}`, base);
  // The gateway ends a wait after 120 s, and its answer may take up to 15 s more.
  const response = await fetch(url, { headers, signal: AbortSignal.timeout(150_000), ...options });
  if ([429, 503].includes(response.status) && attempts > 1) {
    const pause = Number(response.headers.get("retry-after")) || 1;
    console.error(`${response.status}, asking again in ${pause} s`);
    await sleep(pause);
    return call(path, options, attempts - 1);
  }
  if (!response.ok) {
    const id = response.headers.get("x-request-id");
    throw new Error(`${response.status} ${await response.text()} (request ${id})`);
  }
  return response.json();
}

// Returns the clip once it is finished. A wait that runs out of time returns the current state: ask again.
async function waitFor(id) {
  const query = new URLSearchParams({ clip_id: id, status: "completed" });
  for (;;) {
    const clip = await call(`clip?${query}`);
    if (["complete", "error"].includes(clip.status)) return clip;
  }
}

const prompt = process.argv[2] ?? "night drive";
// The API makes two clips; this follows the first.
const { clip_ids: ids } = await call("clip", { method: "POST", body: JSON.stringify({ prompt }) });
console.error(`waiting for ${ids[0]}`);
console.log(JSON.stringify(await waitFor(ids[0])));
