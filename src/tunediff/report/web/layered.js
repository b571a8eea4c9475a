// One attribution graph, drawn by layer and token: where its nodes lie, what its edges look like, and what of it is lit.

const GUTTER = 84, PITCH = 15; // room for the names of layers, and from node to node
const KIND_OF_NODE = { l: "logit", e: "embedding", a: "latent" };
const signOf = (weight) => (weight < 0 ? "lowers" : "raises");
const cut = (text, most) => (text.length > most ? `${text.slice(0, Math.max(1, most - 1))}…` : text);

// a packed graph with what is asked of it: for each node its edges in and out, by |weight|
function connected(graph) {
  const inputs = graph.layer.map(() => []), outputs = graph.layer.map(() => []);
  graph.weight.forEach((_, edge) => { inputs[graph.target[edge]].push(edge); outputs[graph.source[edge]].push(edge); });
  const kind = [...graph.kind].map((letter) => KIND_OF_NODE[letter]), sizes = graph.influence.map((v) => Math.abs(v ?? 0)), most = Math.max(...sizes.filter((_, n) => kind[n] === "latent"), 1e-30);
  return { ...graph, kind, inputs, outputs, largest: Math.abs(graph.weight[0] ?? 1), share: sizes.map((v) => Math.sqrt(Math.min(1, v / most))), token: graph.token.map((n) => graph.vocabulary[n]) };
}

// Where each node lies: rows are layers, from the embeddings below to the logits on top; columns are positions, as wide as
// the fullest of their cells, and spread over `room` where there is more of it.
function laidOut(graph, room) {
  const top = Math.max(...graph.layer), layers = Array.from({ length: top + 2 }, (_, n) => top - n), positions = distinct(graph.position).sort((a, b) => a - b);
  const cells = new Map(), cellOf = (n) => `${graph.layer[n]},${graph.position[n]}`;
  graph.layer.map((_, n) => n).sort((a, b) => graph.share[b] - graph.share[a]).forEach((n) => (cells.has(cellOf(n)) ? cells.get(cellOf(n)).push(n) : cells.set(cellOf(n), [n])));
  const count = (layer, position) => cells.get(`${layer},${position}`)?.length ?? 0, stack = layers.length > 18 ? 1 : layers.length > 10 ? 2 : 3;
  const least = Math.max(16, Math.min(52, 400 / layers.length)), isLogit = (layer) => layer === top;
  const deep = new Map(layers.map((layer) => [layer, isLogit(layer) ? 1 : Math.min(stack, Math.ceil(Math.max(...positions.map((position) => count(layer, position))) / 4) || 1)]));
  const tokens = new Map(graph.layer.map((_, n) => [graph.position[n], n]).filter(([, n]) => graph.kind[n] !== "logit").map(([position, n]) => [position, visible(graph.token[n])]));
  const across = (layer, position) => (isLogit(layer) ? 50 * count(layer, position) : PITCH * Math.ceil(count(layer, position) / deep.get(layer)));
  const wanted = positions.map((position) => Math.max(...layers.map((layer) => across(layer, position)), 7 * Math.min(9, tokens.get(position)?.length ?? 0), 22) + 12);
  const spare = Math.max(0, room - GUTTER - 8 - wanted.reduce((sum, v) => sum + v, 0)) / positions.length, columns = new Map(), rows = new Map();
  let x = GUTTER, y = 6;
  positions.forEach((position, n) => { columns.set(position, { x, wide: wanted[n] + spare, token: tokens.get(position) ?? "" }); x += wanted[n] + spare; });
  for (const layer of layers) {
    const high = isLogit(layer) ? 54 : Math.max(least, deep.get(layer) * PITCH + (stack > 1 ? 8 : 4));
    rows.set(layer, { y, high });
    y += high;
  }
  const places = new Array(graph.layer.length);
  for (const some of cells.values()) {
    const layer = graph.layer[some[0]], { x: left, wide } = columns.get(graph.position[some[0]]), { y: above, high } = rows.get(layer), each = Math.ceil(some.length / deep.get(layer)), pitch = isLogit(layer) ? 50 : PITCH;
    some.forEach((n, k) => {
      const line = Math.floor(k / each), here = Math.min(each, some.length - line * each), lines = Math.ceil(some.length / each);
      places[n] = { x: left + wide / 2 + ((k % each) - (here - 1) / 2) * pitch, y: isLogit(layer) ? above + 40 : above + high / 2 + (line - (lines - 1) / 2) * PITCH };
    });
  }
  return { places, columns, rows, top, wide: Math.round(x + 8), high: Math.round(y + 26) };
}

const sizeOf = (graph, n) => (graph.kind[n] === "latent" ? 2.8 + 4 * graph.share[n] : 4.5);

function shapeOf(graph, n, { x, y }) {
  const size = sizeOf(graph, n), common = { class: `node ${graph.kind[n]}`, "data-node": n, "fill-opacity": (graph.kind[n] === "latent" ? 0.35 + 0.65 * graph.share[n] : 1).toFixed(2) };
  return graph.kind[n] === "latent" ? drawn("circle", { ...common, cx: x.toFixed(1), cy: y.toFixed(1), r: size.toFixed(1) }) : drawn("rect", { ...common, x: x - size, y: y - size, width: 2 * size, height: 2 * size, rx: graph.kind[n] === "logit" ? 3 : 0 });
}

