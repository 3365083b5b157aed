// The view of the process that served this page.

import { hueOf } from "./colours.js";
import { byId, h, replace } from "./dom.js";
import { store } from "./store.js";
import { count, duration, ms, short, span } from "./words.js";

export function showNode() {
  const own = store.gateway;
  if (!own) return;
  byId("node-lead").textContent = own.span
    ? `A node that serves layers ${span(own.span)} and this page.`
    : "A gateway: it holds no layers, and asks the nodes that do.";
  const running = Object.keys(store.sessions).length;
  const tiles = [
    ["Up for", duration(Date.now() / 1000 - own.since_s)],
    ["Answers begun", own.answers.toLocaleString("en")],
    ["Running now", String(running)],
    ["Tokens given", own.tokens.toLocaleString("en")],
    ["Nodes known", String(own.peers_known)],
    ["Links", String(own.links)],
  ];
  replace(
    byId("node-cards"),
    h("dl", { class: "tiles card" }, ...tiles.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))),
    h(
      "div", { class: "pair" },
      h("div", { class: "card" }, h("h2", {}, "Who it is"), h("dl", { class: "facts" }, ...facts(own).map(fact))),
      h("div", { class: "card" }, h("h2", {}, "How far the nodes are"), distances()),
    ),
  );
}

function facts(own) {
  return [
    ["Peer id", own.peer],
    ["Listens on", own.addresses.map((address) => address.split("/p2p/")[0]).join(", ") || "nothing"],
    ["Others join through", own.bootstrap.join(", ") || "the local network"],
    ["Version", `p2pgrid ${own.version}`],
  ];
}

const fact = ([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value));

function distances() {
  const near = Object.entries(store.nodes).filter(([, { rtt_ms: rtt }]) => rtt !== null).sort(([, a], [, b]) => a.rtt_ms - b.rtt_ms);
  if (!near.length) return h("p", { class: "quiet-text" }, "No link to a node yet.");
  const longest = near.at(-1)[1].rtt_ms || 1;
  return h("ul", { class: "distances" }, ...near.slice(0, 12).map(([peer, { rtt_ms: rtt }]) =>
    h("li", {}, h("span", {}, short(peer)), h("i", { style: { "--hue": hueOf(peer), "--share": String(rtt / longest) } }), h("b", {}, ms(rtt)))),
    near.length > 12 ? h("li", {}, `and ${count(near.length - 12, "node")} further away`) : null);
}
