// A listening test: an introduction, a trial for practice, the trials, and the answers to save.
"use strict";
const test = JSON.parse(document.getElementById("data").textContent);
const SCALE = ["Bad", "Poor", "Fair", "Good", "Excellent"], FADE = 0.01, STORE = `listening-test-${test.page}`;
const main = document.getElementById("main"), status = document.getElementById("status");
const progress = document.getElementById("progress");
const LETTERS = "ABCDEFGHIJKL";

// ---- what the listener has done; kept in the browser, so that a reload loses nothing --------------------------------
const random = (bytes) => crypto.getRandomValues(new Uint8Array(bytes));
const hex = (bytes) => [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
const newState = () => ({
  session: hex(random(8)), seed: new DataView(random(4).buffer).getUint32(0), listener: "", started: null,
  view: -1, furthest: -1, ratings: {}, played: {}, seconds: test.trials.map(() => 0),
});
let state = newState(), isResumed = false, mark = performance.now();

function save() {
  const now = performance.now();
  if (state.view >= 0 && state.view < test.trials.length) state.seconds[state.view] += (now - mark) / 1000;
  mark = now;
  try {
    localStorage.setItem(STORE, JSON.stringify(state));
  } catch (error) {
    status.textContent = "This browser stores nothing: if you reload this page, your ratings are lost.";
  }
}

try {
  const stored = JSON.parse(localStorage.getItem(STORE));
  if (stored && stored.view >= 0 && stored.seconds.length === test.trials.length) {
    state = stored;
    isResumed = true;
  }
} catch (error) { /* nothing is stored, or it cannot be read: a new test begins */ }

// ---- random order: of the trials after practice, and of the sounds in each; a function of the seed -----------------
function mulberry32(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let bits = Math.imul(seed ^ (seed >>> 15), seed | 1);
    bits = (bits + Math.imul(bits ^ (bits >>> 7), bits | 61)) ^ bits;
    return ((bits ^ (bits >>> 14)) >>> 0) / 2 ** 32;
  };
}

function orderTrials(seed) {
  const next = mulberry32(seed);
  const shuffle = (items) => {
    const result = [...items];
    for (let i = result.length - 1; i > 0; i--) {
      const j = Math.floor(next() * (i + 1));
      [result[i], result[j]] = [result[j], result[i]];
    }
    return result;
  };
  const [practice, ...rest] = test.trials;
  return [practice, ...shuffle(rest)].map((trial) => ({ ...trial, sounds: shuffle(trial.sounds) }));
}
let trials = orderTrials(state.seed);

// ---- sound: one at a time; switching keeps the position ------------------------------------------------------------
const player = {
  context: null, buffers: {}, playing: null, position: 0, startedAt: 0, source: null, gain: null, isLooped: false,

  async load(names) {
    this.stop();
    this.context ??= new AudioContext();
    this.buffers = {};
    const decoded = names.map(async (name) => {
      const bytes = Uint8Array.from(atob(test.sounds[name]), (character) => character.charCodeAt(0));
      return [name, await this.context.decodeAudioData(bytes.buffer)];
    });
    this.buffers = Object.fromEntries(await Promise.all(decoded));
  },

  get duration() {
    return Math.max(0.001, ...Object.values(this.buffers).map((buffer) => buffer.duration));
  },

  now() {
    if (!this.playing) return this.position;
    const passed = this.position + this.context.currentTime - this.startedAt;
    return this.isLooped ? passed % this.duration : Math.min(passed, this.duration);
  },

  play(name) {
    if (!this.buffers[name]) return;
    this.pause();
    this.context.resume();
    if (this.position > this.duration - FADE) this.position = 0;
    const source = this.context.createBufferSource(), gain = this.context.createGain(), time = this.context.currentTime;
    Object.assign(source, { buffer: this.buffers[name], loop: this.isLooped });
    gain.gain.setValueAtTime(0, time);
    gain.gain.linearRampToValueAtTime(1, time + FADE);
    source.connect(gain).connect(this.context.destination);
    source.onended = () => { if (this.source === source) this.stop(); };
    source.start(0, this.position);
    Object.assign(this, { source, gain, playing: name, startedAt: time });
    this.onChange();
    follow();
  },

  pause() {
    if (!this.playing) return;
    this.position = this.now();
    const { source, gain } = this, time = this.context.currentTime;
    Object.assign(this, { source: null, playing: null });
    gain.gain.cancelScheduledValues(time);
    gain.gain.setValueAtTime(gain.gain.value, time);
    gain.gain.linearRampToValueAtTime(0, time + FADE);
    source.stop(time + FADE);
    this.onChange();
  },

  stop() {
    this.pause();
    this.position = 0;
    this.onChange();
  },

  loop(isLooped) {
    const name = this.playing;
    this.pause();
    this.isLooped = isLooped;
    if (name) this.play(name);
  },

  onChange() {},
};