// the drawing of one graph; `draw` changes what of it is lit
function drawing(graph, title, room, { nameOf, onhover, onpick, onkey }) {
  const at = laidOut(graph, room), svg = drawn("svg", { viewBox: `0 0 ${at.wide} ${at.high}`, style: `width:${at.wide}px`, class: "attribution", role: "group", tabindex: 0, "aria-label": `${title}: arrow keys go from node to node, Escape leaves` });
  const edges = drawn("g", { fill: "none" }), nodes = drawn("g"), labels = drawn("g", { class: "layers" }), shapes = [];
  for (const { y, high } of at.rows.values()) svg.append(drawn("line", { class: "axis", x1: GUTTER, x2: at.wide, y1: y + high, y2: y + high }));
  for (const { x, wide, token } of at.columns.values()) {
    const word = drawn("text", { class: "token", x: x + wide / 2, y: at.high - 9, "text-anchor": "middle" }, cut(token, Math.max(3, Math.floor(wide / 6.9))));
    word.append(drawn("title", {}, token));
    svg.append(drawn("line", { class: "axis faint", x1: x, x2: x, y1: 4, y2: at.high - 26 }), word);
  }
  labels.append(drawn("rect", { class: "ground", x: -1, y: 0, width: GUTTER - 8, height: at.high }));
  for (const [layer, { y, high }] of at.rows) labels.append(drawn("text", { x: GUTTER - 14, y: (layer === at.top ? y + 40 : y + high / 2) + 4, "text-anchor": "end" }, layer < 0 ? "embedding" : layer === at.top ? "logits" : `${layer === at.top - 1 || at.rows.size < 12 ? "layer " : ""}${layer}`));
  at.places.forEach((place, n) => {
    const shape = shapeOf(graph, n, place);
    shape.append(drawn("title", {}, nameOf(n)));
    shapes.push(shape);
    nodes.append(shape);
    if (graph.kind[n] !== "logit") return;
    nodes.append(drawn("text", { class: "name", x: place.x, y: place.y - 22, "text-anchor": "middle" }, cut(visible(graph.token[n]), 7)), drawn("text", { x: place.x, y: place.y - 9, "text-anchor": "middle" }, `${spelled(100 * graph.influence[n], 50)} %`));
  });
  svg.append(edges, nodes, labels);

  const line = (edge, kind) => {
    const a = at.places[graph.source[edge]], b = at.places[graph.target[edge]], from = a.y - sizeOf(graph, graph.source[edge]), to = b.y + sizeOf(graph, graph.target[edge]), bend = (from - to) * 0.5;
    return drawn("path", { class: `edge ${signOf(graph.weight[edge])} ${kind}`, d: `M${a.x.toFixed(1)} ${from.toFixed(1)}C${a.x.toFixed(1)} ${(from - bend).toFixed(1)} ${b.x.toFixed(1)} ${(to + bend).toFixed(1)} ${b.x.toFixed(1)} ${to.toFixed(1)}`,
      "stroke-width": (0.5 + 3.6 * Math.abs(graph.weight[edge] / graph.largest)).toFixed(2) });
  };

  function draw({ read, most, met }) {
    const own = read === null ? [] : [...graph.inputs[read], ...graph.outputs[read]].sort((a, b) => a - b).slice(0, most), mine = new Set(own);
    const some = Array.from({ length: Math.min(most, graph.weight.length) }, (_, edge) => edge).filter((edge) => !mine.has(edge));
    edges.replaceChildren(...some.map((edge) => line(edge, read === null ? "" : "far")), ...own.reverse().map((edge) => line(edge, "own")));
    const near = new Set(own.flatMap((edge) => [graph.source[edge], graph.target[edge]]));
    shapes.forEach((shape, n) => {
      shape.classList.toggle("chosen", n === read);
      shape.classList.toggle("met", met !== null && met.has(n));
      shape.classList.toggle("dim", met !== null ? !met.has(n) && n !== read : read !== null && n !== read && !near.has(n));
    });
  }

  const under = (event) => { const node = event.target.closest("[data-node]"); return node ? Number(node.dataset.node) : null; };
  svg.addEventListener("pointerover", (event) => onhover(under(event)));
  svg.addEventListener("pointerleave", () => onhover(null));
  svg.addEventListener("click", (event) => onpick(under(event)));
  svg.addEventListener("keydown", (event) => onkey(event, at));
  return { svg, labels, draw, at };
}

// the nearest node that lies in the direction of an arrow key: along its row, or in the next row that has any
function neighbour({ places }, from, key) {
  const here = places[from], along = key === "ArrowLeft" || key === "ArrowRight", sign = key === "ArrowRight" || key === "ArrowDown" ? 1 : -1;
  let best = null, least = Infinity;
  places.forEach(({ x, y }, n) => {
    const by = along ? sign * (x - here.x) : sign * (y - here.y), aside = along ? Math.abs(y - here.y) : Math.abs(x - here.x);
    if (by <= 0.5 || (along && aside > PITCH / 2)) return;
    const far = along ? by : by * 1000 + aside;
    if (far < least) [best, least] = [n, far];
  });
  return best;
}
