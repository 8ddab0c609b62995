// A row of tiles to choose a file from: examples, uploads, and a tile that adds one.
// <div class="picker" data-picker="NAME" data-kind="photo|video|audio|motion" data-label="…">

import { upload } from "./api.js";

const ACCEPT = { photo: "image/*,.heic,.heif,.avif", video: "video/*,.mkv", audio: "audio/*,video/*", motion: ".csv,.json" };
const ADD = { photo: "Add your photo", video: "Add a video", audio: "Add a recording", motion: "Add a motion file" };
export const pickers = {};

export class Picker {
  constructor(box, examples, problem, megabytes) {
    this.megabytes = megabytes;
    this.box = box;
    this.name = box.dataset.picker;
    this.kind = box.dataset.kind;
    this.problem = problem;
    this.files = {};
    pickers[this.name] = this;
    if (box.dataset.hint) box.append(Object.assign(document.createElement("p"), { className: "hint", textContent: box.dataset.hint }));
    this.tiles = document.createElement("div");
    this.tiles.className = "tiles";
    this.tiles.setAttribute("role", "radiogroup");
    this.tiles.setAttribute("aria-label", box.dataset.label);
    box.append(this.tiles, this.#addTile());
    this.tiles.append(this.add);
    if (this.kind === "audio") {
      this.player = Object.assign(document.createElement("audio"), { controls: true, preload: "none", hidden: true });
      this.player.setAttribute("aria-label", `${box.dataset.label}: listen`);
      box.append(this.player);
    }
    if (this.kind === "motion") this.#tile({ id: "", name: "New motion" }, true);
    for (const example of examples) this.#tile(example, example.chosen);
    this.tiles.addEventListener("change", () => this.#changed());
    box.addEventListener("dragover", (event) => { event.preventDefault(); box.classList.add("over"); });
    box.addEventListener("dragleave", () => box.classList.remove("over"));
    box.addEventListener("drop", (event) => {
      event.preventDefault();
      event.stopPropagation();
      box.classList.remove("over");
      if (event.dataTransfer.files[0]) this.use(event.dataTransfer.files[0]);
    });
    this.#changed();
  }

  get value() { return this.tiles.querySelector("input:checked")?.value || ""; }
  get file() { return this.files[this.value]; }

  async use(file) {
    this.problem("");
    if (file.size > this.megabytes * 2 ** 20) {
      this.problem(`${file.name} has ${Math.ceil(file.size / 2 ** 20)} MB, more than ${this.megabytes}: choose a smaller file.`);
      return;
    }
    this.add.setAttribute("aria-busy", "true");
    const before = this.addText.textContent;
    this.addText.textContent = "Checking …";
    try {
      const about = await upload(this.kind, file);
      const added = { ...about, local: this.kind === "audio" ? URL.createObjectURL(file) : undefined };
      // A photo or a recording can be chosen everywhere, such as one photo that shows both people.
      for (const other of Object.values(pickers)) if (other.kind === this.kind && other !== this) other.#tile(added, false);
      this.#tile(added, true).focus();
      this.#changed();
    } catch (error) {
      this.problem(error.message);
    } finally {
      this.add.removeAttribute("aria-busy");
      this.addText.textContent = before;
    }
  }

  #addTile() {
    this.add = document.createElement("label");
    this.add.className = `tile add${this.isLine ? " line" : ""}`;
    this.addText = Object.assign(document.createElement("span"), { textContent: this.box.closest(".pair") && this.kind === "photo" ? "Add" : ADD[this.kind] });
    const input = Object.assign(document.createElement("input"), { type: "file", accept: ACCEPT[this.kind] });
    input.setAttribute("aria-label", `${this.box.dataset.label}: ${ADD[this.kind]}`);
    input.addEventListener("change", (event) => {
      event.stopPropagation();
      if (input.files[0]) this.use(input.files[0]);
      input.value = "";
    });
    this.add.append(input, this.addText);
    return this.add;
  }

  get isLine() { return this.kind !== "photo"; }

  #tile(file, chosen) {
    const tile = document.getElementById("tile").content.firstElementChild.cloneNode(true);
    const input = tile.querySelector("input"), image = tile.querySelector("img");
    Object.assign(input, { name: this.name, value: file.id });
    const seconds = file.seconds ? ` (${file.seconds.toFixed(0)} s)` : "";
    tile.querySelector("span").textContent = `${file.alt || file.name}${seconds}`;
    if (this.isLine) {
      tile.classList.add("line");
      image.remove();
    } else {
      image.src = this.picture(file.id);
    }
    this.tiles.insertBefore(tile, this.add);
    this.files[file.id] = file;
    input.checked = Boolean(chosen);
    return input;
  }

  picture(id, face, whole = true) {
    if (id.startsWith("example-") && whole) return `/samples/${id.slice(8)}.jpg`;
    return `/api/files/${id}/picture.jpg?whole=${whole}${face ? `&face=${face}` : ""}${this.kind === "video" ? "&video=true" : ""}`;
  }

  #changed() {
    if (this.player) {
      const file = this.file;
      this.player.hidden = !file;
      if (file) this.player.src = file.local || file.url;
    }
    this.box.dispatchEvent(new CustomEvent("picked", { bubbles: true }));
  }
}
