// A prompt goes to the completions API; samples come back side by side as they are written.
"use strict";
{
  const $ = (id) => document.getElementById(id);
  const NUMBERS = ["temperature", "top_k", "top_p", "seed", "n", "max_tokens"];
  let asking = null;

  // Samples

  function column(index, prompt) {
    const box = document.createElement("pre");
    box.tabIndex = 0;
    box.setAttribute("role", "group");
    box.setAttribute("aria-label", `Sample ${index + 1}`);
    const before = document.createElement("span");
    before.className = "prompt";
    before.textContent = prompt;
    box.append(before);
    box.addEventListener("mouseover", (event) => point(box, event.target));
    box.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      const tokens = [...box.querySelectorAll(".token")];
      const at = tokens.findIndex((one) => one.classList.contains("chosen"));
      point(box, tokens[Math.min(tokens.length - 1, Math.max(0, at + step))]);
    });
    return box;
  }

  function append(box, choice) {
    const told = choice.logprobs;
    if (!told) return;
    const letters = Array.from(choice.text);  // offsets count code points, as Python does
    const ends = [...told.text_offset.slice(1), null];
    let done = 0;
    told.tokens.forEach((token, i) => {
      const span = document.createElement("span");
      const length = ends[i] === null ? undefined : ends[i] - told.text_offset[i];
      span.className = "token";
      span.textContent = letters.slice(done, length === undefined ? undefined : done + length).join("");
      done += length || 0;
      span.told = { token, logprob: told.token_logprobs[i], others: told.top_logprobs[i] || {} };
      box.append(span);
    });
  }

  // The token that is pointed at

  function point(box, span) {
    if (!span || !span.told) return;
    for (const one of document.querySelectorAll(".token.chosen")) one.classList.remove("chosen");
    span.classList.add("chosen");
    const { token, logprob, others } = span.told;
    const rows = Object.entries({ ...others, [token]: logprob }).sort((a, b) => b[1] - a[1]);
    const table = document.createElement("table");
    const head = table.createTHead().insertRow();
    for (const name of ["token", "probability", ""]) {
      const cell = document.createElement("th");
      cell.scope = "col";
      cell.textContent = name;
      head.append(cell);
    }
    const body = table.createTBody();
    for (const [text, value] of rows) {
      const row = body.insertRow(), share = Math.exp(value);
      row.insertCell().textContent = JSON.stringify(text) + (text === token ? "  (drawn)" : "");
      row.insertCell().textContent = share >= 0.0001 ? `${(100 * share).toFixed(2)}%` : share.toExponential(1);
      const bar = document.createElement("span");
      bar.className = "bar";
      bar.style.width = `${100 * share}%`;
      row.insertCell().append(bar);
    }
    $("token").replaceChildren(table);
  }

  // Asking

  async function* events(response) {
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n\n");
      rest = lines.pop();
      for (const line of lines) if (line.startsWith("data: ")) yield line.slice(6);
    }
  }

  async function ask() {
    const body = { prompt: $("prompt").value, stream: true, logprobs: 5, stream_options: { include_usage: true } };
    for (const name of NUMBERS) if ($(name).value !== "") body[name] = Number($(name).value);
    const boxes = Array.from({ length: body.n || 1 }, (_, i) => column(i, body.prompt));
    $("samples").replaceChildren(...boxes);
    $("token").replaceChildren();
    asking = new AbortController();
    const began = performance.now();
    const response = await fetch("/v1/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
      signal: asking.signal,
    });
    if (!response.ok) throw new Error((await response.json()).error.message);
    for await (const data of events(response)) {
      if (data === "[DONE]") continue;
      const told = JSON.parse(data);
      if (told.error) throw new Error(told.error.message);
      for (const choice of told.choices) append(boxes[choice.index], choice);
      if (told.usage) {
        const seconds = (performance.now() - began) / 1000, tokens = told.usage.completion_tokens;
        $("state").textContent = `${tokens} tokens in ${seconds.toFixed(1)} s: ${(tokens / seconds).toFixed(0)} tokens/s.`;
      }
    }
  }

  function busy(is) {
    $("go").disabled = is;
    $("stop").disabled = !is;
  }

  $("form").addEventListener("submit", async (event) => {
    event.preventDefault();
    busy(true);
    $("state").textContent = "Writing.";
    try {
      await ask();
    } catch (error) {
      $("state").textContent = error.name === "AbortError" ? "Stopped." : error.message;
    }
    asking = null;
    busy(false);
  });
  $("stop").addEventListener("click", () => asking && asking.abort());
  $("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("form").requestSubmit();
  });
}
