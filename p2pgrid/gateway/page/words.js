// How figures and names are written.

/** The end of a peer id: enough to tell nodes apart. */
export const short = (peer) => peer.slice(-6);

/** Layers as everywhere in p2pgrid: from the first one up to, not including, the last figure. */
export const span = ([start, stop]) => `${start}:${stop}`;

/** @param {number} figure */
export function digits(figure) {
  if (figure === 0) return "0";
  if (figure >= 100) return Math.round(figure).toLocaleString("en");
  return figure >= 10 ? figure.toFixed(0) : figure >= 1 ? figure.toFixed(1) : figure.toPrecision(1);
}

export const ms = (figure) => `${digits(figure)} ms`;

export const seconds = (figure) => `${figure >= 10 ? figure.toFixed(0) : figure.toFixed(2)} s`;

/** @param {number} n @param {string} one @param {string} [many] */
export const count = (n, one, many = `${one}s`) => `${n.toLocaleString("en")} ${n === 1 ? one : many}`;

export function size(bytes) {
  return bytes >= 1e9 ? `${(bytes / 1e9).toFixed(1)} GB` : `${(bytes / 1e6).toFixed(0)} MB`;
}

/** How long it takes or took, roughly. */
export function duration(s) {
  if (s < 2) return "a moment";
  if (s < 90) return count(Math.max(0, Math.round(s)), "second");
  if (s < 5400) return count(Math.round(s / 60), "minute");
  if (s < 172800) return count(Math.round(s / 3600), "hour");
  return count(Math.round(s / 86400), "day");
}

/** A list in a sentence. @param {string[]} parts */
export function and(parts) {
  return parts.length < 2 ? parts.join("") : `${parts.slice(0, -1).join(", ")} and ${parts.at(-1)}`;
}

/** What came from elsewhere, as a sentence. */
export function sentence(text) {
  const trimmed = text.trim();
  const begun = trimmed.charAt(0).toUpperCase() + trimmed.slice(1);
  return /[.!?]$/.test(begun) ? begun : `${begun}.`;
}
