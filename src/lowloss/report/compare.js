"use strict";
// The page holds its data as JSON: a row of the table is a path of a study, or a study without paths.
const data = JSON.parse(document.getElementById("data").textContent);
// Of each metric its label, and the factor to what is shown.
const METRICS = data.metrics;
const COLOURS = ["#1f5fbf", "#d9822b", "#2a9d6f", "#7a4fbf", "#b03a5b", "#4aa3b5", "#8a8f98", "#6b705c", "#c9a227", "#22577a"];
const ROWS_AT_FIRST = 200;
const state = { plot: "paths", metric: "train_loss", colour: "finder", log: true, sort: null, down: false, filters: {}, all: false, chosen: null };
const $ = (id) => document.getElementById(id);
const column = (name) => data.columns.indexOf(name);

function element(tag, attributes = {}, ...children) {
  const made = Object.assign(document.createElement(tag), attributes);
  made.append(...children);
  return made;
}

function show(value) {
  if (value === null || value === undefined) return "";
  return typeof value === "number" && !Number.isInteger(value) ? Number(value.toPrecision(4)).toString() : String(value);
}

// A comparison for numbers, else a part of the text.
function passes(value, filter) {
  const comparison = filter.trim().match(/^(<=|>=|<|>|=)\s*(-?[\d.]+(?:e[-+]?\d+)?)$/i);
  if (!comparison) return show(value).toLowerCase().includes(filter.trim().toLowerCase());
  if (typeof value !== "number") return false;
  const limit = Number(comparison[2]);
  return { "<": value < limit, ">": value > limit, "<=": value <= limit, ">=": value >= limit, "=": value === limit }[comparison[1]];
}

function visible() {
  const filters = Object.entries(state.filters).filter(([, text]) => text.trim());
  const rows = data.rows.map((_, i) => i).filter((i) => filters.every(([c, text]) => passes(data.rows[i][c], text)));
  if (state.sort === null) return rows;
  const sign = state.down ? -1 : 1;
  return rows.sort((i, j) => {
    const [a, b] = [data.rows[i][state.sort], data.rows[j][state.sort]];
    // What has no value comes last, whichever way.
    if (a === null || b === null) return (a === null) - (b === null) || i - j;
    return (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b))) * sign || i - j;
  });
}

function makeTable() {
  const head = element("tr"), filters = element("tr", { className: "filters" });
  data.columns.forEach((name, c) => {
    const cell = element("th", { textContent: name.replaceAll("_", " ") });
    cell.addEventListener("click", () => {
      state.down = state.sort === c && !state.down;
      state.sort = c;
      update();
    });
    head.append(cell);
    const input = element("input", { placeholder: "filter", ariaLabel: `filter ${name}` });
    input.addEventListener("input", () => { state.filters[c] = input.value; update(); });
    filters.append(element("th", {}, input));
  });
  $("table").append(element("table", {}, element("thead", {}, head, filters), element("tbody")));
}

function update() {
  const rows = visible(), shown = state.all ? rows : rows.slice(0, ROWS_AT_FIRST);
  $("table").querySelectorAll("thead tr:first-child th").forEach((cell, c) => {
    cell.ariaSort = state.sort === c ? (state.down ? "descending" : "ascending") : "none";
  });
  $("table").querySelector("tbody").replaceChildren(...shown.map((i) => {
    const line = element("tr", { className: i === state.chosen ? "chosen" : "" });
    line.append(...data.rows[i].map((value) => element("td", { textContent: show(value) })));
    line.addEventListener("click", () => choose(i));
    return line;
  }));
  $("count").textContent = `${rows.length} of ${data.rows.length} rows` + (shown.length < rows.length ? `, the first ${shown.length} shown` : "");
  $("all").hidden = shown.length === rows.length;
  draw(rows);
}

function layout(x, y) {
  return {
    margin: { l: 70, r: 50, t: 50, b: 60 }, modebar: { orientation: "v" }, hovermode: "closest", paper_bgcolor: "#fff", plot_bgcolor: "#fff",
    font: { family: "system-ui, sans-serif", size: 13, color: "#1b1f24" },
    xaxis: { title: { text: x }, gridcolor: "#e6e8eb", automargin: true },
    yaxis: { title: { text: y }, gridcolor: "#e6e8eb", type: state.log ? "log" : "linear", dtick: state.log ? "D2" : undefined, exponentformat: "power" },
    legend: { orientation: "h", y: 1.02, yanchor: "bottom" },
  };
}

const OPTIONS = { displaylogo: false, responsive: true, modeBarButtonsToRemove: ["sendChartToCloud"] };
const positive = (value) => (value === null || (state.log && value <= 0) ? null : value);

// One line for each colour: the paths of a group lie one behind the other with a gap between.
function pathLines(rows, group, chosen) {
  const [, scale] = METRICS[state.metric];
  const lines = new Map();
  for (const i of rows) {
    const along = data.paths[i];
    if (!along || !along[state.metric]) continue;
    const key = String(group(i));
    if (!lines.has(key)) lines.set(key, { x: [], y: [], customdata: [] });
    const line = lines.get(key);
    line.x.push(...along.arc, null);
    line.y.push(...along[state.metric].map((value) => (value === null ? null : positive(scale * value))), null);
    line.customdata.push(...along.arc.map(() => i), null);
  }
  return [...lines].map(([name, line], k) => ({
    ...line, name, mode: "lines", connectgaps: false, hovertemplate: `${name}<br>%{y:.4g}<extra></extra>`,
    line: { color: COLOURS[k % COLOURS.length], width: chosen === name ? 3 : 1.4 },
  }));
}

