"use strict";
// What the page holds: about the cells, and columns, each deflated, in base64, until it is needed.
const about = JSON.parse(document.getElementById("about-data").textContent);
const byId = (id) => document.getElementById(id);
const shown = new Intl.NumberFormat("en");
const MISSING = "#DDDDDD";

// Data

async function inflated(id) {
  const text = byId(id).textContent;
  let bytes;
  if (Uint8Array.fromBase64) bytes = Uint8Array.fromBase64(text);
  else {
    const raw = atob(text);
    bytes = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  }
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

const cached = new Map();
function column(id, type) {
  if (!cached.has(id)) cached.set(id, inflated(id).then((buffer) => new type(buffer)));
  return cached.get(id);
}
// The codes of a category, of a number's level, or of a gene's level
const codesOf = (about_column) => column(about_column.id, about_column.wide ? Uint16Array : Uint8Array);
// The low bytes of all positions, then their high bytes
const places = async (id) => {
  const bytes = await column(id, Uint8Array);
  const found = new Float32Array(about.n);
  for (let i = 0; i < about.n; i++) found[i] = ((bytes[i] + 256 * bytes[i + about.n]) / 65535) * 1.9 - 0.95;
  return found;
};
const barcodes = async () => new TextDecoder().decode(await column("barcodes", Uint8Array)).split("\n");

// What can be shown: columns of the cells, then genes; each has a key that links name
const kinds = [...about.columns.map((c) => ({ ...c, key: `column:${c.name}` })),
  ...about.genes.map((g) => ({ ...g, kind: "gene", levels: about.gene_levels, key: `gene:${g.name}` }))];
const byKey = new Map(kinds.map((kind) => [kind.key, kind]));
const groupOf = (name) => about.columns.find((c) => c.name === name && c.kind === "category");

// A number's value at a level; levels above the last are missing values
const valueAt = (kind, level) => {
  if (level > kind.levels) return NaN;
  const share = level / kind.levels;
  if (kind.kind === "gene") return share * kind.max;
  return kind.log ? kind.low * Math.pow(kind.high / kind.low, share) : kind.low + share * (kind.high - kind.low);
};
const told = (value) => (Number.isNaN(value) ? "missing" : shown.format(Number(value.toPrecision(3))));

function mixed(colours, share) {
  const at = share * (colours.length - 1), i = Math.min(Math.floor(at), colours.length - 2);
  const [a, b] = [colours[i], colours[i + 1]].map((hex) => [1, 3, 5].map((k) => parseInt(hex.slice(k, k + 2), 16)));
  return a.map((v, k) => Math.round(v + (b[k] - v) * (at - i)));
}
const ramp = (kind) => (kind.kind === "gene" ? about.expression : about.viridis);
const hex = (rgb) => "#" + rgb.map((v) => v.toString(16).padStart(2, "0")).join("");
// The colour of each code; the last one is that of missing values
function coloursOf(kind) {
  if (kind.kind === "category") return [...kind.colours, MISSING];
  return [...Array.from({ length: kind.levels + 1 }, (_, i) => hex(mixed(ramp(kind), i / kind.levels))), MISSING];
}
const missingCode = (kind) => (kind.wide ? 65535 : 255);

// A fixed random order of drawing, so that no group lies on top
function randomOrder(n) {
  let state = 1;
  const order = Array.from({ length: n }, (_, i) => i);
  for (let i = n - 1; i > 0; i--) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    const j = Math.floor((state / 4294967296) * (i + 1));
    [order[i], order[j]] = [order[j], order[i]];
  }
  return order;
}
// That order, cells with higher levels of a gene last
function byLevel(order, codes, levels) {
  const starts = new Uint32Array(levels + 3), sorted = new Array(order.length);
  for (const code of codes) starts[Math.min(code, levels + 1) + 1]++;
  for (let i = 1; i < starts.length; i++) starts[i] += starts[i - 1];
  for (const cell of order) sorted[starts[Math.min(codes[cell], levels + 1)]++] = cell;
  return sorted;
}

// The view

const state = { embedding: 0, key: "", hidden: new Set(), selection: null };
let plot, codes, kind, order, spatial = new Map(), asked = 0, drawing = Promise.resolve();

function sized() {
  const { width, height } = byId("plot").getBoundingClientRect();
  return { width: Math.max(100, Math.floor(width)), height: Math.max(100, Math.floor(height)) };
}

