// Elements, and the words for times, sizes and states. Text is set as text, so that no value of a
// run becomes markup.

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

export function state(name) {
  return h("span", { class: `state ${name === "ended abruptly" ? "abrupt" : name}` }, name);
}

export function meter(done, running, failed, all) {
  const share = (count) => `${(100 * count) / Math.max(1, all)}%`;
  return h(
    "span",
    { class: "meter", role: "img", "aria-label": `${number(done)} of ${number(all)} done` },
    h("i", { class: "done", style: { width: share(done) } }),
    h("i", { class: "running", style: { width: share(running) } }),
    h("i", { class: "failed", style: { width: share(failed) } }),
  );
}

const HUES = [172, 22, 214, 280, 48, 330, 120, 248, 0, 90];
export function colour(index) {
  return `hsl(${HUES[index % HUES.length]} ${55 + 10 * (Math.floor(index / HUES.length) % 3)}% ${44 + 8 * (Math.floor(index / HUES.length) % 2)}%)`;
}

export function css(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

// A table whose rows can be walked with the keyboard. Columns are [title, row => content, class?].
export function table(columns, rows, open, label) {
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
