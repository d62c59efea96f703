"use strict";
(() => {
  const at = (id) => document.getElementById(id);
  const ticker = at("ticker"), live = at("live");
  const from = Math.max(0, Number(at("seq").textContent) - 20);
  const events = new EventSource("/v1/events?after=" + from);
  const piece = (tag, text) => {
    const node = document.createElement(tag);
    node.textContent = text;
    return node;
  };
  const show = (message) => {
    const event = JSON.parse(message.data);
    const body = event.event.event;
    const name = typeof body === "string" ? body : Object.keys(body)[0];
    const line = document.createElement("li");
    const time = new Date(event.at_ms).toISOString().slice(11, 19);
    line.append(piece("span", time + " #" + event.seq + " "), name + " ", piece("span", event.subjects.join(" ")));
    ticker.prepend(line);
    while (ticker.children.length > 50) ticker.lastChild.remove();
    at("seq").textContent = event.seq;
    at("hash").textContent = event.hash;
  };
  events.onopen = () => { live.textContent = "connected"; };
  events.onerror = () => { live.textContent = "waiting for the server"; };
  events.onmessage = show;
})();
