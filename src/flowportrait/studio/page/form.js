// The form: what is visible, the notes about a photo, the microphone, and the request that it stands for.

import { call } from "./api.js";
import { pickers } from "./picker.js";

const form = document.getElementById("form");
const $ = (id) => document.getElementById(id);
const value = (name) => form.elements[name]?.value;

export function readForm() {
  const data = { guide: {} };
  for (const field of form.elements) {
    if (!field.name || (field.type === "radio" && !field.checked)) continue;
    if (field.name.startsWith("guide.")) data.guide[field.name.slice(6)] = Number(field.value);
    else if (field.type === "checkbox") data[field.name] = field.checked;
    else if (field.type === "range") data[field.name] = Number(field.value);
    else if (field.type === "number") data[field.name] = field.value === "" ? null : Number(field.value);
    else data[field.name] = field.value;
  }
  data.whole = data.whole === "whole";
  data.size = data.size ? Number(data.size) : null;
  data.seed ??= 0;
  data.best_of ??= 1;
  data.face = data.kind === "video" ? data.video_face : data.kind === "photo" && data.face ? Number(data.face) : null;
  delete data.video_face;
  for (const name of ["motion_in"]) data[name] ||= null;
  return data;
}

// Pictures of what will speak, for the stage.
export function stills() {
  const kind = value("kind"), whole = value("whole") === "whole";
  if (kind === "two") return ["left_photo", "right_photo"].map((name) => pickers[name]).filter((one) => one.value).map((one) => one.picture(one.value));
  const picker = pickers[kind];
  if (!picker.value) return [];
  return [picker.picture(picker.value, kind === "photo" ? value("face") : "", kind === "video" || whole)];
}

export function setUpForm(choices, changed) {
  const voices = Object.entries(choices.voices);
  $("voice").append(...voices.map(([name, label]) => new Option(label, name)));
  $("text").value = choices.text;
  $("no-voices").hidden = voices.length > 0;
  if (!voices.length) {
    const [sentence, command] = choices.no_voices.split(": run ");
    $("no-voices").append(`${sentence}. Run `, Object.assign(document.createElement("code"), { textContent: command.replace(/\.$/, "") }), " and start it again.");
    $("text").disabled = $("voice").disabled = true;
  }
  form.querySelector(`[name=speech][value=${voices.length ? "text" : "recording"}]`).checked = true;
  for (const slider of form.querySelectorAll("input[type=range]")) {
    const show = () => { slider.nextElementSibling.textContent = Number(slider.value).toLocaleString("en", { maximumFractionDigits: 1 }); };
    slider.addEventListener("input", show);
    show();
  }
  const letters = () => {
    const count = $("text").value.length, over = count > choices.letters;
    $("letters").textContent = count > 0.8 * choices.letters ? `${count} of ${choices.letters} letters` : "";
    $("text").setAttribute("aria-invalid", String(over));
  };
  $("text").addEventListener("input", letters);
  letters();
  const update = () => { showParts(); changed(); };
  form.addEventListener("change", update);
  form.addEventListener("picked", update);
  pickers.photo.box.addEventListener("picked", () => showFaces());
  $("dice").addEventListener("click", () => { form.elements.seed.value = 1 + Math.floor(Math.random() * 9999); });
  $("reset").addEventListener("click", (event) => {
    event.preventDefault();
    for (const field of $("how").parentElement.querySelectorAll("input:not([type=file]), select")) {
      if (field.type === "radio") field.checked = field.name === "motion_in" ? field.value === "" : field.defaultChecked;
      else if (field.type === "checkbox") field.checked = field.defaultChecked;
      else if (field.tagName === "SELECT") field.selectedIndex = 0;
      else field.value = field.defaultValue;
      field.dispatchEvent(new Event("input"));
    }
    update();
  });
  setUpMicrophone();
  update();
}

function showParts() {
  const kind = value("kind"), speech = value("speech");
  for (const part of form.querySelectorAll("[data-for]")) part.hidden = !part.dataset.for.split(" ").includes(kind);
  for (const part of form.querySelectorAll("[data-speech]")) part.hidden = part.dataset.speech !== speech;
  $("photo-notes").hidden = kind !== "photo";
}

// --- Faces and notes of the chosen photo ---

let asked = 0;

async function showFaces() {
  const picker = pickers.photo, id = picker.value, number = ++asked;
  $("faces").hidden = true;
  $("faces").querySelector(".row").replaceChildren();
  showNotes([]);
  if (!id || id.startsWith("example-")) return;
  const count = picker.file.faces;
  showNotes(picker.file.notes);
  if (count < 2) return;
  const row = $("faces").querySelector(".row");
  for (let face = 0; face <= count; face++) {
    const tile = $("tile").content.firstElementChild.cloneNode(true);
    const input = Object.assign(tile.querySelector("input"), { name: "face", value: face || "", checked: !face });
    input.setAttribute("aria-label", face ? `Number ${face} from the left` : "The largest face");
    if (face) tile.querySelector("img").src = picker.picture(id, face, false);
    else { tile.classList.add("any"); tile.querySelector("span").textContent = "largest"; }
    input.addEventListener("change", async () => {
      try {
        const about = await call("GET", `/api/files/${id}/portrait${face ? `?face=${face}` : ""}`);
        if (number === asked) showNotes(about.notes);
      } catch (error) { showNotes([error.message]); }
    });
    row.append(tile);
  }
  $("faces").hidden = false;
}

function showNotes(notes) {
  $("photo-notes").replaceChildren(...notes.map((note) => Object.assign(document.createElement("li"), { textContent: note })));
}

// --- Microphone ---

function setUpMicrophone() {
  const button = $("record"), status = $("record-status");
  if (!navigator.mediaDevices?.getUserMedia || !window.MediaRecorder) { button.hidden = true; return; }
  let recorder = null;
  button.addEventListener("click", async () => {
    if (recorder) { recorder.stop(); return; }
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ audio: true });
    } catch {
      status.textContent = "The browser does not give access to a microphone.";
      return;
    }
    const pieces = [], began = Date.now();
    recorder = new MediaRecorder(stream);
    const timer = setInterval(() => { status.textContent = `Recording, ${Math.round((Date.now() - began) / 1000)} s`; }, 250);
    recorder.addEventListener("dataavailable", (event) => pieces.push(event.data));
    recorder.addEventListener("stop", () => {
      clearInterval(timer);
      for (const track of stream.getTracks()) track.stop();
      const ending = recorder.mimeType.includes("mp4") ? "m4a" : "webm";
      recorder = null;
      status.textContent = "";
      button.textContent = "Record again";
      button.setAttribute("aria-pressed", "false");
      pickers.audio.use(new File(pieces, `Your recording.${ending}`));
    });
    recorder.start();
    button.textContent = "Stop recording";
    button.setAttribute("aria-pressed", "true");
  });
}
