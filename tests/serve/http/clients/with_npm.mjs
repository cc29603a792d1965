// Asks a server through the npm package `openai`; prints what its user gets, as JSON.
//
//     node with_npm.mjs PREFIX < request.json
//
// PREFIX has node_modules/. The request has base_url, api_key, model and image (a data URL) and text.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const OpenAI = createRequire(`${process.argv[2]}/`)("openai");
const asked = JSON.parse(readFileSync(0, "utf8"));
const client = new OpenAI({ baseURL: asked.base_url, apiKey: asked.api_key, maxRetries: 0 });
const image = { type: "image_url", image_url: { url: asked.image } };
const request = {
  model: asked.model,
  messages: [{ role: "user", content: [image, { type: "text", text: asked.text }] }],
  temperature: 0,
};

async function refusal(changes, asking = client) {
  try {
    await asking.chat.completions.create({ ...request, ...changes });
  } catch (error) {
    const { status, param, code } = error;
    return { class: error.constructor.name, isApiError: error instanceof OpenAI.APIError, status, param, code };
  }
  return { class: null };
}

const answer = await client.chat.completions.create(request);
const parts = [];
for await (const chunk of await client.chat.completions.create({ ...request, stream: true })) {
  parts.push(chunk.choices[0].delta.content ?? "");
}
const deltas = [];
const runner = client.chat.completions.stream({ ...request, stream_options: { include_usage: true } });
runner.on("content", (delta) => deltas.push(delta));
const final = await runner.finalChatCompletion();
const left = await client.chat.completions.create({ ...request, model: asked.endless, stream: true });
for await (const chunk of left) if (chunk.choices[0].delta.content) break; // disconnects
const models = [];
for await (const model of client.models.list()) models.push(model.id);

console.log(
  JSON.stringify({
    plain: { text: answer.choices[0].message.content, finish: answer.choices[0].finish_reason, usage: answer.usage },
    stream: parts,
    helper: { deltas, text: final.choices[0].message.content, usage: final.usage },
    models,
    requestId: answer._request_id,
    tools: await refusal({ tools: [{ type: "function", function: { name: "f" } }] }),
    streamedTools: await refusal({ tools: [{ type: "function", function: { name: "f" } }], stream: true }),
    json: await refusal({ response_format: { type: "json_object" } }),
    wrongKey: await refusal({}, new OpenAI({ baseURL: asked.base_url, apiKey: "x", maxRetries: 0 })),
    unknownModel: await refusal({ model: "gpt-4o" }),
  }),
);
