// The panel of one node: its task, its arguments, its value, its times, and what made its value.

import { get } from "./api.js";
import { bytes, duration, errorLine, h, moment, number, replace, state, uncoloured } from "./dom.js";

const SPANS = [["arguments", "waiting for arguments", "--waiting"], ["queue", "waiting for a worker", "--ready"], ["cookie", "waiting for a cookie", "--cancelled"], ["tried", "attempts that failed", "--failed"], ["pauses", "pauses between attempts", "--skipped"], ["moving", "moving data", "--part"], ["elsewhere", "queued in its place", "--ready"], ["running", "running", "--done"]];

export function nodePanel(run, key, { close, trace }) {
  const body = h("div");
  const heading = h("h2", { tabindex: "-1" }, "…");
  const element = h("aside", { "aria-label": "Node" }, h("div", { class: "top" }, heading, h("button", { type: "button", "aria-label": "Close", title: "Close (Esc)", onclick: close }, "×")), body);
  let left = false;
  let asked = null;

  function pair(name, value) {
    return value === null || value === undefined || value === "" ? [] : [h("dt", {}, name), h("dd", {}, value)];
  }

  function shown(value) {
    if (!value) return h("span", { class: "quiet" }, "—");
    return [
      h("span", { class: "value" }, value.text ?? ""),
      h("div", { class: "quiet" }, [value.type, value.size !== null && value.size !== undefined ? bytes(value.size) : "", value.hash ? h("a", { class: "mono", href: `#/value/${value.hash}`, title: "What made this value, in any run" }, value.hash.slice(0, 12)) : ""].filter(Boolean).flatMap((part, index) => (index ? [" · ", part] : [part]))),
    ];
  }

  function spans(parts) {
    const there = SPANS.filter(([name]) => parts?.[name] > 0);
    const all = there.reduce((sum, [name]) => sum + parts[name], 0);
    if (!all) return null;
    return [
      h("h3", {}, "Time"),
      h("div", { class: "spans", role: "img", "aria-label": there.map(([name, title]) => `${title} ${duration(parts[name])}`).join(", ") }, there.map(([name, , variable]) => h("i", { style: { width: `${(100 * parts[name]) / all}%`, background: `var(${variable})` } }))),
      h("div", { class: "legend" }, there.map(([name, title, variable]) => h("span", {}, h("i", { class: "swatch", style: { background: `var(${variable})` } }), `${title} ${duration(parts[name])}`))),
    ];
  }

  // The attempts on one time line, and why each failed.
  function attempts(tries) {
    if (!tries?.length) return null;
    const timed = tries.filter((one) => one.began !== null && one.began !== undefined);
    const first = Math.min(...timed.map((one) => one.began));
    const last = Math.max(...timed.map((one) => one.ended ?? one.began), first + 1e-9);
    const part = (seconds) => `${(100 * seconds) / (last - first)}%`;
    return [
      h("h3", {}, "Attempts"),
      timed.length
        ? h("div", { class: "attempts", role: "img", "aria-label": tries.map((one) => `attempt ${one.number} ${one.error ? "failed" : "ended well"}`).join(", ") }, timed.map((one) => h("i", { class: one.error ? "failed" : "done", style: { left: part(one.began - first), width: part((one.ended ?? one.began) - one.began) } })))
        : null,
      h(
        "ol",
        { class: "tries" },
        tries.map((one) => h("li", { value: one.number }, one.began === null || one.began === undefined ? "had not begun" : `${duration(one.ended - one.began)}, from ${duration(one.began)}${one.place ? `, on ${one.place}${one.ticket ? `, ${one.ticket}` : ""}` : one.pid ? `, pid ${one.pid}` : ""}`, one.error ? h("div", { class: "value problem" }, uncoloured(one.error)) : h("div", { class: "value" }, "ended well"))),
      ),
    ];
  }

  function stage(items) {
    if (!items) return null;
    const names = { done: "done", running: "in its body", waiting: "waiting", failed: "failed", skipped: "skipped, since an earlier stage had failed" };
    return [h("h3", {}, "Items"), h("dl", {}, Object.entries(names).flatMap(([name, title]) => (items[name] ? pair(title, number(items[name])) : [])), pair("items a second", items.rate >= 100 ? number(Math.round(items.rate)) : items.rate.toFixed(1)), pair("in bodies", duration(items.busy)), pair("an item", items.done ? duration(items.busy / items.done) : null))];
  }

  function origin(found) {
    if (found.made) return h("p", { class: "origin" }, `From the depot, made ${moment(found.made)}, key `, h("span", { class: "mono" }, found.depot_key));
    return found.hit === false ? h("p", { class: "origin quiet" }, "Not in the depot before, key ", h("span", { class: "mono" }, found.depot_key)) : null;
  }

  async function lead(which) {
    if (asked === which) {
      asked = null;
      trace(which, null);
      return draw(node);
    }
    asked = which;
    try {
      const found = await get(`api/runs/${encodeURIComponent(run.id)}/${which}/${encodeURIComponent(key)}`);
      if (left) return;
      trace(which, found);
      draw(node, found);
    } catch (error) {
      if (!left) body.append(h("p", { role: "alert" }, error.message));
    }
  }

  let node = null;
  function draw(found, way = null) {
    node = found;
    replace(heading, found.name ?? found.task);
    replace(
      body,
      h("p", {}, state(found.state), " ", h("span", { class: "quiet" }, `${found.name ? `${found.task}, ` : ""}${found.items ? "stage" : "node"} ${found.node}${found.attempts > 1 ? `, ${found.attempts} attempts` : ""}${found.pausing ? ", pausing between attempts" : ""}`)),
      found.why ? h("p", { class: "waits" }, found.why) : null,
      found.cause ? h("p", {}, "Skipped, since ", h("a", { href: `#/run/${encodeURIComponent(run.id)}/graph?node=${encodeURIComponent(found.cause.node)}` }, found.cause.task ?? `node ${found.cause.node}`), " has failed.") : null,
      h(
        "p",
        { class: "bar" },
        h("button", { type: "button", "aria-pressed": String(asked === "ancestors"), onclick: () => lead("ancestors") }, "What made this value"),
        h("button", { type: "button", "aria-pressed": String(asked === "descendants"), onclick: () => lead("descendants") }, "What it led to"),
      ),
      way
        ? [
            h("h3", {}, `${number(way.total)} ${asked === "ancestors" ? "calls made it" : "calls depend on it"}`),
            h("ol", { class: "way" }, way.list.map((one) => h("li", {}, h("a", { href: `#/run/${encodeURIComponent(run.id)}/graph?node=${encodeURIComponent(one.id)}` }, one.task), " ", h("span", { class: "value quiet" }, one.value ?? "")))),
            way.total > way.list.length ? h("p", { class: "quiet" }, `… and ${number(way.total - way.list.length)} more`) : null,
          ]
        : null,
      found.error ? [h("h3", {}, "Error"), h("p", { class: "value problem" }, errorLine(found.error))] : null,
      attempts(found.tries),
      stage(found.items),
      found.printed ? [h("h3", {}, "Printed"), h("pre", { tabindex: "0" }, uncoloured(found.printed))] : null,
      found.error?.traceback ? [h("h3", {}, "Traceback"), h("pre", { class: "error", tabindex: "0" }, uncoloured(found.error.traceback))] : null,
      found.items || (run.live && !found.output) ? null : [h("h3", {}, "Value"), h("div", {}, shown(found.output)), origin(found)],
      h("h3", {}, "Arguments"),
      found.inputs.length
        ? h("dl", {}, found.inputs.map((input) => [h("dt", {}, input.name), h("dd", {}, input.source !== null && input.source !== undefined ? h("a", { href: `#/run/${encodeURIComponent(run.id)}/graph?node=${encodeURIComponent(input.source)}` }, `${input.task} `) : null, shown(input.value))]))
        : h("p", { class: "quiet" }, run.live ? "Values are known when the run is over." : "none"),
      spans(found.spans),
      h("h3", {}, "Where"),
      h("dl", {}, pair("host", found.host), pair("place", found.place), pair("ticket", found.ticket), pair("queued there", found.queued ? duration(found.queued) : null), pair("worker", found.pid ? String(found.pid) : null), pair("cpu", found.cpu >= 0 ? String(found.cpu) : null), pair("memory", found.memory ? bytes(found.memory) : null), pair("began", found.started !== null && found.started !== undefined ? `${duration(found.started)} into the run` : null), pair("attributes", Object.entries(found.attributes ?? {}).map(([name, value]) => `${name}=${value}`).join(" ")), pair("layers", found.layers)),
      found.nested?.length ? [h("h3", {}, "Ran inside"), h("ul", {}, found.nested.map((inner) => h("li", {}, h("a", { href: `#/run/${inner.id}` }, inner.task), h("span", { class: "quiet" }, ` ${number(inner.nodes)} nodes`))))] : null,
      found.source ? [h("h3", {}, found.code ? ["Source ", h("span", { class: "mono quiet" }, found.code.slice(0, 12))] : "Source"), h("pre", { tabindex: "0" }, found.source)] : null,
    );
  }

  let last = 0;
  function load() {
    last = Date.now();
    get(`api/runs/${encodeURIComponent(run.id)}/nodes/${encodeURIComponent(key)}`).then(
      (found) => left || asked || draw(found),
      (error) => left || node || replace(body, h("p", { role: "alert" }, error.message)),
    );
  }
  load();

  return {
    element,
    // Redrawing would lose what is selected in the panel, so it is not done while the focus is there.
    look: () => Date.now() - last > 1000 && !(node && ["done", "failed", "skipped"].includes(node.state) && !node.items) && !element.contains(document.activeElement) && load(),
    made: () => lead("ancestors"),
    leave() {
      left = true;
      trace("", null);
    },
  };
}
