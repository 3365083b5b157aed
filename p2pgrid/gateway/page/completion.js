// One answer of /v1/chat/completions, streamed.

import { mayAskForKey, Refused, request } from "./api.js";
import { readEvents } from "./sse.js";
import { sentence } from "./words.js";

/**
 * @param {any} body what OpenAI's API takes; without a model, the first one that is served
 * @param {AbortSignal} signal
 * @returns {AsyncGenerator<{text?: string, how?: object, tokens?: number, finish?: string}>} pieces as they come.
 *   Throws Refused for whatever ends it early, AbortError when it was stopped.
 */
export async function* complete(body, signal) {
  mayAskForKey();
  const model = body.model || (await firstModel(signal));
  const response = await request("/v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, model, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  let finished = false;
  try {
    for await (const { data } of readEvents(response)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Refused(sentence(chunk.error.message ?? "the answer broke off"));
      const choice = chunk.choices?.[0];
      if (choice?.delta?.content) yield { text: choice.delta.content };
      if (choice?.p2pgrid) yield { how: choice.p2pgrid };
      if (choice?.finish_reason) {
        finished = true;
        yield { finish: choice.finish_reason };
      }
      if (chunk.usage) yield { tokens: chunk.usage.completion_tokens };
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof Refused) throw error;
    throw new Refused("The connection to the gateway broke, and the answer with it.");
  }
  if (!finished) throw new Refused("The answer broke off before its end.");
}

/** For a question that is asked before anything is known of the swarm. */
async function firstModel(signal) {
  const { data } = await (await request("/v1/models", { signal })).json();
  if (!data.length) throw new Refused("No node serves a model here yet. Under Models it says how to start one.");
  return data[0].id;
}
