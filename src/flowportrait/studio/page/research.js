// Training runs and preference studies.

import { call } from "./api.js";

const $ = (id) => document.getElementById(id);
const COLOURS = ["#0f8b76", "#c2571a", "#5b62d6", "#b03a72", "#7a7f12", "#2a86c4"];

function tell(id, sentence) {
  $(id).textContent = sentence;
  $(id).hidden = !sentence;
}

function fields(form) {
  return Object.fromEntries([...new FormData(form)].map(([name, value]) => [name, name === "iterations" ? Number(value) : value]));
}

function show(state) {
  $("run").textContent = state.status;
  $("halt").disabled = !state.running;
  const rewards = Object.entries(state.rewards).filter(([, values]) => values.filter((one) => one !== null).length > 1);
  $("plot").hidden = !rewards.length;
  const all = rewards.flatMap(([, values]) => values.filter((one) => one !== null));
  const low = Math.min(...all), high = Math.max(...all);
  $("plot").replaceChildren(...rewards.map(([, values], index) => {
    const line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
    const x = (step) => (100 * step) / Math.max(1, values.length - 1), y = (one) => 96 - (92 * (one - low)) / (high - low || 1);
    line.setAttribute("points", values.map((one, step) => (one === null ? "" : `${x(step)},${y(one)}`)).join(" "));
    line.setAttribute("stroke", COLOURS[index % COLOURS.length]);
    return line;
  }));
  $("legend").replaceChildren(...rewards.flatMap(([name, values], index) => {
    const mark = Object.assign(document.createElement("b"), { textContent: "■ " });
    mark.style.color = COLOURS[index % COLOURS.length];
    return [mark, `${name} ${values.findLast((one) => one !== null).toPrecision(3)}   `];
  }));
}

$("training").addEventListener("submit", async (event) => {
  event.preventDefault();
  tell("training-problem", "");
  try { show(await call("POST", "/api/training", fields(event.target))); } catch (error) { tell("training-problem", error.message); }
});
$("halt").addEventListener("click", async () => show(await call("DELETE", "/api/training")));
$("studies").addEventListener("submit", async (event) => {
  event.preventDefault();
  tell("study-problem", "");
  try {
    const { address } = await call("POST", "/api/studies", fields(event.target));
    const link = Object.assign(document.createElement("a"), { href: address, target: "_blank", rel: "noreferrer", textContent: address });
    $("opened").replaceChildren("The study is at ", link);
  } catch (error) { tell("study-problem", error.message); }
});

const recipe = $("training").elements.recipe;
for (const name of await call("GET", "/api/recipes")) recipe.add(new Option(name, name, false, name === "flow-grpo"));
show(await call("GET", "/api/training"));
setInterval(async () => { try { show(await call("GET", "/api/training")); } catch { /* the studio ended */ } }, 2000);
