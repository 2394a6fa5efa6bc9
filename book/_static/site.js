// What the theme's inline handlers did, and what keyboards and printers need. Loaded on every page after the theme's own scripts.
(() => {
  "use strict";
  const all = selector => document.querySelectorAll(selector);
  const root = document.documentElement;

  // An excerpt under each search result is read from its page; from a file no browser allows that.
  if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;

  // What is wider than its box scrolls: whoever has no mouse must reach it, and everybody must see that there is more.
  const BOXES = "article pre, article .text_html, article .pst-scrollable-table-container, article .table-wrapper, " +
    "article div.math, article mjx-container[display='true'], article .plate-images";
  const atEnd = box => box.classList.toggle("at-end", box.scrollLeft + box.clientWidth >= box.scrollWidth - 2);
  function mark() {
    for (const box of all(BOXES)) {
      const wide = box.scrollWidth > box.clientWidth + 1;
      if (wide && !box.classList.contains("scrolls")) box.addEventListener("scroll", () => atEnd(box), { passive: true });
      box.classList.toggle("scrolls", wide);
      if (wide || box.matches(".plate-images")) box.tabIndex = 0; else box.removeAttribute("tabindex");
      atEnd(box);
    }
  }

  // Paper is light, and nothing can be unfolded on it. Solutions come along only where the address asks for them.
  if (new URLSearchParams(location.search).has("solutions")) root.dataset.solutions = "";
  const LEFT_OUT = "details:is(.hint, .solution, .answer)";
  let before = null;
  addEventListener("beforeprint", () => {
    before = { theme: root.dataset.theme, folded: [...all("details:not([open])")] };
    if (!("solutions" in root.dataset)) before.folded = before.folded.filter(part => !part.matches(LEFT_OUT));
    root.dataset.theme = "light";
    for (const part of before.folded) part.open = true;
  });
  addEventListener("afterprint", () => {
    root.dataset.theme = before.theme;
    for (const part of before.folded) part.open = false;
  });

  // A link into a folded part opens it.
  function unfold() {
    const aim = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    const folded = aim && aim.closest("details:not([open])");
    if (!folded) return;
    folded.open = true;
    aim.scrollIntoView();
  }
  addEventListener("hashchange", unfold);

  addEventListener("load", () => {
    unfold();
    for (const button of all("[data-print]")) button.addEventListener("click", () => print());
    for (const button of all(".search-button-field")) button.removeAttribute("aria-label");  // its text says more
    mark();
    if (window.MathJax && MathJax.startup) MathJax.startup.promise.then(mark);
    addEventListener("resize", mark);
    document.addEventListener("toggle", mark, true);
  });
})();
