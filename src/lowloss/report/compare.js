// The page holds its data as JSON: a row of the table is a path of a study, a study without paths, or a job that is not done.
let data, METRICS;
const HEIGHT = 30, PLANES = 12, BINS = 60;
const state = { plot: "paths", metric: "train_loss", colour: "finder", scan: null, log: true, bands: false, sort: null, down: false, filters: {}, columns: [], chosen: null };
const $ = (id) => document.getElementById(id);
const column = (name) => data.columns.indexOf(name);
let rows = [];

function element(tag, attributes = {}, ...children) {
  const made = Object.assign(document.createElement(tag), attributes);
  made.append(...children);
  return made;
}

const percent = (name) => data.percent.includes(name);
const heading = (name) => data.headings[name] + (percent(name) ? " [%]" : "");
const value = (i, name) => { const held = data.rows[i][column(name)]; return percent(name) && typeof held === "number" ? 100 * held : held; };

function show(held) {
  if (held === null || held === undefined) return "";
  return typeof held === "number" && !Number.isInteger(held) ? Number(held.toPrecision(4)).toString() : String(held);
}

// A comparison for numbers, else a part of the text.
function passes(held, filter) {
  const comparison = filter.trim().match(/^(<=|>=|<|>|=)\s*(-?[\d.]+(?:e[-+]?\d+)?)$/i);
  if (!comparison) return show(held).toLowerCase().includes(filter.trim().toLowerCase());
  if (typeof held !== "number") return false;
  const limit = Number(comparison[2]);
  return { "<": held < limit, ">": held > limit, "<=": held <= limit, ">=": held >= limit, "=": held === limit }[comparison[1]];
}

function visible() {
  const filters = Object.entries(state.filters).filter(([, text]) => text.trim());
  const left = data.rows.map((_, i) => i).filter((i) => filters.every(([name, text]) => passes(value(i, name), text)));
  if (state.sort === null) return left;
  const sign = state.down ? -1 : 1;
  return left.sort((i, j) => {
    const [a, b] = [value(i, state.sort), value(j, state.sort)];
    // What has no value comes last, whichever way.
    if (a === null || b === null) return (a === null) - (b === null) || i - j;
    return (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b))) * sign || i - j;
  });
}

function makeTable() {
  const head = element("tr"), filters = element("tr", { className: "filters" });
  for (const name of state.columns) {
    const button = element("button", { textContent: heading(name) }), cell = element("th", { title: name }, button);
    cell.dataset.name = name;
    button.addEventListener("click", () => { Object.assign(state, { down: state.sort === name && !state.down, sort: name }); update(); });
    head.append(cell);
    const input = element("input", { placeholder: "filter", ariaLabel: `filter ${name}`, value: state.filters[name] || "" });
    input.addEventListener("input", () => { state.filters[name] = input.value; update(); });
    filters.append(element("th", {}, input));
  }
  $("table").replaceChildren(element("table", {}, element("thead", {}, head, filters), element("tbody")));
  filters.querySelectorAll("th").forEach((cell) => { cell.style.top = `${head.offsetHeight}px`; });
}

// Only the rows in view are there, between two spacers.
function fill() {
  const box = $("table"), first = Math.max(0, Math.floor(box.scrollTop / HEIGHT) - 10), last = Math.min(rows.length, first + Math.ceil(box.clientHeight / HEIGHT) + 20);
  const spacer = (count) => element("tr", { style: `height:${count * HEIGHT}px`, ariaHidden: "true" });
  box.querySelector("tbody").replaceChildren(spacer(first), ...rows.slice(first, last).map((i) => {
    const line = element("tr", { className: (i === state.chosen ? "chosen " : "") + (data.undone.includes(i) ? "undone" : "") });
    line.append(...state.columns.map((name) => {
      const text = show(value(i, name)), study = data.studies[data.owners[i]];
      const link = name === "study" && study.report ? element("a", { href: study.report, textContent: text }) : text;
      return element("td", { title: text }, link);
    }));
    line.addEventListener("click", (event) => { if (event.target.tagName !== "A") choose(i); });
    return line;
  }), spacer(rows.length - last));
}

function csv() {
  const cell = (text) => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const safe = (text) => (/^[=+@\t\r-]/.test(text) && Number.isNaN(Number(text)) ? `'${text}` : text);  // no spreadsheet takes it for a formula
  const lines = [state.columns.map(heading), ...rows.map((i) => state.columns.map((name) => safe(String(value(i, name) ?? ""))))];
  return lines.map((line) => line.map(cell).join(",")).join("\n") + "\n";
}

