// Each node has a hue, the same in every view for as long as the page is open.

const HUES = [188, 255, 75, 320, 140, 25, 285, 110];

/** @type {Map<string, number>} */
const given = new Map();

/** The hue that the fewest nodes have yet. */
export function hueOf(peer) {
  if (!given.has(peer)) {
    const uses = HUES.map((hue) => [...given.values()].filter((other) => other === hue).length);
    given.set(peer, HUES[uses.indexOf(Math.min(...uses))]);
  }
  return String(given.get(peer));
}
