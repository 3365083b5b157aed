// The view of the swarm: the map or a table of the same, details of one node, and what happened.

import { hueOf } from "./colours.js";
import { all, byId, h, replace } from "./dom.js";
import { SwarmMap } from "./map.js";
import { store } from "./store.js";
import { and, count, digits, duration, ms, sentence, short, span } from "./words.js";

const HAPPENED_MAX = 30;
let shape = "map";
let chosen = null;

/** @type {SwarmMap} */
let map;

export function startSwarm() {
  map = new SwarmMap(byId("map"), { pick: (peer) => { map.mark(peer); showDetails(); } });
  for (const button of all("[data-shape]")) button.onclick = () => setShape(button.dataset.shape);
  byId("swarm-model").onchange = (event) => { chosen = event.target.value; showSwarm(); };
  store.addEventListener("change", (/** @type {any} */ event) => tellChanges(event.detail));
}

export function showSwarm() {
  const id = chosen in store.models ? chosen : store.bestModel();
  const model = store.models[id];
  chooseFrom(id);
  replace(byId("swarm-lead"), ...lead(model));
  const alert = byId("swarm-alert");
  alert.hidden = model?.state !== "unavailable";
  alert.textContent = alert.hidden ? "" : and(model.reasons.map(sentence));
  if (!model) return;
  map.draw(id);
  map.mark(map.picked);
  showDetails();
  if (shape === "table") replace(byId("swarm-table"), table(id));
}

function setShape(next) {
  shape = next;
  for (const button of all("[data-shape]")) {
    button.setAttribute("aria-pressed", String(button.dataset.shape === shape));
  }
  byId("map-card").hidden = shape !== "map";
  byId("swarm-table").hidden = shape !== "table";
  showSwarm();
}

function chooseFrom(id) {
  const models = Object.entries(store.models);
  byId("swarm-model-choice").hidden = models.length < 2;
  const select = byId("swarm-model");
  replace(select, ...models.map(([key, model]) => h("option", { value: key }, model.name || key.slice(0, 12))));
  select.value = id ?? "";
}

function lead(model) {
  if (!model || model.nodes === 0) return ["No node serves a model here yet. Under Models it says how to start one."];
  const missing = model.missing.reduce((sum, [start, stop]) => sum + stop - start, 0);
  const layers = missing ? `${model.layers - missing} of the ${model.layers} layers` : `the ${model.layers} layers`;
  const held = `${count(model.nodes, "node")} hold${model.nodes === 1 ? "s" : ""} ${layers} of `;
  const most = model.tokens_per_s_max ? `, at most ${digits(model.tokens_per_s_max)}` : "";
  const given = `${digits(store.rateOf(model))} tokens a second now${most}.`;
  return [held, h("b", {}, model.name), `: ${given}`];
}

// ── the same as a table ──

function table(model) {
  const rows = store.nodesOf(model).map(([peer, node]) => {
    const cells = [
      node.span ? span(node.span) : "none yet",
      stateOf(node),
      and(replicasOf(peer).map(short)) || "nobody",
      node.state === "serving" ? `${digits(node.tokens_per_s)} of ${digits(node.tokens_per_s_max)}` : "",
      ms(node.queue_ms),
      node.rtt_ms === null ? "no link" : ms(node.rtt_ms),
      neighbours(peer).map(([other, delay]) => `${short(other)} ${ms(delay)}`).join(", ") || "none",
    ];
    const mark = h("i", { class: "swatch", style: { "--hue": hueOf(peer) } });
    return h("tr", { data: { peer } }, h("th", { scope: "row" }, mark, short(peer)), ...cells.map((cell) => h("td", {}, cell)));
  });
  const heads = ["Node", "Layers", "State", "Shared with", "Tokens/s", "Queue", "From here and back", "Links, one way"];
  return h(
    "table", {},
    h("caption", { class: "unseen" }, "Nodes, the layers they hold, and their links"),
    h("thead", {}, h("tr", {}, ...heads.map((head) => h("th", { scope: "col" }, head)))),
    h("tbody", {}, ...rows),
  );
}

/** Those that hold some of the layers of `peer` too. */
function replicasOf(peer) {
  const own = store.nodes[peer];
  return store.nodesOf(own.model).filter(([other, { span: theirs }]) =>
    other !== peer && own.span && theirs && own.span[0] < theirs[1] && theirs[0] < own.span[1],
  ).map(([other]) => other);
}

