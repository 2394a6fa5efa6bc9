// What the theme's inline handlers did, and what keyboards and printers need. Loaded on every page after the theme's own scripts.
(() => {
  "use strict";
  const all = selector => document.querySelectorAll(selector);
  const root = document.documentElement;

  // An excerpt under each search result is read from its page; from a file no browser allows that.
  if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;

  // What is wider than its box scrolls: whoever has no mouse must reach it, and everybody must see that there is more.
  const BOXES = "article pre, article .text_html, article .pst-scrollable-table-container, article .table-wrapper, " +
    "article div.math, article mjx-container[display='true']";
  const atEnd = box => box.classList.toggle("at-end", box.scrollLeft + box.clientWidth >= box.scrollWidth - 2);
  function mark() {
    for (const box of all(BOXES)) {
      const wide = box.scrollWidth > box.clientWidth + 1;
      if (wide && !box.classList.contains("scrolls")) box.addEventListener("scroll", () => atEnd(box), { passive: true });
      box.classList.toggle("scrolls", wide);
      if (wide) box.tabIndex = 0; else box.removeAttribute("tabindex");
      atEnd(box);
    }
  }

  // Paper is light, and nothing can be unfolded on it.
  let before = null;
  addEventListener("beforeprint", () => {
    before = { theme: root.dataset.theme, folded: [...all("details:not([open])")] };
    root.dataset.theme = "light";
    for (const part of before.folded) part.open = true;
  });
  addEventListener("afterprint", () => {
    root.dataset.theme = before.theme;
    for (const part of before.folded) part.open = false;
  });

  addEventListener("load", () => {
    for (const button of all("[data-print]")) button.addEventListener("click", () => print());
    for (const button of all(".search-button-field")) button.removeAttribute("aria-label");  // its text says more
    mark();
    if (window.MathJax && MathJax.startup) MathJax.startup.promise.then(mark);
    addEventListener("resize", mark);
    document.addEventListener("toggle", mark, true);
  });
})();
