// The stage, its progress, and the list of this tab's videos.

import { call, videosPath } from "./api.js";

const $ = (id) => document.getElementById(id);
const jobs = new Map();   // id → what the server says about it
let shown = [];           // ids on the stage
let polling = false;
let asked = 0, answered = 0;  // numbers of requests for the list

const running = (job) => !["done", "stopped", "failed"].includes(job.state);

export function showStills(urls, force = false) {
  if (shown.length && !force) return;
  shown = [];
  if (!urls.length) {
    $("screens").replaceChildren(Object.assign(document.createElement("p"), { className: "empty", textContent: "Add a video of one person who speaks." }));
    return;
  }
  fillScreens(urls.map((url) => Object.assign(document.createElement("img"), { src: url, alt: "" })));
}

export function clearStage(urls) { showStills(urls, true); render(); }

export function problem(sentence) {
  $("problem").textContent = sentence;
  $("problem").hidden = !sentence;
  if (sentence && innerWidth <= 900) $("problem").scrollIntoView({ block: "center", behavior: "smooth" });
}

export async function make(request, stills) {
  problem("");
  $("go").setAttribute("aria-busy", "true");
  if (innerWidth <= 900) $("stage").scrollIntoView({ block: "start", behavior: "smooth" });
  try {
    const made = await call("POST", videosPath, request);
    answered = ++asked;  // an older list that is still on its way does not hold them
    for (const job of made) jobs.set(job.id, job);
    show(made.map((job) => job.id), stills);
    poll();
  } catch (error) {
    problem(error.message);
  } finally {
    $("go").removeAttribute("aria-busy");
  }
}

export async function load() {
  await refresh();
  if ([...jobs.values()].some(running)) poll();
}

async function refresh() {
  const number = ++asked;
  const found = await call("GET", videosPath);
  if (number < answered) return;  // a newer answer was faster
  answered = number;
  jobs.clear();
  for (const job of found) jobs.set(job.id, job);
  render();
}

async function poll() {
  if (polling) return;
  polling = true;
  try {
    while ([...jobs.values()].some(running)) {
      await new Promise((resolve) => setTimeout(resolve, 400));
      await refresh();
    }
  } catch (error) {
    problem(error.message);
  }
  polling = false;
}

// --- The stage ---

function fillScreens(elements, captions = []) {
  $("screens").replaceChildren(...elements.map((element, index) => {
    const figure = document.createElement("figure");
    figure.append(element);
    if (captions[index]) figure.append(Object.assign(document.createElement("figcaption"), { textContent: captions[index] }));
    return figure;
  }));
}

function show(ids, stills = []) {
  shown = ids;
  const together = ids.length > 1;
  fillScreens(ids.map((id, index) => Object.assign(document.createElement("img"), {
    src: stills[together ? 0 : index] || jobs.get(id).picture, alt: "",
  })), together ? ids.map((id) => jobs.get(id).checkpoint) : []);
  if (!together && stills.length > 1) fillScreens(stills.map((src) => Object.assign(document.createElement("img"), { src, alt: "" })));
  problem("");
  render();
}

function playable(job) {
  if (shown.length > 1) {
    // Videos that are compared begin together, once all of them are finished.
    const all = shown.every((id) => !jobs.has(id) || !running(jobs.get(id)));
    return all && job.finished ? `/signed/${job.id}?download=false` : null;
  }
  if (job.live) return canPlayThrough(job) ? `/live/${job.id}.mp4` : null;
  return job.finished ? `/signed/${job.id}?download=false` : null;
}

// A growing video starts when drawing will end before playing does, so that it never has to wait.
function canPlayThrough(job) {
  if (job.finished) return true;
  return job.seconds >= 0.5 && job.seconds_left !== null && job.seconds_left < 0.9 * job.total_seconds;
}

function putOnScreen(job, index) {
  const url = playable(job);
  if (!url || $("screens").querySelector(`[data-job="${job.id}"]`)) return;
  const old = $("screens").querySelector("img");
  const screen = document.createElement(job.format === "gif" ? "img" : "video");
  screen.dataset.job = job.id;
  screen.src = url;
  if (job.format === "gif") screen.alt = "The finished video";
  else {
    Object.assign(screen, { controls: true, autoplay: true, playsInline: true, muted: index > 0, poster: old?.src || "" });
    screen.setAttribute("aria-label", "The video");
    screen.addEventListener("ended", () => {
      // The stream of a growing file cannot be played again; the finished file can.
      if (!screen.src.includes("/live/") || !jobs.get(job.id)?.finished) return;
      screen.autoplay = false;
      screen.src = `/signed/${job.id}?download=false`;
    });
  }
  if (shown.length === 1) { fillScreens([screen]); return; }
  const figures = $("screens").children;
  figures[index]?.querySelector("img, video")?.replaceWith(screen);
}

