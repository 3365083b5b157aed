// The map: layers from left to right, nodes as bars over the layers that they hold, links, and tokens on their way.

import { hueOf } from "./colours.js";
import { h, s } from "./dom.js";
import { coverage, place, SIZES, sizeFor, ticks, wire } from "./layout.js";
import { store } from "./store.js";
import { digits, ms, short, span } from "./words.js";

const LEAVING_MS = 1400;
const PULSE_MS = 700;
const PULSE_EVERY_MS = 160;
const LABELS_MAX = 30;
/** Up to so many, links are drawn that could be and are not yet. */
const POSSIBLE_MAX = 40;
const calm = matchMedia("(prefers-reduced-motion: reduce)");

export class SwarmMap {
  #placed = new Map();
  #bars = new Map();
  #paths = new Map();
  #tokens = new Map();
  #drawn = {};
  #pulsed = new Map();
  #model = null;
  #width = 0;
  #size = SIZES.roomy;
  #pad = 0;

  /**
   * @param {HTMLElement} host
   * @param {{small?: boolean, pick?: (peer: string | null) => void}} options `small` = without words
   */
  constructor(host, { small = false, pick = () => {} } = {}) {
    this.small = small;
    this.pick = pick;
    this.picked = null;
    this.axis = h("div", { class: "axis", "aria-hidden": "true" });
    this.cover = h("div", { class: "cover", "aria-hidden": "true" });
    this.links = s("svg", { class: "links", "aria-hidden": "true" });
    this.labels = h("div", { class: "labels", "aria-hidden": "true" });
    this.gaps = h("div", { class: "gaps" });
    this.list = h("ul", { class: "bars", "aria-label": "Nodes by their layers" });
    this.pulses = h("div", { class: "pulses", "aria-hidden": "true" });
    this.field = h("div", { class: "field" }, this.links, this.gaps, this.list, this.labels, this.pulses);
    this.waiting = h("p", { class: "waiting" });
    this.root = h("div", { class: small ? "map small" : "map" }, this.axis, this.cover, this.field, this.waiting);
    host.append(this.root);
    new ResizeObserver(() => {
      if (this.field.clientWidth !== this.#width && this.#model) this.draw(this.#model);
    }).observe(this.field);
  }

  /** Show `model` as the store knows it now. */
  draw(model) {
    if (model !== this.#model) this.#forget();
    this.#model = model;
    const facts = store.models[model];
    const layers = facts?.layers ?? 0;
    const now = { nodes: store.nodes, models: store.models, width: this.field.clientWidth };
    if (Object.keys(now).some((part) => now[part] !== this.#drawn[part])) this.#drawAll(facts, layers, now);
    this.#tellLoads();
    this.#light(layers);
  }

  #drawAll(facts, layers, now) {
    this.#drawn = now;
    this.#width = now.width;
    this.#pad = this.small ? 12 : this.#width < 560 ? 14 : 58;
    const nodes = store.nodesOf(this.#model);
    const held = nodes.filter(([, node]) => node.span);
    this.#placed = place(held.map(([peer, node]) => [peer, node.span]), this.#placed);
    const lanes = Math.max(1, ...[...this.#placed.values()].map(({ lane }) => lane + 1));
    const sizeName = sizeFor(lanes, this.small);
    this.#size = SIZES[sizeName];
    this.root.dataset.size = sizeName;
    this.field.style.setProperty("height", `${lanes * this.#size.lane + 6}px`);
    this.root.hidden = layers === 0;
    if (layers === 0 || this.#width === 0) return;
    this.#drawAxis(held, layers);
    this.#drawBars(held, layers);
    this.#drawGaps(facts.missing, layers);
    this.#drawLinks(held, layers);
    this.#drawWaiting(nodes.filter(([, node]) => !node.span));
  }

  /** Mark one node, and those that hold some of its layers too. */
  mark(peer) {
    this.picked = peer;
    const own = this.#placed.get(peer)?.span;
    for (const [other, bar] of this.#bars) {
      const theirs = this.#placed.get(other)?.span;
      const shares = own && theirs && own[0] < theirs[1] && theirs[0] < own[1];
      bar.dataset.mark = !own ? "" : other === peer ? "picked" : shares ? "replica" : "other";
      bar.firstChild.setAttribute("aria-pressed", String(other === peer));
    }
  }

  #forget() {
    this.#placed = new Map();
    this.#bars = new Map();
    this.#tokens = new Map();
    this.#drawn = {};
    this.list.replaceChildren();
  }

  #x(layer, layers) {
    return this.#pad + ((this.#width - 2 * this.#pad) * layer) / layers;
  }

  #box(peer, layers) {
    const { lane, span: [start, stop] } = this.#placed.get(peer);
    const apart = this.small ? 4 : this.#width < 560 ? 5 : 11;
    const left = this.#x(start, layers) + apart;
    const width = Math.max(4, this.#x(stop, layers) - apart - left);
    const top = lane * this.#size.lane + 4;
    return { left, right: left + width, width, top, middle: top + this.#size.bar / 2 };
  }

  // ── what stands still ──

  #drawAxis(held, layers) {
    const width = this.#width - 2 * this.#pad;
    this.axis.replaceChildren(
      ...ticks(layers, width).map((layer) => h("span", { style: { left: `${this.#x(layer, layers)}px` } }, layer)),
    );
    const serving = held.filter(([, node]) => node.state === "serving").map(([, node]) => node.span);
    this.cover.replaceChildren(
      ...coverage(serving, layers).map(({ span: [start, stop], holders }) => {
        const left = this.#x(start, layers);
        const across = this.#x(stop, layers) - left;
        const text = this.small || across < 26 ? "" : holders === 0 ? "none" : `${holders}×`;
        const style = { left: `${left + 1}px`, width: `${across - 2}px` };
        return h("span", { style, data: { holders: String(Math.min(holders, 3)) } }, text);
      }),
    );
  }

  #drawGaps(missing, layers) {
    this.gaps.replaceChildren(
      ...missing.map((gap) => {
        const left = this.#x(gap[0], layers);
        const style = { left: `${left}px`, width: `${this.#x(gap[1], layers) - left}px` };
        return h("p", { class: "gap", style }, h("b", {}, `${span(gap)}`), this.small ? null : " has no holder");
      }),
    );
  }

  #drawWaiting(nodes) {
    const names = nodes.map(([peer]) => short(peer)).join(", ");
    this.waiting.textContent = names ? `Choosing layers: ${names}` : "";
    this.waiting.hidden = !names;
  }

  #drawBars(held, layers) {
    const here = new Set();
    for (const [peer, node] of held) {
      here.add(peer);
      let bar = this.#bars.get(peer);
      if (!bar) {
        bar = this.#newBar(peer);
        this.#bars.set(peer, bar);
        this.list.append(bar);
      }
      const { left, top, width } = this.#box(peer, layers);
      bar.style.setProperty("transform", `translate(${left}px, ${top}px)`);
      bar.style.setProperty("width", `${width}px`);
    }
    for (const [peer, bar] of this.#bars) if (!here.has(peer)) this.#leave(peer, bar);
  }

  #newBar(peer) {
    const button = h(
      "button",
      { type: "button", "aria-pressed": "false", onclick: () => this.#choose(peer), tabindex: this.small ? "-1" : null },
      h("span", { class: "bar-name" }, short(peer)),
      h("span", { class: "bar-span" }),
      h("span", { class: "bar-load" }),
      h("span", { class: "meter" }, h("i")),
    );
    return h("li", { class: "bar", style: { "--hue": hueOf(peer) }, data: { peer } }, button);
  }

  #choose(peer) {
    this.pick(this.picked === peer ? null : peer);
  }

  #tellLoads() {
    for (const [peer, bar] of this.#bars) this.#tellLoad(bar, peer, store.nodes[peer]);
  }

  #tellLoad(bar, peer, node) {
    const [name, layers, load, meter] = bar.firstChild.children;
    bar.dataset.state = node.moving_to ? "moving" : node.state;
    const rate = Math.max(node.tokens_per_s, store.rateThrough(peer));
    const words = { joining: "loading", draining: "leaving", serving: `${digits(rate)} tok/s` };
    const doing = node.moving_to ? `moving to ${span(node.moving_to)}` : words[node.state];
    layers.textContent = span(node.span);
    load.textContent = doing;
    const busy = node.tokens_per_s_max ? Math.min(1, rate / node.tokens_per_s_max) : 0;
    meter.firstChild.style.setProperty("width", `${Math.round(100 * busy)}%`);
    const label = `Node ${name.textContent}, layers ${span(node.span)}, ${node.state === "serving" ? "serves" : ""} ${doing}`;
    bar.firstChild.setAttribute("aria-label", label);
    if (this.small) bar.title = `${short(peer)}, layers ${span(node.span)}`;
  }

  #leave(peer, bar) {
    this.#bars.delete(peer);
    bar.classList.add("gone");
    bar.firstChild.disabled = true;
    bar.querySelector(".bar-load").textContent = "gone";
    if (this.picked === peer) this.pick(null);
    setTimeout(() => bar.remove(), calm.matches ? 0 : LEAVING_MS);
  }

