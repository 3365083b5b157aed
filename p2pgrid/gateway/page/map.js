// The map: layers from left to right, and nodes as bars over the layers that they hold.

import { hueOf } from "./colours.js";
import { h, replace } from "./dom.js";
import { Flow } from "./flow.js";
import { coverage, place, SIZES, sizeFor, ticks } from "./layout.js";
import { store } from "./store.js";
import { digits, short, span } from "./words.js";

const LEAVING_MS = 1400;
const NARROW_PX = 560;
const calm = matchMedia("(prefers-reduced-motion: reduce)");

export class SwarmMap {
  #placed = new Map();
  #bars = new Map();
  #drawn = {};
  #model = null;
  #width = 0;
  #size = SIZES.roomy;
  #pad = 0;

  /**
   * @param {HTMLElement} host
   * @param {{small?: boolean, pick?: (peer: string | null) => void}} options `small` = without words
   */
  constructor(host, { small = false, pick = (_) => {} } = {}) {
    this.small = small;
    this.pick = pick;
    this.picked = null;
    this.axis = h("div", { class: "axis", "aria-hidden": "true" });
    this.cover = h("div", { class: "cover", "aria-hidden": "true" });
    this.flow = new Flow(small);
    this.gaps = h("div", { class: "gaps" });
    this.list = h("ul", { class: "bars", "aria-label": "Nodes by their layers" });
    const { links, labels, pulses } = this.flow;
    this.field = h("div", { class: "field" }, links, this.gaps, this.list, labels, pulses);
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
    this.root.hidden = layers === 0;
    if (layers === 0) this.#forget();
    const now = { nodes: store.nodes, models: store.models, width: this.field.clientWidth };
    if (now.width === 0) return; // nobody sees it
    if (Object.keys(now).some((part) => now[part] !== this.#drawn[part])) this.#drawAll(facts, layers, now);
    this.#tellLoads();
    const sessions = Object.entries(store.sessions).filter(([, session]) => session.model === model);
    const lit = new Set(sessions.flatMap(([, { route }]) => route.map(({ peer }) => peer)));
    for (const [peer, bar] of this.#bars) bar.classList.toggle("lit", lit.has(peer));
    this.flow.light(sessions);
  }

  #drawAll(facts, layers, now) {
    this.#drawn = now;
    this.#width = now.width;
    this.#pad = this.small ? 12 : this.#width < NARROW_PX ? 14 : 58;
    const nodes = store.nodesOf(this.#model);
    const held = nodes.filter(([, node]) => node.span);
    this.#placed = place(held.map(([peer, node]) => [peer, node.span]), this.#placed);
    const lanes = Math.max(1, ...[...this.#placed.values()].map(({ lane }) => lane + 1));
    const sizeName = sizeFor(lanes, this.small);
    this.#size = SIZES[sizeName];
    this.root.dataset.size = sizeName;
    this.field.style.setProperty("height", `${lanes * this.#size.lane + 6}px`);
    this.#drawAxis(held, layers);
    this.#drawBars(held, layers);
    this.#drawGaps(facts.missing, layers);
    this.flow.draw(held, layers, {
      width: this.#width,
      height: this.field.clientHeight,
      bar: this.#size.bar,
      box: (peer) => (this.#placed.has(peer) ? this.#box(peer, layers) : null),
    });
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
    this.#drawn = {};
    this.list.replaceChildren();
  }

  #x(layer, layers) {
    return this.#pad + ((this.#width - 2 * this.#pad) * layer) / layers;
  }

  #box(peer, layers) {
    const { lane, span: [start, stop] } = this.#placed.get(peer);
    const apart = this.small ? 4 : this.#width < NARROW_PX ? 5 : 11;
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
    replace(
      this.gaps,
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
    for (const [peer] of held) {
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
      h("span", { class: "bar-name" }, short(peer), peer === store.gateway.peer ? h("i", { class: "here" }, "here") : null),
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
    const [, layers, load, meter] = bar.firstChild.children;
    bar.dataset.state = node.moving_to ? "moving" : node.away ? "away" : node.state;
    const rate = Math.max(node.tokens_per_s, store.rateThrough(peer));
    const words = { joining: "loading", draining: "leaving", serving: `${digits(rate)} tok/s` };
    const doing = node.moving_to ? `moving to ${span(node.moving_to)}` : node.away ? "away" : words[node.state];
    layers.textContent = span(node.span);
    load.textContent = doing;
    const busy = node.tokens_per_s_max ? Math.min(1, rate / node.tokens_per_s_max) : 0;
    meter.firstChild.style.setProperty("width", `${Math.round(100 * busy)}%`);
    const label = `Node ${short(peer)}, layers ${span(node.span)}, ${node.state === "serving" ? "serves" : ""} ${doing}`;
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
}
