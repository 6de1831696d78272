// Draws the class's board, anew whenever the server sends what is on it.
"use strict";

const SVG = "http://www.w3.org/2000/svg";
const byId = (id) => document.getElementById(id);
const signed = (points) => (points < 0 ? "−" : "+") + Math.abs(points).toFixed(1);
const counted = (n, one, many = one + "s") => `${n} ${n === 1 ? one : many}`;

let board = null;
// The dots that were shown before; null until the first drawing, so that not all are new then.
let known = null;

/** An element with attributes and children; texts are texts, whatever is in them. */
function make(name, attributes = {}, ...children) {
  const svg = ["svg", "g", "line", "circle", "path", "text", "title"].includes(name);
  const made = svg ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** A number in [0, 1) that a dot keeps, for its height in the row. */
function spread(text) {
  let hash = 7;
  for (const c of text) hash = (hash * 31 + c.codePointAt(0)) % 9973;
  return hash / 9973;
}

function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}

/** The range of a study's axis in points, and the distance of its ticks. */
function range(study) {
  const shown = [0, 1, -1, ...study.bets];
  for (const { dots, result } of study.settings) {
    for (const { points } of dots) shown.push(points);
    // The interval of two seeds may be wider than everything else.
    if (result) shown.push(Math.max(result.low, -30), Math.min(result.high, 30));
  }
  const [low, high] = [Math.min(...shown), Math.max(...shown)];
  const step = [0.5, 1, 2, 5, 10, 20, 50].find((step) => (high - low) / step <= 10);
  return { low: Math.floor(low / step) * step, high: Math.ceil(high / step) * step, step };
}

/** An empty picture of this width and height with the vertical lines of the axis; `x` places points. */
function picture({ low, high, step }, width, height, label, ticks) {
  const side = 1.6 * rem();
  const x = (points) => side + ((points - low) / (high - low)) * (width - 2 * side);
  const bottom = height - (ticks ? 1.3 * rem() : 0);
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": label });
  for (let i = 0; low + i * step <= high + 1e-9; i++) {
    const at = low + i * step;
    svg.append(make("line", { class: Math.abs(at) < 1e-9 ? "zero" : "axis", x1: x(at), x2: x(at), y1: 0, y2: bottom }));
    if (ticks) {
      const text = make("text", { x: x(at), y: height - 0.3 * rem(), "text-anchor": "middle" });
      text.append(Math.abs(at) < 1e-9 ? "0" : (at > 0 ? "+" : "−") + Math.abs(at));
      svg.append(text);
    }
  }
  svg.append(make("line", { class: "margin", x1: x(0.5), x2: x(0.5), y1: 0, y2: bottom }));
  return { svg, x, bottom };
}

const rem = () => parseFloat(getComputedStyle(document.documentElement).fontSize);

function drawBets(study, axis, width) {
  const text = `${counted(study.bets.length, "bet")}, half of them below ${signed(median(study.bets))}`;
  const { svg, x, bottom } = picture(axis, width, 3.3 * rem(), text, !study.settings.length);
  const size = 0.42 * rem();
  study.bets.forEach((points, i) => {
    const [at, y] = [x(points), bottom - size - spread(`bet ${i}`) * 0.9 * rem()];
    svg.append(make("path", { class: "bet", d: `M ${at - size} ${y + size} h ${2 * size} l ${-size} ${-2 * size} z` },
      make("title", {}, `a bet: ${signed(points)}`)));
  });
  const middle = x(median(study.bets));
  svg.append(make("line", { class: "median", x1: middle, x2: middle, y1: bottom - 2.2 * rem(), y2: bottom }));
  const said = make("p", { class: "said" }, make("strong", {}, counted(study.bets.length, "bet")),
    make("small", {}, `half of them below ${signed(median(study.bets))} points`));
  return make("div", { class: "row", "data-row": "bets" }, make("h3", {}, "what the room bets"), svg, said);
}

