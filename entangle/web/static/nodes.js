// The nodes of a run as a table, a page at a time: the server filters and sorts.

import { get } from "./api.js";
import { STATES, duration, h, number, replace, state, table } from "./dom.js";

const PAGE = 100;

export function nodesView(view, run) {
  view.className = "view text";
  const search = h("input", { type: "search", placeholder: "task or value", "aria-label": "Search", oninput: () => later() });
  const states = h("div", { class: "chips", role: "group", "aria-label": "State" });
  let wanted = "";
  const order = h("select", { "aria-label": "Order", onchange: () => load() }, [["node", "in order"], ["seconds", "longest first"], ["started", "by start"], ["memory", "most memory first"]].map(([value, title]) => h("option", { value }, title)));
  const summary = h("span", { class: "quiet", role: "status" });
  const place = h("div");
  let limit = PAGE;
  let timer = 0;
  let left = false;
  let last = 0;
  replace(view, h("div", { class: "bar" }, search, order, summary), states, place);

  function later() {
    clearTimeout(timer);
    timer = setTimeout(load, 150);
  }

  // A button for each state that occurs, with the number of its nodes.
  function drawStates(counts) {
    const focused = states.contains(document.activeElement) ? document.activeElement.dataset.state : null;
    const all = Object.values(counts).reduce((sum, count) => sum + count, 0);
    const button = (name, title, count) => h("button", { type: "button", "aria-pressed": String(wanted === name), "data-state": name, onclick: () => ((wanted = name), load()) }, name ? state(title) : title, h("span", { class: "quiet" }, ` ${number(count)}`));
    replace(states, button("", "all", all), Object.keys(STATES).filter((name) => counts[name] || name === wanted).map((name) => button(name, name, counts[name] ?? 0)));
    if (focused !== null) states.querySelector(`[data-state="${focused}"]`)?.focus();
  }

  async function load() {
    let found;
    try {
      found = await get(`api/runs/${encodeURIComponent(run.id)}/nodes?limit=${limit}&order=${order.value}&state=${wanted}&query=${encodeURIComponent(search.value)}`);
    } catch (error) {
      return void replace(place, h("div", { class: "empty", role: "alert" }, error.message));
    }
    if (left) return;
    drawStates(found.counts ?? {});
    const focused = document.activeElement?.closest?.("tr.row")?.dataset.key;
    const columns = [
      ["node", (node) => h("span", { class: "mono" }, node.node), "number"],
      ["task", (node) => (node.name ? [h("b", {}, node.name), " ", h("span", { class: "quiet" }, node.task)] : node.task)],
      ["state", (node) => (node.why ? [state(node.state), " ", h("span", { class: "waits" }, node.why)] : state(node.state))],
      ["ran", (node) => duration(node.seconds), "number"],
      ["value", (node) => (node.error ? h("span", { class: "value problem" }, node.error) : node.value === null || node.value === undefined ? "" : h("span", { class: "value" }, node.value)), "wide"],
      ["worker", (node) => (node.place ? `${node.place}${node.ticket ? ` ${node.ticket}` : ""}` : node.pid ? `${node.pid}${node.cpu >= 0 ? ` on cpu ${node.cpu}` : ""}` : ""), "narrow-hide"],
      ["tries", (node) => (node.attempts > 1 ? number(node.attempts) : ""), "number narrow-hide"],
    ];
    replace(summary, `${number(found.total)} nodes`);
    replace(place, table(columns, found.nodes, (node) => run.select(String(node.node)), "Nodes"), found.total > limit ? h("p", {}, h("button", { type: "button", onclick: () => ((limit += PAGE), load()) }, "More")) : null);
    if (focused) place.querySelector(`tr[data-key="${CSS.escape(focused)}"]`)?.focus();
  }

  load();
  return {
    look() {
      if (Date.now() - last > 1000) (last = Date.now()), load();
    },
    ended: load,
    leave() {
      left = true;
      clearTimeout(timer);
    },
  };
}
