// Before anything is drawn: the theme that was chosen here, if one was; else the system's holds.
"use strict";
try {
  const chosen = localStorage.getItem("lifl-theme");
  if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;
} catch { /* no storage: the system's theme */ }
