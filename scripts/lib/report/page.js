"use strict";
document.documentElement.classList.add("script");

const $$ = (what, root = document) => [...root.querySelectorAll(what)];
const made = (name, known = {}, ...children) => {
  const element = Object.assign(document.createElement(name), known);
  element.append(...children);
  return element;
};

// Tables

const SMALLEST = 1e-300;
const ROWS = 14; // of a table without a scroll bar of its own
const PRINTED = 40; // rows of a table on paper

async function bytesOf(element) {
  const packed = Uint8Array.from(atob(element.textContent.trim()), (c) => c.charCodeAt(0));
  const plain = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(plain).arrayBuffer());
}

function fieldsOf(text) {
  const lines = [[]];
  const field = /(?:"((?:[^"]|"")*)"|([^\t\r\n]*))(\t|\r?\n|$)/y;
  while (field.lastIndex < text.length) {
    const found = field.exec(text);
    if (!found) break;
    lines.at(-1).push(found[1] === undefined ? found[2] : found[1].replaceAll('""', '"'));
    if (found[3] !== "\t") {
      if (field.lastIndex >= text.length) break;
      lines.push([]);
    } else if (field.lastIndex >= text.length) lines.at(-1).push("");
  }
  return lines;
}

const isNumber = (text) => text.trim() !== "" && isFinite(text);
const shownNumber = (value) =>
  Number.isInteger(value) && Math.abs(value) < 1e15
    ? value.toLocaleString("en")
    : Math.abs(value) >= 1e-3 && Math.abs(value) < 1e6
      ? Number(value.toPrecision(4)).toLocaleString("en", { maximumFractionDigits: 6 })
      : value.toExponential(2);

function shown(value, about) {
  if (value === null) return "–";
  if (typeof value === "string") return value;
  return about.p_value && value < SMALLEST ? "< 1e-300" : shownNumber(value);
}

function matches(wanted, value) {
  wanted = wanted.trim();
  if (typeof value === "string") return value.toLowerCase().includes(wanted.toLowerCase());
  const [, sign, number] = /^([<>]=?|=)?\s*(.*)$/.exec(wanted);
  if (number === "" || isNaN(number)) return number === "";
  const at = Number(number);
  return value !== null && { "<": value < at, ">": value > at, "<=": value <= at, ">=": value >= at }[sign || ""] || (!/[<>]/.test(sign) && value === at);
}

