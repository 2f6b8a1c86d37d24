// Two runs side by side: what differs in code, place, values and time.

import { get } from "./api.js";
import { duration, h, moment, number, replace, state, table } from "./dom.js";

export function comparePage(place, a, b) {
  let left = false;
  place.trail("two runs");

  function change(before, after) {
    if (!before || !after) return before === after ? "" : before ? h("span", { class: "removed" }, "gone") : h("span", { class: "added" }, "new");
    const factor = after / before;
    if (factor > 0.95 && factor < 1.05) return h("span", { class: "quiet" }, "as before");
    return factor < 1 ? h("span", { class: "added" }, `${(1 / factor).toFixed(2)} × faster`) : h("span", { class: "removed" }, `${factor.toFixed(2)} × slower`);
  }

  async function load() {
    let found;
    try {
      found = await get(`api/compare?a=${encodeURIComponent(a)}&b=${encodeURIComponent(b)}`);
    } catch (error) {
      return left || place.failed(error);
    }
    if (left) return;
    document.title = "Two runs · entangle";
    const heads = [found.a, found.b];
    const link = (run) => h("a", { href: `#/run/${run.id}` }, `${run.task} `, h("span", { class: "mono" }, run.id.slice(0, 8)));
    replace(
      place.content,
      h("div", { class: "bar" }, h("h1", { class: "grow" }, "Two runs"), h("a", { href: `#/compare/${b}/${a}` }, "swap them")),
      table(
        [
          ["", (row) => row[0]],
          ["first", (row) => row[1]],
          ["second", (row) => row[2]],
          ["", (row) => row[3] ?? ""],
        ],
        [
          ["run", link(found.a), link(found.b)],
          ["state", ...heads.map((run) => state(run.state))],
          ["began", ...heads.map((run) => moment(run.began))],
          ["took", ...heads.map((run) => duration(run.seconds)), change(found.a.seconds, found.b.seconds)],
          ["nodes", ...heads.map((run) => number(run.nodes))],
        ],
        null,
        "Two runs",
      ),
      h("h2", {}, "What differs"),
      found.differences.length
        ? table([["", (row) => row.what], ["first", (row) => row.a ?? "—", "wide"], ["second", (row) => row.b ?? "—", "wide"]], found.differences, null, "Differences")
        : h("p", { class: "quiet" }, "Code, commit, packages and place are the same."),
      h("h2", {}, "Tasks"),
      table(
        [
          ["task", (row) => row.task],
          ["calls", (row) => (row.a_count === row.b_count ? number(row.a_count) : `${number(row.a_count)} → ${number(row.b_count)}`), "number"],
          ["first, mean", (row) => duration(row.a_mean), "number"],
          ["second, mean", (row) => duration(row.b_mean), "number"],
          ["", (row) => change(row.a_mean, row.b_mean)],
          ["code", (row) => (row.code_changed ? h("span", { class: "removed" }, "changed") : h("span", { class: "quiet" }, "same"))],
        ],
        found.tasks,
        null,
        "Tasks",
      ),
      h("h2", {}, "Values"),
      found.same_graph
        ? found.values.length
          ? table(
              [
                ["node", (row) => h("a", { class: "mono", href: `#/run/${found.b.id}/graph?node=${row.node}` }, row.node), "number"],
                ["task", (row) => row.task],
                ["first", (row) => h("span", { class: "value" }, row.a), "wide"],
                ["second", (row) => h("span", { class: "value" }, row.b), "wide"],
              ],
              found.values,
              null,
              "Values that differ",
            )
          : h("p", { class: "quiet" }, "Every value that both runs have is the same.")
        : h("p", { class: "quiet" }, "The graphs differ in shape, so their nodes cannot be compared one by one."),
      found.same_graph && found.values_total > found.values.length ? h("p", { class: "quiet" }, `… and ${number(found.values_total - found.values.length)} more`) : null,
    );
  }
  load();
  return { leave: () => (left = true), escape: () => ((location.hash = "#/"), true) };
}
