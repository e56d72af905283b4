"use strict";
const element = (id) => document.getElementById(id);
const canvas = element("canvas");
const pen = canvas.getContext("2d");
const video = element("video");
const LOWEST = 0.05; // what is asked for; the slider hides more
const PATIENCE = 20; // times that a busy server is asked again
const LARGEST = 1280; // side of a camera's picture that is sent

let picture = null; // what is shown: an ImageBitmap
let objects = []; // {label, score, box}
let classes = [];
let colours = []; // "#rrggbb" of each class
const hidden = new Set(); // labels that were clicked away
let pending = null; // the AbortController of the request in flight: there is never another one
let live = false;
let token = "";

function tell(text, wrong = false) {
  element("status").textContent = text;
  element("status").classList.toggle("wrong", wrong);
}

function colour(label) {
  return colours[Math.max(0, classes.indexOf(label))];
}

async function ask(path, options = {}) {
  const headers = { ...options.headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) };
  let response = await fetch(path, { ...options, headers });
  for (let tries = 0; response.status === 503 && tries < PATIENCE; tries++) {
    // busy, or its network is being loaded
    await new Promise((go) => setTimeout(go, 1000 * (Number(response.headers.get("Retry-After")) || 1)));
    response = await fetch(path, { ...options, headers });
  }
  const answer = await response.json();
  if (response.ok) return answer;
  element("access").hidden = response.status !== 401;
  throw new Error(answer.error);
}

function kept() {
  const least = Number(element("threshold").value);
  return objects.filter((object) => object.score >= least);
}

// Boxes and captions keep their size on the screen, however large the picture is.
function draw() {
  if (!picture) return;
  element("hint").hidden = true;
  element("drop").classList.add("filled");
  canvas.hidden = false;
  if (canvas.width !== picture.width || canvas.height !== picture.height) {
    canvas.width = picture.width;
    canvas.height = picture.height;
  }
  pen.drawImage(picture, 0, 0);
  const unit = canvas.width / Math.max(1, canvas.clientWidth);
  pen.font = `600 ${13 * unit}px system-ui, sans-serif`;
  pen.textBaseline = "middle";
  const shown = kept().filter((object) => !hidden.has(object.label));
  pen.lineWidth = 2.5 * unit;
  for (const { label, box: [left, top, right, bottom] } of shown.toReversed()) {
    pen.strokeStyle = colour(label);
    pen.strokeRect(left, top, right - left, bottom - top);
  }
  const placed = [];
  for (const { label, score, box: [left, top] } of shown) {
    const text = `${label} ${score.toFixed(2)}`;
    const width = pen.measureText(text).width + 10 * unit;
    const height = 20 * unit;
    const x = Math.max(0, Math.min(left - 1.25 * unit, canvas.width - width));
    let y = Math.max(0, top - height);
    for (const other of placed) {
      if (x < other.x + other.width && other.x < x + width && Math.abs(y - other.y) < height) y = other.y + height;
    }
    placed.push({ x, y, width });
    pen.fillStyle = colour(label);
    pen.fillRect(x, y, width, height);
    pen.fillStyle = luminance(pen.fillStyle) > 0.35 ? "#000" : "#fff";
    pen.fillText(text, x + 5 * unit, y + 10.5 * unit);
  }
}

// Of WCAG 2, roughly: what decides whether black or white can be read on a colour.
function luminance(hex) {
  const [r, g, b] = [1, 3, 5].map((at) => (parseInt(hex.slice(at, at + 2), 16) / 255) ** 2.2);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

function list() {
  const all = kept();
  element("found").hidden = !picture || pending !== null && !live;
  const names = [...new Set(all.map((object) => object.label))];
  element("labels").replaceChildren(...names.map((name) => {
    const chip = document.createElement("button");
    chip.type = "button";
    chip.className = "chip";
    chip.ariaPressed = String(!hidden.has(name));
    chip.style.setProperty("--colour", colour(name));
    chip.textContent = `${name} ${all.filter((object) => object.label === name).length}`;
    chip.addEventListener("click", () => {
      if (!hidden.delete(name)) hidden.add(name);
      show();
    });
    return chip;
  }));
  element("rows").replaceChildren(...all.filter((object) => !hidden.has(object.label)).map((object) => {
    const row = document.createElement("tr");
    for (const text of [object.label, object.score.toFixed(3), object.box.map(Math.round).join(", ")]) {
      row.insertCell().textContent = text;
    }
    row.cells[0].className = "name";
    row.cells[0].style.setProperty("--colour", colour(object.label));
    row.cells[1].className = row.cells[2].className = "number";
    return row;
  }));
  if (!all.length) {
    const row = document.createElement("tr");
    const cell = row.insertCell();
    cell.colSpan = 3;
    cell.textContent = "Nothing with this score.";
    element("rows").append(row);
  }
}

function show() {
  element("shown").textContent = Number(element("threshold").value).toFixed(2);
  draw();
  list();
}

// Sends one picture and shows what comes back; a newer one takes its place.
async function detect(blob, bitmap) {
  pending?.abort();
  const mine = pending = new AbortController();
  if (!live) {
    [picture, objects] = [bitmap, []];
    show();
    tell("Looking …");
  }
  const began = performance.now();
  try {
    const answer = await ask(`detect?score=${LOWEST}`, {
      method: "POST",
      body: blob,
      headers: { "Content-Type": blob.type.startsWith("image/") ? blob.type : "application/octet-stream" },
      signal: mine.signal,
    });
    if (pending !== mine) return;
    pending = null;
    [picture, objects] = [bitmap, answer.images[0].detections];
    element("access").hidden = true;
    const { width, height } = answer.images[0];
    tell(`${width} × ${height} pixels, ${Math.round(performance.now() - began)} ms`);
    show();
  } catch (error) {
    if (pending !== mine) return;
    pending = null;
    tell(error.name === "TypeError" ? "The server can't be reached." : error.message, true);
    if (live) stopLive();
    show();
  }
}

async function open(blob) {
  stopCamera();
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob); // upright, as EXIF says
  } catch {
    tell("This isn't a picture that the browser can show.", true);
    return;
  }
  hidden.clear();
  await detect(blob, bitmap);
}

