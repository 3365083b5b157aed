// Where things stand on the map. No drawing here: numbers in, numbers out.

/** @typedef {[number, number]} Span */

export const SIZES = {
  roomy: { bar: 50, lane: 80 },
  dense: { bar: 28, lane: 38 },
  tiny: { bar: 8, lane: 12 },
  small: { bar: 20, lane: 29 },
};

/** How tall nodes are drawn when there are so many rows of them. */
export function sizeFor(lanes, small) {
  if (lanes > 24) return "tiny";
  if (small) return "small";
  return lanes > 7 ? "dense" : "roomy";
}

/**
 * A row for each node, such that no two of one row hold the same layer. Who has a row keeps it.
 * @param {[string, Span][]} nodes by their layers
 * @param {Map<string, {lane: number, span: Span}>} before
 * @returns {Map<string, {lane: number, span: Span}>}
 */
export function place(nodes, before) {
  const placed = new Map();
  const rows = [];
  const free = (lane, span) => (rows[lane] ?? []).every((other) => other[1] <= span[0] || span[1] <= other[0]);
  const put = (peer, lane, span) => {
    (rows[lane] ??= []).push(span);
    placed.set(peer, { lane, span });
  };
  const stays = ([peer, span]) => {
    const known = before.get(peer);
    return known && known.span[0] === span[0] && known.span[1] === span[1] && free(known.lane, span);
  };
  for (const [peer, span] of nodes) if (stays([peer, span])) put(peer, before.get(peer).lane, span);
  for (const [peer, span] of nodes) {
    if (placed.has(peer)) continue;
    let lane = 0;
    while (!free(lane, span)) lane++;
    put(peer, lane, span);
  }
  return withoutEmptyRows(placed);
}

function withoutEmptyRows(placed) {
  const used = [...new Set([...placed.values()].map(({ lane }) => lane))].sort((a, b) => a - b);
  for (const [peer, { lane, span }] of placed) placed.set(peer, { lane: used.indexOf(lane), span });
  return placed;
}

/**
 * How many of `spans` hold each layer, in runs of equal figures.
 * @param {Span[]} spans @param {number} layers
 * @returns {{span: Span, holders: number}[]}
 */
export function coverage(spans, layers) {
  const counts = new Array(layers).fill(0);
  for (const [start, stop] of spans) for (let i = start; i < Math.min(stop, layers); i++) counts[i]++;
  /** @type {{span: Span, holders: number}[]} */
  const runs = [];
  for (let layer = 0; layer < layers; layer++) {
    const last = runs.at(-1);
    if (last && last.holders === counts[layer]) last.span[1] = layer + 1;
    else runs.push({ span: [layer, layer + 1], holders: counts[layer] });
  }
  return runs;
}

/** Layers to be named on the axis, with room for each. */
export function ticks(layers, width) {
  const step = [1, 2, 5, 10, 20, 50, 100, 200].find((each) => (width * each) / layers >= 40) ?? 500;
  const found = [];
  for (let layer = 0; layer < layers; layer += step) found.push(layer);
  if (layers - found.at(-1) < step * 0.6) found.pop();
  return [...found, layers];
}

/** A line from one point to another that leaves and arrives level. */
export function wire([ax, ay], [bx, by]) {
  const middle = (ax + bx) / 2;
  return `M${ax} ${ay}C${middle} ${ay} ${middle} ${by} ${bx} ${by}`;
}
