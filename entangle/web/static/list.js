// All runs: live ones as cards that are updated; unfinished durable runs and remembered runs as
// tables.

import { get, listen } from "./api.js";
import { counted, duration, errorLine, h, meter, moment, number, replace, state, table } from "./dom.js";

const PAGE = 100;

// The command of a program, without the directories of its file.
function shortProgram(program) {
  const [first, ...rest] = program.split(" ");
  return [first.split("/").pop(), ...rest].join(" ");
}

// What to say besides the state: failures in a run that ended well, and skipped nodes.
function unusual(run) {
  return counted({ failed: run.state === "failed" && run.failed === 1 ? 0 : run.failed, skipped: run.skipped });
}

export function listPage(place) {
  const live = h("section", { "aria-label": "Running now" });
  const durable = h("section", { "aria-label": "Unfinished durable runs" });
  const heading = h("h2", { hidden: true }, "Remembered");
  const past = h("section", { "aria-label": "Remembered" });
  const search = h("input", { type: "search", placeholder: "task, id, tag, state …", "aria-label": "Search", oninput: () => later() });
  const states = h("select", { "aria-label": "State", onchange: () => load() }, ["any state", "done", "failed", "cancelled", "killed"].map((name) => h("option", { value: name === "any state" ? "" : name }, name)));
  const compare = h("button", { type: "button", class: "narrow-hide", disabled: true, onclick: () => (location.hash = `#/compare/${[...chosen].map(encodeURIComponent).join("/")}`) }, "Compare two");
  const chosen = new Set();
  let limit = PAGE;
  let timer = 0;
  let known = null;
  let seen = null;
  let ended = false;

  replace(place.content, h("div", { class: "bar" }, h("h1", { class: "grow" }, "Runs"), search, states, compare), live, durable, heading, past);

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
      found = await get(`api/runs?limit=${limit}&state=${states.value}&query=${encodeURIComponent(search.value)}`);
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
        search.value || states.value
          ? h("div", { class: "empty" }, "No run matches.")
          : h("div", { class: "empty" }, h("p", {}, "Nothing is remembered yet. Run something:"), h("pre", {}, "python -m entangle.examples.example_graph")),
      );
      return;
    }
    const longest = Math.max(1e-9, ...found.runs.map((run) => run.seconds ?? 0));
    const columns = [
      ["", (run) => h("input", { type: "checkbox", value: run.id, "aria-label": `Compare ${run.task} ${run.id.slice(0, 8)}`, onchange: (event) => choose(run.id, event.target.checked) }), "narrow-hide"],
      ["run", (run) => [h("a", { href: `#/run/${run.id}` }, run.task), run.error ? h("a", { class: "problem", href: `#/run/${run.id}${run.state === "failed" ? "?node=failed" : ""}`, title: errorLine(run.error) }, errorLine(run.error)) : null], "what"],
      ["state", (run) => [state(run.state), unusual(run) ? h("div", { class: "quiet" }, unusual(run) + (run.stream ? " items" : "")) : null]],
      ["began", (run) => moment(run.began), "number narrow-hide"],
      ["took", (run) => h("span", { class: "took" }, duration(run.seconds), h("i", { style: { width: `${(100 * (run.seconds ?? 0)) / longest}%` } })), "number"],
      ["nodes", (run) => (run.stream ? `${number(run.nodes)} stages` : number(run.nodes)), "number narrow-hide"],
      ["program", (run) => (run.program ? h("span", { class: "mono program", title: run.program }, shortProgram(run.program)) : ""), "narrow-hide"],
      ["tags", (run) => Object.entries(run.tags ?? {}).map(([key, value]) => `${key}=${value}`).join(" "), "narrow-hide"],
      ["commit", (run) => (run.commit ? h("span", { class: "mono quiet", title: run.dirty ? "with changes that are not committed" : "" }, run.commit.slice(0, 8) + (run.dirty ? "*" : "")) : ""), "narrow-hide"],
      ["id", (run) => h("span", { class: "mono quiet" }, run.id.slice(0, 8)), "narrow-hide"],
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
                run.stream ? null : meter(run.counts, run.nodes),
                h("div", {}, run.stream ? `a stream: ${counted(run.counts) || "nothing yet"}` : `${counted(run.counts, ["done", "running", "failed", "skipped"]) || "nothing done"}, of ${number(run.nodes)}`),
                h("div", { class: "quiet" }, `${duration(run.seconds)} · pid ${run.pid} · ${run.command}`),
              ),
            ),
          )
        : null,
    );
    head();
  }

  function head() {
    heading.hidden = !live.firstChild && !durable.firstChild;
  }

  async function loadDurable() {
    let found;
    try {
      found = await get("api/unfinished");
    } catch {
      seen = null; // ask again at the next event; the list of runs says what is wrong
      return;
    }
    if (ended) return;
    const columns = [
      ["durable run", (run) => [h("b", {}, run.name), h("code", { class: "command" }, run.command), run.open.length ? h("div", { class: "waits" }, `had begun: ${run.open.join(", ")}${run.more_open ? ` and ${number(run.more_open)} more` : ""}`) : null], "what"],
      ["state", (run) => run.state],
      ["begun", (run) => moment(run.begun), "number narrow-hide"],
      ["last change", (run) => moment(run.changed), "number"],
      ["ended", (run) => number(run.ended), "number"],
      ["program", (run) => (run.program ? h("span", { class: "mono program", title: run.program }, shortProgram(run.program)) : ""), "narrow-hide"],
    ];
    replace(
      durable,
      found.runs.length ? h("h2", {}, "Unfinished durable runs") : null,
      found.runs.length ? table(columns, found.runs, null, "Unfinished durable runs") : null,
      found.count > found.runs.length ? h("p", { class: "quiet" }, `and ${number(found.count - found.runs.length)} more: entangle resume lists all`) : null,
    );
    head();
  }

  const stop = listen("api/events", {
    runs: (message) => {
      const at = document.activeElement?.closest?.("a.card")?.getAttribute("href");
      cards(message.live);
      if (at) live.querySelector(`a[href="${CSS.escape(at)}"]`)?.focus();
      if (known !== null && known !== message.version) load();
      // Ledgers change while a run lasts, so look when one begins or ends.
      const now = JSON.stringify([message.version, message.live.map((run) => run.id)]);
      if (seen !== now) loadDurable();
      seen = now;
      known = message.version;
    },
  });
  load();
  loadDurable();
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
