// Light or dark, before anything is drawn: as chosen here before, else as the system says.
(() => {
  const chosen = localStorage.getItem("p2pgrid-theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
})();