/** Links to those whose layers come right before or after. */
function neighbours(peer) {
  const own = store.nodes[peer];
  const near = ([, { span: theirs }]) => own.span && theirs && (own.span[1] === theirs[0] || theirs[1] === own.span[0]);
  return store.nodesOf(own.model).filter(near)
    .map(([other, node]) => [other, own.delays_ms[other] ?? node.delays_ms[peer]])
    .filter(([, delay]) => delay !== undefined);
}

// ── one node ──

function showDetails() {
  const peer = map.picked;
  const node = store.nodes[peer];
  replace(byId("details"), ...(node ? describe(peer, node) : [
    h("h2", {}, "A node"),
    h("p", { class: "quiet-text" }, "Choose one on the map to see what it does, who holds the same layers, and how far away it is."),
  ]));
}

function stateOf(node) {
  if (node.moving_to) return `moving to ${span(node.moving_to)}`;
  return node.away ? "away: its owner needs the machine" : node.state;
}

function describe(peer, node) {
  const facts = [
    ["Layers", node.span ? span(node.span) : "none yet"],
    ["State", stateOf(node)],
    ["Also held by", and(replicasOf(peer).map(short)) || "nobody else"],
    ["One token takes", ms(node.step_ms)],
    ["Waits before it", ms(node.queue_ms)],
    ["Tokens a second", `${digits(node.tokens_per_s)} of ${digits(node.tokens_per_s_max)}`],
    ["Answers", `${node.sessions_open} running, room for ${node.sessions_free} more`],
    ["KV cache", node.kv_used === null ? "unknown" : `${Math.round(100 * node.kv_used)}% taken`],
    ["From here and back", node.rtt_ms === null ? "no link" : ms(node.rtt_ms)],
    ["Links, one way", neighbours(peer).map(([other, delay]) => `${short(other)} ${ms(delay)}`).join(", ") || "none"],
    ["Address", node.address || "unknown"],
    ["Version", node.agent],
  ];
  return [
    h("h2", {}, h("i", { class: "swatch", style: { "--hue": hueOf(peer) } }), `Node ${short(peer)}`),
    h("p", { class: "peer" }, peer),
    h("dl", {}, ...facts.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))),
  ];
}

// ── what happened ──

function tellChanges(before) {
  const known = Object.keys(before.nodes).length > 0;
  for (const [peer, node] of Object.entries(store.nodes)) {
    const was = before.nodes[peer];
    const layers = node.span ? ` with layers ${span(node.span)}` : "";
    if (!was && known) tell("joined", peer, ` joined${layers}.`);
    else if (!was) continue;
    else if (node.state !== was.state && node.state === "serving") tell("joined", peer, ` serves${layers.replace(" with", "")}.`);
    else if (node.moving_to && !was.moving_to) tell("moved", peer, ` is moving to layers ${span(node.moving_to)}.`);
    else if (node.away && !was.away) tell("moved", peer, " is away: its owner needs the machine.");
    else if (node.state !== was.state && node.state === "draining") tell("moved", peer, " takes no new answers.");
  }
  for (const [peer, node] of Object.entries(before.nodes)) {
    if (!(peer in store.nodes)) tell("left", peer, ` is gone${node.span ? `; it held layers ${span(node.span)}` : ""}.`);
  }
  for (const [id, model] of Object.entries(store.models)) {
    const was = before.models[id];
    if (was && was.missing.length && !model.missing.length) tell("joined", null, `All layers of ${model.name} have a holder.`);
    if (was && !was.missing.length && model.missing.length && model.nodes) {
      tell("left", null, `Layers ${and(model.missing.map(span))} of ${model.name} have no holder.`);
    }
  }
}

function tell(kind, peer, text) {
  const time = new Date().toLocaleTimeString([], { timeStyle: "medium", hourCycle: "h23" });
  const who = peer ? h("b", { style: { "--hue": hueOf(peer) } }, short(peer)) : null;
  const list = byId("happened");
  list.prepend(h("li", { data: { kind } }, h("time", {}, time), h("span", {}, who, text)));
  while (list.children.length > HAPPENED_MAX) list.lastChild.remove();
}

/** When a token last went through all layers, in words. */
export function seen(model) {
  if (model.token_seen_at_s === null) return "no token has gone through all layers yet";
  return `a token went through all layers ${duration(Date.now() / 1000 - model.token_seen_at_s)} ago`;
}
