// The page. Its address may carry ?start=example or camera, &compare=1, &confidence=1, &model=,
// &backend=, &dtype=, &side=, &opacity= (0 to 100).

import { capture, openBlob, openCamera, openFile } from "./sources.js";
import { View, agreement, readLabels, shares } from "./view.js";

const REMEMBERED = 15; // frames whose median is shown
const STILL_FRAMES = 5; // a picture is sent as often: the first time of a size takes longer

const element = (id) => document.getElementById(id);
const address = new URLSearchParams(location.search);
const catalog = await (await fetch("v1/models")).json();

// ------------------------------------------------------------------------------------- choices

function fill(select, names, chosen) {
  for (const [value, text] of names) select.add(new Option(text, value, false, value === chosen));
}

function setUp() {
  const { models, backends, dtypes, defaults } = catalog;
  const pairs = (names) => names.map((name) => [name, name]);
  const ofColours = models.filter(({ bands }) => bands === null);
  fill(element("model"), ofColours.map(({ name, title }) => [name, title]), defaults.model);
  fill(element("backend"), pairs(backends), defaults.backend);
  fill(element("dtype"), pairs(dtypes), defaults.dtype);
  for (const name of ["model", "backend", "dtype", "side", "opacity"]) {
    const [value, options] = [address.get(name), element(name).options];
    const offered = !options || [...options].some((option) => option.value === value);
    if (value !== null && offered) element(name).value = value;
  }
  for (const name of ["compare", "confidence"]) element(name).checked = address.get(name) === "1";
}

const ABOUT_WEIGHTS = {
  streets:
    "These weights were trained on generated streets and on photographs of one town (CamVid): " +
    "expect less of others.",
  synthetic: "These weights were trained on generated streets: expect little of photographs.",
  random: "These weights are random: the labels mean nothing.",
  cityscapes: "The authors' weights, trained on street photographs (Cityscapes).",
  own: "",
};

function tellWeights() {
  const model = catalog.models.find(({ name }) => name === element("model").value);
  element("weights").textContent = ABOUT_WEIGHTS[model.weights];
}

function tellTrouble(text) {
  element("alert").textContent = text;
  element("alert").hidden = !text;
}

// -------------------------------------------------------------------------------------- legend

let classes = [];
let entries = [];

/** The classes of a network in the legend and under the pointer. */
function showClasses(model) {
  const own = catalog.models.find(({ name }) => name === model).classes ?? catalog.classes;
  if (own === classes) return;
  classes = own;
  view.classes = own;
  view.only = null;
  element("legend").replaceChildren();
  entries = own.map(entry);
}

function entry({ id, name, color }) {
  const button = document.createElement("button");
  button.type = "button";
  button.setAttribute("aria-pressed", "false");
  button.innerHTML =
    '<svg viewBox="0 0 1 1" aria-hidden="true"><rect width="1" height="1"/></svg><span></span><span class="share"></span>';
  button.querySelector("rect").setAttribute("fill", `rgb(${color})`);
  button.children[1].textContent = name;
  const over = (index) => () => view.highlight(index ?? pressed());
  button.addEventListener("pointerenter", over(id));
  button.addEventListener("pointerleave", over(null));
  button.addEventListener("click", () => press(id));
  const item = document.createElement("li");
  item.append(button);
  element("legend").append(item);
  return button;
}

function pressed() {
  const index = entries.findIndex((button) => button.getAttribute("aria-pressed") === "true");
  return index < 0 ? null : index;
}

/** Show one class alone, until its entry is pressed again. */
function press(id) {
  const next = pressed() === id ? null : id;
  entries.forEach((button, index) => button.setAttribute("aria-pressed", String(index === next)));
  view.highlight(next);
}

const percent = (share) => {
  if (share === 0) return "";
  return share < 0.0005 ? "< 0.1%" : `${(100 * share).toFixed(1)}%`;
};

function tellShares(labels) {
  const found = shares(labels, entries.length);
  entries.forEach((button, index) => {
    button.lastChild.textContent = percent(found[index]);
    button.classList.toggle("absent", !found[index]);
  });
}

const HINT = element("pointing").textContent;
const view = new View(element("view"), element("tip"), (index) => {
  const text = index === null ? HINT : `Class: ${classes[index].name}`;
  if (element("pointing").textContent !== text) element("pointing").textContent = text;
});

// --------------------------------------------------------------------------------------- speed

const median = (values) => {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)];
};
const measured = { chosen: [], reference: [], equal: [] };

function remember(name, value) {
  measured[name].push(value);
  if (measured[name].length > REMEMBERED) measured[name].shift();
}

function forgetTimes() {
  for (const values of Object.values(measured)) values.length = 0;
  for (const cell of document.querySelectorAll("tbody td")) cell.textContent = "–";
  const named = ["backend", "dtype"].map((name) => element(name).value);
  element("chosen").firstElementChild.textContent = named.join(", ");
  element("verdict").hidden = true;
  element("reference").hidden = !element("compare").checked;
}

