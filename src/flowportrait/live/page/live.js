// The page of `flowportrait serve`: one face, what it says, the microphone, the webcam, and what goes wrong, in words.

import { FlowPortraitLive, LiveError } from "../clients/flowportrait-live.js";

const STATES = {
  closed: "Not connected", connecting: "Connecting …", idle: "Idle", listening: "Listening", speaking: "Speaking",
  interrupted: "Interrupted",
};
const MAX_PHOTO = 25e6; // bytes; the server has its own limit
const element = (id) => document.getElementById(id);
const query = new URLSearchParams(location.search);
const token = new URLSearchParams(location.hash.slice(1)).get("token") ?? undefined;
const live = new FlowPortraitLive({
  url: new URL(".", location.href).href, token, transport: query.get("transport") ?? "auto",
  video: query.get("video") ?? "jpeg", size: Number(query.get("size")) || undefined,
});
let posterUrl = null;
let wanted = ""; // a sentence that was typed before the face was there

// --- What is shown --------------------------------------------------------------------------------------------------

function showState(state) {
  document.body.dataset.state = state;
  element("state").textContent = STATES[state] ?? state;
  const speaking = state === "speaking", open = !["closed", "connecting"].includes(state);
  element("speak").hidden = speaking;
  element("stop").hidden = !speaking;
  element("overlay").hidden = open;
  for (const id of ["camera", "microphone-menu", "emotion-menu"]) element(id).inert = !open;
  element("start").setAttribute("aria-busy", state === "connecting");
  element("start").disabled = state === "connecting";
  if (speaking) showLevel();
}

function showLevel() {
  const speaking = document.body.dataset.state === "speaking";
  const level = speaking ? Math.min(1, 5 * live.level()) : 0;
  document.documentElement.style.setProperty("--level", level.toFixed(2));
  if (speaking) requestAnimationFrame(showLevel);
}

function showProblem(sentence) {
  element("problem").textContent = sentence;
  element("problem").hidden = !sentence;
}

function showReason(sentence, button) {
  element("reason").textContent = sentence;
  element("reason").hidden = !sentence;
  element("start-text").textContent = button;
  element("invitation").hidden = Boolean(sentence);
}

function showPoster(url) {
  if (posterUrl) URL.revokeObjectURL(posterUrl);
  posterUrl = url;
  const poster = element("poster");
  poster.onload = () => { poster.hidden = false; };
  poster.onerror = () => { poster.hidden = true; };
  poster.src = url;
}

function showVideo(video) {
  video.setAttribute("aria-label", "The face");
  video.setAttribute("role", "img");
  element("screen").querySelectorAll(":not(img)").forEach((old) => old.remove());
  element("screen").append(video);
}

/** The last picture stays under the overlay when a session ends. */
function freeze() {
  const video = live.video;
  const [width, height] = [video?.videoWidth || video?.width, video?.videoHeight || video?.height];
  if (!width || !height) return;
  const still = document.createElement("canvas");
  Object.assign(still, { width, height });
  still.getContext("2d").drawImage(video, 0, 0);
  showVideo(still);
}

// --- The session ----------------------------------------------------------------------------------------------------

async function connect() {
  freeze();
  showProblem("");
  showReason("", "Connecting …");
  showState("connecting");
  showUses();
  try {
    await live.connect();
  } catch (error) {
    if (error.name === "AbortError") return;
    if (!(error instanceof LiveError)) console.error(error);
    showReason(error.message, "Try again");
    showState("closed");
    element("start").focus();
    return;
  }
  if (wanted) say(wanted);
  wanted = "";
}

live.on("ready", (ready) => {
  showVideo(live.video);
  element("notice").textContent = ready.notice;
  document.body.dataset.transport = ready.transport;
  showReason("", "Start again");
  showState("idle");
  showEmotion();
  element("text").focus({ preventScroll: true });
});
live.on("state", ({ state }) => {
  if (state === "speaking") showProblem("");
  showState(state);
});
live.on("error", ({ message }) => showProblem(message));
live.on("unstable", ({ lost }) => {
  showProblem(lost ? "The connection is interrupted: waiting for it to come back." : "");
});
live.on("closed", ({ reason }) => {
  freeze();
  showUses();
  showReason(reason, "Start again");
  showState("closed");
  element("start").focus();
});
addEventListener("pagehide", () => live.close());

element("start").addEventListener("click", connect);

// --- Speaking -------------------------------------------------------------------------------------------------------

function say(text) {
  live.speak(text, element("voice").value || null);
  element("text").value = "";
}

