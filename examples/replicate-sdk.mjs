// Creates a prediction with Replicate's own client, waits for it, and prints it.
//
//   REPLICATE_API_TOKEN=... node examples/replicate-sdk.mjs "a red door"
//   REPLICATE_API_TOKEN=... node examples/replicate-sdk.mjs --id ID        follows an existing prediction
//
// CLIPGATE_URL is the gateway, http://127.0.0.1:8080 by default. Needs Node 18 or later and the package replicate.

import Replicate from "replicate";

// The base URL is the only change for the gateway.
const baseUrl = `${process.env.CLIPGATE_URL ?? "http://127.0.0.1:8080"}/v1`;
const replicate = new Replicate({ auth: process.env.REPLICATE_API_TOKEN, baseUrl });

const [first = "a red door", id] = process.argv.slice(2);
const model = "black-forest-labs/flux-schnell";
const prediction = await (first === "--id"
  ? replicate.predictions.get(id)
  : replicate.predictions.create({ model, input: { prompt: first } }));
console.error(`waiting for ${prediction.id}`);
// Reads the prediction every 0.5 s until its end.
console.log(JSON.stringify(await replicate.wait(prediction)));
