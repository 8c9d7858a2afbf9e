// The plots of a report are drawn when they come into view.
const plots = unpacked("data").then(JSON.parse), drawn = new Map();

async function draw(box) {
  if (drawn.has(box)) return drawn.get(box);
  drawn.set(box, (async () => {
    await plotly;
    const { data, layout } = (await plots)[box.dataset.plot];
    // A ring shows on every plot where the pointer is on a path.
    const kind = layout.scene ? { type: "scatter3d", z: [null] } : { type: "scatter" };
    const linked = data.some((trace) => trace.meta && trace.meta.path);
    const ring = { ...kind, x: [null], y: [null], mode: "markers", hoverinfo: "skip", showlegend: false, name: "here",
      marker: { size: layout.scene ? 7 : 13, color: "#ff2d55", symbol: "circle-open", line: { width: 3, color: "#ff2d55" } } };
    await Plotly.newPlot(box, linked ? [...data, ring] : data, themed(layout), OPTIONS);
    if (linked) box.on("plotly_hover", (event) => { const point = event.points[0]; if (point.data.meta && point.data.meta.path) here(point.data.meta.path, point.pointNumber); });
    return box;
  })());
  return drawn.get(box);
}

function here(path, place) {
  for (const box of document.querySelectorAll(".plot")) {
    if (!box.data || box.data[box.data.length - 1].name !== "here") continue;
    const trace = box.data.find((one) => one.meta && one.meta.path === path);
    const at = (axis) => [[trace ? trace[axis][place] : null]];
    Plotly.restyle(box, { x: at("x"), y: at("y"), ...(box.layout.scene ? { z: at("z") } : {}) }, [box.data.length - 1]);
  }
}

const seen = new IntersectionObserver((entries) => entries.filter((e) => e.isIntersecting).forEach((e) => draw(e.target)), { rootMargin: "300px" });
document.querySelectorAll(".plot").forEach((box) => seen.observe(box));
const all = () => Promise.all([...document.querySelectorAll(".plot")].map(draw));
addEventListener("beforeprint", all);
dark.addEventListener("change", async () => { for (const box of drawn.keys()) Plotly.relayout(await drawn.get(box), themed((await plots)[box.dataset.plot].layout)); });

document.querySelectorAll(".tabs").forEach((figure) => {
  const tabs = [...figure.querySelectorAll("[role=tab]")], panels = [...figure.querySelectorAll("[role=tabpanel]")];
  tabs.forEach((tab, i) => tab.addEventListener("click", () => {
    tabs.forEach((one, j) => { one.ariaSelected = String(i === j); panels[j].hidden = i !== j; });
    panels[i].querySelectorAll(".plot").forEach((box) => { if (box.data) Plotly.Plots.resize(box); });
  }));
});

document.querySelectorAll(".table").forEach((box) => {
  const body = box.querySelector("tbody"), heads = [...box.querySelectorAll("th")];
  const value = (row, c) => { const cell = row.cells[c]; return "value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent; };
  heads.forEach((head, c) => head.firstElementChild.addEventListener("click", () => {
    const down = head.ariaSort === "ascending", sign = down ? -1 : 1;
    heads.forEach((one) => { one.ariaSort = "none"; });
    head.ariaSort = down ? "descending" : "ascending";
    // What has no value comes last, whichever way.
    const order = (a, b) => (typeof a === typeof b ? sign * (typeof a === "number" ? a - b : a.localeCompare(b)) : typeof a === "number" ? -1 : 1);
    body.append(...[...body.rows].sort((a, b) => order(value(a, c), value(b, c))));
  }));
  const columns = box.querySelector(".columns");
  if (columns) columns.addEventListener("click", () => { columns.ariaPressed = String(!box.querySelector("table").classList.toggle("few")); });
});
