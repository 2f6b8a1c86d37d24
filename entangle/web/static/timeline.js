// Which worker ran what, and when: a canvas with a lane for each worker, CPU or place. The server
// joins what is narrower than a pixel.

import { get } from "./api.js";
import { colour, css, duration, h, number, replace } from "./dom.js";

const WAYS = ["worker", "cpu", "place"];
const LABEL = 92;
const LANE = 24;
const AXIS = 24;

export function timelineView(view, run) {
  const canvas = h("canvas", { class: "time", tabindex: "0", role: "img", "aria-label": "Timeline; arrows move, plus and minus zoom" });
  const tip = h("div", { class: "tip", hidden: true });
  const stage = h("div", { class: "stage" }, canvas, tip);
  const legend = h("span", { class: "legend" });
  const summary = h("span", { class: "quiet", role: "status" });
  let by = "worker";
  let from = 0;
  let to = null;
  let data = null;
  let left = false;
  let scroll = 0;
  let chosen = null;
  let wait = 0;
  let asked = 0;
  let drag = null;

  const buttons = WAYS.map((name) => h("button", { type: "button", "aria-pressed": String(name === by), onclick: () => choose(name) }, `by ${name}`));
  replace(view, h("div", { class: "tools" }, buttons, h("button", { type: "button", onclick: all }, "All"), summary, legend), stage);

  function choose(name) {
    by = name;
    scroll = 0;
    buttons.forEach((button, index) => button.setAttribute("aria-pressed", String(WAYS[index] === name)));
    load();
  }

  function all() {
    from = 0;
    to = null;
    load();
  }

  async function load() {
    const ticket = ++asked;
    const range = to === null ? "" : `&start=${from}&end=${to}`;
    let found;
    try {
      found = await get(`api/runs/${encodeURIComponent(run.id)}/timeline?by=${by}&width=${Math.round(canvas.clientWidth || 800)}${range}`);
    } catch (error) {
      if (!left && !data) replace(stage, h("div", { class: "empty", role: "alert" }, error.message));
      return;
    }
    if (left || ticket !== asked) return;
    data = found;
    if (to === null) from = 0;
    const failures = [1, 2].filter((kind) => data.bars.some((bar) => bar[6] === kind));
    canvas.setAttribute("aria-label", `Timeline of ${data.lanes.length} lanes over ${duration(data.total)}: ${data.tasks.slice(0, 12).join(", ")}${failures.length ? "; some failed" : ""}. Arrows move, plus and minus zoom`);
    replace(legend, failures.map((kind) => h("span", {}, h("i", { class: `swatch ${kind === 2 ? "hatched" : "failed"}` }), kind === 2 ? "failed, tried again" : "failed")), data.tasks.slice(0, 12).map((name, index) => h("span", {}, h("i", { class: "swatch", style: { background: colour(index) } }), name)));
    replace(summary, `${number(data.lanes.length)} ${by === "cpu" ? "CPU" : by}${data.lanes.length === 1 ? "" : "s"}, ${duration(data.total)}, busy ${(100 * data.busy).toFixed(0)} %`);
    canvas.dataset.ready = "yes";
    canvas.dataset.bars = String(data.bars.length);
    draw();
  }

  const end = () => (to === null ? Math.max(data.total, 1e-9) : to);
  const x = (seconds) => LABEL + ((seconds - from) / (end() - from)) * (canvas.clientWidth - LABEL - 8);
  const seconds = (pixel) => from + ((pixel - LABEL) / (canvas.clientWidth - LABEL - 8)) * (end() - from);

  function draw() {
    if (!data || !canvas.clientWidth) return;
    const ratio = devicePixelRatio || 1;
    const width = canvas.clientWidth;
    const height = canvas.clientHeight;
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    pen.font = "12px system-ui, sans-serif";
    pen.textBaseline = "middle";
    const text = css("--text");
    const quiet = css("--quiet");
    const line = css("--line");
    const failed = css("--failed");
    const ground = css("--on-bar");
    pen.fillStyle = quiet;
    pen.strokeStyle = line;
    for (const tick of ticks(from, end(), Math.max(2, Math.floor((width - LABEL) / 90)))) {
      const at = x(tick);
      pen.beginPath();
      pen.moveTo(at + 0.5, AXIS - 6);
      pen.lineTo(at + 0.5, height);
      pen.stroke();
      if (at + 4 + pen.measureText(duration(tick)).width < width) pen.fillText(duration(tick), at + 4, AXIS / 2);
    }
    pen.save();
    pen.beginPath();
    pen.rect(LABEL, AXIS, width - LABEL, height - AXIS);
    pen.clip();
    const stripes = hatched(pen, failed);
    // Draw failures last: a neighbour must not cover a thin one.
    for (const [lane, started, ended, task, node, count, bad] of [...data.bars.filter((bar) => !bar[6]), ...data.bars.filter((bar) => bar[6])]) {
      const top = AXIS + lane * LANE - scroll;
      if (top < -LANE || top > height) continue;
      const begin = x(started);
      const wide = Math.max(bad ? 3 : 0.8, x(ended) - begin);
      pen.fillStyle = bad === 2 ? stripes : bad ? failed : task < 0 ? line : colour(task);
      pen.fillRect(begin, top + 3, wide, LANE - 6);
      if (bad) {
        pen.strokeStyle = failed;
        pen.strokeRect(begin + 0.5, top + 3.5, Math.max(1, wide - 1), LANE - 7);
      }
      if (chosen !== null && String(node) === String(chosen)) {
        pen.strokeStyle = text;
        pen.lineWidth = 2;
        pen.strokeRect(begin, top + 3, Math.max(3, wide), LANE - 6);
        pen.lineWidth = 1;
      }
      if (wide > 34 && task >= 0) {
        pen.fillStyle = bad === 2 ? text : ground;
        pen.save();
        pen.beginPath();
        pen.rect(begin, top, wide - 3, LANE);
        pen.clip();
        pen.fillText(`${bad ? "✗ " : ""}${data.tasks[task]}${count > 1 ? ` ×${number(count)}` : ""}`, begin + 5, top + LANE / 2);
        pen.restore();
      }
    }
    pen.restore();
    pen.fillStyle = text;
    pen.save();
    pen.beginPath();
    pen.rect(0, AXIS, LABEL, height - AXIS);
    pen.clip();
    data.lanes.forEach((lane, index) => pen.fillText(lane, 8, AXIS + index * LANE + LANE / 2 - scroll, LABEL - 14));
    pen.restore();
  }

  // The pattern of a failed attempt that was followed by another one.
  function hatched(pen, colour) {
    const tile = document.createElement("canvas");
    tile.width = tile.height = 8;
    const brush = tile.getContext("2d");
    brush.fillStyle = css("--ground");
    brush.fillRect(0, 0, 8, 8);
    brush.strokeStyle = colour;
    brush.lineWidth = 1.5;
    for (const start of [-8, 0, 8]) brush.beginPath(), brush.moveTo(start, 8), brush.lineTo(start + 8, 0), brush.stroke();
    return pen.createPattern(tile, "repeat");
  }

  function* ticks(low, high, count) {
    const raw = (high - low) / count;
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= raw);
    for (let tick = Math.ceil(low / step) * step; tick <= high; tick += step) yield tick;
  }

  function zoom(factor, about = (from + end()) / 2) {
    if (!data) return;
    const low = Math.max(0, about - (about - from) * factor);
    const high = Math.min(data.total, about + (end() - about) * factor);
    if (high - low < 1e-7) return;
    [from, to] = low <= 0 && high >= data.total ? [0, null] : [low, high];
    draw();
    clearTimeout(wait);
    wait = setTimeout(load, 120);
  }

  function pan(by) {
    if (!data || to === null) return;
    const span = to - from;
    from = Math.min(Math.max(0, from + by * span), data.total - span);
    to = from + span;
    draw();
    clearTimeout(wait);
    wait = setTimeout(load, 120);
  }

  function turn(by) {
    const most = Math.max(0, data.lanes.length * LANE + AXIS - canvas.clientHeight);
    scroll = Math.min(most, Math.max(0, scroll + by));
    draw();
  }

  function under(event) {
    const box = canvas.getBoundingClientRect();
    const [px, py] = [event.clientX - box.left, event.clientY - box.top];
    if (!data || px < LABEL || py < AXIS) return null;
    const lane = Math.floor((py - AXIS + scroll) / LANE);
    let best = null;
    for (const bar of data.bars) {
      if (bar[0] !== lane) continue;
      const far = Math.max(x(bar[1]) - px, px - x(bar[2]), 0);
      if (far < 3 && (best === null || far < best[0])) best = [far, bar];
    }
    return best?.[1] ?? null;
  }

  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) pan((event.deltaX || event.deltaY) / 800);
    else if (event.ctrlKey || data?.lanes.length * LANE + AXIS <= canvas.clientHeight) zoom(event.deltaY > 0 ? 1.25 : 0.8, seconds(event.clientX - canvas.getBoundingClientRect().left));
    else turn(event.deltaY);
  }, { passive: false });
  canvas.addEventListener("pointerdown", (event) => {
    drag = { x: event.clientX, y: event.clientY, moved: false };
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (drag) {
      if (Math.abs(event.clientX - drag.x) + Math.abs(event.clientY - drag.y) > 4) drag.moved = true;
      if (drag.moved) {
        pan((drag.x - event.clientX) / (canvas.clientWidth - LABEL));
        turn(drag.y - event.clientY);
        [drag.x, drag.y] = [event.clientX, event.clientY];
      }
      return;
    }
    const bar = under(event);
    tip.hidden = !bar;
    if (!bar) return;
    const box = stage.getBoundingClientRect();
    tip.textContent = told(bar);
    tip.style.left = `${Math.max(0, Math.min(event.clientX - box.left + 12, box.width - 270))}px`;
    tip.style.top = `${event.clientY - box.top + 14}px`;
  });
  canvas.addEventListener("pointerup", (event) => {
    const bar = drag && !drag.moved ? under(event) : null;
    drag = null;
    if (!bar) return;
    if (bar[5] > 1 && !run.info.stream) zoomTo(bar);
    else run.select(String(bar[4]));
  });
  canvas.addEventListener("pointerleave", () => (tip.hidden = true));

  // A bar in words: what ran, for how long, and its error.
  function told(bar) {
    const what = `${data.tasks[bar[3]]}${bar[5] > 1 ? ` ×${number(bar[5])}` : ""}`;
    return `${what}, ${duration(bar[2] - bar[1])}, from ${duration(bar[1])}${bar[6] ? `: ${bar[6] === 2 ? "an attempt that failed with " : ""}${bar[7] ?? "failed"}` : ""}`;
  }

  function zoomTo(bar) {
    const margin = (bar[2] - bar[1]) * 0.2;
    [from, to] = [Math.max(0, bar[1] - margin), Math.min(data.total, bar[2] + margin)];
    load();
  }

  const dark = matchMedia("(prefers-color-scheme: dark)");
  dark.addEventListener("change", draw);
  const watcher = new ResizeObserver(draw);
  watcher.observe(stage);
  load();
  let last = 0;

  return {
    look() {
      if (Date.now() - last > 500) (last = Date.now()), load();
    },
    ended: load,
    chosen(node) {
      chosen = node;
      draw();
    },
    resized: draw,
    leave() {
      left = true;
      clearTimeout(wait);
      dark.removeEventListener("change", draw);
      watcher.disconnect();
    },
    key(event) {
      if (event.key === "+" || event.key === "=") return zoom(0.7), true;
      if (event.key === "-") return zoom(1.4), true;
      if (event.key === "0") return all(), true;
      if (document.activeElement !== canvas || !data) return false;
      if (event.key === "ArrowLeft") return pan(-0.2), true;
      if (event.key === "ArrowRight") return pan(0.2), true;
      if (event.key === "ArrowUp") return turn(-LANE), true;
      if (event.key === "ArrowDown") return turn(LANE), true;
      return false;
    },
  };
}