// The camera

async function startCamera() {
  if (!navigator.mediaDevices) {
    tell("Browsers give the camera to pages from this machine or over HTTPS only.", true);
    return;
  }
  try {
    video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (error) {
    tell(`The camera can't be used: ${error.message}`, true);
    return;
  }
  await video.play();
  element("camera").textContent = "Stop the camera";
  element("snapshot").hidden = element("live").hidden = false;
  preview();
}

function stopCamera() {
  stopLive();
  video.srcObject?.getTracks().forEach((track) => track.stop());
  video.srcObject = null;
  element("camera").textContent = "Camera";
  element("snapshot").hidden = element("live").hidden = true;
}

async function frame() {
  const scale = Math.min(1, LARGEST / Math.max(video.videoWidth, video.videoHeight));
  const size = { resizeWidth: Math.round(video.videoWidth * scale), resizeHeight: Math.round(video.videoHeight * scale) };
  return createImageBitmap(video, size);
}

function encoded(bitmap) {
  const copy = new OffscreenCanvas(bitmap.width, bitmap.height);
  copy.getContext("2d").drawImage(bitmap, 0, 0);
  return copy.convertToBlob({ type: "image/jpeg", quality: 0.85 });
}

let previewing = false;
async function preview() {
  [objects, previewing] = [[], true];
  while (previewing && !live && video.srcObject) {
    picture = await frame();
    if (previewing && !live) draw();
    await new Promise(requestAnimationFrame);
  }
}

async function runLive() {
  live = true;
  previewing = false;
  element("live").ariaPressed = "true";
  hidden.clear();
  while (live && video.srcObject) {
    const bitmap = await frame();
    await detect(await encoded(bitmap), bitmap);
    await new Promise(requestAnimationFrame);
  }
}

function stopLive() {
  live = false;
  element("live").ariaPressed = "false";
}

element("camera").addEventListener("click", () => (video.srcObject ? stopCamera() : startCamera()));
element("live").addEventListener("click", () => (live ? stopLive() : runLive()));
element("snapshot").addEventListener("click", async () => {
  const bitmap = await frame();
  previewing = false;
  stopCamera();
  hidden.clear();
  await detect(await encoded(bitmap), bitmap);
});

// Pictures from elsewhere

element("file").addEventListener("change", (event) => {
  if (event.target.files[0]) open(event.target.files[0]);
  event.target.value = "";
});
const picked = (items) => [...(items ?? [])].find((file) => file.type.startsWith("image/")) ?? items?.[0];
addEventListener("dragover", (event) => { event.preventDefault(); element("drop").classList.add("over"); });
addEventListener("dragleave", () => element("drop").classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  element("drop").classList.remove("over");
  const file = picked(event.dataTransfer.files);
  if (file) open(file);
});
addEventListener("paste", (event) => {
  const file = picked(event.clipboardData.files);
  if (file) open(file);
});

element("threshold").addEventListener("input", show);
element("access").addEventListener("submit", (event) => {
  event.preventDefault();
  token = element("token").value.trim();
  begin();
});
element("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  draw();
});
addEventListener("resize", draw);

async function begin() {
  try {
    const model = await ask("model");
    [classes, colours] = [model.classes, model.colours];
    element("name").textContent = model.name;
    document.title = `${model.name} · triscale`;
    const names = classes.slice(0, 6).join(", ");
    element("about").textContent = `finds ${classes.length > 6 ? `${classes.length} classes: ${names}, …` : names}`;
    element("threshold").value = Math.max(LOWEST, model.score_threshold);
    element("access").hidden = true;
    tell("");
    show();
  } catch (error) {
    tell(error.name === "TypeError" ? "The server can't be reached." : error.message, true);
  }
}
begin();
