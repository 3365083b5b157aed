// What runs between the bars of the map: links with their latency, and tokens on their way.

import { h, s } from "./dom.js";
import { wire } from "./layout.js";
import { digits, ms } from "./words.js";

const PULSE_MS = 700;
const PULSE_EVERY_MS = 160;
const LABELS_MAX = 30;
/** Up to so many, links are drawn that could be and are not yet. */
const POSSIBLE_MAX = 40;
/** From the edge of the map to the dot that stands for this gateway. */
const EDGE_PX = 5;
const WORDS_PX_MIN = 560;
const calm = matchMedia("(prefers-reduced-motion: reduce)");

/**
 * @typedef {{left: number, right: number, middle: number}} Box
 * @typedef {{width: number, height: number, bar: number, box: (peer: string) => Box | null}} Ground where bars stand
 * @typedef {{from?: string, to?: string, delay?: number}} Edge of nodes, or the gateway where there is no name; ms one way
 */

export class Flow {
  /** @type {Map<string, SVGElement>} */ #paths = new Map();
  /** @type {Map<string, number>} */ #tokens = new Map();
  /** @type {Map<string, number>} */ #pulsed = new Map();
  /** @type {Ground} */ #ground = { width: 0, height: 0, bar: 0, box: () => null };

  /** @param {boolean} small without words */
  constructor(small) {
    this.small = small;
    this.links = s("svg", { class: "links", "aria-hidden": "true" });
    this.labels = h("div", { class: "labels", "aria-hidden": "true" });
    this.pulses = h("div", { class: "pulses", "aria-hidden": "true" });
  }

  /**
   * @param {[string, import("./store.js").SwarmNode][]} held nodes with layers
   * @param {number} layers @param {Ground} ground
   */
  draw(held, layers, ground) {
    this.#ground = ground;
    const edges = edgesOf(held, layers);
    const paths = new Map();
    for (const edge of edges) {
      const path = this.#paths.get(nameOf(edge)) ?? s("path");
      path.setAttribute("d", this.#wire(edge));
      path.classList.toggle("possible", edge.delay === undefined);
      paths.set(nameOf(edge), path);
    }
    this.#paths = paths;
    const gateway = [EDGE_PX, ground.width - EDGE_PX].map((x) => s("circle", { cx: x, cy: ground.height / 2, r: 3.5 }));
    this.links.setAttribute("viewBox", `0 0 ${ground.width} ${ground.height}`);
    this.links.replaceChildren(...paths.values(), ...gateway);
    const measured = edges.filter(({ delay }) => delay !== undefined);
    const wordless = this.small || ground.width < WORDS_PX_MIN || measured.length > LABELS_MAX;
    this.#drawLabels(wordless ? [] : measured);
  }

  /**
   * Light the ways of these answers, and send a dot along each that has a new token.
   * @param {[string, import("./store.js").Session][]} sessions
   */
  light(sessions) {
    const lit = new Set();
    for (const [id, { route, tokens }] of sessions) {
      const peers = route.map(({ peer }) => peer);
      const way = wayOf(peers);
      for (const edge of way) lit.add(nameOf(edge));
      const drawn = peers.length && peers.every((peer) => this.#ground.box(peer));
      if (drawn && tokens > (this.#tokens.get(id) ?? 0)) this.#pulse(id, way);
    }
    this.#tokens = new Map(sessions.map(([id, { tokens }]) => [id, tokens]));
    for (const [name, path] of this.#paths) path.classList.toggle("lit", lit.has(name));
  }

  /** @param {Edge} edge @returns {[[number, number], [number, number]]} */
  #ends({ from, to }) {
    const { width, height, box } = this.#ground;
    const a = from && box(from);
    const b = to && box(to);
    return [a ? [a.right, a.middle] : [EDGE_PX, height / 2], b ? [b.left, b.middle] : [width - EDGE_PX, height / 2]];
  }

  #wire(edge) {
    return wire(...this.#ends(edge));
  }

  /** One label where links cross, not one on top of another. @param {Edge[]} edges */
  #drawLabels(edges) {
    /** @type {Map<string, {x: number, y: number, delays: number[]}>} */
    const places = new Map();
    for (const edge of edges) {
      const [[ax, ay], [bx, by]] = this.#ends(edge);
      const level = Math.abs(ay - by) < 2 && edge.from && edge.to;
      const x = Math.round((ax + bx) / 2);
      const y = Math.round((ay + by) / 2 + (level ? this.#ground.bar / 2 + 11 : 0));
      const found = places.get(`${x} ${y}`) ?? { x, y, delays: [] };
      found.delays.push(edge.delay ?? 0);
      places.set(`${x} ${y}`, found);
    }
    this.labels.replaceChildren(
      ...[...places.values()].map(({ x, y, delays }) =>
        h("span", { style: { left: `${x}px`, top: `${y}px` } }, between(Math.min(...delays), Math.max(...delays)))),
    );
  }

  /** @param {string} id @param {Edge[]} way */
  #pulse(id, way) {
    const now = performance.now();
    if (calm.matches || document.hidden || now - (this.#pulsed.get(id) ?? 0) < PULSE_EVERY_MS) return;
    this.#pulsed.set(id, now);
    const path = way.map((edge, i) => (i ? this.#wire(edge).replace("M", "L") : this.#wire(edge))).join("");
    const dot = h("i", { class: "pulse", style: { "offset-path": `path("${path}")` } });
    this.pulses.append(dot);
    const seen = [{ opacity: 1, offset: 0.08 }, { opacity: 1, offset: 0.92 }];
    const frames = [{ offsetDistance: "0%", opacity: 0 }, ...seen, { offsetDistance: "100%", opacity: 0 }];
    dot.animate(frames, { duration: PULSE_MS }).onfinish = () => {
      dot.remove();
      if (!this.#tokens.has(id)) this.#pulsed.delete(id);
    };
  }
}

/** Links between nodes whose layers follow each other, and of the gateway to both ends. @returns {Edge[]} */
function edgesOf(held, layers) {
  /** @type {Edge[]} */
  const between = [];
  for (const [from, a] of held) {
    for (const [to, b] of held) {
      if (a.span[1] === b.span[0]) between.push({ from, to, delay: a.delays_ms[to] ?? b.delays_ms[from] });
    }
  }
  /** @type {Edge[]} */
  const ends = [];
  for (const [peer, { span: [start, stop], rtt_ms: rtt }] of held) {
    if (rtt !== null && start === 0) ends.push({ to: peer, delay: rtt / 2 });
    if (rtt !== null && stop === layers) ends.push({ from: peer, delay: rtt / 2 });
  }
  return [...between.filter(({ delay }) => delay !== undefined || between.length <= POSSIBLE_MAX), ...ends];
}

/** From the gateway through `peers` and back. @returns {Edge[]} */
const wayOf = (peers) => [...peers, undefined].map((to, i) => ({ from: peers[i - 1], to }));

/** @param {Edge} edge */
const nameOf = ({ from, to }) => `${from ?? ""}>${to ?? ""}`;

function between(least, most) {
  return digits(least) === digits(most) ? ms(least) : `${digits(least)}–${ms(most)}`;
}
