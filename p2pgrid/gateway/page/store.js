// The swarm as the gateway sees it, kept current by its events.

import { request } from "./api.js";
import { readEvents } from "./sse.js";

const AGAIN_MS = [300, 1000, 3000, 3000, 3000, 10_000];
const MEASURED_S = 0.5;

/**
 * @typedef {[number, number]} Span layers from the first up to, not including, the second
 * @typedef {{name: string, layers: number, state: "ready" | "degraded" | "unavailable", reasons: string[], missing: Span[],
 *   nodes: number, tokens_per_s: number, tokens_per_s_max: number, token_seen_at_s: number | null, context: number,
 *   weights_bytes: number}} Model
 * @typedef {{model: string, state: "joining" | "serving" | "draining", span: Span | null, moving_to: Span | null, away: boolean,
 *   since_s: number, step_ms: number, queue_ms: number, sessions_open: number, sessions_free: number,
 *   kv_used: number | null, tokens_per_s: number, tokens_per_s_max: number, rtt_ms: number | null, delays_ms: Record<string, number>, agent: string,
 *   address: string}} SwarmNode
 * @typedef {{model: string, route: {peer: string, span: Span}[], tokens: number, recoveries: number}} Session
 */

class Store extends EventTarget {
  /** @type {any} */ gateway = null;
  /** @type {Record<string, Model>} */ models = {};
  /** @type {Record<string, SwarmNode>} */ nodes = {};
  /** @type {Record<string, Session>} */ sessions = {};
  connected = false;
  problem = "";
  /** @type {Map<string, {tokens: number, at_s: number, rate: number}>} */ #pace = new Map();

  /** Follow the events for as long as the page is open; `change` is dispatched with what differs from before. */
  async follow() {
    for (let failures = 0; ; failures++) {
      try {
        for await (const { event, data } of readEvents(await request("/p2pgrid/events"))) {
          this.#take(event, JSON.parse(data));
          failures = 0;
        }
        this.problem = "The gateway has ended. This page comes back when it does.";
      } catch (error) {
        this.problem = error.message;
      }
      this.connected = false;
      this.dispatchEvent(new Event("lost"));
      await new Promise((done) => setTimeout(done, AGAIN_MS[Math.min(failures, AGAIN_MS.length - 1)]));
    }
  }

  #take(event, news) {
    const before = { models: this.models, nodes: this.nodes, sessions: this.sessions };
    if (event === "snapshot") Object.assign(this, news);
    else {
      this.gateway = news.gateway ?? this.gateway;
      for (const part of ["models", "nodes", "sessions"]) this[part] = merged(this[part], news[part]);
    }
    this.connected = true;
    this.#measure(performance.now() / 1000);
    this.dispatchEvent(new CustomEvent("change", { detail: before }));
  }

  /** Nodes of a model as `[peer, node]`, by their layers. */
  nodesOf(model) {
    const found = Object.entries(this.nodes).filter(([, node]) => node.model === model);
    const first = ([peer, node]) => [node.span?.[0] ?? 1e9, node.span?.[1] ?? 1e9, peer];
    return found.sort((a, b) => compare(first(a), first(b)));
  }

  /** Tokens a second of the answers that run through a node, by what came here. */
  rateThrough(peer) {
    const through = Object.entries(this.sessions).filter(([, { route }]) => route.some((stage) => stage.peer === peer));
    return through.reduce((sum, [id]) => sum + this.#pace.get(id).rate, 0);
  }

  /** Tokens a second that a model gives: as its nodes say, some seconds late, or as they come here. */
  rateOf(model) {
    const own = Object.entries(this.sessions).filter(([, session]) => this.models[session.model] === model);
    return Math.max(model.tokens_per_s, own.reduce((sum, [id]) => sum + this.#pace.get(id).rate, 0));
  }

  #measure(now_s) {
    const pace = new Map();
    for (const [id, { tokens }] of Object.entries(this.sessions)) {
      const last = this.#pace.get(id) ?? { tokens, at_s: now_s, rate: 0 };
      const took_s = now_s - last.at_s;
      if (took_s < MEASURED_S) pace.set(id, last);
      else pace.set(id, { tokens, at_s: now_s, rate: (tokens - last.tokens) / took_s });
    }
    this.#pace = pace;
  }

  /** The model that can be asked best. */
  bestModel() {
    const rank = { ready: 0, degraded: 1, unavailable: 2 };
    const all = Object.entries(this.models).sort(([, a], [, b]) => rank[a.state] - rank[b.state]);
    return all.length ? all[0][0] : null;
  }
}

function merged(known, news) {
  if (!news) return known;
  const all = { ...known, ...news };
  for (const key of Object.keys(news)) if (news[key] === null) delete all[key];
  return all;
}

function compare(a, b) {
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return a[i] < b[i] ? -1 : 1;
  return 0;
}

export const store = new Store();
