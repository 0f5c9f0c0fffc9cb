// Sets the theme before anything is painted. A classic script, loaded first, so that no wrong colour flashes.
{
  let theme = null;
  try {
    theme = localStorage.getItem("amp.theme");
  } catch {
    // storage can be switched off; the system's theme is used then
  }
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
}
