// The history, the rules and the recommendations for them, and the search while typing.
"use strict";

const ROOT = document.body.dataset.root; // the path of the service

const $ = (id) => document.getElementById(id);
const SHOWN = 12;
const KEPT = 100; // the latest items of the history

// -- the history: the chosen items, stored for this tab

const userHistory = {
  all: () => JSON.parse(sessionStorage.getItem("history") || "[]"),
  user: () => sessionStorage.getItem("user") || "", // whose history it is
  keep(list, user = "") {
    sessionStorage.setItem("history", JSON.stringify(list.slice(-KEPT)));
    sessionStorage.setItem("user", user);
    show();
  },
  has: (id) => userHistory.all().some((one) => one.item_id === id),
  toggle(card) {
    const rest = userHistory.all().filter((one) => one.item_id !== card.item_id);
    userHistory.keep(rest.length === userHistory.all().length ? [...rest, card] : rest);
  },
};

// -- rules: categories and diversity, stored for this tab

const KINDS = { include: "Only", exclude: "Without", boost: "Boost" };

const rules = {
  all: () => ({ include: [], exclude: [], boost: [], diversity: 0, ...JSON.parse(sessionStorage.getItem("rules") || "{}") }),
  keep(changes) {
    sessionStorage.setItem("rules", JSON.stringify({ ...rules.all(), ...changes }));
    showRules();
    recommend();
  },
  // A category has one kind at most; null: none.
  set(name, kind) {
    const lists = Object.keys(KINDS).map((one) => [one, rules.all()[one].filter((other) => other !== name)]);
    rules.keep(Object.fromEntries(lists.map(([one, list]) => [one, one === kind ? [...list, name] : list])));
  },
  // The fields of a request.
  fields() {
    const { include, exclude, boost, diversity } = rules.all();
    return {
      include_categories: include.length ? include : null,
      exclude_categories: exclude,
      boost_categories: Object.fromEntries(boost.map((name) => [name, 1])),
      diversity,
    };
  },
};

function showRules() {
  const chosen = rules.all();
  redraw(
    $("chips"),
    Object.entries(KINDS).flatMap(([kind, label]) =>
      chosen[kind].map((name) => {
        const words = `${label} ${name}`;
        const button = element("button", { type: "button", class: `chip ${kind}`, "aria-label": `Remove: ${words}` }, words);
        button.addEventListener("click", () => rules.set(name, null));
        return element("li", {}, button);
      }),
    ),
  );
  $("diversity").value = chosen.diversity;
  document.querySelector(".diversity output").textContent = chosen.diversity;
}

function startRules() {
  for (const select of document.querySelectorAll(".rules select")) {
    select.addEventListener("change", () => {
      if (select.value) rules.set(select.value, select.dataset.kind);
      select.value = "";
    });
  }
  $("diversity").addEventListener("input", () => rules.keep({ diversity: Number($("diversity").value) }));
  $("user-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    const user = $("user").value.trim();
    try {
      const found = await post("/page/recommend", { user_id: user, k: 1 });
      $("user").value = "";
      say("");
      userHistory.keep(found.history, user);
    } catch (error) {
      say(error.message, true);
    }
  });
  $("user-form").hidden = false;
  showRules();
}

// -- drawing

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// Replace the entries of a list. The keyboard's focus stays at its place in the list.
function redraw(list, entries) {
  const place = [...list.children].findIndex((one) => one.contains(document.activeElement));
  list.replaceChildren(...entries);
  if (place < 0) return;
  const entry = list.children[Math.min(place, list.children.length - 1)];
  (entry?.querySelector("button") ?? $("q")).focus({ preventScroll: true });
}

function tile(card) {
  const initial = element("span", { class: "initial", "aria-hidden": "true" }, card.initial);
  const made = element("span", { class: `tile tint-${Number(card.tint)}` }, initial);
  if (card.image) made.append(element("img", { src: card.image, alt: "", loading: "lazy", decoding: "async" }));
  return made;
}

function badge(card) {
  if (!card.available) return [element("span", { class: "badge off" }, "Unavailable")];
  return card.added ? [element("span", { class: "badge" }, "New")] : [];
}

