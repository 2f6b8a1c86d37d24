// Finds places for the nodes of a graph, in one pass over the edges. A node stands above its inputs,
// which are in the order of its arguments. A picture that grows keeps its order.
//
//     depth      the row of a node: just above its inputs; without inputs, just below its taker
//     tree       each node hangs below its nearest taker; below the first of several as near
//     blocks     many nodes without inputs in a row are put into several lines
//     across     each row from left to right; a node stands over the middle of what hangs below it
//                (Wetherell and Shannon, "Tidy drawings of trees", 1979)

const GAP = 22;
const RANK = 52;
const LINE = 10;
// The most leaves below one node that stand in one row.
const IN_ROW = 10;
const WIDEST = 280;

// nodes: [{id, width, height}]; edges: [{source, target}], those of a target in the order of its
// arguments. Gives a Map from id to {x, y}.
export function placed(nodes, edges) {
  const sizes = new Map(nodes.map((node) => [node.id, node]));
  const sources = new Map(nodes.map((node) => [node.id, []]));
  const takers = new Map(nodes.map((node) => [node.id, 0]));
  const seen = new Set();
  for (const { source, target } of edges) {
    const key = `${source}\n${target}`;
    if (source === target || seen.has(key) || !sizes.has(source) || !sizes.has(target)) continue;
    seen.add(key);
    sources.get(target).push(source);
    takers.set(source, takers.get(source) + 1);
  }
  const { depth, roots } = depths(nodes, sources, takers);
  const boxes = tree(roots, sources, depth, sizes);
  across(boxes);
  return positions(boxes, depth, sizes);
}

// Groups of nodes may take from each other in a circle. A circle is cut where it is first met.
function depths(nodes, sources, takers) {
  const depth = new Map();
  const waits = new Map(takers);
  const roots = nodes.filter((node) => !takers.get(node.id)).map((node) => node.id);
  const queue = [...roots];
  const rest = nodes.map((node) => node.id).sort((a, b) => sources.get(b).length - sources.get(a).length);
  for (const id of roots) depth.set(id, 0);
  const done = new Set();
  for (let at = 0; done.size < nodes.length; ) {
    if (at === queue.length) {
      const next = rest.find((id) => !done.has(id) && depth.has(id)) ?? rest.find((id) => !done.has(id));
      if (!depth.has(next)) depth.set(next, 0), roots.push(next);
      queue.push(next);
    }
    const id = queue[at++];
    if (done.has(id)) continue;
    done.add(id);
    for (const source of sources.get(id)) {
      if (done.has(source)) continue;
      depth.set(source, Math.max(depth.get(source) ?? 0, depth.get(id) + 1));
      waits.set(source, waits.get(source) - 1);
      if (!waits.get(source)) queue.push(source);
    }
  }
  // A node with several takers is deep. Move its takers down to it, so that lines are short where
  // they spread, and long where they lead straight up.
  for (const id of [...depth].sort((a, b) => b[1] - a[1]).map(([id]) => id)) {
    const below = sources.get(id).map((source) => depth.get(source)).filter((deep) => deep > depth.get(id));
    if (below.length && takers.get(id)) depth.set(id, Math.min(...below) - 1);
  }
  return { depth, roots };
}

