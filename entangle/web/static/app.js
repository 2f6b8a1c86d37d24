// Shows the page that the address names, and handles the keys that work everywhere.

import { h, replace } from "./dom.js";
import { listPage } from "./list.js";
import { runPage } from "./run.js";
import { comparePage } from "./compare.js";
import { valuePage } from "./value.js";

const content = document.getElementById("content");
const trail = document.getElementById("trail");
const keys = document.getElementById("keys");
let page = null;

const PAGES = [
  [/^\/$/, () => listPage],
  [/^\/run\/([^/?]+)(?:\/([a-z]+))?$/, (id, tab) => (place) => runPage(place, id, tab)],
  [/^\/compare\/([^/]+)\/([^/]+)$/, (a, b) => (place) => comparePage(place, a, b)],
  [/^\/value\/([^/]+)$/, (hash) => (place) => valuePage(place, hash)],
];

function route() {
  const [path, query] = (location.hash.slice(1) || "/").split("?");
  const parameters = new URLSearchParams(query ?? "");
  // If only the parameters have changed, the page stays.
  if (page?.accepts?.(path, parameters)) return;
  page?.leave?.();
  page = null;
  content.className = "";
  replace(trail);
  replace(content, h("p", { class: "quiet" }, "…"));
  for (const [pattern, make] of PAGES) {
    const found = path.match(pattern);
    if (!found) continue;
    const place = {
      content,
      parameters,
      trail: (...parts) => replace(trail, parts),
      failed: (error) => replace(content, h("div", { class: "empty", role: "alert" }, error.message, h("p", {}, h("a", { href: "#/" }, "All runs")))),
    };
    page = make(...found.slice(1).map((part) => part && decodeURIComponent(part)))(place);
    document.title = "entangle";
    content.focus({ preventScroll: true });
    return;
  }
  replace(content, h("div", { class: "empty" }, "There is no such page. ", h("a", { href: "#/" }, "All runs")));
}

function moveRow(step) {
  const rows = [...content.querySelectorAll("tr.row, a.card")];
  if (!rows.length) return;
  const at = rows.indexOf(document.activeElement);
  rows[Math.max(0, Math.min(rows.length - 1, at < 0 ? 0 : at + step))].focus();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || keys.open) return;
  const typing = event.target.closest("input, select, textarea");
  if (event.key === "Escape") {
    if (typing) event.target.blur();
    else if (!page?.escape?.()) history.back();
    return;
  }
  if (typing) return;
  if (page?.key?.(event)) return event.preventDefault();
  if (event.key === "?") keys.showModal();
  else if (event.key === "/") content.querySelector('input[type="search"]')?.focus();
  else if (event.key === "j" || event.key === "ArrowDown") moveRow(1);
  else if (event.key === "k" || event.key === "ArrowUp") moveRow(-1);
  else return;
  event.preventDefault();
});
document.getElementById("help").addEventListener("click", () => keys.showModal());
addEventListener("hashchange", route);
route();