function progressText(job) {
  if (job.state === "waiting") {
    return job.position ? `Waiting: ${job.position} ${job.position === 1 ? "video comes" : "videos come"} before this one` : "Waiting …";
  }
  const stage = job.stage ? job.stage[0].toUpperCase() + job.stage.slice(1) : "Beginning";
  if (job.fraction === null) return `${stage} …`;
  const left = job.seconds_left;
  const time = left === null ? "" : left < 1.5 && job.stage === "drawing" ? ", almost done" : left < 90 ? `, about ${Math.ceil(left)} s left` : `, about ${Math.ceil(left / 60)} min left`;
  return `${stage}: ${Math.round(100 * job.fraction)} %${time}`;
}

function render() {
  const now = shown.map((id) => jobs.get(id)).filter(Boolean);
  now.forEach(putOnScreen);
  const busy = now.find((job) => job.state !== "waiting" && running(job)) || now.find(running);
  $("progress").hidden = !busy;
  if (busy) {
    $("progress-text").textContent = progressText(busy);
    if (busy.fraction === null) $("bar").removeAttribute("value"); else $("bar").value = busy.fraction;
    $("bar").setAttribute("aria-label", "Progress");
    $("stop").dataset.ids = now.filter(running).map((job) => job.id).join(" ");
  }
  const finished = now.find((job) => job.finished);
  $("download").hidden = !finished || now.length > 1;
  if (finished) $("download").href = `/signed/${finished.id}`;
  const failed = now.find((job) => job.error);
  if (failed) problem(failed.error);
  const notes = [...new Set(now.flatMap((job) => [...job.notes,
    ...(job.cut ? ["The speech is longer than a video may be: the rest was left out."] : []),
    ...(job.state === "stopped" && job.seconds === 0 ? ["Stopped before it began."] : []),
  ]))];
  if (notes.join("|") !== $("video-notes").dataset.text) {
    $("video-notes").dataset.text = notes.join("|");
    $("video-notes").replaceChildren(...notes.map((note) => Object.assign(document.createElement("li"), { textContent: note })));
  }
  renderList();
}

// --- The list ---

function renderList() {
  const list = $("list");
  $("results").hidden = !jobs.size;
  const several = [...jobs.values()].some((job) => job.checkpoint !== "rl");
  for (const item of [...list.children]) if (!jobs.has(item.dataset.job)) item.remove();
  for (const job of jobs.values()) {
    const item = list.querySelector(`[data-job="${job.id}"]`) || addItem(job);
    item.querySelector("small").textContent = summary(job) + (several ? ` · ${job.checkpoint}` : "");
    item.querySelector(".download").hidden = !job.finished;
    item.querySelector(".score").hidden = !job.finished || job.format !== "mp4";
    item.querySelector(".remove").textContent = running(job) ? "Stop" : "Delete";
    item.setAttribute("aria-current", String(shown.includes(job.id)));
  }
}

function summary(job) {
  if (job.state === "failed") return "Failed";
  if (running(job)) return progressText(job);
  return `${job.state === "stopped" ? "Stopped, " : ""}${job.seconds.toFixed(1)} s, ${job.format}`;
}

function addItem(job) {
  const item = $("result").content.firstElementChild.cloneNode(true);
  item.dataset.job = job.id;
  item.querySelector("b").textContent = job.title;
  item.querySelector("img").src = job.picture;
  const download = item.querySelector(".download");
  download.href = `/signed/${job.id}`;
  download.setAttribute("aria-label", `Download ${job.title}`);
  item.querySelector(".show").addEventListener("click", () => show([job.id]));
  item.querySelector(".score").addEventListener("click", (event) => score(job.id, item, event.currentTarget));
  item.querySelector(".remove").addEventListener("click", () => remove(job.id));
  $("list").prepend(item);
  return item;
}

async function score(id, item, button) {
  const text = item.querySelector(".scores");
  text.hidden = false;
  text.textContent = "Scoring …";
  button.disabled = true;
  try {
    const answer = await call("POST", `${videosPath}/${id}/score`);
    const parts = Object.entries(answer.scores).map(([aspect, grade]) => `${aspect} ${grade === null ? "–" : grade.toFixed(2)}`);
    text.textContent = `From 1 to 5 by ${answer.judge}: ${parts.join(", ")}.`;
  } catch (error) {
    text.textContent = error.message;
  }
  button.disabled = false;
}

async function remove(id) {
  try {
    if (running(jobs.get(id))) await call("POST", `${videosPath}/${id}/stop`);
    else {
      await call("DELETE", `${videosPath}/${id}`);
      if (shown.includes(id)) { shown = []; document.dispatchEvent(new Event("stage-empty")); }
    }
    await refresh();
  } catch (error) { problem(error.message); }
}

$("stop").addEventListener("click", async () => {
  for (const id of ($("stop").dataset.ids || "").split(" ").filter(Boolean)) {
    try { await call("POST", `${videosPath}/${id}/stop`); } catch (error) { problem(error.message); }
  }
});
