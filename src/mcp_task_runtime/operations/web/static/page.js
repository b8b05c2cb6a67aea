// The live part: regions of the page that the server sends again when something in them has changed.
"use strict";

const address = document.body.dataset.live;
const notice = document.getElementById("live");
const RETRY_MS = 10000;
let source = null;

// Keep what has not changed: a form that a person fills in stays as it is.
function update(region, items) {
  const active = document.activeElement;
  const focused = region.contains(active) ? active.id : "";
  const open = [...region.querySelectorAll("details[open][id]")].map((each) => each.id);
  const old = new Map([...region.children].map((element) => [element.id, element]));
  items.forEach(([id, digest, html], index) => {
    let element = old.get(id);
    if (!element || element.dataset.hash !== digest) {
      const fresh = parse(html);
      if (element) element.replaceWith(fresh);
      element = fresh;
    }
    old.delete(id);
    if (region.children[index] !== element) region.insertBefore(element, region.children[index] || null);
  });
  for (const element of old.values()) element.remove();
  for (const id of open) document.getElementById(id)?.setAttribute("open", "");
  if (focused && document.activeElement.id !== focused) document.getElementById(focused)?.focus();
}

// The server has escaped every value; scripts do not run in what is parsed so.
function parse(html) {
  const holder = document.createElement("template");
  holder.innerHTML = html;
  return holder.content.firstElementChild;
}

function say(text) {
  if (notice.textContent !== text) notice.textContent = text;
}

function follow() {
  if (source) return;
  source = new EventSource(address);
  source.addEventListener("open", () => say("Live: this page follows the changes. Times are UTC."));
  source.addEventListener("regions", (event) => {
    for (const [name, items] of Object.entries(JSON.parse(event.data))) {
      const region = document.getElementById(name);
      if (region) update(region, items);
    }
  });
  source.addEventListener("end", () => leave("The task has ended. Times are UTC."));
  source.addEventListener("gone", () => leave("The task is gone: it has expired or was deleted."));
  source.addEventListener("error", () => {
    say("Not live: the server does not answer. Reload the page to see changes.");
    if (source && source.readyState === EventSource.CLOSED) {
      source = null;
      setTimeout(follow, RETRY_MS);
    }
  });
}

function leave(text) {
  say(text);
  source.close();
  document.removeEventListener("visibilitychange", pause);
}

// A browser has few connections to one server: a page that is not seen uses none.
function pause() {
  if (!document.hidden) follow();
  else if (source) {
    source.close();
    source = null;
  }
}

document.addEventListener("visibilitychange", pause);
pause();