function itemCard(card) {
  const name = element("span", { class: "name" }, card.title);
  const button = element("button", { type: "button", class: "pick", title: card.title }, tile(card), name);
  const more = element("a", { class: "more", href: card.page, "aria-label": `About ${card.title}` }, "About");
  const made = element("li", { class: "card" }, button, more);
  made.append(...badge(card));
  made.dataset.id = card.item_id;
  return made;
}

// The card of an item, from its element.
function read(card) {
  const image = card.querySelector("img");
  return {
    item_id: card.dataset.id,
    title: card.querySelector(".name").textContent,
    image: image ? image.getAttribute("src") : null,
    initial: card.querySelector(".initial").textContent,
    tint: Number(/tint-(\d)/.exec(card.querySelector(".tile").className)[1]),
  };
}

function why(reason, by) {
  if (reason === null) return "Popular"; // no item of the history is known
  const names = { text: "text", visual: "image", id: "others’ choices" };
  const name = (part) => names[part] || part;
  const mostly = by === "both" ? `Mostly by ${name(reason.mostly)}` : `By ${name(by)}`;
  return reason.because === null ? mostly : `${mostly}, because of ${reason.because_title}`;
}

function show() {
  const list = userHistory.all();
  const ids = new Set(list.map((one) => one.item_id));
  for (const card of document.querySelectorAll(".card")) {
    const button = card.querySelector("button.pick");
    if (button) button.setAttribute("aria-pressed", ids.has(card.dataset.id));
  }
  if (!$("history")) return;
  redraw(
    $("history"),
    list.map((one) => {
      const button = element("button", { type: "button", title: one.title, "aria-label": `Remove ${one.title}` }, tile(one));
      button.addEventListener("click", () => userHistory.toggle(one));
      return element("li", {}, button);
    }),
  );
  $("history").scrollLeft = $("history").scrollWidth;
  $("invite").hidden = list.length > 0;
  $("clear").hidden = list.length === 0;
  $("next").hidden = false;
  $("whose").textContent = userHistory.user() ? `History of user ${userHistory.user()}` : "Your history";
  if ($("by")) $("by").hidden = list.length === 0;
  document.querySelector(".picked").classList.toggle("filled", list.length > 0);
  recommend();
}

// -- asking the service

async function ask(path, options) {
  const response = await fetch(ROOT + path, options).catch(() => null);
  if (!response) throw new Error("The service cannot be reached. Try again later.");
  if (response.ok) return response.json();
  if (response.status === 401) throw new Error("This is not the API key of the service.");
  const { detail } = await response.json().catch(() => ({ detail: `The service answered ${response.status}.` }));
  throw new Error(detail[0].toUpperCase() + detail.slice(1));
}

const sendJson = (method, path, body, headers = {}) =>
  ask(path, { method, headers: { "Content-Type": "application/json", ...headers }, body: JSON.stringify(body) });

const post = (path, body) => sendJson("POST", path, body);

function say(message, wrong = false) {
  $("status").textContent = message;
  $("status").classList.toggle("wrong", wrong);
}

const by = () => document.querySelector("#by input:checked")?.value || "both";

// What the page asks for, but the number of items.
function question() {
  const user = userHistory.user();
  const who = user ? { user_id: user } : { history: userHistory.all().map((one) => one.item_id) };
  return { ...who, by: by(), ...rules.fields() };
}

let asked = 0;

async function recommend() {
  const number = ++asked; // an outdated answer is not shown
  $("recommended").classList.add("waiting");
  try {
    const modality = by();
    const found = await post("/page/recommend", { ...question(), k: SHOWN });
    if (number !== asked) return;
    redraw($("recommended"), found.items.map((item) => recommendation(item, found.reasons[item.item_id], modality)));
    $("what").textContent = found.popular ? "Popular items" : "Next for you";
    say(found.items.length ? "" : "No item fits these rules. Remove one.");
    forget(found.unknown);
  } catch (error) {
    if (number !== asked) return;
    redraw($("recommended"), []);
    say(error.message, true);
  } finally {
    if (number === asked) $("recommended").classList.remove("waiting");
  }
}