function tellTimes() {
  const network = {};
  for (const name of ["chosen", "reference"]) {
    if (!measured[name].length) continue;
    const times = measured[name];
    network[name] = median(times.map((time) => time.network));
    const trip = median(times.map((time) => time.trip));
    const texts = [network[name].toFixed(1), trip.toFixed(1), (1000 / trip).toFixed(1)];
    const cells = element(name).querySelectorAll("td");
    texts.forEach((text, index) => { cells[index].textContent = text; });
  }
  element("verdict").hidden = !measured.equal.length;
  if (measured.equal.length) {
    const factor = (network.reference / network.chosen).toFixed(1);
    const equal = (100 * median(measured.equal)).toFixed(2);
    element("verdict").textContent = `${factor} times as fast; ${equal}% of the labels are equal`;
  }
}

// ------------------------------------------------------------------------------------ the loop

/** Labels of a frame, and milliseconds: {labels, network, trip}. */
async function segment(blob, choice) {
  for (;;) {
    const began = performance.now();
    const query = new URLSearchParams({ ...choice, format: "png" });
    const headers = { "Content-Type": "image/jpeg" };
    const answer = await fetch(`v1/segment?${query}`, { method: "POST", body: blob, headers });
    if (answer.status === 429) {
      tellTrouble("The server is busy; trying again.");
      const seconds = Number(answer.headers.get("Retry-After")) || 1;
      await new Promise((done) => setTimeout(done, 1000 * seconds));
      continue;
    }
    if (!answer.ok) throw new Error((await answer.json()).detail);
    const labels = await readLabels(await answer.blob());
    const trip = performance.now() - began;
    const network = Number(/network;dur=([\d.]+)/.exec(answer.headers.get("Server-Timing"))[1]);
    return { labels, network, trip };
  }
}

let source = null;
let run = 0; // a new number ends the loop that runs

async function step(mine) {
  const side = Number(element("side").value);
  const { bitmap, blob } = await capture(source, side, catalog.limits.max_pixels);
  const model = element("model").value;
  const choice = { model, backend: element("backend").value, dtype: element("dtype").value };
  const fading = element("confidence").checked;
  if (fading) choice.confidence = "margin";
  const chosen = await segment(blob, choice);
  const plain = { model, backend: "reference", dtype: "float32" };
  const reference = element("compare").checked ? await segment(blob, plain) : null;
  if (mine !== run) return bitmap.close();
  tellTrouble("");
  element("empty").hidden = true;
  showClasses(model);
  view.fading = fading;
  view.show(bitmap, chosen.labels);
  tellShares(chosen.labels);
  remember("chosen", chosen);
  if (reference) {
    remember("reference", reference);
    remember("equal", agreement(chosen.labels, reference.labels));
  }
  return tellTimes();
}

async function loop() {
  run += 1;
  const mine = run;
  forgetTimes();
  tellWeights();
  if (!source) return;
  try {
    for (let frame = 0; mine === run && (source.live || frame < STILL_FRAMES); frame += 1) {
      await step(mine);
    }
  } catch (error) {
    if (mine !== run) return;
    tellTrouble(error instanceof TypeError ? "The server does not answer." : error.message);
  }
}

async function open(opening, name) {
  tellTrouble("");
  try {
    const opened = await opening;
    source?.close();
    source = opened;
  } catch (error) {
    return tellTrouble(error.message);
  }
  element("stop").hidden = !source.live;
  element("view").setAttribute("aria-label", `${name}, coloured by class`);
  return loop();
}

// -------------------------------------------------------------------------------------- events

let scene = 0;

async function fetchExample() {
  const answer = await fetch(`v1/example?scene=${scene}`);
  scene = (scene + 1) % 16;
  return openBlob(await answer.blob());
}

const openers = {
  example: () => open(fetchExample(), "A generated street"),
  camera: () => open(openCamera(), "The webcam's picture"),
};

setUp();
view.opacity = element("opacity").value / 100;
element("percent").textContent = `${element("opacity").value}%`;
for (const [id, opener] of Object.entries(openers)) element(id).addEventListener("click", opener);
element("file").addEventListener("change", ({ target }) => {
  if (target.files.length) open(openFile(target.files[0]), "Your picture");
  target.value = "";
});
element("stop").addEventListener("click", () => {
  run += 1;
  source?.close();
  source = null;
  element("stop").hidden = true;
});
element("opacity").addEventListener("input", ({ target }) => {
  view.opacity = target.value / 100;
  element("percent").textContent = `${target.value}%`;
  view.draw();
});
for (const id of ["model", "backend", "dtype", "side", "confidence", "compare"]) {
  element(id).addEventListener("change", loop);
}
element("choices").addEventListener("submit", (event) => event.preventDefault());

const drop = element("drop");
drop.addEventListener("dragover", (event) => {
  event.preventDefault();
  drop.classList.add("over");
});
drop.addEventListener("dragleave", () => drop.classList.remove("over"));
drop.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  if (event.dataTransfer.files.length) open(openFile(event.dataTransfer.files[0]), "Your picture");
});

forgetTimes();
if (element("model").value) {
  tellWeights();
  showClasses(element("model").value);
  openers[address.get("start")]?.();
} else {
  for (const control of document.querySelectorAll(".bar button, input, select")) {
    control.disabled = true;
  }
  tellTrouble("The networks here take bands, which browsers cannot read: send them over HTTP.");
}