function remember() {
  const { chosen, ...kept } = state;
  history.replaceState(null, "", `#${encodeURIComponent(JSON.stringify(kept))}`);
}

function recall() {
  try {
    const kept = JSON.parse(decodeURIComponent(location.hash.slice(1)));
    for (const key of Object.keys(state)) if (key in kept && (state[key] === null || typeof kept[key] === typeof state[key])) state[key] = kept[key];
    state.columns = state.columns.filter((name) => column(name) >= 0);
    state.filters = Object.fromEntries(Object.entries(state.filters).filter(([name, text]) => column(name) >= 0 && typeof text === "string"));
    if (column(state.sort) < 0) state.sort = null;
  } catch { /* the address says nothing */ }
}

function update() {
  rows = visible();
  document.querySelectorAll("#table thead tr:first-child th").forEach((cell) => {
    cell.ariaSort = state.sort === cell.dataset.name ? (state.down ? "descending" : "ascending") : "none";
  });
  $("count").textContent = `${rows.length} of ${data.rows.length} rows`;
  $("clear").hidden = !Object.values(state.filters).some((text) => text.trim());
  fill();
  remember();
  draw();
}

const positive = (held) => (held === null || (state.log && held <= 0) ? null : held);
const look = (name, key) => (data.looks[name] && data.looks[name][key]) || ["#8a8f98", "solid", "circle"];
const arcOf = (along) => along.arc || Array.from({ length: along.points }, (_, k) => k / (along.points - 1));

// One trace for each group: its paths lie one behind the other with a gap between, or as a mean in a band from lowest to highest.
function pathLines(chosenRows, by, lookOf, strong) {
  const factor = METRICS[state.metric][1], groups = new Map();
  for (const i of chosenRows) {
    const along = data.paths[i];
    if (!along || !along[state.metric]) continue;
    const key = String(by(i));
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push([i, arcOf(along), along[state.metric].map((held) => (held === null ? null : factor * held))]);
  }
  return [...groups].flatMap(([name, lines]) => {
    const [color, dash, symbol] = lookOf(name), hovertemplate = `${name}<br>%{y:.4g}<extra></extra>`;
    const line = { color, dash, width: strong === name ? 4 : 1.6 };
    if (!state.bands || lines.length < 2 || strong !== undefined) {
      const trace = { x: [], y: [], customdata: [] };
      for (const [i, arc, values] of lines) {
        trace.x.push(...arc, null); trace.y.push(...values.map(positive), null); trace.customdata.push(...arc.map(() => i), null);
      }
      return [{ ...trace, name, mode: "lines", connectgaps: false, hovertemplate, line }];
    }
    const x = Array.from({ length: BINS + 1 }, (_, k) => k / BINS), at = lines.map(([, arc, values]) => x.map((place) => between(arc, values, place)));
    const over = (reduce) => x.map((_, k) => { const held = at.map((values) => values[k]).filter((one) => one !== null); return held.length ? reduce(held) : null; });
    const low = over((held) => Math.min(...held)).map(positive), high = over((held) => Math.max(...held)).map(positive);
    return [
      { x, y: low, name, legendgroup: name, mode: "lines", line: { width: 0 }, hoverinfo: "skip", showlegend: false },
      { x, y: high, name, legendgroup: name, mode: "lines", line: { width: 0 }, fill: "tonexty", fillcolor: `${color}33`, hoverinfo: "skip", showlegend: false },
      { x, y: over(mean).map(positive), name: `${name}, mean of ${lines.length}`, legendgroup: name, mode: "lines+markers", hovertemplate, line: { ...line, width: 2.4 },
        marker: { symbol, color, size: x.map((_, k) => (k % 10 === 5 ? 8 : 0)) } },
    ];
  });
}

function between(arc, values, place) {
  let k = 1;
  while (k < arc.length - 1 && arc[k] < place) k += 1;
  const share = (place - arc[k - 1]) / (arc[k] - arc[k - 1] || 1);
  return values[k] === null || values[k - 1] === null ? null : values[k - 1] + share * (values[k] - values[k - 1]);
}

const curveLayout = () => themed({ xaxis: { title: "fraction of the path's length" }, yaxis: { title: METRICS[state.metric][0], type: state.log ? "log" : "linear" } });

function drawPaths() {
  $("caption").textContent = state.bands ? "Means over the paths of a group, and the bands from the lowest to the highest." : "Values over whole splits at sampled points of each path.";
  return [pathLines(rows, (i) => value(i, state.colour), (key) => look(state.colour, key)), curveLayout()];
}

