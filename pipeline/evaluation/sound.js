// A spectrogram plays its sound when it is clicked, one at a time; without JavaScript the browser's own players are shown.
document.documentElement.classList.add("scripted");
for (const sound of document.querySelectorAll(".sound")) {
  const audio = sound.querySelector("audio"), line = sound.querySelector("i");
  const follow = () => {
    if (audio.paused) return;
    line.style.left = `${(100 * audio.currentTime) / audio.duration}%`;
    requestAnimationFrame(follow);
  };
  sound.querySelector("button").addEventListener("click", () => {
    if (!audio.paused) return audio.pause();
    document.querySelectorAll("audio").forEach((other) => other.pause());
    audio.currentTime = 0;
    audio.play();
  });
  audio.addEventListener("play", () => { sound.classList.add("playing"); follow(); });
  for (const end of ["pause", "ended"]) audio.addEventListener(end, () => sound.classList.remove("playing"));
}
