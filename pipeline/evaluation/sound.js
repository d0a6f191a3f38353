// The players of a page (sound.html): a button plays and pauses, a click or a key in the picture seeks, one sound plays
// at a time. Players come and go in the demo, so the page listens for all of them. Without this script the browser's
// own players are shown.
document.documentElement.classList.add("scripted");
const soundOf = (event) => event.target.closest?.(".sound");
const partOf = (sound, selector) => sound.querySelector(selector);

function showPosition(sound) {
  const total = Number(sound.dataset.seconds), now = Math.min(partOf(sound, "audio").currentTime, total);
  sound.style.setProperty("--at", `${(100 * now) / total}%`);
  partOf(sound, ".clock").textContent = `${now.toFixed(1)} / ${total.toFixed(1)} s`;
  partOf(sound, ".picture").setAttribute("aria-valuenow", now.toFixed(1));
}

function seek(sound, seconds) {
  const total = Number(sound.dataset.seconds);
  partOf(sound, "audio").currentTime = Math.max(0, Math.min(total, seconds));
  sound.classList.add("started");
  showPosition(sound);
}

function pauseOthers(audio) {
  document.querySelectorAll("audio").forEach((other) => other !== audio && other.pause());
}

function play(audio) {
  pauseOthers(audio); // at once: the event comes later
  audio.play();
}

function toggle(sound) {
  const audio = partOf(sound, "audio");
  if (audio.paused) play(audio); else audio.pause();
}

document.addEventListener("click", (event) => {
  const sound = soundOf(event), picture = event.target.closest?.(".sound .picture");
  if (event.target.closest?.(".sound .play")) toggle(sound);
  if (!picture) return;
  const box = picture.getBoundingClientRect();
  seek(sound, (Number(sound.dataset.seconds) * (event.clientX - box.left)) / box.width);
  play(partOf(sound, "audio"));
});

document.addEventListener("keydown", (event) => {
  if (!event.target.matches?.(".sound .picture")) return;
  const sound = soundOf(event), total = Number(sound.dataset.seconds), now = partOf(sound, "audio").currentTime;
  const step = Math.max(0.1, total / 20);
  const target = { ArrowRight: now + step, ArrowUp: now + step, ArrowLeft: now - step, ArrowDown: now - step, Home: 0, End: total };
  if (event.key in target) seek(sound, target[event.key]);
  else if (event.key === " " || event.key === "Enter") toggle(sound);
  else return;
  event.preventDefault();
});

document.addEventListener("play", ({ target }) => {
  if (target.paused) return; // another sound was started in the meantime
  pauseOthers(target);
  const sound = target.closest(".sound");
  if (!sound) return;
  sound.classList.add("playing", "started");
  partOf(sound, ".play").setAttribute("aria-pressed", "true");
  const follow = () => {
    showPosition(sound);
    if (!target.paused) requestAnimationFrame(follow);
  };
  follow();
}, true);

for (const end of ["pause", "ended"])
  document.addEventListener(end, ({ target }) => {
    const sound = target.closest?.(".sound");
    if (!sound) return;
    sound.classList.remove("playing");
    partOf(sound, ".play").setAttribute("aria-pressed", "false");
  }, true);
