// On a narrow screen the results are below the inputs: after a press they are scrolled into view.
document.addEventListener("click", (event) => {
  const actions = event.target.closest?.(".actions");
  if (actions && event.target.closest("button") && innerWidth < 768) actions.scrollIntoView({ block: "start" });
});
