// Keeps the report up to date: parts as HTML that the server has escaped, figures for charts.js.
"use strict";
{
  const figures = {};
  const state = document.getElementById("connection");

  function show(name, [, content]) {
    const section = document.getElementById(name);
    if (!section) return;
    const place = section.querySelector(".content");
    const open = [...place.querySelectorAll("details")].map((one) => one.open);
    section.hidden = !content;
    place.innerHTML = content;
    place.querySelectorAll("details").forEach((one, i) => { one.open = open[i] || false; });
  }

  function follow() {
    const source = new EventSource("/events");
    source.onmessage = (message) => {
      const fresh = {};
      for (const [name, value] of Object.entries(JSON.parse(message.data))) {
        if (name.startsWith("part ")) show(name.slice(5), value);
        else fresh[name.slice(6)] = figures[name.slice(6)] = value;
      }
      draw(fresh);
      state.textContent = `Following the run; last news at ${new Date().toLocaleTimeString()}.`;
    };
    source.onerror = () => {
      state.textContent = "The server does not answer; trying again.";
      if (source.readyState !== EventSource.CLOSED) return;  // the browser tries again by itself
      state.textContent = "The server refuses to send news, perhaps to too many open dashboards; trying again.";
      setTimeout(follow, 10_000);
    };
  }

  choose(() => figures);
  follow();
}
