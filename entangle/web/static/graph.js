// The graph, drawn by Cytoscape. dagre lays out small graphs. A large one arrives from the server with
// the nodes of a task as one. Where a user opens so many that dagre would take seconds, a layout by
// ranks is used, in one pass.

import { get } from "./api.js";
import { css, duration, h, number, replace } from "./dom.js";

const STATES = ["done", "running", "ready", "failed", "cancelled", "waiting"];
// Above so many elements dagre is too slow to wait for.
const DAGRE_ELEMENTS = 700;

export function graphView(view, run) {
  const stage = h("div", { class: "stage", tabindex: "0", role: "application", "aria-label": "Graph; arrows move to a neighbour, Enter opens it" });
  const summary = h("span", { class: "quiet", role: "status" });
  const button = (title, label, act) => h("button", { type: "button", title: label, "aria-label": label, onclick: act }, title);
  const openTasks = new Set();
  let cy = null;
  let left = false;
  let at = null;
  let marked = null;
  let again = 0;
  let structure = "";
  // Once the user has moved the picture, it stays there.
  let moved = false;

  replace(
    view,
    h(
      "div",
      { class: "tools" },
      button("+", "Nearer", () => zoom(1.3)),
      button("−", "Further", () => zoom(1 / 1.3)),
      button("All", "All of it", () => all()),
      button("Open", "Open or close the nodes of this task (e)", () => toggle()),
      summary,
      h("span", { class: "legend" }, ["done", "running", "waiting", "failed"].map((name) => h("span", {}, h("i", { class: "swatch", style: { background: `var(--${name})` } }), name))),
    ),
    stage,
  );

  function all() {
    moved = false;
    if (cy) frame();
  }

  function zoom(factor) {
    moved = true;
    if (cy) cy.zoom({ level: cy.zoom() * factor, renderedPosition: { x: cy.width() / 2, y: cy.height() / 2 } });
  }

  function styles() {
    const pie = STATES.flatMap((name, index) => [
      [`pie-${index + 1}-background-color`, css(`--${name === "ready" ? "waiting" : name}`)],
      [`pie-${index + 1}-background-size`, (element) => 100 * ((element.data("states")[name] ?? 0) / Math.max(1, element.data("count")))],
    ]);
    return [
      {
        selector: "node",
        style: {
          label: "data(label)", "font-size": 13, "font-family": "system-ui, sans-serif", color: css("--on-state"), "text-valign": "center",
          "text-wrap": "ellipsis", "text-max-width": 150, width: (node) => node.data("width"), height: 30, shape: "round-rectangle",
          "background-color": (node) => css(`--${node.data("state")}`), "border-width": 0, "min-zoomed-font-size": 6,
        },
      },
      {
        selector: "node[?group]",
        style: {
          shape: "ellipse", width: (node) => 34 + 12 * Math.log10(node.data("count")), height: (node) => 34 + 12 * Math.log10(node.data("count")),
          color: css("--text"), "text-halign": "right", "text-margin-x": 6, "pie-size": "100%", ...Object.fromEntries(pie),
        },
      },
      { selector: "node[state = 'waiting'], node[state = 'ready']", style: { opacity: 0.75 } },
      {
        selector: "edge",
        style: {
          width: (edge) => 1.4 + Math.log10(edge.data("count")), "line-color": css("--edge"), "target-arrow-color": css("--edge"), "target-arrow-shape": "triangle",
          "arrow-scale": 0.8, "curve-style": "bezier", label: (edge) => (edge.data("count") > 1 ? number(edge.data("count")) : ""), "font-size": 10, color: css("--quiet"),
          "text-background-color": css("--ground"), "text-background-opacity": 0.8, "min-zoomed-font-size": 7,
        },
      },
      { selector: "edge:loop", style: { "loop-direction": "-90deg", "loop-sweep": "40deg", "control-point-step-size": 70 } },
      { selector: "edge[?part]", style: { "line-style": "dashed", "line-color": css("--part"), "target-arrow-color": css("--part") } },
      { selector: ".faded", style: { opacity: 0.15 } },
      { selector: ".marked", style: { opacity: 1, "border-width": 2, "border-color": css("--accent"), "line-color": css("--accent"), "target-arrow-color": css("--accent") } },
      { selector: ".at", style: { opacity: 1, "border-width": 4, "border-color": css("--focus") } },
    ];
  }

  function element(node) {
    const label = node.group ? `${node.label} ×${number(node.count)}` : node.label;
    return { group: "nodes", data: { ...node, label, state: stateOf(node), width: Math.max(36, Math.min(170, 16 + 7.4 * label.length)) } };
  }

  function stateOf(node) {
    for (const name of ["failed", "running", "cancelled"]) if (node.states[name]) return name;
    if (node.states.done === node.count) return "done";
    return node.states.ready ? "ready" : "waiting";
  }

  async function load(fit = true) {
    let graph;
    try {
      graph = await get(`api/runs/${encodeURIComponent(run.id)}/graph?open=${encodeURIComponent([...openTasks].join(","))}`);
    } catch (error) {
      if (!left && !cy) replace(stage, h("div", { class: "empty", role: "alert" }, error.message));
      return;
    }
    if (!left) draw(graph, fit);
  }

  function draw(graph, fit) {
    const shape = graph.nodes.map((node) => node.id).join(" ") + "|" + graph.edges.length;
    if (cy && shape === structure) return update(graph.nodes);
    structure = shape;
    const wanted = new Map();
    for (const node of graph.nodes) wanted.set(node.id, element(node));
    for (const edge of graph.edges) {
      const id = `${edge.source}>${edge.target}${edge.part ? "p" : ""}`;
      wanted.set(id, { group: "edges", data: { ...edge, id } });
    }
    const many = wanted.size > DAGRE_ELEMENTS;
    let grown = false;
    if (!cy) {
      cy = window.cytoscape({
        container: stage, elements: [...wanted.values()], style: styles(), minZoom: 0.02, maxZoom: 4, boxSelectionEnabled: false, autounselectify: true,
        textureOnViewport: many, hideEdgesOnViewport: many, hideLabelsOnViewport: many, pixelRatio: many ? 1 : "auto", layout: { name: "preset" },
      });
      cy.on("tap", "node", (event) => (focus(event.target), open(event.target)));
      cy.on("dbltap", "node", (event) => toggle(event.target));
      cy.on("tap", (event) => event.target === cy && run.select(null));
      cy.on("dragpan scrollzoom pinchzoom", () => (moved = true));
      stage.dataset.ready = "yes";
      fit = true;
      window.entangleGraph = cy;
    } else {
      cy.batch(() => {
        cy.elements().filter((one) => !wanted.has(one.id())).remove();
        for (const [id, one] of wanted) {
          const there = cy.getElementById(id);
          if (there.empty()) cy.add(one), (grown = true);
          else there.data(one.data);
        }
      });
      fit = fit || (grown && run.live);
    }
    lay(many, fit);
    const shown = graph.nodes.length;
    replace(summary, graph.total > shown ? `${number(graph.total)} nodes, drawn as ${number(shown)}: double-click or e opens a task` : `${number(graph.total)} nodes`);
    stage.dataset.nodes = String(shown);
    choose(at);
    remark();
  }

  function lay(many, fit) {
    if (!many) {
      cy.layout({ name: "dagre", rankDir: "BT", nodeSep: 18, rankSep: 46, edgeSep: 8, fit: false, animate: false }).run();
    } else {
      byRanks();
    }
    if (fit && !moved) frame();
  }

  function frame() {
    cy.fit(undefined, 24);
    if (cy.zoom() > 1.4) cy.zoom(1.4), cy.center();
  }

  // Rank: the longest way up from a leaf. Within a rank, nodes are ordered by the mean place of their
  // sources.
  function byRanks() {
    const nodes = cy.nodes();
    const rank = new Map();
    const waits = new Map();
    nodes.forEach((node) => {
      rank.set(node.id(), 0);
      waits.set(node.id(), 0);
    });
    const takers = new Map();
    cy.edges().forEach((edge) => {
      if (edge.data("source") === edge.data("target")) return;
      takers.set(edge.data("source"), [...(takers.get(edge.data("source")) ?? []), edge.data("target")]);
      waits.set(edge.data("target"), waits.get(edge.data("target")) + 1);
    });
    const queue = [...waits].filter(([, count]) => !count).map(([id]) => id);
    const order = new Map();
    const sums = new Map();
    const rows = [];
    while (queue.length) {
      const id = queue.shift();
      const row = (rows[rank.get(id)] ??= []);
      const sum = sums.get(id);
      order.set(id, sum ? sum[0] / sum[1] : row.length);
      row.push(id);
      for (const taker of takers.get(id) ?? []) {
        rank.set(taker, Math.max(rank.get(taker), rank.get(id) + 1));
        const [total, count] = sums.get(taker) ?? [0, 0];
        sums.set(taker, [total + order.get(id), count + 1]);
        waits.set(taker, waits.get(taker) - 1);
        if (!waits.get(taker)) queue.push(taker);
      }
    }
    const positions = {};
    const widest = Math.max(1, ...rows.map((row) => row.length));
    rows.forEach((row, level) => {
      row.sort((a, b) => order.get(a) - order.get(b));
      // A very wide rank takes several lines.
      const across = Math.min(row.length, Math.max(60, Math.ceil(Math.sqrt(widest) * 2)));
      row.forEach((id, place) => {
        const line = Math.floor(place / across);
        const inLine = Math.min(across, row.length - line * across);
        positions[id] = { x: ((place % across) - (inLine - 1) / 2) * 130, y: -level * 90 + line * 40 };
      });
    });
    let shift = 0;
    rows.forEach((row) => {
      for (const id of row) positions[id].y -= shift;
      shift += 40 * Math.floor((row.length - 1) / Math.max(60, Math.ceil(Math.sqrt(widest) * 2)));
    });
    nodes.positions((node) => positions[node.id()] ?? { x: 0, y: 200 });
  }

  function update(nodes) {
    cy.batch(() => {
      for (const node of nodes) {
        const there = cy.getElementById(node.id);
        if (there.empty()) continue;
        there.data({ states: node.states, state: stateOf(node), seconds: node.seconds, count: node.count });
      }
    });
    // Pies get their sizes from a function of the data. Cytoscape calls it again when the style is
    // evaluated.
    cy.nodes("[?group]").updateStyle();
  }

  function focus(node) {
    at = node?.id() ?? null;
    cy.nodes(".at").removeClass("at");
    node?.addClass("at");
    if (node) stage.setAttribute("aria-label", `${node.data("label")}, ${node.data("state")}${node.data("seconds") ? ", " + duration(node.data("seconds")) : ""}`);
  }

  function open(node) {
    if (node.data("group")) {
      if (run.view?.grouped) run.view.grouped(node);
      return;
    }
    run.select(node.id());
  }

  function toggle(node = at && cy.getElementById(at)) {
    if (!cy || !node || node.empty?.()) return;
    const task = node.data("task");
    if (openTasks.has(task)) openTasks.delete(task);
    else if (node.data("group")) openTasks.add(task);
    else return;
    moved = false;
    load();
  }

  function choose(id) {
    at = id ?? at;
    if (!cy) return;
    cy.nodes(".at").removeClass("at");
    const node = at === null ? null : cy.getElementById(at);
    if (node && node.nonempty()) node.addClass("at");
  }

  function remark() {
    if (!cy) return;
    cy.elements().removeClass("marked faded");
    if (!marked) return;
    const keys = new Set(marked);
    cy.batch(() => {
      cy.nodes().forEach((node) => {
        node.addClass(keys.has(node.id()) || (node.data("group") && marked.tasks?.has(node.data("task"))) ? "marked" : "faded");
      });
      cy.edges().forEach((edge) => {
        edge.addClass(edge.source().hasClass("marked") && edge.target().hasClass("marked") ? "marked" : "faded");
      });
    });
  }

  // The neighbour in that direction: up is a node that takes the value, down a source, sideways
  // another node of the rank.
  function walk(key) {
    const node = at !== null ? cy.getElementById(at) : cy.collection();
    if (node.empty()) return focus(cy.nodes().sort((a, b) => a.position("y") - b.position("y"))[0]);
    const here = node.position();
    let candidates;
    if (key === "ArrowUp") candidates = node.outgoers("node");
    else if (key === "ArrowDown") candidates = node.incomers("node");
    else candidates = cy.nodes().filter((other) => Math.abs(other.position("y") - here.y) < 20 && (key === "ArrowLeft" ? other.position("x") < here.x : other.position("x") > here.x));
    candidates = candidates.filter((other) => other.id() !== node.id());
    if (candidates.empty()) return;
    const near = candidates.sort((a, b) => Math.abs(a.position("x") - here.x) - Math.abs(b.position("x") - here.x))[0];
    focus(near);
    const box = near.renderedBoundingBox();
    if (box.x1 < 0 || box.y1 < 0 || box.x2 > cy.width() || box.y2 > cy.height()) cy.center(near);
  }

  const dark = matchMedia("(prefers-color-scheme: dark)");
  const restyle = () => cy?.style(styles());
  dark.addEventListener("change", restyle);
  const watcher = new ResizeObserver(() => {
    cy?.resize();
    if (cy && !moved) frame();
  });
  watcher.observe(stage);
  load();

  return {
    look(look) {
      if (look.graph && !openTasks.size) draw(look.graph, false);
      else if (Date.now() - again > 700) (again = Date.now()), load(false);
    },
    ended: () => load(false),
    chosen(id) {
      choose(id);
      if (id === null && marked) (marked = null), remark();
    },
    mark(which, found) {
      marked = found ? Object.assign([...found.nodes], { tasks: new Set(found.tasks) }) : null;
      remark();
    },
    resized: () => setTimeout(() => cy?.resize(), 0),
    leave() {
      left = true;
      dark.removeEventListener("change", restyle);
      watcher.disconnect();
      cy?.destroy();
    },
    key(event) {
      if (!cy) return false;
      if (event.key === "+" || event.key === "=") return zoom(1.3), true;
      if (event.key === "-") return zoom(1 / 1.3), true;
      if (event.key === "0") return all(), true;
      if (event.key === "e") return toggle(), true;
      if (document.activeElement !== stage) return false;
      if (event.key.startsWith("Arrow")) return walk(event.key), true;
      if (event.key === "Enter" && at !== null) {
        const node = cy.getElementById(at);
        if (node.nonempty()) node.data("group") ? toggle(node) : open(node);
        return true;
      }
      return false;
    },
  };
}
