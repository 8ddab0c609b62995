// The page of the studio: examples and form on one side, the video on the other.

import { call } from "./api.js";
import { readForm, setUpForm, stills } from "./form.js";
import { Picker, pickers } from "./picker.js";
import { clearStage, load, make, problem, showStills } from "./videos.js";

async function start() {
  const choices = await call("GET", "/api/choices");
  const speech = { id: choices.speech, alt: "A sample recording, 10 s", url: choices.speech_url };
  const first = { photo: 0, left_photo: 0, right_photo: 1 };
  for (const box of document.querySelectorAll("[data-picker]")) {
    const name = box.dataset.picker, kind = box.dataset.kind;
    const examples = kind === "photo" ? choices.portraits.map((one, index) => ({ ...one, chosen: index === first[name] }))
      : kind === "audio" ? [{ ...speech, chosen: name !== "right_audio" }] : [];
    new Picker(box, examples, problem, choices.megabytes);
  }
  setUpForm(choices, () => showStills(stills()));
  // A change of who is seen takes the stage; a change of anything else leaves a video there.
  const takeStage = () => clearStage(stills());
  for (const picker of Object.values(pickers)) {
    if (["photo", "video"].includes(picker.kind)) picker.box.addEventListener("picked", takeStage);
  }
  for (const name of ["kind", "whole"]) {
    for (const field of document.querySelectorAll(`[name=${name}]`)) field.addEventListener("change", () => setTimeout(takeStage));
  }
  document.getElementById("faces").addEventListener("change", () => setTimeout(takeStage));
  document.addEventListener("stage-empty", takeStage);
  document.getElementById("form").addEventListener("submit", (event) => {
    event.preventDefault();
    make(readForm(), stills());
  });
  const accept = (files) => {
    const file = files?.[0];
    if (!file) return;
    const kind = document.querySelector("[name=kind]:checked").value;
    const target = file.type.startsWith("image/") ? (kind === "two" ? "left_photo" : "photo")
      : file.type.startsWith("audio/") ? (kind === "two" ? "left_audio" : "audio")
      : file.type.startsWith("video/") ? "video" : "";
    if (target) pickers[target].use(file);
  };
  document.addEventListener("paste", (event) => accept(event.clipboardData?.files));
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => { event.preventDefault(); accept(event.dataTransfer?.files); });
  await load();
  document.body.dataset.ready = "true";
}

start().catch((error) => problem(error.message));
