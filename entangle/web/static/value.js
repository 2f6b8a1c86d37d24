// What made this value: the calls of all runs whose value has this hash, and their arguments.

import { get } from "./api.js";
import { duration, h, moment, number, replace, table } from "./dom.js";

export function valuePage(place, hash) {
  let left = false;
  place.trail("value ", h("span", { class: "mono" }, hash.slice(0, 12)));
  get(`api/values/${encodeURIComponent(hash)}`).then(
    (found) => {
      if (left) return;
      document.title = "Value · entangle";
      replace(
        place.content,
        h("div", { class: "bar" }, h("h1", {}, "What made this value")),
        h("p", {}, h("span", { class: "mono quiet" }, `sha-256 ${hash}`)),
        found.text ? h("p", { class: "value" }, found.text) : null,
        h("h2", {}, `Made by ${number(found.makers.length)} ${found.makers.length === 1 ? "call" : "calls"}`),
        table(
          [
            ["task", (maker) => maker.task],
            ["run", (maker) => h("a", { class: "mono", href: `#/run/${maker.run}/graph?node=${maker.node}` }, maker.run.slice(0, 8))],
            ["when", (maker) => moment(maker.ended)],
            ["ran", (maker) => duration(maker.seconds), "number"],
            ["from", (maker) => maker.from.map((one, index) => [index ? ", " : "", one.hash ? h("a", { href: `#/value/${one.hash}` }, one.text) : one.text]), "wide"],
            ["code", (maker) => h("span", { class: "mono quiet" }, (maker.code ?? "").slice(0, 12)), "narrow-hide"],
          ],
          found.makers,
          (maker) => (location.hash = `#/run/${maker.run}/graph?node=${maker.node}`),
          "Calls that made it",
        ),
      );
    },
    (error) => left || place.failed(error),
  );
  return { leave: () => (left = true) };
}
