// Adding an item, and the page of an item with its availability. After catalogue.js, whose functions it uses.
"use strict";

const RANKED = 200; // recommendations among which the rank of an added item is searched

// -- a dialog that changes an item, with the API key if the service needs it; it stays open until the change is accepted

function startDialog(opener, dialog, change, done) {
  const form = dialog.querySelector("form");
  const wrong = dialog.querySelector(".wrong");
  const send = dialog.querySelector("[type=submit]");
  opener.hidden = false;
  opener.addEventListener("click", () => {
    wrong.textContent = "";
    dialog.showModal();
  });
  dialog.querySelector(".plain").addEventListener("click", () => dialog.close());
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    send.disabled = true;
    wrong.textContent = "";
    let item;
    try {
      const key = form.elements.key?.value;
      item = await change(form, key ? { "X-API-Key": key } : {});
    } catch (error) {
      wrong.textContent = error.message;
      return;
    } finally {
      send.disabled = false;
    }
    dialog.close();
    form.reset();
    await done(item);
  });
}

// -- adding an item

function startAdding() {
  const images = $("add").querySelector("[name=images]");
  images.addEventListener("change", () => preview(images.files[0]));
  startDialog($("open-add"), $("add"), add, async (item) => {
    preview(undefined);
    await fill(catalogue.dataset.search, 0, true);
    await announce(item);
  });
}

function preview(file) {
  const image = $("preview");
  image.hidden = !file;
  if (!file) return image.removeAttribute("src");
  const reader = new FileReader();
  reader.addEventListener("load", () => (image.src = reader.result));
  reader.readAsDataURL(file);
}

function add(form, headers) {
  const body = new FormData(form);
  body.delete("key");
  const words = body.get("title").toLowerCase().replace(/[^a-z0-9]+/g, "-").slice(0, 40);
  body.set("item_id", `${words}-${Date.now().toString(36)}`);
  if (!body.get("images").size) body.delete("images");
  return ask("/items", { method: "POST", body, headers });
}

async function announce(item) {
  const list = userHistory.all();
  if (!list.length) {
    say(`“${item.title}” was added. Pick similar items to see it recommended.`);
    return;
  }
  await recommend();
  const found = await post("/recommend", { ...question(), k: RANKED }).catch(() => null);
  if (!found) {
    say(`“${item.title}” was added. Its rank is not known: the service did not answer.`, true);
    return;
  }
  const rank = found.items.find((one) => one.item_id === item.item_id)?.rank;
  const place = rank ? `rank ${rank} for your history` : `not among the first ${found.items.length} for your history`;
  say(`“${item.title}” was added: ${place}.`);
}

// -- the page of an item

function startItem(about) {
  const button = document.querySelector(".pick-this");
  const image = about.querySelector(".images img");
  const card = {
    item_id: about.dataset.id,
    title: about.querySelector("h1").textContent,
    image: image ? image.getAttribute("src").split("?")[0] : null,
    initial: about.querySelector(".initial").textContent,
    tint: Number(/tint-(\d)/.exec(about.querySelector(".tile").className)[1]),
  };
  const update = () => {
    button.setAttribute("aria-pressed", userHistory.has(card.item_id));
    button.textContent = userHistory.has(card.item_id) ? "Remove from history" : "Add to history";
  };
  button.hidden = false;
  button.addEventListener("click", () => {
    userHistory.toggle(card);
    update();
  });
  update();
  const path = `/items/${encodeURIComponent(card.item_id)}`;
  const change = (_, headers) => sendJson("PATCH", path, { available: about.dataset.available !== "true" }, headers);
  startDialog($("open-available"), $("available"), change, (item) => (about.dataset.available = item.available));
}

if ($("add")) startAdding();
const about = document.querySelector(".about[data-id]");
if (about) startItem(about);
