"use strict";
// Asks for the fragments that have changed and replaces them where they stand. Scroll position, focus and what is
// opened stay. A page that is not looked at, or is paused, asks for nothing.
(() => {
  const main = document.querySelector("main");
  const every = 1000 * Number(main.dataset.every);
  const offline = document.getElementById("offline");
  const pause = document.getElementById("pause");
  const paused = () => pause.getAttribute("aria-pressed") === "true";

  pause.hidden = false;
  pause.addEventListener("click", () => {
    pause.setAttribute("aria-pressed", String(!paused()));
    pause.textContent = paused() ? "Go on" : "Pause";
    if (!paused()) refresh();
  });
  document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });

  // The topmost element in view, by whose place the scroll position is kept.
  const anchor = () => [...main.querySelectorAll("h2, h3, p, figure, tr, dt, summary, pre")]
    .find((element) => element.getBoundingClientRect().bottom > 0);

  async function replace(section, fragment) {
    const fresh = document.createElement("template");
    fresh.innerHTML = fragment.html;
    const images = [...fresh.content.querySelectorAll("img")];
    await Promise.all(images.map((image) => {
      const whole = new Image();
      whole.src = image.src;
      return whole.decode().catch(() => undefined);
    }));
    for (const details of fresh.content.querySelectorAll("details[id]")) {
      const before = document.getElementById(details.id);
      if (before) details.open = before.open;
    }
    const focused = section.contains(document.activeElement) ? document.activeElement.closest("[id]").id : null;
    const held = anchor();
    const place = held && !section.contains(held) ? held.getBoundingClientRect().top : null;
    const scrolled = window.scrollY;
    section.replaceChildren(fresh.content);
    section.dataset.version = fragment.version;
    if (place === null) window.scrollTo(window.scrollX, scrolled);
    else window.scrollBy(0, held.getBoundingClientRect().top - place);
    if (focused) {
      const again = document.getElementById(focused);
      const target = again && (again.querySelector(":scope > summary, :scope > [tabindex]") || again);
      if (target) target.focus({ preventScroll: true });
    }
  }

  let asking = false;
  async function refresh() {
    if (asking || paused() || document.hidden) return;
    asking = true;
    try {
      const sections = [...main.querySelectorAll("section")];
      const seen = sections.map((section) => `${section.id}:${section.dataset.version}`).join(",");
      const options = { cache: "no-store", signal: AbortSignal.timeout(60000) };
      const answer = await fetch(`fragments?seen=${encodeURIComponent(seen)}`, options);
      if (!answer.ok) throw new Error(String(answer.status));
      const fragments = await answer.json();
      for (const section of sections) {
        if (fragments[section.id]) await replace(section, fragments[section.id]);
      }
      offline.hidden = true;
    } catch {
      if (offline.hidden) {
        offline.textContent = `No answer since ${new Date().toLocaleTimeString()}: has the command "watch" ended?`;
        offline.hidden = false;
      }
    } finally {
      asking = false;
    }
  }
  setInterval(refresh, every);
})();
