// Makes elements, and words for times, sizes and states. Text is only ever set as text, so that no
// value of a run becomes markup.

export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, part] of Object.entries(value)) element.style.setProperty(key, part);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export function replace(element, ...children) {
  element.replaceChildren(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "—";
  const rounded = (value) => (value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2)).replace(/\.?0+$/, (zeros) => (zeros.startsWith(".") ? "" : zeros));
  if (seconds < 1e-3) return `${rounded(seconds * 1e6)} µs`;
  if (seconds < 1) return `${rounded(seconds * 1e3)} ms`;
  if (seconds < 60) return `${rounded(seconds)} s`;
  const whole = Math.round(seconds);
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

export function moment(seconds) {
  if (!seconds) return "—";
  const then = new Date(seconds * 1000);
  const day = then.toDateString() === new Date().toDateString() ? "" : then.toLocaleDateString() + " ";
  return day + then.toLocaleTimeString();
}

export function bytes(count) {
  if (count === null || count === undefined) return "—";
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (count < 1024) return `${unit === "B" ? count : count.toFixed(1)} ${unit}`;
    count /= 1024;
  }
  return `${count.toFixed(1)} TiB`;
}

export const number = (value) => (value ?? 0).toLocaleString("en");

// The states of nodes, in the order of all lists, each with a sign: no state is told by its colour
// alone.
export const STATES = { done: "✓", running: "▸", ready: "◦", waiting: "·", failed: "✗", skipped: "⊘", cancelled: "■" };

export function state(name) {
  return h("span", { class: `state ${["killed", "ended abruptly"].includes(name) ? "abrupt" : name.split(",")[0]}` }, name);
}

// "997 done · 3 failed": only the states that some have.
export function counted(counts, names = Object.keys(STATES)) {
  return names.filter((name) => counts?.[name]).map((name) => `${number(counts[name])} ${name}`).join(" · ");
}

// A bar with a part for each state; `all` is the number of nodes.
export function meter(counts, all) {
  const share = (count) => `${(100 * count) / Math.max(1, all)}%`;
  return h(
    "span",
    { class: "meter", role: "img", "aria-label": `${counted(counts) || "nothing done"}, of ${number(all)}` },
    ["done", "running", "failed", "skipped", "cancelled"].map((name) => (counts?.[name] ? h("i", { class: name, style: { width: share(counts[name]) } }) : null)),
  );
}

// The text without the codes that colour a terminal: Python and others write them.
export const uncoloured = (text) => text.replace(/\x1b\[[0-9;?]*[ -/]*[@-~]/g, "");

// The first line of an error, as `ValueError: no such angle`, without the module of its class.
export function errorLine(error) {
  const kind = error.type.split(".").pop();
  const message = uncoloured(error.message ?? "").split("\n")[0];
  // The message of this kind says everything, and names the error of the last attempt.
  if (kind === "ProcessRetryException" && message) return message;
  return `${kind}${message ? ": " : ""}${message}`;
}

// A line chart of values over seconds. Its caption has the highest value and the last second.
export function chart(title, lines, seconds, shown) {
  const [width, height] = [600, 90];
  const top = Math.max(1e-9, ...lines.flatMap((line) => line.points.map(([, value]) => value)));
  const end = Math.max(1e-9, seconds);
  // A value holds for the time before its point.
  const draw = (points) => [[0, points[0]?.[1] ?? 0], ...points].map(([at, value], index) => `${index ? "L" : "M"}${((at / end) * width).toFixed(1)} ${(height - (value / top) * (height - 4) - 1).toFixed(1)}`).join("");
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const label = lines.map((line) => `${line.name}: at most ${shown(Math.max(0, ...line.points.map(([, value]) => value)))}`).join(", ");
  for (const [name, value] of Object.entries({ viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img", "aria-label": `${title} over ${duration(seconds)}; ${label}` })) svg.setAttribute(name, value);
  for (const line of lines) {
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    path.setAttribute("d", draw(line.points));
    path.setAttribute("stroke", line.colour);
    if (line.dash) path.setAttribute("stroke-dasharray", line.dash);
    svg.append(path);
  }
  return h(
    "figure",
    { class: "chart" },
    h("figcaption", {}, h("b", {}, title), h("span", { class: "quiet" }, ` at most ${shown(top)}, in ${duration(seconds)}`)),
    svg,
    lines.length > 1 ? h("div", { class: "legend" }, lines.map((line) => h("span", {}, h("i", { class: "swatch", style: { background: line.colour } }), line.name))) : null,
  );
}

const dark = matchMedia("(prefers-color-scheme: dark)");
const HUES = [172, 22, 214, 280, 48, 330, 120, 248, 0, 90];
export function colour(index) {
  const light = (dark.matches ? 66 : 31) + 5 * (Math.floor(index / HUES.length) % 2);
  return `hsl(${HUES[index % HUES.length]} ${52 + 10 * (Math.floor(index / HUES.length) % 3)}% ${light}%)`;
}

export function css(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

// A table; keys move from row to row. Columns are [title, row => content, class?]. A column with a
// title is left out if all its cells are empty.
export function table(all, rows, open, label) {
  const filled = (content) => content !== "" && content !== null && content !== undefined && content !== "—";
  const columns = all.filter(([title, content]) => !title || !rows.length || rows.some((row) => filled(content(row))));
  const body = h("tbody");
  for (const row of rows) {
    const line = h(
      "tr",
      open ? { class: "row", tabindex: "0", onclick: (event) => event.target.closest("a, button, input") || open(row), onkeydown: (event) => event.key === "Enter" && event.target === line && open(row) } : {},
      columns.map(([, content, kind]) => h("td", { class: kind }, content(row))),
    );
    line.dataset.key = row.id ?? row.node ?? "";
    body.append(line);
  }
  return h("div", { class: "scroll" }, h("table", { "aria-label": label }, h("thead", {}, h("tr", {}, columns.map(([title, , kind]) => h("th", { class: kind, scope: "col" }, title)))), body));
}
