// The page: which view is shown, the theme, and the swarm's state in every view.

import { showModels, startChat } from "./chat.js";
import { all, byId, h, replace } from "./dom.js";
import { SwarmMap } from "./map.js";
import { showModelCards } from "./models.js";
import { showNode } from "./node.js";
import { store } from "./store.js";
import { showSwarm, startSwarm } from "./swarm.js";
import { count, digits } from "./words.js";

const VERDICTS = { ready: "Ready", degraded: "Works", unavailable: "Cannot answer" };
const dark = matchMedia("(prefers-color-scheme: dark)");
/** Drawn when they are looked at, and again with each change of the swarm while they are. */
const VIEWS = { chat: showBeside, swarm: showSwarm, models: showModelCards, node: showNode };
let view = "chat";

function showView() {
  const wanted = location.hash.slice(1);
  const moved = wanted in VIEWS && wanted !== view;
  view = wanted in VIEWS ? wanted : view;
  for (const name of Object.keys(VIEWS)) byId(name).hidden = name !== view;
  for (const link of all("nav a")) {
    if (link.hash === `#${view}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (moved) byId("main").focus({ preventScroll: true });
  if (store.gateway) VIEWS[view]();
}

function showBeside() {
  showModels();
  const id = store.bestModel();
  const model = store.models[id];
  if (!model) return;
  smallMap.draw(id);
  const told = model.nodes ? `${count(model.nodes, "node")}, ${model.layers} layers, ${digits(store.rateOf(model))} tokens/s` : "No node yet";
  byId("beside-figures").textContent = told;
}

function showVerdict() {
  const model = store.models[store.bestModel()];
  const state = !store.connected ? "lost" : model ? model.state : "unavailable";
  const running = Object.keys(store.sessions).length;
  const busy = running && state !== "unavailable" ? `${count(running, "answer")} on the way` : model?.name;
  const text = !store.connected ? "No connection to the gateway" : model ? `${VERDICTS[state]} · ${busy}` : "No model";
  byId("verdict").dataset.state = state;
  byId("verdict").title = store.connected ? (model?.reasons.join("; ") ?? "") : store.problem;
  replace(byId("verdict"), h("i"), h("span", {}, text));
}

function startTheme() {
  const root = document.documentElement;
  const button = byId("theme");
  const now = () => root.dataset.theme ?? (dark.matches ? "dark" : "light");
  const label = () => button.setAttribute("aria-label", `Switch to ${now() === "dark" ? "light" : "dark"}`);
  button.onclick = () => {
    root.dataset.theme = now() === "dark" ? "light" : "dark";
    localStorage.setItem("p2pgrid-theme", root.dataset.theme);
    label();
  };
  dark.addEventListener("change", label);
  label();
}

startTheme();
startChat();
startSwarm();
const smallMap = new SwarmMap(byId("small-map"), { small: true, pick: () => { location.hash = "#swarm"; } });
addEventListener("hashchange", showView);
store.addEventListener("change", () => { showVerdict(); VIEWS[view](); if (view !== "chat") showModels(); });
store.addEventListener("lost", showVerdict);
showView();
store.follow();
