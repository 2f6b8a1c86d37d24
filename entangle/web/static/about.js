// A run as a whole: its error, where and when it ran, its packages, and the files to download.

import { duration, h, moment, replace } from "./dom.js";

const FORMS = { svg: "SVG", mermaid: "Mermaid", dot: "DOT", trace: "Perfetto trace", prov: "W3C PROV", json: "JSON" };

export function aboutView(view, run) {
  view.className = "view text about";

  function pairs(entries) {
    return h("dl", {}, entries.filter(([, value]) => value !== null && value !== undefined && value !== "").map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
  }

  function load() {
    const info = run.info;
    const versions = Object.entries(info.packages ?? {});
    replace(
      view,
      info.error ? [h("h2", {}, "Error"), h("pre", { class: "error", tabindex: "0" }, info.error.traceback || `${info.error.type}: ${info.error.message}`)] : null,
      h("h2", {}, "Where and when"),
      pairs([
        ["began", moment(info.began)],
        ["took", duration(info.seconds)],
        ["host", info.host],
        ["platform", info.platform],
        ["python", info.python],
        ["program", info.command],
        ["process", info.pid],
        ["commit", info.commit ? h("span", { class: "mono" }, info.commit + (info.dirty ? " and changes that are not committed" : "")) : null],
        ["tags", Object.entries(info.tags ?? {}).map(([key, value]) => `${key}=${value}`).join(" ")],
        ["ended workers", info.retirements?.length ? info.retirements.map((one) => h("div", {}, `worker ${one.pid} ended after this run: ${one.reason}`)) : null],
        ["critical path", info.critical?.length ? info.critical.map((step, index) => [index ? " → " : "", h("a", { href: `#/run/${encodeURIComponent(run.id)}/graph?node=${step.node}` }, step.task)]) : null],
      ]),
      versions.length ? [h("h2", {}, "Packages"), h("p", { class: "mono quiet" }, versions.map(([name, version]) => `${name} ${version}`).join("  "))] : null,
      run.live ? null : [h("h2", {}, "Download"), h("p", { class: "bar" }, Object.entries(FORMS).map(([form, title]) => h("a", { href: `api/runs/${encodeURIComponent(run.id)}/export/${form}`, download: "" }, title)))],
    );
  }
  load();
  return { ended: load };
}
