"use strict";
/* Two videos in step, four questions, every answer sent at once: a reload finds everything where it was. */

const $ = (id) => document.getElementById(id);
const videos = { left: $("left"), right: $("right") };
const NAMES = { left: "A", right: "B" };
const FAR = 0.25; // seconds: the silent video jumps into step; when less is amiss, it walks a little faster or slower

const state = { token: "", questions: [], total: 0, index: 0, answers: {}, now: 0, heard: "left", loading: 0, running: false, saving: Promise.resolve() };

async function call(method, path, body) {
  const options = { method, headers: body ? { "Content-Type": "application/json" } : {} };
  if (body) options.body = JSON.stringify(body);
  const reply = await fetch(path, options);
  if (!reply.ok) throw Object.assign(new Error(reply.statusText), { status: reply.status });
  return reply.json();
}
const mine = (rest = "") => `/api/participants/${encodeURIComponent(state.token)}${rest}`;

function show(name) {
  for (const part of ["intro", "trial", "done", "lost"]) $(part).hidden = part !== name;
  if (name !== "trial") pause();
}

function lost(error) {
  if (error.status === 403) {
    $("lost-title").textContent = "The study is complete";
    $("lost-text").textContent = "It has all the participants that it can take. Thank you for coming.";
  } else if (error.status !== 404) {
    $("lost-title").textContent = "The study cannot be reached";
    $("lost-text").textContent = "Your answers so far are saved. Please reload this page in a moment.";
  }
  show("lost");
}

/* The videos: what is heard leads, the other follows; both begin again when the shorter one ends. */

const playing = () => state.running; // a video that came to its end calls itself paused: it cannot be asked
const length = () => Math.min(videos.left.duration || Infinity, videos.right.duration || Infinity);

function pause() {
  state.running = false;
  videos.left.pause(); videos.right.pause();
  $("play").textContent = "Play"; $("play").setAttribute("aria-label", "Play");
}

async function play() {
  const { left, right } = videos;
  state.running = true;
  for (const side of ["left", "right"]) videos[side].muted = side !== state.heard;
  try {
    await Promise.all([left.play(), right.play()]);
    $("unmute").hidden = true;
  } catch (error) {
    if (error.name !== "NotAllowedError") return;
    left.muted = right.muted = true; // until somebody touches the page, browsers play silently only
    $("unmute").hidden = false;
    await Promise.all([left.play(), right.play()]).catch(() => {});
  }
  $("play").textContent = "Pause"; $("play").setAttribute("aria-label", "Pause");
}

function restart() {
  videos.left.currentTime = videos.right.currentTime = 0;
  return play();
}

function hear(side) {
  state.heard = side;
  for (const one of ["left", "right"]) {
    videos[one].muted = one !== side;
    $(`${one}-side`).classList.toggle("heard", one === side);
  }
  $("other").textContent = NAMES[side === "left" ? "right" : "left"];
}

function inStep() {
  if (playing() && !$("trial").hidden) {
    const leader = videos[state.heard], other = videos[state.heard === "left" ? "right" : "left"];
    if (leader.ended || other.ended || leader.currentTime >= length() - 0.02) restart();
    else if (!leader.seeking && !other.seeking) {
      const late = leader.currentTime - other.currentTime;
      leader.playbackRate = 1;
      other.playbackRate = Math.abs(late) < 0.015 ? 1 : 1 + Math.max(-0.2, Math.min(0.2, late));
      if (Math.abs(late) > FAR) other.currentTime = leader.currentTime;
    }
  }
  setTimeout(inStep, 100);
}

async function load(left, right) {
  const ticket = ++state.loading;
  pause();
  $("problem").hidden = true;
  const ready = Object.entries({ left, right }).map(([side, source]) => new Promise((resolve, reject) => {
    const video = videos[side];
    video.oncanplay = resolve; video.onerror = () => reject(new Error(side));
    video.src = source; video.load();
  }));
  try {
    await Promise.all(ready);
    if (ticket === state.loading) await restart();
  } catch {
    if (ticket === state.loading) problem("A video could not be loaded. Please reload the page.");
  }
}

function problem(text) { $("problem").textContent = text; $("problem").hidden = !text; }

/* The questions */

function draw() {
  const questions = $("questions");
  questions.replaceChildren(...state.questions.map(({ aspect, text }, row) => {
    const box = document.createElement("div"), words = document.createElement("p"), choices = document.createElement("div");
    box.className = "question"; box.dataset.aspect = aspect;
    words.textContent = text; words.id = `question-${aspect}`;
    choices.className = "choices"; choices.setAttribute("role", "group"); choices.setAttribute("aria-labelledby", words.id);
    for (const [choice, label] of [["left", "A"], ["same", "Same"], ["right", "B"]]) {
      const button = document.createElement("button");
      button.type = "button"; button.textContent = label; button.dataset.choice = choice;
      button.addEventListener("click", () => { button.blur(); answer(row, choice); });
      choices.append(button);
    }
    box.append(words, choices);
    return box;
  }));
  refresh();
}

function refresh() {
  [...$("questions").children].forEach((box, row) => {
    const said = state.answers[box.dataset.aspect];
    box.classList.toggle("now", row === state.now);
    box.classList.toggle("said", Boolean(said));
    for (const button of box.querySelectorAll("button")) button.setAttribute("aria-pressed", String(button.dataset.choice === said));
  });
  const complete = state.questions.every(({ aspect }) => state.answers[aspect]);
  $("next").disabled = !complete;
  $("next").textContent = state.index + 1 < state.total ? "Next" : "Finish";
  $("back").style.visibility = state.index ? "visible" : "hidden";
  $("count").textContent = `${Math.min(state.index + 1, state.total)} of ${state.total}`;
  $("bar").style.width = `${100 * (state.index + (complete ? 1 : 0)) / state.total}%`;
  const track = $("bar").parentElement;
  track.setAttribute("aria-valuemax", state.total); track.setAttribute("aria-valuenow", state.index);
}

