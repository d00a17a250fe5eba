"use strict";
const page = JSON.parse(document.getElementById("figures").textContent);
const narrow = window.matchMedia("(max-width: 720px)");
// The buttons are named, since the default ones offer to send the figure to a server.
const options = {
  responsive: true, displaylogo: false, displayModeBar: narrow.matches ? false : "hover", plotlyServerURL: "",
  modeBarButtons: [["zoom2d", "pan2d", "resetScale2d", "toImage"]],
};

// A legend takes as many rows as the width asks for; the figure makes way.
function makeRoom(layout, data, width) {
  if (!layout.showlegend) return;
  const lengths = data.filter((trace) => trace.showlegend).map((trace) => 48 + 7.5 * trace.name.length);
  let rows = 1, taken = 0;
  for (const length of lengths) {
    if (taken && taken + length > width) { rows += 1; taken = 0; }
    taken += length;
  }
  const room = 8 + 20 * rows;
  layout.height += room;
  layout.margin.t += room;
  layout.legend = { ...layout.legend, y: 1 - 2 / layout.height };
}

// A figure has one layout, or another one for a narrow window.
function draw(place, figure) {
  const plot = place.querySelector(".plot");
  place.querySelector(".title").innerHTML = figure.title;
  if (!figure.data.length) {
    Plotly.purge(plot);
    plot.style.height = "0";
    return;
  }
  const layout = structuredClone(narrow.matches && figure.narrow ? figure.narrow : figure.layout);
  layout.margin = { ...layout.margin, ...(narrow.matches ? { l: 44, r: 8 } : {}) };
  makeRoom(layout, figure.data, plot.clientWidth);
  plot.setAttribute("role", "img");
  plot.setAttribute("aria-label", place.querySelector(".title").textContent);
  plot.style.height = layout.height + "px";
  Plotly.react(plot, figure.data, layout, options);
}

const [replicas, tasks] = ["replica", "task"].map((name) => document.getElementById(name));

// The tasks of a replica: as many as have trials, the last one where the other has fewer.
function fill() {
  const wanted = tasks.value;
  tasks.replaceChildren(...Object.keys(page.tasks[replicas.value]).map((task) => new Option(task, task)));
  tasks.value = wanted in page.tasks[replicas.value] ? wanted : tasks.lastElementChild.value;
}

function drawTask() {
  const figures = page.tasks[replicas.value][tasks.value];
  for (const name in figures) draw(document.getElementById(name), figures[name]);
}

function drawAll() {
  for (const name in page.figures) draw(document.getElementById(name), page.figures[name]);
  if (replicas) drawTask();
}

if (replicas) {
  replicas.replaceChildren(...Object.keys(page.tasks).map((replica) => new Option(replica, replica)));
  fill();
  tasks.value = tasks.firstElementChild.value;
  replicas.addEventListener("change", () => { fill(); drawTask(); });
  tasks.addEventListener("change", drawTask);
}
narrow.addEventListener("change", drawAll);
drawAll();