// One drawing waits for the end of the one before; of several that wait, only the last is done
function show(key, embedding, keep) {
  const request = ++asked;
  drawing = drawing.catch(() => {}).then(() => request === asked && draw(key, embedding, keep));
  return drawing;
}
async function draw(key, embedding, keep) {
  byId("tip").hidden = true;
  const next = byKey.get(key), [x, y] = await Promise.all(about.embeddings[embedding].places.map(places));
  const found = await codesOf(next);
  const other = embedding !== state.embedding || !plot.get("points").length;
  if (key !== state.key && !keep) state.hidden.clear();
  Object.assign(state, { embedding, key });
  codes = found;
  kind = next;
  const colours = coloursOf(kind), last = colours.length - 1, missing = missingCode(kind);
  const z = Float32Array.from(codes, (code) => (code === missing ? last : code));
  plot.deselect({ preventEvent: true });
  plot.set({ pointColor: colours, colorBy: "valueA" });
  const options = { zDataType: "categorical", spatialIndex: spatial.get(embedding) };
  await plot.draw({ x, y, z }, options);
  plot.set({ pointOrder: kind.kind === "gene" ? byLevel(order, codes, kind.levels) : order });
  spatial.set(embedding, plot.get("spatialIndex"));
  filter();
  if (state.selection) plot.select(state.selection, { preventEvent: true });
  if (other && !keep) await plot.reset();
  byId("embedding").value = embedding;
  byId("column").value = kind.kind === "gene" ? "" : key;
  byId("gene").value = kind.kind === "gene" ? kind.symbol : "";
  legend();
  remember();
  byId("state").hidden = true;
}

function visible(cell) {
  const code = codes[cell];
  return !state.hidden.has(kind.kind === "category" && code === missingCode(kind) ? -1 : code);
}

function filter() {
  if (kind.kind !== "category" || !state.hidden.size) plot.unfilter();
  else plot.filter(order.filter(visible));
}