// The boxes of the tree, each after those that hang below it. A box is a node, or a block of leaves.
function tree(roots, sources, depth, sizes) {
  const nearest = new Map();
  for (const [id, taken] of sources) {
    for (const source of taken) {
      const deep = depth.get(id);
      if (deep < depth.get(source) && deep > (nearest.get(source) ?? -1)) nearest.set(source, deep);
    }
  }
  const claimed = new Set(roots);
  const boxes = [];
  const make = (id) => ({ ids: [id], depth: depth.get(id), width: sizes.get(id).width, height: sizes.get(id).height, below: [], columns: 1 });
  const stack = roots.map((id) => [make(id), false]).reverse();
  while (stack.length) {
    const [box, open] = stack.pop();
    if (open) {
      fold(box, sizes);
      boxes.push(box);
      continue;
    }
    stack.push([box, true]);
    if (!box.ids.length) {
      stack.push([box.below[0], false]);
      continue;
    }
    const below = [];
    for (const source of sources.get(box.ids[0])) {
      if (claimed.has(source) || nearest.get(source) !== box.depth) continue;
      claimed.add(source);
      below.push(make(source));
    }
    box.below = below.map((child) => spaced(child, box.depth));
    for (const child of [...box.below].reverse()) stack.push([child, false]);
  }
  // A node that only a cut circle leads to hangs nowhere: put it at the end of its row.
  for (const id of sizes.keys()) if (!claimed.has(id)) boxes.push(make(id));
  return boxes.filter((box) => !box.folded);
}

// Boxes without nodes keep room for a line that passes the rows between a node and its input.
function spaced(child, above) {
  let box = child;
  for (let at = child.depth - 1; at > above; at--) box = { ids: [], depth: at, width: 1, height: 0, below: [box], columns: 1 };
  return box;
}

function fold(box, sizes) {
  if (!box.ids.length) return;
  // Not a group: all cells of the block would be as wide as that one.
  const leaves = box.below.filter((child) => child.ids.length && !child.below.length && child.width <= WIDEST);
  if (leaves.length <= IN_ROW) return;
  const block = { ids: leaves.flatMap((leaf) => leaf.ids), depth: box.depth + 1, below: [] };
  block.columns = Math.min(leaves.length, Math.max(IN_ROW, Math.ceil(Math.sqrt(leaves.length * 1.3))));
  block.cell = Math.max(...leaves.map((leaf) => leaf.width));
  const lines = Math.ceil(leaves.length / block.columns);
  block.width = block.columns * (block.cell + GAP) - GAP;
  block.height = lines * (Math.max(...leaves.map((leaf) => leaf.height)) + LINE) - LINE;
  leaves.forEach((leaf) => (leaf.folded = true));
  leaves[0].folded = false;
  Object.assign(leaves[0], block);
  box.below = box.below.filter((child) => !child.folded);
}

function across(boxes) {
  const next = [];
  const shift = [];
  for (const box of boxes) {
    const at = box.depth;
    next[at] ??= 0;
    shift[at] ??= 0;
    const free = next[at] + box.width / 2;
    const middle = box.below.length ? (box.below[0].x + box.below[box.below.length - 1].x) / 2 : free;
    shift[at] = Math.max(shift[at], free - middle);
    box.x = box.below.length ? middle + shift[at] : middle;
    box.moved = box.below.length ? shift[at] : 0;
    next[at] = box.x + box.width / 2 + GAP;
  }
  // From the top down: what hangs below a box moves with it.
  for (const box of [...boxes].reverse()) for (const child of box.below) (child.x += box.moved), (child.moved += box.moved);
}

function positions(boxes, depth, sizes) {
  const heights = [];
  for (const box of boxes) heights[box.depth] = Math.max(heights[box.depth] ?? 0, box.height);
  const tops = [];
  let y = 0;
  for (let at = 0; at < heights.length; at++) {
    tops[at] = y;
    y += (heights[at] ?? 0) + RANK;
  }
  const found = new Map();
  for (const box of boxes) {
    if (!box.ids.length) continue;
    if (box.columns === 1) {
      found.set(box.ids[0], { x: box.x, y: tops[box.depth] + box.height / 2 });
      continue;
    }
    box.ids.forEach((id, index) => {
      const line = Math.floor(index / box.columns);
      const height = sizes.get(id).height;
      found.set(id, { x: box.x - box.width / 2 + box.cell / 2 + (index % box.columns) * (box.cell + GAP), y: tops[box.depth] + height / 2 + line * (height + LINE) });
    });
  }
  return found;
}
