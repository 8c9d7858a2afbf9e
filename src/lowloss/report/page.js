"use strict";
// What all pages share: unpacking, and plots in the colours of the page.
const OPTIONS = { displaylogo: false, responsive: true, modeBarButtonsToRemove: ["sendChartToCloud", "lasso2d", "select2d"] };

async function unpacked(id) {
  const text = atob(document.getElementById(id).textContent), bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i += 1) bytes[i] = text.charCodeAt(i);
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}

const plotly = unpacked("plotly").then((text) => {
  const script = document.createElement("script");
  script.textContent = text;
  document.head.append(script);
});

function themed(layout) {
  const style = getComputedStyle(document.documentElement), [ink, line] = ["--ink", "--line"].map((name) => style.getPropertyValue(name));
  const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true };
  const merged = {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", hovermode: "closest", dragmode: layout.scene ? "orbit" : "zoom",
    font: { family: "system-ui, sans-serif", size: 13, color: ink }, margin: { l: 64, r: 34, t: 34, b: 48 },
    legend: { orientation: "h", y: 1.01, yanchor: "bottom", x: 0 }, modebar: { orientation: "v", bgcolor: "rgba(0,0,0,0)" }, ...layout,
  };
  const titled = ({ title, ...rest } = {}) => ({ ...axis, exponentformat: "power", ...(rest.type === "log" ? { dtick: "D2" } : {}), ...rest, title: { text: title } });
  for (const name of ["xaxis", "yaxis"]) merged[name] = titled(layout[name]);
  if (layout.scene) {
    merged.scene = { ...layout.scene };
    for (const name of ["xaxis", "yaxis", "zaxis"]) merged.scene[name] = titled(layout.scene[name]);
  }
  return merged;
}

const dark = matchMedia("(prefers-color-scheme: dark)");
