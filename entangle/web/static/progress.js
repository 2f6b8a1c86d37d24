// The progress of a run by task; its CPU and memory over time; the stages of a stream.

import { get } from "./api.js";
import { chart, bytes, colour, counted, duration, h, meter, number, replace, table } from "./dom.js";

export function progressView(view, run) {
  view.className = "view text progress";
  const place = h("div");
  let left = false;
  let last = 0;
  replace(view, place);

  function load(samples) {
    if (!samples?.length) return h("p", { class: "quiet" }, run.live ? "No sample of CPU and memory yet." : "No samples: this run was shorter than a tenth of a second, or was not remembered.");
    const end = Math.max(run.info.seconds ?? 0, samples[samples.length - 1][0]);
    return h(
      "div",
      { class: "charts" },
      chart("CPUs in use", [{ name: "CPUs", colour: "var(--running)", points: samples.map(([at, cpus]) => [at, cpus]) }], end, (value) => value.toFixed(1)),
      chart("Memory of its workers", [{ name: "memory", colour: "var(--done)", points: samples.map(([at, , memory]) => [at, memory]) }], end, bytes),
    );
  }

  function stream(told) {
    if (!told) return null;
    const seconds = run.info.seconds ?? 0;
    const rate = (value) => `${value >= 100 ? number(Math.round(value)) : value.toFixed(1)}/s`;
    // The rate of each stage, smoothed over a fortieth of the time.
    const points = (stage) => told.bins.map((bin, index) => [Math.min(seconds, (index + 1) * told.every), bin[stage] / told.every]);
    return [
      h("h2", {}, "Stages"),
      h(
        "p",
        { class: "quiet" },
        told.pulled === undefined
          ? "One value was pushed through."
          : `${number(told.pulled)} items came from the source, ${number(told.taken)} were taken${told.left_out ? `, ${number(told.left_out)} left out` : ""}; ${number(Math.max(0, told.pulled - told.taken - told.left_out))} of at most ${number(told.most)} are under way. ${pressure(told, seconds)}`,
      ),
      table(
        [
          ["stage", (stage) => stage.name],
          ["done", (stage) => number(stage.done), "number"],
          ["in its body", (stage) => (stage.running ? number(stage.running) : ""), "number"],
          ["waiting", (stage) => (stage.waiting ? number(stage.waiting) : ""), "number"],
          ["failed", (stage) => (stage.failed ? number(stage.failed) : ""), "number"],
          ["skipped", (stage) => (stage.skipped ? number(stage.skipped) : ""), "number"],
          ["items a second", (stage) => rate(stage.rate), "number"],
          ["in bodies", (stage) => duration(stage.busy), "number narrow-hide"],
          ["an item", (stage) => duration(stage.done ? stage.busy / stage.done : null), "number narrow-hide"],
        ],
        told.stages,
        null,
        "Stages",
      ),
      told.bins.length > 1
        ? chart("Items a second", told.stages.map((stage, index) => ({ name: stage.name, colour: colour(index), dash: ["", "6 3", "2 3", "9 3 2 3"][index % 4], points: points(index) })), seconds, (value) => rate(value))
        : null,
    ];
  }

  async function draw() {
    const tasks = (await get(`api/runs/${encodeURIComponent(run.id)}/tasks`)).tasks;
    const info = run.live ? await get(`api/runs/${encodeURIComponent(run.id)}`) : run.info;
    if (left) return;
    replace(
      place,
      stream(info.stream),
      info.stream ? null : h("h2", {}, "By task"),
      info.stream ? null : table(
        [
          ["task", (task) => task.task],
          ["progress", (task) => h("div", { class: "by-task" }, meter(task, task.count), h("span", { class: "quiet" }, `${counted(task) || "none begun"}, of ${number(task.count)}`))],
          ["in all", (task) => duration(task.total || null), "number narrow-hide"],
          ["mean", (task) => duration(task.mean), "number"],
          ["longest", (task) => duration(task.longest || null), "number narrow-hide"],
          ["code", (task) => (task.code ? h("span", { class: "mono quiet" }, task.code.slice(0, 12)) : ""), "narrow-hide"],
        ],
        tasks,
        null,
        "Tasks",
      ),
      h("h2", {}, "CPU and memory"),
      load(info.load),
    );
    place.dataset.ready = "yes";
  }

  const show = () => draw().catch((error) => left || replace(place, h("div", { class: "empty", role: "alert" }, error.message)));
  show();
  return {
    look() {
      if (Date.now() - last > 1000) (last = Date.now()), show();
    },
    ended: show,
    leave: () => (left = true),
  };
}

// Says whether the source waits for the stages, and for how much of the time it did.
export function pressure(told, seconds) {
  if (told.waited === undefined || !seconds) return "";
  const share = Math.min(100, Math.round((100 * told.waited) / seconds));
  if (told.full) return `The source waits for room now, and has waited for ${share} % of the time: the stages or the consumer are slower than it.`;
  return share ? `The source waited for room for ${share} % of the time.` : "The source never waited for room.";
}