function follow() {
  player.onChange();
  if (player.playing) requestAnimationFrame(follow);
}

// ---- pages -----------------------------------------------------------------------------------------------------------
function element(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in node) node[name] = value; else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

let keys = {}; // what each key does on this page

function show(view) {
  player.stop();
  save();
  state.view = view;
  state.furthest = Math.max(view, state.furthest);
  save();
  status.textContent = isResumed ? "Your test goes on where you left it." : "";
  isResumed = false;
  keys = {};
  const count = test.trials.length - 1, isTrial = view >= 0 && view <= count;
  progress.hidden = !isTrial;
  progress.querySelector("label").textContent = view ? `Trial ${view} of ${count}` : "Practice";
  Object.assign(progress.querySelector("progress"), { max: count + 1, value: Math.max(0, view) });
  main.replaceChildren(...(view < 0 ? introduction() : isTrial ? trialPage(view) : ending()));
  scrollTo(0, 0);
  const heading = main.querySelector("h2");
  heading.tabIndex = -1;
  if (view >= 0) heading.focus({ preventScroll: true });
}

function introduction() {
  const count = test.trials.length - 1, name = element("input", { id: "name", maxLength: 80, autocomplete: "name" });
  const steps = [
    "Use headphones in a quiet room.",
    "Play the reference, set the volume so that it is comfortable, and do not change it later.",
    "Play each sound, as often as you like. You can switch between sounds while they play.",
    "Rate each sound from 0 (bad) to 100 (excellent). One of the sounds is the reference itself: rate it 100.",
  ];
  const begin = () => {
    Object.assign(state, { listener: name.value.trim(), started: new Date().toISOString() });
    show(0);
  };
  keys.Enter = begin;
  return [
    element("h2", {}, "How it works"),
    element("p", {}, `You rate ${test.trials[0].sounds.length} sounds against a reference, ${count === 1 ? "once" : `${count} times`}, after one round for practice. Your ratings stay in this browser until you save them as a file.`),
    element("ol", { className: "steps" }, ...steps.map((step) => element("li", {}, step))),
    element("h3", {}, "With the keyboard"), keyTable(),
    element("p", { className: "field" }, element("label", { htmlFor: "name" }, "Your name (optional)"), name),
    element("p", { className: "buttons" }, element("button", { type: "button", className: "primary", onclick: begin }, "Start with practice")),
  ];
}

function keyTable() {
  const rows = { R: "play the reference", "A B C …": "play a sound; the arrow keys then rate it", Space: "pause, continue", Esc: "stop", Enter: "next trial" };
  return element("dl", { className: "keys" }, ...Object.entries(rows).map(([key, text]) =>
    element("div", {}, element("dt", {}, ...key.split(" ").map((each) => element("kbd", {}, each))), element("dd", {}, text))));
}

function describeRating(value) {
  return value === undefined ? "not rated" : `${value}, ${SCALE[Math.min(4, Math.floor(value / 20))]}`;
}