async function answer(row, choice) {
  const aspect = state.questions[row].aspect, index = state.index, before = state.answers[aspect];
  state.answers[aspect] = choice;
  const open = state.questions.findIndex((question) => !state.answers[question.aspect]);
  state.now = open < 0 ? state.questions.length : open;
  refresh();
  try {
    // One after the other, so that the last click on a question is the one that is kept.
    const saved = state.saving.then(() => call("PUT", mine(`/trials/${index}`), { aspect, choice }));
    state.saving = saved.catch(() => {});
    await saved;
    if (index === state.index) problem("");
  } catch {
    if (index !== state.index) return;
    if (before) state.answers[aspect] = before; else delete state.answers[aspect];
    state.now = row;
    refresh();
    problem("Your answer could not be saved. Please choose again.");
  }
}

async function go(index) {
  if (index >= state.total) { show("done"); return; }
  try {
    const trial = await call("GET", mine(`/trials/${index}`));
    state.index = index; state.answers = trial.answers;
    const open = state.questions.findIndex(({ aspect }) => !trial.answers[aspect]);
    state.now = open < 0 ? state.questions.length : open;
    show("trial"); hear("left"); draw(); window.scrollTo(0, 0);
    load(trial.left, trial.right);
    if (index + 1 < state.total) {
      const next = await call("GET", mine(`/trials/${index + 1}`));
      for (const source of [next.left, next.right]) fetch(source).then((reply) => reply.blob()).catch(() => {});
    }
  } catch (error) { lost(error); }
}

const complete = () => !$("next").disabled;
const next = async () => {
  if (!complete()) return;
  await state.saving;
  if (!complete()) return;
  if (state.index + 1 < state.total) go(state.index + 1);
  else call("GET", mine()).then(({ first }) => go(first), lost);
};

/* Keys, buttons, touch */

$("next").addEventListener("click", next);
$("back").addEventListener("click", () => go(state.index - 1));
$("revise").addEventListener("click", () => go(state.total - 1));
$("play").addEventListener("click", () => (playing() ? pause() : play()));
$("restart").addEventListener("click", restart);
$("switch").addEventListener("click", () => hear(state.heard === "left" ? "right" : "left"));
$("unmute").addEventListener("click", restart);
for (const side of ["left", "right"]) $(`${side}-side`).addEventListener("click", () => { hear(side); if (!$("unmute").hidden) restart(); });
for (const button of document.querySelectorAll(".withdraw")) button.addEventListener("click", async () => {
  if (!confirm("Delete all your answers? This cannot be undone.")) return;
  await call("DELETE", mine("/answers")).catch(lost);
  $("lost-title").textContent = "Your answers are deleted";
  $("lost-text").textContent = "Nothing you said is kept.";
  show("lost");
});

const keys = {
  ArrowLeft: () => choose("left"), ArrowRight: () => choose("right"), ArrowDown: () => choose("same"),
  ArrowUp: () => { state.now = Math.max(0, state.now - 1); refresh(); },
  " ": () => (playing() ? pause() : play()), Enter: next,
  s: () => hear(state.heard === "left" ? "right" : "left"), r: restart,
};
function choose(choice) { if (state.now < state.questions.length) answer(state.now, choice); }
document.addEventListener("keydown", (event) => {
  if ($("trial").hidden || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const onButton = event.target instanceof HTMLButtonElement && (event.key === "Enter" || event.key === " ");
  const action = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!action || onButton) return;
  event.preventDefault();
  action();
});
document.addEventListener("visibilitychange", () => { if (document.hidden) pause(); else if (!$("trial").hidden) play(); });

/* Where to begin: a fresh visitor at the introduction, a link at its first unfinished pair. */

async function resume(token) {
  state.token = token;
  const { questions, total, first } = await call("GET", mine());
  Object.assign(state, { questions, total });
  await go(first);
}

/* The text to agree to, as paragraphs; nobody begins without agreeing. */
function showConsent(sections, preview) {
  for (const { heading, paragraphs } of sections) {
    for (const [kind, text] of [["h2", heading], ...paragraphs.map((one) => ["p", one])]) {
      if (text) $("consent").appendChild(Object.assign(document.createElement(kind), { textContent: text }));
    }
  }
  $("preview").hidden = !preview;
}
const agreed = () => { $("begin").disabled = !$("agree").checked; };
$("agree").addEventListener("change", agreed);

$("begin").addEventListener("click", async () => {
  try {
    const { token } = await call("POST", "/api/participants");
    history.replaceState(null, "", `/p/${encodeURIComponent(token)}`);
    await resume(token);
  } catch (error) { lost(error); }
});

(async () => {
  inStep();
  const token = location.pathname.startsWith("/p/") ? decodeURIComponent(location.pathname.slice(3)) : "";
  try {
    const study = await call("GET", "/api/study");
    document.title = $("title").textContent = study.title;
    $("screens").textContent = study.screens;
    showConsent(study.consent, study.preview);
    agreed(); // a browser may restore the tick of an earlier visit
    if (token) await resume(token); else show("intro");
  } catch (error) { lost(error); }
})();