const mean = (values) => values.reduce((sum, held) => sum + held, 0) / values.length;

// Draxler et al. 2018, fig. 5: squares are minima, circles saddles.
function drawArchitectures() {
  const owners = new Set(rows.map((i) => data.owners[i])), finders = new Set(rows.map((i) => value(i, "finder")));
  const entries = data.overview.filter((row) => owners.has(row.study) && finders.has(row.finder));
  const models = [...new Set(entries.map((row) => row.model))], groups = new Map(entries.map((row) => [`${row.data}, ${row.finder}`, row.finder]));
  const traces = [...groups].flatMap(([group, finder]) => [["min", "square"], ["saddle", "circle"]].map(([level, symbol]) => {
    const points = models.map((model) => entries
      .filter((row) => row.model === model && `${row.data}, ${row.finder}` === group)
      .map((row) => row[`${state.metric}_${level}`] ?? null).filter((held) => held !== null).map((held) => METRICS[state.metric][1] * held));
    const [color, dash] = look("finder", finder);
    const spread = points.map((held) => (held.length > 1 ? Math.sqrt(held.reduce((sum, one) => sum + (one - mean(held)) ** 2, 0) / (held.length - 1)) : 0));
    return {
      x: models, y: points.map((held) => (held.length ? positive(mean(held)) : null)), name: `${group}: ${level === "min" ? "minima" : "saddles"}`,
      mode: "lines+markers", error_y: { type: "data", array: spread, visible: true, thickness: 1 },
      line: { color, dash: level === "min" ? "dot" : dash }, marker: { size: 10, symbol, color: level === "min" ? color : "rgba(0,0,0,0)", line: { width: 2, color } },
      text: points.map((held) => `${held.length} studies`), hovertemplate: "%{x}<br>%{y:.4g}, %{text}<extra></extra>",
    };
  }));
  $("caption").textContent = "As fig. 5 of Draxler et al. 2018: minima (squares) and saddles of the minimum spanning tree (circles); means over the studies of an architecture and their standard deviation. Architectures of a family are ordered by their parameters.";
  return [traces, themed({ xaxis: { title: "" }, yaxis: { title: METRICS[state.metric][0], type: state.log ? "log" : "linear" } })];
}

// Of the studies that are left, the planes of one scan, all in one colour scale.
function drawPlanes() {
  const owners = [...new Set(rows.map((i) => data.owners[i]))].filter((s) => (data.studies[s].planes || {})[state.scan]), shown = owners.slice(0, PLANES);
  const across = Math.max(1, Math.min(shown.length, innerWidth < 600 ? 1 : 4)), down = Math.max(1, Math.ceil(shown.length / across));
  const layout = { ...themed({ xaxis: {}, yaxis: {} }), grid: { rows: down, columns: across, pattern: "independent", ygap: 0.25 }, annotations: [], showlegend: false };
  const style = { ticks: "", showticklabels: false, title: { text: "" } };
  const every = shown.flatMap((s) => data.studies[s].planes[state.scan].z.flat()).filter((held) => held !== null);
  const [low, high] = [Math.min(...every), Math.max(...every)], tickvals = [0, 1, 2, 3, 4].map((k) => low + (k * (high - low)) / 4);
  layout.coloraxis = { colorscale: "Viridis", cmin: low, cmax: high, colorbar: { title: { text: "train loss", side: "right" }, tickvals, ticktext: tickvals.map((tick) => show(Number((10 ** tick).toPrecision(2)))) } };
  const traces = shown.map((s, k) => {
    const n = k ? String(k + 1) : "", { x, y, z } = data.studies[s].planes[state.scan];
    layout[`xaxis${n}`] = style; layout[`yaxis${n}`] = style;
    layout.annotations.push({ text: data.studies[s].name.slice(-40), xref: `x${n} domain`, yref: `y${n} domain`, x: 0.5, y: 1.02, yanchor: "bottom", showarrow: false, font: { size: 11 } });
    return { type: "heatmap", x, y, z, xaxis: `x${n}`, yaxis: `y${n}`, coloraxis: "coloraxis", zsmooth: "best", hovertemplate: `${data.studies[s].name}<br>log10 train loss %{z:.3f}<extra></extra>` };
  });
  $("caption").textContent = shown.length ? `The train loss on ${state.scan}, of ${shown.length} of ${owners.length} studies, in one colour scale.` : "No study here has a plane.";
  return [traces, layout];
}