function drawSetting(study, setting, axis, width, ticks) {
  const { dots, people, seeds, result, path } = setting;
  const who = `${counted(seeds, "seed")} from ${counted(people, "person", "people")}`;
  const words = result
    ? `${result.decision}: ${signed(result.mean)} points, ${signed(result.low)} to ${signed(result.high)}`
    : "no verdict before a second seed";
  const [above, below] = [2.9 * rem(), path.length > 1 ? 2.6 * rem() : 0];
  const height = above + below + (ticks ? 1.6 * rem() : 0.3 * rem());
  const { svg, x } = picture(axis, width, height, `${setting.setting}, ${who}: ${words}`, ticks);
  for (const { name, seed, points } of dots) {
    const key = `${name} ${seed} ${setting.setting} ${study.about}`;
    const y = 0.5 * rem() + spread(key) * (above - 1.4 * rem());
    svg.append(make("circle", { class: known && !known.has(key) ? "dot new" : "dot", cx: x(points), cy: y,
      r: 0.34 * rem(), "data-key": key }, make("title", {}, `${name}, seed ${seed}: ${signed(points)}`)));
  }
  if (result) {
    const y = above - 0.3 * rem();
    svg.append(make("line", { class: "interval", x1: x(result.low), x2: x(result.high), y1: y, y2: y }));
    svg.append(make("line", { class: "mean", x1: x(result.mean), x2: x(result.mean), y1: y - 0.5 * rem(), y2: y + 0.4 * rem() }));
  }
  if (below) {
    const y = (i) => above + 0.3 * rem() + (i / (path.length - 1)) * (below - 0.4 * rem());
    const along = (column) => path.map((step, i) => `${x(step[column])} ${y(i)}`);
    svg.append(make("path", { class: "band", d: `M ${along(1).join(" L ")} L ${along(3).reverse().join(" L ")} z` }));
    svg.append(make("path", { class: "way", d: `M ${along(2).join(" L ")}` }));
  }
  const said = make("p", { class: "said" });
  if (result) {
    const kind = { BETTER: "better", WORSE: "worse" }[result.decision] ?? "open";
    said.append(make("strong", { class: kind }, result.decision));
    said.append(`${signed(result.mean)} points (${signed(result.low)} to ${signed(result.high)})`);
    const bets = study.bets.length ? `; ${result.bets_inside} of ${counted(study.bets.length, "bet")} inside` : "";
    said.append(make("small", {}, `${result.confidence.toFixed(1)} % confidence, ${who}${bets}`));
  } else {
    said.append(words, make("small", {}, who));
  }
  return make("div", { class: "row", "data-row": setting.setting }, make("h3", {}, setting.setting), svg, said);
}

function draw() {
  if (!board) return;
  const main = byId("studies");
  const sections = board.studies.map((study) => {
    const section = make("section", {}, make("h2", {}, study.name), make("p", { class: "about" }, study.about));
    const [axis, narrow] = [range(study), main.clientWidth < 45 * rem()];
    // The column of the picture, which the style sheet lays out.
    const width = narrow ? main.clientWidth : main.clientWidth - rem() - Math.max(13 * rem(), 0.26 * main.clientWidth);
    if (study.bets.length) section.append(drawBets(study, axis, width));
    study.settings.forEach((setting, i) => {
      section.append(drawSetting(study, setting, axis, width, i === study.settings.length - 1));
    });
    return section;
  });
  if (!sections.length) sections.push(make("p", { class: "about" }, "Nothing yet: the first dot comes with the first post."));
  main.replaceChildren(...sections);
  byId("count").textContent = `${counted(board.people, "person", "people")}, ${counted(board.pairs, "pair")}`;
  known = new Set([...main.querySelectorAll("[data-key]")].map((dot) => dot.dataset.key));
}

function listen() {
  const events = new EventSource("events");
  events.onmessage = (event) => {
    board = JSON.parse(event.data);
    byId("trouble").textContent = "";
    draw();
  };
  events.onerror = () => {
    byId("trouble").textContent = "The board does not answer; trying again.";
    // A browser gives up when the answer is an error; one that was lost it asks for again itself.
    if (events.readyState === EventSource.CLOSED) setTimeout(listen, 2000);
  };
}

// The code stands behind the # of the address, which a browser does not send, so only who has it shows it.
const code = decodeURIComponent(location.hash.slice(1));
if (code) {
  const address = new URL(".", location.href).href.replace(/\/$/, "");
  byId("line").textContent = `lab.join("${address}", "${code}")?`;
  byId("how").hidden = false;
}
byId("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});
let width = 0;
new ResizeObserver(([{ contentRect }]) => {
  if (contentRect.width === width) return;
  width = contentRect.width;
  draw();
}).observe(byId("studies"));
listen();