async function build(sheet) {
  const data = sheet.querySelector(".data");
  const told = JSON.parse(sheet.querySelector(".columns").textContent);
  const bytes = await bytesOf(data);
  const [header, ...lines] = fieldsOf(new TextDecoder().decode(bytes));
  const numeric = header.map((name, i) => !told[name]?.text && lines.some((line) => line[i]) && lines.every((line) => !line[i] || isNumber(line[i])));
  const rows = lines.map((line) => Object.fromEntries(header.map((_, i) => {
    const text = line[i] ?? "";
    return [`c${i}`, numeric[i] ? (text === "" ? null : Number(text)) : text];
  })));
  const titles = header.map((name) => told[name]?.title || name);
  const columns = header.map((name, i) => {
    const about = told[name] ?? {};
    const title = titles[i];
    return {
      field: `c${i}`, title: made("i", { textContent: title }).innerHTML, headerTooltip: false, hozAlign: numeric[i] ? "right" : "left", headerHozAlign: numeric[i] ? "right" : "left",
      sorter: numeric[i] ? "number" : (a, b) => a.localeCompare(b, "en", { numeric: true }),
      titleFormatter: () => made("span", { textContent: title }),
      formatter: (cell) => {
        const value = cell.getValue();
        const beyond = typeof value === "number" && ((about.low ?? null) !== null && value < about.low || (about.high ?? null) !== null && value > about.high);
        const limit = [about.low ?? null, about.high ?? null].filter((at) => at !== null).map(shownNumber).join(" to ");
        return made("span", { textContent: shown(value, about), className: beyond ? "beyond" : "", title: beyond ? `limit ${limit}` : "" });
      },
      headerFilter: lines.length > 3 ? "input" : false, headerFilterPlaceholder: numeric[i] ? "> <" : "find",
      headerFilterFunc: matches, visible: !about.hidden, minWidth: 60, headerFilterParams: { elementAttributes: { "aria-label": `filter ${title}` } },
    };
  });
  const place = sheet.querySelector(".rows");
  const table = new Tabulator(place, {
    data: rows, columns, layout: "fitDataTable", nestedFieldSeparator: false, ...(rows.length > ROWS ? { height: 430 } : {}),
    printAsHtml: true, printRowRange: () => table.getRows("active").slice(0, PRINTED), placeholder: "no rows", movableColumns: true, columnDefaults: { maxInitialWidth: 420 },
  });
  const name = data.dataset.name;
  const tools = sheet.querySelector(".tools");
  const download = made("button", { type: "button", textContent: `Download ${name}` });
  download.addEventListener("click", () => {
    const link = made("a", { href: URL.createObjectURL(new Blob([bytes], { type: "text/tab-separated-values" })), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
  const choice = made("div");
  for (const [i, { field, visible }] of columns.entries()) {
    const box = made("input", { type: "checkbox", checked: visible });
    box.addEventListener("change", () => table.toggleColumn(field));
    choice.append(made("label", {}, box, ` ${titles[i]}`));
  }
  const count = made("span", { className: "rows-shown", textContent: `${rows.length.toLocaleString("en")} rows` });
  table.on("dataFiltered", (_, left) => {
    count.textContent = left.length === rows.length ? `${rows.length.toLocaleString("en")} rows` : `${left.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")} rows`;
  });
  tools.append(made("details", {}, made("summary", { textContent: "Columns" }), choice), download, count);
  await new Promise((done) => table.on("tableBuilt", done));
  data.remove();
}

// Tables are built one after the other, those in view first
const waiting = new Map($$(".sheet").map((sheet) => [sheet, null]));
const start = (sheet) => {
  if (!waiting.delete(sheet)) return Promise.resolve();
  return build(sheet).catch((error) => sheet.querySelector(".tools").append(`The table cannot be shown: ${error.message}`));
};
const near = new IntersectionObserver((seen) => seen.filter((one) => one.isIntersecting).forEach((one) => start(one.target)), { rootMargin: "600px" });
for (const sheet of waiting.keys()) near.observe(sheet);
const later = window.requestIdleCallback ?? ((work) => setTimeout(work, 200));
const next = () => {
  const [sheet] = waiting.keys();
  if (sheet) later(() => start(sheet).then(next));
  else {
    if (location.hash && !moved) follow(); // the tables above have grown since
    document.documentElement.dataset.ready = "yes";
  }
};

// Figures of single samples, one at a time

const turnTo = (pager, figure) => {
  for (const one of $$(".figure", pager)) one.classList.toggle("on", one === figure);
  pager.querySelector("select").value = figure.id;
};
for (const pager of $$(".pager")) {
  const figures = $$(".figure", pager);
  if (figures.length) turnTo(pager, figures[0]);
  pager.querySelector("select").addEventListener("change", (event) => turnTo(pager, document.getElementById(event.target.value)));
  for (const button of $$("[data-step]", pager)) {
    button.addEventListener("click", () => {
      const at = figures.findIndex((one) => one.classList.contains("on")) + Number(button.dataset.step);
      turnTo(pager, figures[(at + figures.length) % figures.length]);
    });
  }
}

// Links into the page: also to a figure that its pager does not show

const follow = () => {
  const target = document.getElementById(location.hash.slice(1));
  const pager = target?.closest(".pager");
  if (pager) turnTo(pager, target);
  target?.scrollIntoView({ behavior: "instant" });
};
window.addEventListener("hashchange", follow);
let moved = false;
for (const kind of ["wheel", "pointerdown", "keydown", "touchstart"]) {
  window.addEventListener(kind, () => (moved = true), { once: true, passive: true });
}
if (location.hash) follow();
next();

// Enlarged figures

const dialog = document.getElementById("zoom");
const images = () => $$(".figure .zoom").filter((link) => link.offsetParent);
let open = null;
const show = (link) => {
  open = link;
  const from = link.querySelector("img");
  const to = dialog.querySelector("img");
  Object.assign(to, { src: from.src, alt: from.alt, width: from.naturalWidth, height: from.naturalHeight });
  dialog.querySelector(".bar span").textContent = link.parentElement.querySelector("figcaption p").textContent.trim();
  if (!dialog.open) dialog.showModal();
  dialog.querySelector(".view").scrollTo(0, 0);
  dialog.querySelector(".view").focus();
};
const step = (by) => {
  const all = images();
  show(all[(all.indexOf(open) + by + all.length) % all.length]);
};
for (const link of $$(".figure .zoom")) {
  link.addEventListener("click", (event) => {
    event.preventDefault();
    show(link);
  });
}
for (const button of $$("[data-step]", dialog)) button.addEventListener("click", () => step(Number(button.dataset.step)));
dialog.querySelector("[data-close]").addEventListener("click", () => dialog.close());
dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
dialog.addEventListener("keydown", (event) => {
  const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (by && !event.altKey) step(by);
});
dialog.addEventListener("close", () => open?.focus());

// The chapter that is read

const links = new Map($$("nav li a").map((link) => [link.getAttribute("href").slice(1), link]));
const reads = new IntersectionObserver((seen) => {
  for (const one of seen) one.target.dataset.seen = one.isIntersecting ? "yes" : "";
  const now = $$("main section[id]").filter((one) => one.dataset.seen && links.has(one.id)).at(-1);
  for (const link of links.values()) link.removeAttribute("aria-current");
  if (now) links.get(now.id).setAttribute("aria-current", "true");
}, { rootMargin: "-10% 0px -75% 0px" });
for (const section of $$("main section[id]")) reads.observe(section);

// Copies

for (const button of $$("[data-copy]")) {
  button.addEventListener("click", async () => {
    const text = button.dataset.copy.split(" ").map((id) => document.getElementById(id)).filter(Boolean)
      .map((one) => (one.matches("ol") ? $$("li", one).map((line, i) => `${i + 1}. ${line.textContent}`).join("\n") : one.innerText)).join("\n\n");
    await navigator.clipboard.writeText(text);
    const before = button.textContent;
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = before), 1500);
  });
}
window.addEventListener("beforeprint", () => $$("main details").forEach((one) => (one.open = true)));
