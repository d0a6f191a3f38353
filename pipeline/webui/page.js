// A spectrogram plays its sound when pressed; one sound at a time. Cards come and go, so the page listens as a whole.
document.addEventListener("click", (event) => {
  const button = event.target.closest(".sound button");
  if (!button) return;
  const audio = button.parentElement.querySelector("audio");
  if (!audio.paused) return audio.pause();
  audio.currentTime = 0;
  audio.play();
});
document.addEventListener("play", ({ target }) => {
  document.querySelectorAll("audio").forEach((other) => other !== target && other.pause());
  const sound = target.closest(".sound");
  if (!sound) return;
  const line = sound.querySelector("i");
  const follow = () => {
    line.style.left = `${(100 * target.currentTime) / target.duration}%`;
    if (!target.paused) requestAnimationFrame(follow);
  };
  sound.classList.add("playing");
  follow();
}, true);
for (const end of ["pause", "ended"])
  document.addEventListener(end, ({ target }) => target.closest?.(".sound")?.classList.remove("playing"), true);
