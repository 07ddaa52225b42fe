// What the theme leaves out for readers who do not see the page: names, and no landmark twice.
document$.subscribe(() => {
  document.querySelector(".md-search")?.setAttribute("aria-label", "Search");
  for (const one of document.querySelectorAll(".md-code__nav")) {
    one.setAttribute("role", "presentation");
  }
  document.querySelectorAll(".md-nav .md-nav[aria-labelledby]").forEach((one, index) => {
    const label = document.getElementById(one.getAttribute("aria-labelledby"));
    one.removeAttribute("aria-labelledby");
    one.setAttribute("aria-label", `Section ${index + 1}: ${label?.textContent.trim()}`);
  });
  // What scrolls sideways can be reached by the keyboard.
  for (const one of document.querySelectorAll(".md-typeset__scrollwrap, pre > code, table.octavo")) {
    if (one.scrollWidth > one.clientWidth) {
      one.tabIndex = 0;
      one.setAttribute("role", "group");
      one.setAttribute("aria-label", "scrolls sideways");
    }
  }
});
// Buttons for copying are put in once a block comes into view.
new MutationObserver((changes) => {
  for (const change of changes) {
    for (const one of change.addedNodes) {
      if (one.classList?.contains("md-code__nav")) one.setAttribute("role", "presentation");
    }
  }
}).observe(document.body, { childList: true, subtree: true });
