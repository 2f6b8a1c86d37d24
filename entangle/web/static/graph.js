// The graph: `layout.js` places the nodes, Cytoscape draws them. In a large one, the server has
// joined the nodes of a task into one. A node shows its call, value and time; a sign and its border
// tell its state.

import { get } from "./api.js";
import { STATES, css, duration, h, number, replace } from "./dom.js";
import { placed } from "./layout.js";
import { pressure } from "./progress.js";

const NAMES = Object.keys(STATES);
// With more elements than this, less is drawn while the picture moves.
const MANY_ELEMENTS = 700;
// The most characters of a line on a node.
const LONGEST = 34;
const FONT = "12px system-ui, sans-serif";
const pen = document.createElement("canvas").getContext("2d");

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
  let down = false;
  // Whether the user has moved the picture: then it stays where it is.
  let moved = false;
  // The states that the user has chosen; nodes in others fade.
  const wanted = new Set();
  const legend = h("div", { class: "chips", role: "group", "aria-label": "State" });
  const told = h("p", { class: "tools quiet told", role: "status", hidden: true });

  replace(
    view,
    h(
      "div",
      { class: "tools" },
      button("+", "Zoom in", () => zoom(1.3)),
      button("−", "Zoom out", () => zoom(1 / 1.3)),
      button("All", "Show everything", () => all()),
      button("Open", "Open or close the nodes of this task (e)", () => toggle()),
      legend,
      summary,
    ),
    told,
    stage,
  );

  function all() {
    moved = false;
    if (cy) frame(true);
  }

  function zoom(factor) {
    moved = true;
    if (cy) cy.zoom({ level: cy.zoom() * factor, renderedPosition: { x: cy.width() / 2, y: cy.height() / 2 } });
  }

  function styles() {
    const pie = NAMES.flatMap((name, index) => [
      [`pie-${index + 1}-background-color`, css(`--${name === "ready" ? "waiting" : name}`)],
      [`pie-${index + 1}-background-size`, (element) => slice(element.data("states"), name, element.data("count"))],
    ]);
    const border = (name) => css(`--${name === "ready" ? "waiting" : name}`);
    return [
      {
        selector: "node",
        style: {
          label: "data(text)", "font-size": 12, "font-family": "system-ui, sans-serif", color: css("--text"), "text-valign": "center", "line-height": 1.35,
          "text-wrap": "wrap", width: "data(width)", height: "data(height)", shape: "round-rectangle",
          "background-color": css("--raised"), "border-width": 2, "border-color": (node) => border(node.data("state")), "min-zoomed-font-size": 5,
        },
      },
      { selector: "node[state = 'failed']", style: { "border-width": 4, "border-style": "double" } },
      { selector: "node[state = 'running']", style: { "border-width": 3 } },
      { selector: "node[state = 'waiting'], node[state = 'ready']", style: { "border-style": "dotted", color: css("--quiet") } },
      { selector: "node[state = 'skipped'], node[state = 'cancelled']", style: { "border-style": "dashed", color: css("--quiet") } },
      { selector: "node[kind = 'source']", style: { shape: "cut-rectangle", "border-color": css("--edge"), "border-style": "solid" } },
      {
        selector: "node[?group]",
        style: {
          shape: "ellipse", width: "data(size)", height: "data(size)", "border-width": 0, "background-color": css("--waiting"),
          "text-halign": "right", "text-margin-x": 6, "text-justification": "left", "pie-size": "100%", ...Object.fromEntries(pie),
        },
      },
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
      { selector: ".marked", style: { opacity: 1, "border-color": css("--accent"), "line-color": css("--accent"), "target-arrow-color": css("--accent") } },
      { selector: ".at", style: { opacity: 1, "border-width": 4, "border-style": "solid", "border-color": css("--focus") } },
    ];
  }

  // The slice of a state is large enough to be seen, even if few nodes are in it.
  function slice(states, name, count) {
    const share = (one) => (states[one] ? Math.max(4, (100 * states[one]) / Math.max(1, count)) : 0);
    return (100 * share(name)) / NAMES.reduce((sum, one) => sum + share(one), 1e-9);
  }

  const short = (text) => (text.length > LONGEST ? `${text.slice(0, LONGEST - 1)}…` : text);

  // The lines on a node: its call; its state, value and time.
  function lines(node) {
    if (node.kind === "source") return [node.label, `${number(node.pulled)} items`];
    const state = stateOf(node);
    if (node.items) {
      const rate = node.items.rate;
      const under = [node.items.running ? `${number(node.items.running)} running` : "", node.items.waiting ? `${number(node.items.waiting)} waiting` : ""].filter(Boolean).join(", ");
      const lost = [node.items.failed ? `✗ ${number(node.items.failed)}` : "", node.items.skipped ? `${STATES.skipped} ${number(node.items.skipped)}` : ""].filter(Boolean).join("  ");
      return [short(node.label), `✓ ${number(node.items.done)}${lost ? `  ${lost}` : ""} · ${rate >= 100 ? number(Math.round(rate)) : rate.toFixed(1)}/s`, ...(under ? [under] : [])];
    }
    if (node.group) {
      const many = NAMES.filter((name) => node.states[name]).map((name) => `${STATES[name]} ${number(node.states[name])}`).join("  ");
      return [`${short(node.label)} ×${number(node.count)}`, `${many}${node.seconds ? ` · ${duration(node.seconds)} in all` : ""}`];
    }
    const call = node.label !== node.task ? `${node.label} · ${node.task}` : node.label;
    const first = node.call === undefined ? call : `${call}(${node.call})`;
    const rest = [state === "done" ? "" : state, node.seconds ? duration(node.seconds) : ""].filter(Boolean).join(" · ");
    return [short(first), short(`${STATES[state]} ${rest}${state === "done" && node.value !== undefined ? ` = ${node.value}` : ""}`.trim())];
  }

  function element(node) {
    const said = lines(node);
    pen.font = FONT;
    const wide = Math.max(...said.map((line) => pen.measureText(line).width));
    const size = 34 + 12 * Math.log10(Math.max(1, node.count ?? 1));
    return {
      group: "nodes",
      data: { ...node, label: said[0], text: said.join("\n"), state: stateOf(node), size, width: Math.max(48, Math.round(wide) + 20), height: 14 + 17 * said.length },
    };
  }

  function stateOf(node) {
    if (node.kind) return "done";
    for (const name of ["failed", "running", "cancelled", "skipped"]) if (node.states[name]) return name;
    if (node.states.done === node.count) return "done";
    return node.states.ready ? "ready" : "waiting";
  }

  // A stream has one more node: the source of its items.
  function withSource(graph) {
    const stream = run.info.stream;
    if (!stream || stream.pulled === undefined || !graph.nodes.length || graph.nodes.some((node) => node.kind)) return graph;
    const fed = new Set(graph.edges.map((edge) => edge.target));
    const first = graph.nodes.filter((node) => node.items && !fed.has(node.id));
    const source = { id: "source", kind: "source", task: "source", label: "source", pulled: stream.pulled, count: 1, states: {} };
    return { ...graph, nodes: [...graph.nodes, source], edges: [...first.map((node) => ({ source: "source", target: node.id, count: 1 })), ...graph.edges] };
  }

  function tell() {
    const stream = run.info.stream;
    told.hidden = !stream || stream.pulled === undefined;
    if (!told.hidden) replace(told, `${number(Math.max(0, stream.pulled - stream.taken - stream.left_out))} of at most ${number(stream.most)} items under way, ${number(stream.taken)} taken${stream.left_out ? `, ${number(stream.left_out)} left out` : ""}. ${pressure(stream, run.info.seconds ?? 0)}`);
  }

  // A button for each state that occurs. If some are pressed, nodes in other states fade.
  function drawLegend(nodes) {
    const counts = {};
    for (const node of nodes) for (const [name, count] of Object.entries(node.states)) counts[name] = (counts[name] ?? 0) + count;
    for (const name of wanted) counts[name] ??= 0;
    const shown = NAMES.filter((name) => name in counts);
    if (legend.childElementCount === shown.length) {
      for (const button of legend.children) {
        button.lastChild.textContent = number(counts[button.dataset.state] ?? 0);
        button.setAttribute("aria-pressed", String(wanted.has(button.dataset.state)));
      }
      if ([...legend.children].every((button, index) => button.dataset.state === shown[index])) return;
    }
    replace(
      legend,
      shown.map((name) =>
        h("button", { type: "button", "aria-pressed": String(wanted.has(name)), "data-state": name, onclick: () => choosing(name) }, h("span", { class: `state ${name}` }, name), " ", h("span", { class: "quiet" }, number(counts[name]))),
      ),
    );
  }

  function choosing(name) {
    if (!wanted.delete(name)) wanted.add(name);
    for (const button of legend.children) button.setAttribute("aria-pressed", String(wanted.has(button.dataset.state)));
    remark();
    if (cy && wanted.size) (moved = true), reveal(cy.nodes().not(".faded"), 0.5);
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

  function draw(found, fit) {
    const graph = withSource(found);
    tell();
    drawLegend(graph.nodes);
    const shape = graph.nodes.map((node) => node.id).join(" ") + "|" + graph.edges.length;
    if (cy && shape === structure) return update(graph.nodes);
    structure = shape;
    const elements = new Map();
    for (const node of graph.nodes) elements.set(node.id, element(node));
    for (const edge of graph.edges) {
      const id = `${edge.source}>${edge.target}${edge.part ? "p" : ""}`;
      elements.set(id, { group: "edges", data: { ...edge, id } });
    }
    const many = elements.size > MANY_ELEMENTS;
    let grown = false;
    if (!cy) {
      cy = window.cytoscape({
        container: stage, elements: [...elements.values()], style: styles(), minZoom: 0.02, maxZoom: 4, boxSelectionEnabled: false, autounselectify: true,
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
        cy.elements().filter((one) => !elements.has(one.id())).remove();
        for (const [id, one] of elements) {
          const there = cy.getElementById(id);
          if (there.empty()) cy.add(one), (grown = true);
          else there.data(one.data);
        }
      });
      fit = fit || (grown && run.live);
    }
    lay(graph, fit);
    const shown = graph.nodes.filter((node) => !node.kind).length;
    replace(summary, graph.total > shown ? `${number(graph.total)} nodes, drawn as ${number(shown)}: double-click or e opens a task` : "");
    stage.dataset.nodes = String(shown);
    choose(at);
    remark();
  }

  function lay(graph, fit) {
    const sizes = cy.nodes().map((node) => ({ id: node.id(), width: node.data("group") ? node.data("size") + 8 + 2 * node.data("width") : node.data("width"), height: node.data("group") ? node.data("size") : node.data("height") }));
    const found = placed(sizes, graph.edges);
    // A stream flows down from its source; a call stands above its arguments.
    down = graph.nodes.some((node) => node.items);
    cy.nodes().positions((node) => {
      const { x, y } = found.get(node.id()) ?? { x: 0, y: 0 };
      return { x, y: down ? -y : y };
    });
    if (fit && !moved) frame();
  }

  // Show everything; if that would be too small to read, the top.
  function frame(whole = false) {
    cy.fit(undefined, 20);
    if (cy.zoom() > 1.2) cy.zoom(1.2), cy.center();
    if (whole) return;
    if (cy.zoom() < 0.62 && cy.nodes().length < 60) {
      cy.zoom(0.62);
      const top = cy.nodes().min((node) => node.position("y")).ele;
      cy.center(top);
      cy.panBy({ x: 0, y: 50 - top.renderedPosition("y") });
    }
    reveal(cy.nodes(".at"));
  }

  // Move the picture only as far as needed to see these nodes.
  function reveal(nodes, least = 0) {
    if (!cy || nodes.empty()) return;
    if (cy.zoom() < least) cy.fit(nodes, 40), cy.zoom() > 1.2 && (cy.zoom(1.2), cy.center(nodes));
    const margin = 16;
    const box = nodes.renderedBoundingBox({ includeEdges: false });
    if (box.w > cy.width() - 2 * margin || box.h > cy.height() - 2 * margin) {
      cy.fit(nodes, margin);
      if (cy.zoom() > 1.2) cy.zoom(1.2), cy.center(nodes);
      return;
    }
    const step = (low, high, size) => (low < margin ? margin - low : high > size - margin ? size - margin - high : 0);
    cy.panBy({ x: step(box.x1, box.x2, cy.width()), y: step(box.y1, box.y2, cy.height()) });
  }

  function update(nodes) {
    cy.batch(() => {
      for (const node of nodes) {
        const there = cy.getElementById(node.id);
        if (there.empty()) continue;
        const { data } = element(node);
        // The layout has made room for the size that it had: keep that.
        there.data({ ...data, width: Math.max(data.width, there.data("width")), height: Math.max(data.height, there.data("height")) });
      }
    });
    remark();
    // A function computes the slices of pies from the data. Cytoscape calls it only when it evaluates
    // the style.
    cy.nodes("[?group]").updateStyle();
  }

  function focus(node) {
    at = node?.id() ?? null;
    cy.nodes(".at").removeClass("at");
    node?.addClass("at");
    if (node) stage.setAttribute("aria-label", `${node.data("text").replace("\n", ", ")}, ${node.data("state")}`);
  }

  function open(node) {
    if (node.data("group") || node.data("kind")) return;
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
    if (node && node.nonempty()) node.addClass("at"), reveal(node);
  }

  function remark() {
    if (!cy) return;
    cy.elements().removeClass("marked faded");
    if (!marked && wanted.size) {
      cy.nodes().forEach((node) => {
        if (!Object.keys(node.data("states")).some((name) => wanted.has(name))) node.addClass("faded");
      });
      cy.edges().forEach((edge) => {
        if (edge.source().hasClass("faded") || edge.target().hasClass("faded")) edge.addClass("faded");
      });
    }
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

  // Go to the neighbour in that direction: up to a node that takes the value, down to a source,
  // sideways to another node of the row.
  function walk(key) {
    const node = at !== null ? cy.getElementById(at) : cy.collection();
    if (node.empty()) return focus(cy.nodes().sort((a, b) => a.position("y") - b.position("y"))[0]);
    const here = node.position();
    let candidates;
    if (key === (down ? "ArrowDown" : "ArrowUp")) candidates = node.outgoers("node");
    else if (key === "ArrowUp" || key === "ArrowDown") candidates = node.incomers("node");
    else candidates = cy.nodes().filter((other) => Math.abs(other.position("y") - here.y) < 20 && (key === "ArrowLeft" ? other.position("x") < here.x : other.position("x") > here.x));
    candidates = candidates.filter((other) => other.id() !== node.id());
    if (candidates.empty()) return;
    const near = candidates.sort((a, b) => Math.abs(a.position("x") - here.x) - Math.abs(b.position("x") - here.x))[0];
    focus(near);
    reveal(near);
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
      if (marked && cy) reveal(cy.nodes(".marked"));
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