function make(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function legend() {
  const list = byId("legend"), grouped = kind.kind === "category";
  byId("legend-title").textContent = kind.kind === "gene" ? `${kind.symbol}, log-normalised` : kind.name;
  byId("legend-buttons").hidden = !grouped;
  byId("bar").hidden = grouped;
  list.replaceChildren();
  if (!grouped) {
    const [canvas, low, high] = byId("bar").children, context = canvas.getContext("2d");
    for (let i = 0; i < 256; i++) {
      context.fillStyle = `rgb(${mixed(ramp(kind), i / 255)})`;
      context.fillRect(i, 0, 1, 1);
    }
    low.textContent = told(valueAt(kind, 0)) + (kind.cut ? " or less" : "");
    high.textContent = told(valueAt(kind, kind.levels)) + (kind.cut ? " or more" : "");
    return;
  }
  const rows = kind.names.map((name, code) => [name, code, kind.counts[code], kind.colours[code]]);
  const lost = about.n - kind.counts.reduce((a, b) => a + b, 0);
  if (lost) rows.push(["missing", -1, lost, MISSING]);
  for (const [name, code, number, colour] of rows) {
    const dot = make("span", { className: "dot" });
    dot.style.background = colour;
    const label = make("span", { className: "name", textContent: name });
    const toggle = make("button", { className: "group" }, dot, label, make("span", { className: "number", textContent: shown.format(number) }));
    toggle.dataset.code = code;
    toggle.setAttribute("aria-pressed", String(!state.hidden.has(code)));
    toggle.onclick = () => hide(code);
    const only = make("button", { className: "only", textContent: "only", tabIndex: -1, onclick: () => isolate(code) });
    only.setAttribute("aria-label", `only ${name}`);
    list.append(make("li", {}, toggle, only));
  }
}

const codesShown = () => [...byId("legend").querySelectorAll(".group")].map((button) => Number(button.dataset.code));
function pressed() {
  for (const button of byId("legend").querySelectorAll(".group"))
    button.setAttribute("aria-pressed", String(!state.hidden.has(Number(button.dataset.code))));
  filter();
  remember();
}
function hide(code) {
  if (!state.hidden.delete(code)) state.hidden.add(code);
  pressed();
}
function isolate(code) {
  const others = codesShown().filter((other) => other !== code);
  const alone = !state.hidden.has(code) && others.every((other) => state.hidden.has(other));
  state.hidden = new Set(alone ? [] : others);
  pressed();
}

// Selection

function counted(name, cells) {
  const found = groupOf(name), title = make("caption", { textContent: name });
  return codesOf(found).then((of) => {
    const numbers = new Map();
    for (const cell of cells) numbers.set(of[cell], (numbers.get(of[cell]) || 0) + 1);
    const rows = [...numbers].sort((a, b) => b[1] - a[1] || a[0] - b[0]).map(([code, n]) => {
      const all = found.counts[code] ?? about.n - found.counts.reduce((a, b) => a + b, 0);
      return make("tr", {}, make("td", { textContent: found.names[code] ?? "missing" }),
        make("td", { className: "n", textContent: shown.format(n) }),
        make("td", { textContent: `${((100 * n) / cells.length).toFixed(1)} %` }),
        make("td", { textContent: `${((100 * n) / all).toFixed(1)} %` }));
    });
    const head = make("tr", {}, ...["", "cells", "of selection", "of group"].map((t) => make("th", { textContent: t })));
    const table = make("table", {}, title, make("thead", {}, head), make("tbody", {}, ...rows));
    table.dataset.of = name;
    return table;
  });
}

// The genes with the largest difference of the mean between the selection and all other cells
async function topGenes(cells) {
  const inside = new Uint8Array(about.n);
  for (const cell of cells) inside[cell] = 1;
  const rest = about.n - cells.length, found = [];
  for (const gene of about.genes) {
    const levels = await codesOf(gene);
    let all = 0, mine = 0, expressing = 0;
    for (let i = 0; i < about.n; i++) all += levels[i];
    for (const cell of cells) {
      mine += levels[cell];
      expressing += levels[cell] > 0;
    }
    const step = gene.max / about.gene_levels;
    const mean = (mine * step) / cells.length, other = rest ? ((all - mine) * step) / rest : 0;
    found.push({ gene, mean, other, share: expressing / cells.length });
  }
  return found.sort((a, b) => b.mean - b.other - (a.mean - a.other)).slice(0, 15);
}

async function select(cells) {
  state.selection = cells.length ? cells : null;
  byId("clear").disabled = !state.selection;
  byId("counts").replaceChildren();
  const all = shown.format(about.n);
  byId("selected").textContent = state.selection
    ? `${shown.format(cells.length)} of ${all} cells`
    : "Draw with the lasso around cells, or hold Shift and drag.";
  if (!state.selection) return;
  const names = [...new Set([about.cluster, about.sample, kind.kind === "category" ? kind.name : null])].filter(Boolean);
  for (const name of names) {
    const table = await counted(name, cells);
    if (state.selection !== cells) return;
    byId("counts").append(table);
  }
  if (!about.genes.length) return;
  const waiting = make("p", { textContent: "Comparing genes …" });
  byId("counts").append(waiting);
  const rows = (await topGenes(cells)).map(({ gene, mean, other, share }) =>
    make("tr", {}, make("td", {}, make("button", { textContent: gene.symbol, onclick: () => show(`gene:${gene.name}`, state.embedding) })),
      make("td", { textContent: mean.toFixed(2) }), make("td", { textContent: other.toFixed(2) }),
      make("td", { textContent: `${(100 * share).toFixed(0)} %` })));
  if (state.selection !== cells) return;
  const head = make("tr", {}, ...["", "mean here", "elsewhere", "express"].map((t) => make("th", { textContent: t })));
  const table = make("table", {}, make("caption", { textContent: "Top genes of the selection" }), make("thead", {}, head), make("tbody", {}, ...rows));
  table.dataset.of = "genes";
  waiting.replaceWith(table);
}

async function exported() {
  const names = await barcodes();
  const cells = (state.selection ?? order.filter(visible)).slice().sort((a, b) => a - b);
  const text = Array.from(cells, (cell) => names[cell]).join("\n") + "\n";
  const link = make("a", { href: URL.createObjectURL(new Blob([text], { type: "text/plain" })), download: "barcodes.txt" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  return text;
}

// Links

function hash() {
  const parts = { embedding: about.embeddings[state.embedding].name, colour: state.key };
  if (state.hidden.size) parts.hidden = [...state.hidden].sort((a, b) => a - b).join(",");
  parts.view = Array.from(plot.get("cameraView"), (v) => Number(v.toPrecision(6))).join(",");
  return "#" + new URLSearchParams(parts);
}
let last = "";
function remember() {
  last = hash();
  history.replaceState(null, "", last);
}
async function restore() {
  const asked = new URLSearchParams(location.hash.slice(1));
  const embedding = Math.max(0, about.embeddings.findIndex((e) => e.name === asked.get("embedding")));
  const key = byKey.has(asked.get("colour")) ? asked.get("colour") : kinds[0].key;
  state.hidden = new Set((asked.get("hidden") || "").split(",").filter(Boolean).map(Number));
  const view = (asked.get("view") || "").split(",").map(Number);
  await show(key, embedding, true);
  if (view.length === 16 && view.every(Number.isFinite)) plot.set({ cameraView: Float32Array.from(view) });
  remember();
}

// Start

async function hover(cell, entered) {
  const tip = byId("tip");
  tip.hidden = !entered;
  if (!entered) return;
  const [left, top] = plot.getScreenPosition(cell), names = await barcodes(), lines = [names[cell]];
  for (const key of new Set([kind.key, `column:${about.cluster}`, `column:${about.sample}`])) {
    const of = byKey.get(key);
    const code = (await codesOf(of))[cell];
    const value = of.kind === "category" ? of.names[code] ?? "missing" : told(valueAt(of, code));
    lines.push(`${of.symbol ?? of.name}: ${value}`);
  }
  tip.textContent = lines.join("\n");
  const box = byId("plot").getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(left + 12, box.width - tip.offsetWidth - 4))}px`;
  tip.style.top = `${Math.max(4, Math.min(top + 12, box.height - tip.offsetHeight - 4))}px`;
}

function fill() {
  document.title = about.title;
  byId("title").textContent = about.title;
  byId("about").textContent = about.said;
  byId("notes").textContent = about.notes.join(" ");
  about.embeddings.forEach((e, i) => byId("embedding").append(make("option", { value: i, textContent: e.name })));
  for (const [label, of] of [["Groups", "category"], ["Numbers", "number"]]) {
    const group = make("optgroup", { label });
    for (const c of kinds) if (c.kind === of) group.append(make("option", { value: c.key, textContent: c.name }));
    if (group.children.length) byId("column").append(group);
  }
  for (const gene of about.genes) byId("genes").append(make("option", { value: gene.symbol }));
  byId("gene").disabled = !about.genes.length;
}

function listen() {
  byId("embedding").onchange = (event) => show(state.key, Number(event.target.value), false);
  byId("column").onchange = (event) => show(event.target.value, state.embedding);
  byId("gene").onchange = (event) => {
    const wanted = event.target.value.trim().toLowerCase();
    const gene = about.genes.find((g) => g.symbol.toLowerCase() === wanted || g.name.toLowerCase() === wanted);
    byId("unknown").textContent = gene || !wanted ? "" : `${event.target.value} is not among the ${about.genes.length} genes of this page.`;
    if (gene) show(`gene:${gene.name}`, state.embedding);
  };
  byId("all").onclick = () => { state.hidden.clear(); pressed(); };
  byId("none").onclick = () => { state.hidden = new Set(codesShown()); pressed(); };
  byId("legend").onkeydown = (event) => {
    const buttons = [...byId("legend").querySelectorAll(".group")], at = buttons.indexOf(document.activeElement);
    if (at < 0) return;
    const move = { ArrowDown: 1, ArrowUp: -1, Home: -at, End: buttons.length - 1 - at }[event.key];
    if (move !== undefined) buttons[(at + move + buttons.length) % buttons.length].focus();
    else if (event.key.toLowerCase() === "o") isolate(Number(buttons[at].dataset.code));
    else return;
    event.preventDefault();
  };
  byId("lasso").onclick = (event) => {
    const on = plot.get("mouseMode") !== "lasso";
    plot.set({ mouseMode: on ? "lasso" : "panZoom" });
    event.target.setAttribute("aria-pressed", String(on));
  };
  byId("clear").onclick = () => plot.deselect();
  byId("export").onclick = exported;
  byId("home").onclick = () => plot.reset().then(remember);
  byId("link").onclick = async () => {
    remember();
    await navigator.clipboard?.writeText(location.href).catch(() => {});
  };
  // A lasso that ends where it began is a click too, which would select one cell instead
  let lassoed = -Infinity;
  plot.subscribe("lassoEnd", () => { lassoed = performance.now(); });
  plot.subscribe("select", ({ points }) => {
    if (points.length === 1 && state.selection && performance.now() - lassoed < 100) plot.select(state.selection, { preventEvent: true });
    else select(points);
  });
  plot.subscribe("deselect", () => select([]));
  plot.subscribe("pointOver", (cell) => hover(cell, true));
  plot.subscribe("pointOut", () => hover(0, false));
  let waiting;
  plot.subscribe("view", () => { clearTimeout(waiting); waiting = setTimeout(remember, 200); });
  window.addEventListener("resize", () => plot.set(sized()));
  window.addEventListener("hashchange", () => location.hash !== last && restore());
}

async function start() {
  fill();
  order = randomOrder(about.n);
  const size = Math.max(1.5, Math.min(7, 420 / Math.sqrt(about.n)));
  plot = regl_scatterplot.default({
    canvas: byId("canvas"), ...sized(), backgroundColor: [1, 1, 1, 1], pointSize: size, pointSizeSelected: 1,
    pointOutlineWidth: 1, opacity: 0.85, lassoColor: [0, 0.45, 0.7, 1], pointColorActive: "#000000", pointColorHover: "#000000",
    pointScaleMode: "asinh", spatialIndexUseWorker: false,
  });
  listen();
  await restore();
}

// For those who go on in the console, and for tests
window.explorer = {
  about, plot: () => plot, show, hide, isolate, select, exported, topGenes, barcodes, state,
  codes: (key) => codesOf(byKey.get(key)),
  values: async (key) => Array.from(await codesOf(byKey.get(key)), (level) => valueAt(byKey.get(key), level)),
  ready: start().catch((error) => {
    byId("state").textContent = `The cells cannot be drawn: ${error.message}. This page needs WebGL and a browser of 2023 or newer.`;
    throw error;
  }),
};
