// All runs: live ones as cards that move, those that are remembered as a table.

import { get, listen } from "./api.js";
import { duration, h, meter, moment, number, replace, state, table } from "./dom.js";

const PAGE = 100;

export function listPage(place) {
  const live = h("section", { "aria-label": "Running now" });
  const past = h("section", { "aria-label": "Remembered" });
  const search = h("input", { type: "search", placeholder: "task, id, tag, state …", "aria-label": "Search", oninput: () => later() });
  const compare = h("button", { type: "button", disabled: true, onclick: () => (location.hash = `#/compare/${[...chosen].map(encodeURIComponent).join("/")}`) }, "Compare two");
  const chosen = new Set();
  let limit = PAGE;
  let timer = 0;
  let known = null;
  let ended = false;

  replace(place.content, h("div", { class: "bar" }, h("h1", { class: "grow" }, "Runs"), search, compare), live, past);

  function later() {
    clearTimeout(timer);
    timer = setTimeout(load, 150);
  }

  function choose(id, wanted) {
    if (wanted) chosen.add(id);
    else chosen.delete(id);
    while (chosen.size > 2) chosen.delete(chosen.values().next().value);
    for (const box of past.querySelectorAll('input[type="checkbox"]')) box.checked = chosen.has(box.value);
    compare.disabled = chosen.size !== 2;
  }

  async function load() {
    let found;
    try {
      found = await get(`api/runs?limit=${limit}&query=${encodeURIComponent(search.value)}`);
    } catch (error) {
      if (!ended) replace(past, h("div", { class: "empty", role: "alert" }, error.message));
      return;
    }
    if (ended) return;
    const focused = document.activeElement?.closest?.("tr.row")?.dataset.key;
    const leftOut = (found.left_out ?? []).map((line) => h("p", { class: "quiet", role: "note" }, line));
    if (!found.runs.length) {
      replace(
        past,
        leftOut,
        search.value
          ? h("div", { class: "empty" }, "No run fits.")
          : h("div", { class: "empty" }, h("p", {}, "Nothing is remembered yet. Run something:"), h("pre", {}, "python -m entangle.examples.example_graph")),
      );
      return;
    }
    const columns = [
      ["", (run) => h("input", { type: "checkbox", value: run.id, "aria-label": `Compare ${run.id}`, onchange: (event) => choose(run.id, event.target.checked) })],
      ["task", (run) => h("a", { href: `#/run/${run.id}` }, run.task)],
      ["state", (run) => state(run.state)],
      ["began", (run) => moment(run.began), "number"],
      ["took", (run) => duration(run.seconds), "number"],
      ["nodes", (run) => number(run.nodes), "number narrow-hide"],
      ["id", (run) => h("span", { class: "mono quiet" }, run.id.slice(0, 8)), "narrow-hide"],
      ["commit", (run) => h("span", { class: "mono quiet" }, run.commit ? run.commit.slice(0, 8) + (run.dirty ? "*" : "") : ""), "narrow-hide"],
      ["tags", (run) => Object.entries(run.tags ?? {}).map(([key, value]) => `${key}=${value}`).join(" "), "narrow-hide"],
    ];
    replace(
      past,
      leftOut,
      table(columns, found.runs, (run) => (location.hash = `#/run/${run.id}`), "Runs"),
      found.more ? h("p", {}, h("button", { type: "button", onclick: () => ((limit += PAGE), load()) }, "More")) : null,
    );
    choose("", false);
    if (focused) past.querySelector(`tr[data-key="${CSS.escape(focused)}"]`)?.focus();
  }

  function cards(runs) {
    replace(
      live,
      runs.length ? h("h2", {}, "Running now") : null,
      runs.length
        ? h(
            "div",
            { class: "cards" },
            runs.map((run) =>
              h(
                "a",
                { class: "card", href: `#/run/${run.id}` },
                h("b", {}, run.task || "a run"),
                meter(run.done, run.running, run.failed, run.nodes),
                h("div", {}, `${number(run.done)} of ${number(run.nodes)} done, ${number(run.running)} running`),
                h("div", { class: "quiet" }, `${duration(run.seconds)} · pid ${run.pid} · ${run.command}`),
              ),
            ),
          )
        : null,
      runs.length ? h("h2", {}, "Remembered") : null,
    );
  }

  const stop = listen("api/events", {
    runs: (message) => {
      const at = document.activeElement?.closest?.("a.card")?.getAttribute("href");
      cards(message.live);
      if (at) live.querySelector(`a[href="${CSS.escape(at)}"]`)?.focus();
      if (known !== null && known !== message.version) load();
      known = message.version;
    },
  });
  load();
  return {
    leave() {
      ended = true;
      clearTimeout(timer);
      stop();
    },
    escape: () => true,
    key(event) {
      if (event.key !== "c") return false;
      const row = document.activeElement?.closest?.("tr.row");
      if (row) choose(row.dataset.key, !chosen.has(row.dataset.key));
      return Boolean(row);
    },
  };
}