  // ── links ──

  #drawLinks(held, layers) {
    const edges = [];
    for (const [from, a] of held) {
      for (const [to, b] of held) {
        if (a.span[1] !== b.span[0]) continue;
        edges.push({ from, to, delay: a.delays_ms[to] ?? b.delays_ms[from] });
      }
    }
    const ends = [];
    for (const [peer, { span: [start, stop], rtt_ms: rtt }] of held) {
      if (rtt !== null && start === 0) ends.push({ to: peer, delay: rtt / 2 });
      if (rtt !== null && stop === layers) ends.push({ from: peer, delay: rtt / 2 });
    }
    const all = [...edges.filter(({ delay }) => delay !== undefined || edges.length <= POSSIBLE_MAX), ...ends];
    this.links.setAttribute("viewBox", `0 0 ${this.#width} ${this.field.clientHeight}`);
    const paths = new Map();
    for (const { from, to, delay } of all) {
      const name = edgeName(from, to);
      const path = this.#paths.get(name) ?? s("path");
      path.setAttribute("d", this.#wire(from, to, layers));
      path.classList.toggle("possible", delay === undefined);
      paths.set(name, path);
    }
    this.#paths = paths;
    const gateway = [5, this.#width - 5].map((x) => s("circle", { cx: x, cy: this.field.clientHeight / 2, r: 3.5 }));
    this.links.replaceChildren(...paths.values(), ...gateway);
    const measured = all.filter(({ delay }) => delay !== undefined);
    this.#drawLabels(this.small || this.#width < 560 || measured.length > LABELS_MAX ? [] : measured, layers);
  }

  /** Between two nodes, or from and to the gateway, which is at both sides of the map. */
  #wire(from, to, layers) {
    return wire(...this.#ends(from, to, layers));
  }

  #ends(from, to, layers) {
    const a = from && this.#box(from, layers);
    const b = to && this.#box(to, layers);
    const gateway = this.field.clientHeight / 2;
    return [a ? [a.right, a.middle] : [5, gateway], b ? [b.left, b.middle] : [this.#width - 5, gateway]];
  }

  #drawLabels(edges, layers) {
    /** @type {Map<string, {x: number, y: number, delays: number[]}>} */
    const places = new Map();
    for (const { from, to, delay } of edges) {
      const [[ax, ay], [bx, by]] = this.#ends(from, to, layers);
      const level = Math.abs(ay - by) < 2 && from && to;
      const x = Math.round((ax + bx) / 2);
      const y = Math.round((ay + by) / 2 + (level ? this.#size.bar / 2 + 11 : 0));
      const found = places.get(`${x} ${y}`) ?? { x, y, delays: [] };
      found.delays.push(delay);
      places.set(`${x} ${y}`, found);
    }
    this.labels.replaceChildren(
      ...[...places.values()].map(({ x, y, delays }) =>
        h("span", { style: { left: `${x}px`, top: `${y}px` } }, between(Math.min(...delays), Math.max(...delays))),
      ),
    );
  }

  // ── tokens on their way ──

  #light(layers) {
    const sessions = Object.entries(store.sessions).filter(([, session]) => session.model === this.#model);
    const lit = new Set();
    const edges = new Set();
    for (const [id, { route, tokens }] of sessions) {
      const peers = route.map(({ peer }) => peer);
      for (const peer of peers) lit.add(peer);
      for (let i = 0; i <= peers.length; i++) edges.add(edgeName(peers[i - 1], peers[i]));
      if (peers.length && peers.every((peer) => this.#placed.has(peer)) && tokens > (this.#tokens.get(id) ?? 0)) {
        this.#pulse(id, peers, layers);
      }
    }
    this.#tokens = new Map(sessions.map(([id, { tokens }]) => [id, tokens]));
    for (const [peer, bar] of this.#bars) bar.classList.toggle("lit", lit.has(peer));
    for (const [name, path] of this.#paths) path.classList.toggle("lit", edges.has(name));
  }

  #pulse(id, peers, layers) {
    const now = performance.now();
    if (calm.matches || document.hidden || now - (this.#pulsed.get(id) ?? 0) < PULSE_EVERY_MS) return;
    this.#pulsed.set(id, now);
    const parts = peers.map((peer, i) => {
      const { right, middle } = this.#box(peer, layers);
      return `${this.#wire(peers[i - 1], peer, layers).replace("M", i ? "L" : "M")}L${right} ${middle}`;
    });
    const path = parts.join("") + this.#wire(peers.at(-1), undefined, layers).replace("M", "L");
    const dot = h("i", { class: "pulse", style: { "offset-path": `path("${path}")` } });
    this.pulses.append(dot);
    const run = dot.animate(
      [{ offsetDistance: "0%", opacity: 0 }, { opacity: 1, offset: 0.08 }, { opacity: 1, offset: 0.92 },
        { offsetDistance: "100%", opacity: 0 }],
      { duration: PULSE_MS, easing: "linear" },
    );
    run.onfinish = () => dot.remove();
  }
}

const edgeName = (from, to) => `${from ?? ""}>${to ?? ""}`;

function between(least, most) {
  return digits(least) === digits(most) ? ms(least) : `${digits(least)}–${ms(most)}`;
}
