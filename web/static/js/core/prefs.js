// What this browser remembers: the theme. Nothing else, and nothing leaves the machine.

import { signal } from "../../vendor/ui.js";

const KEY = "amp.theme";
const THEMES = ["system", "light", "dark"];

function stored() {
  try {
    const value = localStorage.getItem(KEY);
    return THEMES.includes(value) ? value : "system";
  } catch {
    return "system"; // storage can be switched off
  }
}

export const theme = signal(stored());

/** Go to the next of system, light, dark. */
export function nextTheme() {
  theme.value = THEMES[(THEMES.indexOf(theme.value) + 1) % THEMES.length];
  if (theme.value === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme.value;
  try {
    localStorage.setItem(KEY, theme.value);
  } catch {
    // the choice lasts as long as the page then
  }
}