function draw() {
  document.querySelectorAll("#plots button").forEach((button) => { button.ariaPressed = String(button.dataset.plot === state.plot); });
  for (const [id, plots] of [["metric", ["paths", "architectures"]], ["colour", ["paths"]], ["scan", ["planes"]], ["log", ["paths", "architectures"]], ["bands", ["paths"]]]) $(id).parentElement.hidden = !plots.includes(state.plot);
  const [traces, layout] = { paths: drawPaths, architectures: drawArchitectures, planes: drawPlanes }[state.plot]();
  Plotly.react("plot", traces, layout, OPTIONS);
}

function choose(i) {
  state.chosen = i;
  const study = data.studies[data.owners[i]], box = $("chosen");
  const link = ([name, href]) => element("a", { href, textContent: name, style: "margin-right: 12px" });
  const links = element("p", {}, ...(study.report ? [link(["report", study.report])] : []), ...study.configs.map(([name, href]) => link([`${name}/config.yaml`, href])));
  const pictures = element("div", { id: "pictures" }, ...study.pictures.map(([name, src]) => element("figure", {}, element("img", { src, alt: name, loading: "lazy" }), element("figcaption", { textContent: name }))));
  box.replaceChildren(
    element("h2", { textContent: study.name }), links, element("div", { id: "chosen-plot" }), pictures,
    element("details", {}, element("summary", { textContent: "configuration" }), element("pre", { textContent: JSON.stringify({ ...data.shared, ...study.config }, null, 2) })),
  );
  box.hidden = false;
  const name = (j) => ["finder", "start", "end"].map((key) => data.rows[j][column(key)]).join(" ");
  const siblings = data.rows.map((_, j) => j).filter((j) => data.owners[j] === data.owners[i] && data.paths[j]);
  if (siblings.length) Plotly.newPlot("chosen-plot", pathLines(siblings, name, (key) => look("finder", key.split(" ")[0]), name(i)), curveLayout(), OPTIONS);
  else $("chosen-plot").remove();
  fill();
  box.scrollIntoView({ behavior: "smooth" });
}

function start() {
  state.columns = [...data.main];
  state.bands = data.paths.filter(Boolean).length > 60;
  const scans = [...new Set(data.studies.flatMap((study) => Object.keys(study.planes || {})))].sort();
  state.scan = scans[0] ?? null;
  const choices = { metric: Object.entries(METRICS).map(([name, [label]]) => [name, label]), colour: Object.keys(data.looks).map((name) => [name, name]), scan: scans.map((name) => [name, name]) };
  recall();
  for (const [id, options] of Object.entries(choices)) {
    $(id).append(...options.map(([held, textContent]) => element("option", { value: held, textContent })));
    if (options.length && !options.some(([held]) => held === state[id])) state[id] = options[0][0];
    $(id).value = state[id];
    $(id).addEventListener("change", () => { state[id] = $(id).value; update(); });
  }
  for (const id of ["log", "bands"]) {
    $(id).checked = state[id];
    $(id).addEventListener("change", () => { state[id] = $(id).checked; update(); });
  }
  document.querySelector("[data-plot=planes]").hidden = !scans.length;
  document.querySelectorAll("#plots button").forEach((button) => button.addEventListener("click", () => { state.plot = button.dataset.plot; update(); }));
  $("clear").addEventListener("click", () => { state.filters = {}; makeTable(); update(); });
  $("csv").addEventListener("click", () => { $("csv").href = URL.createObjectURL(new Blob([csv()], { type: "text/csv" })); });
  document.querySelector("#columns div").append(...data.columns.map((name) => {
    const box = element("input", { type: "checkbox", checked: state.columns.includes(name), ariaLabel: `column ${name}` });
    box.addEventListener("change", () => { state.columns = [...state.columns.filter((one) => one !== name), ...(box.checked ? [name] : [])]; makeTable(); update(); });
    return element("label", {}, box, ` ${heading(name)}`);
  }));
  $("table").addEventListener("scroll", () => requestAnimationFrame(fill));
  dark.addEventListener("change", update);
  makeTable();
  update();
  $("plot").on("plotly_click", (event) => { const i = event.points[0].customdata; if (i !== undefined && i !== null) choose(i); });
}

Promise.all([unpacked("data"), plotly]).then(([text]) => {
  data = JSON.parse(text);
  METRICS = data.metrics;  // of each metric its label, and the factor to what is shown
  start();
});