function drawPaths(rows) {
  const c = column(state.colour), [label] = METRICS[state.metric];
  $("caption").textContent = "Exact values over whole splits at every sampled point of each path.";
  return [pathLines(rows, (i) => data.rows[i][c]), layout("fraction of the path's length", label)];
}

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

// Draxler et al. 2018, fig. 5: squares are minima, circles saddles.
function drawArchitectures(rows) {
  const owners = new Set(rows.map((i) => data.owners[i])), finders = new Set(rows.map((i) => data.rows[i][column("finder")]));
  const entries = data.overview.filter((row) => owners.has(row.study) && finders.has(row.finder));
  const models = [...new Set(entries.map((row) => row.model))];
  const groups = [...new Set(entries.map((row) => `${row.data}, ${row.finder}`))];
  const traces = [];
  groups.forEach((group, k) => {
    for (const [level, symbol] of [["min", "square"], ["saddle", "circle"]]) {
      const points = models.map((model) => entries
        .filter((row) => row.model === model && `${row.data}, ${row.finder}` === group)
        .map((row) => row[`${state.metric}_${level}`] ?? null).filter((value) => value !== null)
        .map((value) => METRICS[state.metric][1] * value));
      const centre = points.map((values) => (values.length ? positive(mean(values)) : null));
      const spread = points.map((values) => (values.length > 1
        ? Math.sqrt(mean(values.map((value) => (value - mean(values)) ** 2)) * values.length / (values.length - 1)) : 0));
      traces.push({
        x: models, y: centre, name: `${group}: ${level === "min" ? "minima" : "saddles"}`, mode: "lines+markers",
        error_y: { type: "data", array: spread, visible: true, thickness: 1 },
        marker: { symbol, size: 9, color: COLOURS[k % COLOURS.length] },
        line: { color: COLOURS[k % COLOURS.length], width: 1, dash: level === "min" ? "dot" : "solid" },
        text: points.map((values) => `${values.length} studies`), hovertemplate: "%{x}<br>%{y:.4g}, %{text}<extra></extra>",
      });
    }
  });
  $("caption").textContent = "As fig. 5 of Draxler et al. 2018: minima (squares) and saddles of the minimum spanning tree (circles); means over the studies of an architecture and their standard deviation. Architectures of a family are ordered by their parameters.";
  return [traces, layout("", METRICS[state.metric][0])];
}

function draw(rows) {
  document.querySelectorAll("#plots button").forEach((button) => { button.ariaPressed = String(button.dataset.plot === state.plot); });
  const [traces, figure] = { paths: drawPaths, architectures: drawArchitectures }[state.plot](rows);
  $("colour").parentElement.hidden = state.plot !== "paths";
  Plotly.react("plot", traces, figure, OPTIONS);
}

function choose(i) {
  state.chosen = i;
  const study = data.studies[data.owners[i]], box = $("chosen");
  const link = ([name, href]) => element("a", { href, textContent: name, style: "margin-right: 12px" });
  const links = element("p", {}, ...(study.report ? [link(["report", study.report])] : []), ...study.configs.map(([name, href]) => link([`${name}/config.yaml`, href])));
  const pictures = element("div", { id: "pictures" }, ...study.pictures.map(([name, src]) => element("figure", {}, element("img", { src, alt: name }), element("figcaption", { textContent: name }))));
  box.replaceChildren(
    element("h2", { textContent: study.name }), element("div", { id: "chosen-plot" }), pictures,
    element("details", {}, element("summary", { textContent: "configuration" }), element("pre", { textContent: JSON.stringify(study.config, null, 2) })), links,
  );
  box.hidden = false;
  const name = (j) => ["finder", "start", "end"].map((key) => data.rows[j][column(key)]).join(" ");
  const siblings = data.rows.map((_, j) => j).filter((j) => data.owners[j] === data.owners[i] && data.paths[j]);
  if (siblings.length) Plotly.newPlot("chosen-plot", pathLines(siblings, name, name(i)), layout("fraction of the path's length", METRICS[state.metric][0]), OPTIONS);
  else $("chosen-plot").remove();
  update();
  box.scrollIntoView({ behavior: "smooth" });
}

function start() {
  for (const [name, [label]] of Object.entries(METRICS)) $("metric").append(element("option", { value: name, textContent: label }));
  const groups = data.columns.slice(0, column("minima")).filter((name) => name !== "parameters");
  for (const name of [...(column("finder") < 0 ? [] : ["finder"]), ...groups]) $("colour").append(element("option", { value: name, textContent: name }));
  state.colour = $("colour").value;
  for (const id of ["metric", "colour"]) $(id).addEventListener("change", () => { state[id] = $(id).value; update(); });
  $("log").addEventListener("change", () => { state.log = $("log").checked; update(); });
  $("all").addEventListener("click", () => { state.all = true; update(); });
  document.querySelectorAll("#plots button").forEach((button) => button.addEventListener("click", () => { state.plot = button.dataset.plot; update(); }));
  makeTable();
  update();
  $("plot").on("plotly_click", (event) => { const i = event.points[0].customdata; if (i !== undefined && i !== null) choose(i); });
}

start();