function trialPage(view) {
  const { reference, sounds } = trials[view], rows = [];
  let last = reference;
  const playButton = (name, title, key) => element("button", {
    type: "button", className: "play", "aria-keyshortcuts": key, "aria-label": `Play ${title}`, onclick: () => toggle(name),
  }, element("span", { className: "icon", "aria-hidden": "true" }), key);
  const toggle = (name) => {
    if (player.playing === name) return player.pause();
    last = name;
    if (!player.buffers[name]) return;
    player.play(name);
    state.played[name] = true;
    onProgress();
  };
  const onProgress = () => {
    save();
    if (status.textContent.startsWith("Not ")) status.textContent = missing();
  };
  const referenceButton = playButton(reference, "the reference", "R");
  referenceButton.append("eference");
  keys.r = () => { player.playing === reference || toggle(reference); };
  sounds.forEach((name, i) => {
    const letter = LETTERS[i], button = playButton(name, `sound ${letter}`, letter), output = element("output", { "aria-hidden": "true" });
    const slider = element("input", { type: "range", min: 0, max: 100, step: 1, value: state.ratings[name] ?? 0, "aria-label": `Rating of sound ${letter}` });
    const row = element("div", { className: "rated" }, button, element("span", { className: "slider" }, slider), output);
    const paint = () => {
      row.classList.toggle("unrated", state.ratings[name] === undefined);
      output.textContent = state.ratings[name] ?? "–";
      slider.setAttribute("aria-valuetext", describeRating(state.ratings[name]));
    };
    const rate = () => { state.ratings[name] = Number(slider.value); paint(); onProgress(); };
    slider.addEventListener("input", rate);
    slider.addEventListener("pointerup", rate); // also where the slider is already at 0
    slider.addEventListener("keyup", (event) => { if (/^(Arrow|Home|End|Page)/.test(event.key)) rate(); });
    keys[letter.toLowerCase()] = () => { slider.focus(); player.playing === name || toggle(name); };
    paint();
    rows.push([name, row, button]);
  });
  const list = (what, values) => {
    const letters = rows.flatMap(([name], i) => (name in values ? [] : [LETTERS[i]])).join(", ");
    return letters ? [`${what}: ${letters}.`] : [];
  };
  const missing = () => [...list("Not played yet", state.played), ...list("Not rated yet", state.ratings)].join(" ");
  const time = element("progress", { value: 0, max: 1, "aria-label": "Position in the sound" });
  const loop = element("input", { type: "checkbox", checked: player.isLooped, onchange: () => player.loop(loop.checked) });
  player.onChange = () => {
    time.value = player.now() / player.duration;
    for (const [name, , button] of [[reference, null, referenceButton], ...rows]) {
      button.setAttribute("aria-pressed", player.playing === name);
    }
  };
  const next = () => {
    status.textContent = missing();
    if (!missing()) show(view + 1);
  };
  Object.assign(keys, { Enter: next, Escape: () => player.stop(), " ": () => toggle(player.playing ?? last) });
  const back = view ? [element("button", { type: "button", onclick: () => show(view - 1) }, "Back")] : [];
  const sections = element("div", { className: "scale", "aria-hidden": "true" }, ...SCALE.map((text) => element("span", {}, text)));
  player.load([reference, ...sounds]).then(() => main.classList.remove("loading"), (error) => {
    status.textContent = `The sounds cannot be played by this browser (${error.message}). Please use another one.`;
  });
  main.classList.add("loading");
  return [
    element("h2", {}, view ? `Trial ${view}` : "Practice"),
    element("p", { className: "question" }, test.question),
    ...(view ? [] : [element("p", {}, "Try the buttons and keys. These ratings are not counted.")]),
    element("div", { className: "transport" }, referenceButton, time, element("label", {}, loop, " Repeat")),
    element("div", { className: "sounds", role: "group", "aria-label": "Sounds and their ratings" }, sections, ...rows.map(([, row]) => row)),
    element("p", { className: "buttons" }, ...back, element("button", { type: "button", className: "primary", onclick: next }, view === test.trials.length - 1 ? "Finish" : view ? "Next trial" : "Start the test")),
  ];
}

function ending() {
  state.finished ??= new Date().toISOString();
  save();
  const saved = element("p", {});
  const saveAnswers = () => {
    const name = `listening-test-${test.page.slice(0, 8)}-${state.session.slice(0, 8)}.json`;
    const file = new Blob([JSON.stringify(answers(), null, 1) + "\n"], { type: "application/json" });
    const link = element("a", { href: URL.createObjectURL(file), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    saved.textContent = `Saved as ${name} where this browser puts downloads. Please send this file to whoever gave you the test.`;
  };
  const restart = () => {
    if (!confirm("This deletes the ratings in this browser. Are they saved?")) return;
    state = newState();
    trials = orderTrials(state.seed);
    show(-1);
  };
  keys.Enter = saveAnswers;
  return [
    element("h2", {}, "Thank you"),
    element("p", {}, "You have rated all sounds. Save your answers as a file, and send it to whoever gave you this test."),
    element("p", { className: "buttons" },
      element("button", { type: "button", className: "primary", onclick: saveAnswers }, "Save answers"),
      element("button", { type: "button", onclick: () => show(test.trials.length - 1) }, "Back")),
    saved,
    element("p", {}, element("button", { type: "button", className: "quiet", onclick: restart }, "Begin again for another listener")),
  ];
}

function answers() {
  const rated = trials.slice(1).map(({ sounds }, i) => ({
    order: sounds, ratings: Object.fromEntries(sounds.map((name) => [name, state.ratings[name]])),
    seconds: Math.round(10 * state.seconds[i + 1]) / 10,
  }));
  const { session, seed, listener, started, finished } = state;
  return {
    format: "listening-test-answers", version: 1, page: test.page, session, seed, listener, started, finished,
    browser: navigator.userAgent.slice(0, 300), trials: rated, key: test.key,
  };
}

document.addEventListener("keydown", (event) => {
  const target = event.target, isButton = target.matches("button, a, input[type=checkbox]");
  if (event.ctrlKey || event.altKey || event.metaKey || (event.key === "Enter" || event.key === " ") && isButton) return;
  const isText = target.matches("input") && target.type === "text";
  const action = isText && event.key !== "Enter" ? null : keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!action) return;
  event.preventDefault();
  action();
});
addEventListener("pagehide", save);
show(state.view);
