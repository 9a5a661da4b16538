// The clients that people use from JavaScript, against a running host: OpenAI's own and SignalR's own.
// TENANTLORA_URL and TENANTLORA_KEY say which host and whose key; the model is "harbor".
// The runtime behind it answers "Aye, we are open.", fails after "Aye" when the prompt is "fail", and goes on for minutes for "endless".
import assert from "node:assert/strict";
import { after, test } from "node:test";
import OpenAI from "openai";
import { HttpTransportType, HubConnectionBuilder, LogLevel } from "@microsoft/signalr";

const url = process.env.TENANTLORA_URL;
const apiKey = process.env.TENANTLORA_KEY;
const openai = new OpenAI({ baseURL: `${url}/v1`, apiKey, maxRetries: 0 });
const ask = (content, more = {}) => ({ model: "harbor", messages: [{ role: "user", content }], ...more });

test("openai: a whole answer", async () => {
  const answer = await openai.chat.completions.create(ask("Hi"));
  assert.equal(answer.choices[0].message.content, "Aye, we are open.");
  assert.equal(answer.choices[0].finish_reason, "stop");
  assert.equal(answer.usage.total_tokens, 34);
  assert.match(answer._request_id, /^req_/);
});

test("openai: a streamed answer with usage", async () => {
  let text = "", usage;
  for await (const chunk of await openai.chat.completions.create(ask("Hi", { stream: true, stream_options: { include_usage: true } }))) {
    text += chunk.choices[0]?.delta.content ?? "";
    usage = chunk.usage ?? usage;
  }
  assert.equal(text, "Aye, we are open.");
  assert.equal(usage.completion_tokens, 3);
});

test("openai: the stream helper builds the message", async () => {
  const message = await openai.chat.completions.stream(ask("Hi")).finalMessage();
  assert.deepEqual([message.role, message.content], ["assistant", "Aye, we are open."]);
});

test("openai: errors carry status, code and field", async () => {
  await assert.rejects(openai.chat.completions.create(ask("Hi", { temperature: 3 })), e => e.status === 400 && e.code === "invalid_value" && e.param === "temperature");
  await assert.rejects(openai.chat.completions.create({ ...ask("Hi"), model: "ledger" }), e => e instanceof OpenAI.NotFoundError && e.code === "model_not_found");
  await assert.rejects(new OpenAI({ baseURL: `${url}/v1`, apiKey: "tl_wrong", maxRetries: 0 }).models.list(), OpenAI.AuthenticationError);
});

test("openai: a failure in the stream is raised with its message", async () => {
  const read = async () => { for await (const _ of await openai.chat.completions.create(ask("fail", { stream: true }))); };
  await assert.rejects(read, /numbers went bad/);
});

test("openai: models, one with an escaped slash", async () => {
  assert.deepEqual((await openai.models.list()).data.map(m => m.id), ["harbor", "demo-7m"]);
  await assert.rejects(openai.models.retrieve("acme/support"), /acme\/support/);
});

test("openai: plain completions", async () => {
  const answer = await openai.completions.create({ model: "harbor", prompt: "Hi" });
  assert.equal(answer.choices[0].text, "Aye, we are open.");
});

const session = await (await fetch(`${url}/api/session`, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ key: apiKey }) })).json();
const connect = async () => {
  const hub = new HubConnectionBuilder().withUrl(`${url}/hub`, { accessTokenFactory: () => session.token, transport: HttpTransportType.WebSockets }).configureLogging(LogLevel.None).build();
  await hub.start();
  return hub;
};
const hub = await connect();
after(() => hub.stop());

/** All events of a stream, and each as it comes. */
const collect = (stream, seen = () => {}) => new Promise((resolve, reject) => {
  const events = [];
  stream.subscribe({ next: e => { events.push(e); seen(e); }, complete: () => resolve(events), error: reject });
});

test("signalr: two answers side by side over negotiation and a session token", async () => {
  const both = await Promise.all([collect(hub.stream("Send", ask("Hi"))), collect(hub.stream("Send", ask("Hi")))]);
  for (const events of both) {
    assert.deepEqual(events.map(e => e.seq), events.map((_, i) => i));
    assert.equal(events.filter(e => e.type === "delta").map(e => e.text).join(""), "Aye, we are open.");
    assert.equal(events.at(-1).finishReason, "stop");
  }
});

test("signalr: stop ends the stream as stopped", async () => {
  let id;
  const events = await collect(hub.stream("Send", ask("endless")), e => {
    id ??= e.id;
    if (e.type === "delta" && e.seq < 6) void hub.invoke("Stop", id);
  });
  assert.equal(events.at(-1).finishReason, "stopped");
});

test("signalr: an answer goes on without its connection and is attached to again", async () => {
  const first = await connect();
  const seen = [];
  await new Promise(resolve => first.stream("Send", ask("endless")).subscribe({ next: e => { if (seen.push(e) === 5) resolve(); }, complete() {}, error() {} }));
  await first.stop();
  const id = seen[0].id, from = seen.length;
  const rest = await collect(hub.stream("Attach", id, from), e => { if (e.seq === from + 3) void hub.invoke("Stop", id); });
  assert.deepEqual([...seen, ...rest].map(e => e.seq), Array.from({ length: from + rest.length }, (_, i) => i));
  assert.equal(rest.at(-1).finishReason, "stopped");
});

test("signalr: an unknown answer is not found", async () => {
  await assert.rejects(hub.invoke("Stop", "0".repeat(32)), /generation not found/);
  await assert.rejects(collect(hub.stream("Attach", "0".repeat(32), 0)), /generation not found/);
});
