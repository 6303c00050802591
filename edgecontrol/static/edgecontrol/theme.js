/* The reader's choice of colours, as unfold keeps it; for pages that do without unfold. */
{
  let chosen = "auto";
  try {
    chosen = JSON.parse(localStorage.getItem("adminTheme")) ?? chosen;
  } catch {
    // No storage, or not our word.
  }
  const dark = chosen === "dark" || (chosen === "auto" && matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.classList.toggle("dark", dark);
}
