// One run: its graph, its timeline, its nodes, and the rest of its record. A live one is updated.

import { Gone, get, listen } from "./api.js";
import { counted, duration, errorLine, h, meter, moment, number, replace, state } from "./dom.js";
import { graphView } from "./graph.js";
import { timelineView } from "./timeline.js";
import { nodesView } from "./nodes.js";
import { progressView } from "./progress.js";
import { aboutView } from "./about.js";
import { nodePanel } from "./node.js";

const TABS = { graph: ["Graph", graphView], timeline: ["Timeline", timelineView], nodes: ["Nodes", nodesView], progress: ["Progress", progressView], about: ["About", aboutView] };

export function runPage(place, id, tab = "graph") {
  if (!(tab in TABS)) tab = "graph";
  place.content.className = "fill";
  const head = h("div", { class: "run-head" });
  const tabs = h("div", { role: "tablist", "aria-label": "Views" });
  const view = h("div", { class: "view", role: "tabpanel" });
  const split = h("div", { class: "split" }, view);
  const run = { id, info: null, live: false, select, view: null, show };
  let panel = null;
  let stop = null;
  let left = false;
  let nodeOpen = place.parameters.get("node");

  replace(place.content, head, tabs, split);
  place.trail("run ", h("span", { class: "mono" }, id));

  function link(name, node = nodeOpen) {
    return `#/run/${encodeURIComponent(id)}/${name}${node === null || node === undefined ? "" : `?node=${encodeURIComponent(node)}`}`;
  }

  function drawTabs() {
    const focused = tabs.contains(document.activeElement);
    replace(
      tabs,
      Object.entries(TABS).map(([name, [title]]) =>
        h("button", { type: "button", role: "tab", "aria-selected": String(name === tab), tabindex: name === tab ? "0" : "-1", onclick: () => (location.hash = link(name)) }, title),
      ),
    );
    if (focused) tabs.querySelector('[aria-selected="true"]').focus();
  }

  function drawHead() {
    const info = run.info;
    const counts = info.counts ?? {};
    const focused = head.contains(document.activeElement);
    document.title = `${info.task} · entangle`;
    replace(
      head,
      h("h1", {}, info.task || "a run"),
      state(info.state),
      h("span", {}, info.stream ? `${number(info.nodes)} stages` : `${number(info.nodes)} nodes`),
      run.live && !info.stream ? meter(counts, info.nodes) : null,
      run.live || counts.failed || counts.skipped ? h("span", { class: "quiet counts" }, run.live && info.stream ? `items: ${counted(counts) || "none yet"}` : counted(counts)) : null,
      info.taken ? h("span", { class: "quiet", title: "Calls whose values were in a depot: they are no nodes of this run" }, `${number(info.taken)} more from the depot`) : null,
      h("span", {}, duration(info.seconds)),
      h("span", { class: "quiet narrow-hide" }, moment(info.began)),
      info.parent ? h("a", { href: `#/run/${info.parent.run}?node=${info.parent.node ?? ""}` }, "part of a run") : null,
      h("span", { class: "quiet narrow-hide" }, Object.entries(info.tags ?? {}).map(([key, value]) => `${key}=${value}`).join(" ")),
      run.live && info.away?.length ? h("p", { class: "away", role: "status" }, info.away.map(elsewhere)) : null,
      info.error ? problem(info.error) : null,
    );
    if (focused) head.querySelector(".problem")?.focus();
  }

  // How many nodes are at a place, and why it does not run them yet.
  function elsewhere(one) {
    return h("span", {}, h("b", {}, one.place), ` ${number(one.nodes)} `, one.why ? h("span", { class: "waits" }, one.why) : "running there");
  }

  // The error that ended the run, and a link to the node that failed.
  function problem(error) {
    const known = error.node !== null && error.node !== undefined;
    return h(
      "p",
      { class: "problem", role: "alert" },
      h("span", { class: "said" }, errorLine(error)),
      known ? h("a", { href: link("graph", String(error.node)) }, `to node ${error.node}`) : null,
    );
  }

  // "failed" stands for the node whose failure ended the run.
  function nodeNamed(node) {
    return node === "failed" ? (run.info?.error?.node !== null && run.info?.error?.node !== undefined ? String(run.info.error.node) : null) : node;
  }

  function show(name) {
    tab = name;
    drawTabs();
    run.view?.leave?.();
    view.className = "view";
    replace(view);
    run.view = TABS[name][1](view, run);
    run.view.chosen?.(nodeOpen);
  }

  // A node is named "<number>", or "<run>:<number>" where it belongs to a run nested in this one.
  function select(node, quietly) {
    nodeOpen = node ?? null;
    panel?.leave?.();
    panel?.element.remove();
    panel = null;
    if (nodeOpen !== null) {
      panel = nodePanel(run, nodeOpen, { close: () => select(null), trace: (which, keys) => run.view?.mark?.(which, keys) });
      split.append(panel.element);
    }
    run.view?.chosen?.(nodeOpen);
    run.view?.resized?.();
    if (!quietly) history.replaceState(null, "", link(tab));
  }

  async function load() {
    try {
      run.info = await get(`api/runs/${encodeURIComponent(id)}`);
    } catch (error) {
      if (!left) place.failed(error);
      return;
    }
    if (left) return;
    run.live = run.info.live;
    nodeOpen = nodeNamed(nodeOpen);
    drawHead();
    show(tab);
    if (nodeOpen !== null) select(nodeOpen, true);
    if (run.live) follow();
  }

  function follow() {
    stop = listen(`api/runs/${encodeURIComponent(id)}/events`, {
      look: (look) => {
        Object.assign(run.info, { seconds: look.seconds, counts: look.counts, nodes: look.nodes, workers: look.workers, away: look.away, stream: look.stream ?? null });
        drawHead();
        run.view?.look?.(look);
        panel?.look?.();
      },
      ended: async () => {
        stop?.();
        stop = null;
        // The record is written as the run ends, so it may take some looks to find it.
        for (let tries = 0; tries < 20 && !left; tries++) {
          try {
            const info = await get(`api/runs/${encodeURIComponent(id)}`);
            if (!info.live) {
              run.info = info;
              run.live = false;
              drawHead();
              if (run.view?.ended) run.view.ended();
              else show(tab);
              if (nodeOpen !== null) select(nodeOpen, true);
              return;
            }
          } catch (error) {
            if (!(error instanceof Gone)) break;
          }
          await new Promise((resolve) => setTimeout(resolve, 150));
        }
        if (!left) {
          run.live = false;
          run.info.state = "over, and not remembered";
          drawHead();
        }
      },
    });
  }

  load();
  return {
    accepts(path, parameters) {
      const found = path.match(/^\/run\/([^/?]+)(?:\/([a-z]+))?$/);
      if (!found || decodeURIComponent(found[1]) !== id || !run.info) return false;
      const wanted = found[2] ?? "graph";
      if (wanted !== tab && wanted in TABS) show(wanted);
      const node = nodeNamed(parameters.get("node"));
      if (node !== nodeOpen) select(node, true);
      return true;
    },
    leave() {
      left = true;
      stop?.();
      panel?.leave?.();
      run.view?.leave?.();
    },
    escape() {
      if (panel) return select(null), true;
      location.hash = "#/";
      return true;
    },
    key(event) {
      if (run.view?.key?.(event)) return true;
      const name = { g: "graph", t: "timeline", n: "nodes", p: "progress", a: "about" }[event.key];
      if (name) location.hash = link(name);
      if (event.key === "m") panel?.made?.();
      if (tabs.contains(document.activeElement) && ["ArrowLeft", "ArrowRight"].includes(event.key)) {
        const names = Object.keys(TABS);
        location.hash = link(names[(names.indexOf(tab) + (event.key === "ArrowRight" ? 1 : names.length - 1)) % names.length]);
        return true;
      }
      return Boolean(name) || event.key === "m";
    },
  };
}
