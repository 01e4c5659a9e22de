"use strict";
// Asks pair after pair. The server decides which pair is open; here is only what a worker sees and does.

const BASE = location.pathname; // /w/TOKEN
const SIDES = ["left", "right"];
const KEYS = { ArrowLeft: "left", f: "left", F: "left", ArrowRight: "right", j: "right", J: "right" };
const PAUSE_MS = 400; // of grey fields between two pairs
const RETRY_MS = 1000;

const element = (id) => document.getElementById(id);
const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));
const count = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;

function show(name) {
  for (const section of document.querySelectorAll("section")) section.hidden = section.id !== name;
}

function say(trouble) {
  element("trouble").textContent = trouble;
}

// Asks until there is an answer: a vote that was stored already is stored once, however often it is sent.
async function request(path, body) {
  for (;;) {
    try {
      const options = body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
      const response = await fetch(`${BASE}/${path}`, options);
      if (response.ok) {
        say("");
        return await response.json();
      }
      if (response.status === 409) return await request("state"); // this study went on in another window
      if (response.status < 500) {
        say("The server does not know this study any more. Please tell the person who invited you.");
        return await new Promise(() => {});
      }
    } catch {
      // no connection: wait and try again, as after an error of the server
    }
    say("The connection is lost. Trying again …");
    await pause(RETRY_MS);
  }
}

// The two images of a pair, decoded: they appear at once, and are not asked for again.
function load(position) {
  return Promise.all(
    SIDES.map(async (side) => {
      const image = new Image(128, 128);
      image.alt = `the ${side} image`;
      image.draggable = false;
      image.src = `${BASE}/${position}/${side}.png`;
      await image.decode();
      return image;
    }),
  );
}

function fill(images) {
  SIDES.forEach((side, k) => element(`${side}-field`).replaceChildren(...images.slice(k, k + 1)));
}

function enable(open) {
  for (const side of SIDES) element(side).disabled = !open;
}

// Shows a pair for so many seconds and returns the choice, and how long it took.
async function ask(images, seconds) {
  await pause(PAUSE_MS);
  await new Promise(requestAnimationFrame);
  fill(images);
  enable(true);
  const shown = performance.now();
  const timer = setTimeout(fill, 1000 * seconds, []);
  const choice = await new Promise((choose) => {
    for (const side of SIDES) element(side).onclick = () => choose(side);
    document.onkeydown = (event) => {
      if (event.repeat || event.ctrlKey || event.altKey || event.metaKey || !(event.key in KEYS)) return;
      event.preventDefault();
      choose(KEYS[event.key]);
    };
  });
  const claimed_ms = Math.round(performance.now() - shown);
  clearTimeout(timer);
  document.onkeydown = null;
  enable(false);
  fill([]);
  return { choice, claimed_ms };
}

async function run(state) {
  let next = null;
  show("trial");
  while (state.position <= state.total) {
    const { position, total, seconds } = state;
    element("counter").textContent = `${position} of ${total}`;
    element("bar").value = (position - 1) / total;
    let images;
    try {
      images = await (next ?? load(position));
    } catch {
      next = null;
      say("The images cannot be loaded. Trying again …");
      await pause(RETRY_MS);
      state = await request("state");
      continue;
    }
    next = position < total ? load(position + 1) : null;
    next?.catch(() => {}); // looked at when it is needed
    const answer = await ask(images, seconds);
    state = await request("votes", { position, ...answer });
    if (state.position !== position + 1) next = null;
  }
  show("thanks");
}

async function welcome() {
  const state = await request("state");
  if (state.position > state.total) return show("thanks");
  const left = state.total - state.position + 1;
  element("seconds").textContent = count(state.seconds, "second");
  element("pairs").textContent = state.position > 1 ? `${count(left, "pair")} left` : count(left, "pair");
  element("start").textContent = state.position > 1 ? "Continue" : "Start";
  element("start").onclick = () => run(state);
  element("start").disabled = false;
  element("start").focus();
}

welcome();
