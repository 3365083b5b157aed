// Under each answer: the way that it took and how quickly.

import { hueOf } from "./colours.js";
import { h } from "./dom.js";
import { and, count, digits, seconds, short, span } from "./words.js";

/**
 * @typedef {{route: {peer_id: string, layers: [number, number]}[], ttft_s: number, tokens_per_s: number,
 *   cached_tokens: number, recoveries: {after_tokens: number, lost: string[], took_s: number}[],
 *   tokens: number | null}} How
 */

/** @param {How} how @returns {HTMLElement} */
export function howItCame(how) {
  const figures = [
    how.tokens ? count(how.tokens, "token") : null,
    `first after ${seconds(how.ttft_s)}`,
    how.tokens_per_s ? `${digits(how.tokens_per_s)} tokens/s` : null,
    how.cached_tokens ? `${count(how.cached_tokens, "token")} of the prompt known from before` : null,
  ];
  return h(
    "div", { class: "how" },
    h("ol", { class: "way", "aria-label": "The way of each token" }, ...how.route.map(stage)),
    h("p", {}, figures.filter(Boolean).join(" · ")),
    ...how.recoveries.map(recovery),
  );
}

function stage({ peer_id: peer, layers }) {
  const style = { "--hue": hueOf(peer), "flex-grow": String(layers[1] - layers[0]) };
  return h("li", { style, title: peer }, h("span", {}, span(layers)), h("span", { class: "who" }, short(peer)));
}

function recovery({ after_tokens: after, lost, took_s: took }) {
  const who = and(lost.map(short));
  return h("p", { class: "recovered" }, `Lost ${who} after ${count(after, "token")}, and went on ${seconds(took)} later as if nothing had happened.`);
}