element("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = element("text").value.trim();
  if (!text) return element("text").focus();
  showProblem("");
  if (live.state === "connecting") wanted = text;
  else if (live.state === "closed") {
    wanted = text;
    connect();
  } else say(text);
});
element("stop").addEventListener("click", () => {
  live.interrupt();
  element("text").focus();
});
addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  const open = document.querySelector("details[open]");
  if (open) {
    open.open = false;
    open.querySelector("summary").focus();
  } else if (live.state === "speaking") live.interrupt();
});

// --- Microphone, webcam, sound --------------------------------------------------------------------------------------

async function use(change) {
  showProblem("");
  try {
    await change();
  } catch (error) {
    showProblem(error.message);
    if (!live.camera) element("camera").setAttribute("aria-pressed", "false");
    return false;
  }
  return true;
}

/** Microphone and webcam as they are after a session has ended: off. */
function showUses() {
  showMicrophone("off");
  showCamera();
}

function showMicrophone(value) {
  document.querySelector(`[name=microphone][value=${value}]`).checked = true;
  element("microphone-menu").classList.toggle("active", value !== "off");
}

function showCamera() {
  const preview = element("preview");
  element("camera").setAttribute("aria-pressed", String(Boolean(live.camera)));
  preview.srcObject = live.camera;
  preview.hidden = !live.camera;
  if (live.camera) preview.play();
}

for (const radio of document.querySelectorAll("[name=microphone]")) {
  radio.addEventListener("change", async () => {
    const done = await use(() => live.useMicrophone(radio.value));
    showMicrophone(done ? radio.value : "off");
    element("microphone-menu").open = false;
  });
}
element("camera").addEventListener("click", async () => {
  await use(() => live.useCamera(live.camera ? "off" : "drive"));
  showCamera();
});

/** Let the face show the emotion that is chosen; a new session begins with it too. */
function showEmotion() {
  const name = document.querySelector("[name=emotion]:checked").value;
  element("emotion-menu").classList.toggle("active", Boolean(name));
  if (live.state !== "closed") live.showEmotion(name ? { [name]: Number(element("emotion-strength").value) } : {});
}

for (const control of document.querySelectorAll("[name=emotion], #emotion-strength")) {
  control.addEventListener("change", showEmotion);
}

function showSound() {
  element("sound-menu").classList.toggle("active", live.muted || live.volume === 0);
}

element("mute").addEventListener("change", ({ target }) => {
  live.muted = target.checked;
  showSound();
});
element("volume").addEventListener("input", ({ target }) => {
  live.volume = target.value / 100;
  showSound();
});
addEventListener("click", ({ target }) => {
  for (const menu of document.querySelectorAll("details[open]")) if (!menu.contains(target)) menu.open = false;
});

// --- Another photo --------------------------------------------------------------------------------------------------

async function usePhoto(file) {
  if (!file) return;
  showProblem("");
  if (file.size > MAX_PHOTO) return showProblem("The photo is larger than 25 MB: choose a smaller one.");
  element("photo-text").textContent = "Checking …";
  try {
    await live.upload(file);
  } catch (error) {
    return showProblem(error.message);
  } finally {
    element("photo-text").textContent = "Another photo";
    element("photo").value = "";
  }
  const wasOpen = live.state !== "closed";
  live.close();
  live.video = null;
  element("screen").querySelectorAll(":not(img)").forEach((old) => old.remove());
  showPoster(URL.createObjectURL(file));
  if (wasOpen) await connect();
  else showReason("", "Click to start");
}

element("photo").addEventListener("change", ({ target }) => usePhoto(target.files[0]));
addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("over");
});
addEventListener("dragleave", ({ relatedTarget }) => { if (!relatedTarget) document.body.classList.remove("over"); });
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  usePhoto(event.dataTransfer.files[0]);
});

// --- What the server offers -----------------------------------------------------------------------------------------

/** Offer values, name to label, if there is a choice. */
function fill(name, labels, chosen) {
  const values = Object.keys(labels);
  element(`${name}-field`).hidden = values.length < 2;
  element(name).replaceChildren(...values.map((value) => new Option(labels[value], value)));
  if (values.includes(chosen)) element(name).value = chosen;
}

element("size").addEventListener("change", ({ target }) => {
  live.size = Number(target.value);
  if (live.state !== "closed") connect();
});

showState("closed");
try {
  const config = await live.config();
  element("notice").textContent = config.notice ?? element("notice").textContent;
  if (config.poster) showPoster(URL.createObjectURL(await live.poster()));
  element("text").maxLength = config.letters ?? 2000;
  fill("voice", { "": "Automatic", ...config.voices }, "");
  const sizes = (config.sizes ?? []).map((size) => [size, `${size} px`]);
  fill("size", Object.fromEntries(sizes), query.get("size") ?? String(config.size));
} catch (error) {
  showReason(error.message, "Try again");
}
document.body.dataset.ready = "";
