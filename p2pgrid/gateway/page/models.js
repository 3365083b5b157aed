// The view of models: what the swarm can answer with, how well it is covered, and how to add to it.

import { byId, h, replace, say } from "./dom.js";
import { coverage } from "./layout.js";
import { store } from "./store.js";
import { seen } from "./swarm.js";
import { and, count, digits, sentence, size, span } from "./words.js";

const VERDICTS = { ready: "Ready", degraded: "Works", unavailable: "Unavailable" };

export function showModelCards() {
  const models = Object.entries(store.models);
  const cards = models.map(([id, model]) => card(id, model));
  replaceCards(byId("model-cards"), cards.length ? cards : [nothingYet()]);
}

/** Like `replace`, and copy buttons work. */
function replaceCards(host, cards) {
  replace(host, ...cards);
  for (const button of host.querySelectorAll("button.copy")) button.onclick = () => copy(button);
}

function nothingYet() {
  return h("div", { class: "card" },
    h("h2", {}, "No node serves a model yet"),
    h("p", { class: "quiet-text" }, "Start one, here or on another machine; it appears by itself."),
    command(`p2pgrid node${bootstrapOption()}`));
}

function card(id, model) {
  const facts = [
    ["Layers", String(model.layers || "unknown")],
    ["Nodes", String(model.nodes)],
    ["Context", model.context ? count(model.context, "token") : "unknown"],
    ["Weights", model.weights_bytes ? size(model.weights_bytes) : "unknown"],
    ["Now", `${digits(store.rateOf(model))} tokens/s`],
    ["At most", `${digits(model.tokens_per_s_max)} tokens/s`],
  ];
  return h(
    "article", { class: "card model", data: { state: model.state } },
    h("header", {}, h("h2", {}, model.name || id.slice(0, 12)), h("span", { class: "badge", data: { state: model.state } }, VERDICTS[model.state])),
    h("p", { class: "why" }, reasons(model)),
    strip(id, model),
    h("dl", { class: "tiles" }, ...facts.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))),
    model.missing.length ? h("p", { class: "alert" }, `Missing: layers ${and(model.missing.map(span))}. A node that joins takes them first.`) : null,
    h("h3", {}, "Add a node"),
    h("p", { class: "quiet-text" }, "On another machine, or here. It takes the layers that the swarm lacks most."),
    command(`p2pgrid models pull ${model.name}`),
    command(`p2pgrid node --model ${model.name}${bootstrapOption()}`),
    h("p", { class: "peer" }, `Model id ${id}`),
  );
}

function reasons(model) {
  const said = model.reasons.map(sentence).join(" ");
  return model.state === "unavailable" ? said : `${said} ${sentence(seen(model))}`.trim();
}

function strip(id, model) {
  const spans = store.nodesOf(id).filter(([, { state }]) => state === "serving").map(([, node]) => node.span);
  const runs = model.layers ? coverage(spans, model.layers) : [];
  const words = runs.map(({ span: layers, holders }) => `layers ${span(layers)}: ${holders || "no"} ${holders === 1 ? "holder" : "holders"}`);
  return h("div", { class: "strip", role: "img", "aria-label": words.join(", ") }, ...runs.map(({ span: [start, stop], holders }) =>
    h("i", { style: { "flex-grow": String(stop - start) }, data: { holders: String(Math.min(holders, 3)) } })));
}

function bootstrapOption() {
  const bootstrap = store.gateway?.bootstrap[0];
  return bootstrap ? ` --bootstrap ${bootstrap}` : "";
}

function command(text) {
  return h("div", { class: "command" }, h("code", { tabindex: "0" }, text), h("button", { class: "plain copy", type: "button" }, "Copy"));
}

async function copy(button) {
  try {
    await navigator.clipboard.writeText(button.previousSibling.textContent);
    button.textContent = "Copied";
    say("Copied.");
  } catch {
    getSelection().selectAllChildren(button.previousSibling);
    button.textContent = "Selected";
  }
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
}