function recommendation(item, reason, modality) {
  const words = element(
    "span",
    {},
    element("span", { class: "name" }, item.title),
    element("span", { class: "why-line" }, why(reason, modality)),
  );
  const button = element("button", { type: "button", title: `Pick ${item.title}` }, tile(item), words);
  button.addEventListener("click", () => userHistory.toggle(item));
  const made = element("li", {}, button);
  made.dataset.id = item.item_id;
  made.append(...badge(item));
  return made;
}

// Forget items of the history that were removed meanwhile; a user's other unknown items were never shown.
function forget(unknown) {
  const gone = new Set(unknown);
  const rest = userHistory.all().filter((one) => !gone.has(one.item_id));
  if (rest.length === userHistory.all().length) return;
  userHistory.keep(rest, userHistory.user());
}

// -- the catalogue: search while typing, more items at the end

const catalogue = $("catalogue");

const PAGE = 60; // items of a slice

let filled = 0;

async function fill(search, offset, replace) {
  const number = ++filled; // an outdated answer is not shown
  let found;
  try {
    found = await ask(`/items?${new URLSearchParams({ q: search, offset, limit: PAGE })}`);
  } catch (error) {
    if (number !== filled) return;
    if (replace) catalogue.replaceChildren();
    $("found").textContent = error.message;
    return;
  }
  if (number !== filled) return;
  const made = found.items.map(itemCard);
  if (replace) catalogue.replaceChildren(...made);
  else catalogue.append(...made);
  catalogue.dataset.total = found.total;
  catalogue.dataset.offset = offset;
  const words = found.total
    ? `${found.total.toLocaleString("en")} item${found.total > 1 ? "s" : ""} found for “${search}”`
    : `No item found for “${search}”. Try fewer or other words.`;
  $("found").textContent = search ? words : "";
  mark();
}

function mark() {
  const ids = new Set(userHistory.all().map((one) => one.item_id));
  for (const card of catalogue.children) card.querySelector(".pick").setAttribute("aria-pressed", ids.has(card.dataset.id));
  const rest = Number(catalogue.dataset.total) - Number(catalogue.dataset.offset) - PAGE;
  const more = element("button", { type: "button", id: "more" }, `More (${Math.max(0, rest).toLocaleString("en")})`);
  more.addEventListener("click", async () => {
    const last = catalogue.lastElementChild;
    more.disabled = true;
    await fill(catalogue.dataset.search, Number(catalogue.dataset.offset) + PAGE, false);
    more.disabled = false; // still there if the service could not be reached
    last?.nextElementSibling?.querySelector(".pick").focus({ preventScroll: true });
  });
  $("pages").replaceChildren(...(rest > 0 ? [more] : []));
}

function startCatalogue() {
  catalogue.addEventListener("click", (event) => {
    const button = event.target.closest("button.pick");
    if (button) userHistory.toggle(read(button.closest(".card")));
  });
  let typed;
  $("q").addEventListener("input", () => {
    clearTimeout(typed);
    typed = setTimeout(() => {
      catalogue.dataset.search = $("q").value.trim();
      history.replaceState(null, "", catalogue.dataset.search ? `${ROOT}/?${new URLSearchParams({ q: catalogue.dataset.search })}` : `${ROOT}/`);
      fill(catalogue.dataset.search, 0, true);
    }, 150);
  });
  $("q").form.addEventListener("submit", (event) => event.preventDefault());
  document.addEventListener("keydown", (event) => {
    const typing = event.target.matches("input, textarea, select");
    if (event.key === "/" && !typing) {
      event.preventDefault();
      $("q").focus();
    }
  });
  $("clear").addEventListener("click", () => userHistory.keep([]));
  $("by")?.addEventListener("change", () => recommend());
  mark();
}

// An image that cannot be shown leaves the initial of its tile.
document.addEventListener("error", (event) => event.target.matches?.(".tile img") && event.target.parentElement.classList.add("broken"), true);

// A page that the browser kept for its Back button may show an old state.
addEventListener("pageshow", (event) => event.persisted && location.reload());

if (catalogue) {
  startCatalogue();
  startRules();
}
show();
