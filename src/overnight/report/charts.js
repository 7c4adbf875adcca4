// Draws the charts of figures.py over the axis that the reader chose: steps, tokens or hours.
"use strict";

const AXES = { steps: "step", tokens: "tokens", hours: "hours of training" };
const SETTINGS = { responsive: true, displaylogo: false, displayModeBar: false };
let axis = "steps";

function over(trace) {
  const x = trace.meta[axis];
  return x ? { ...trace, x } : { ...trace, x: [], visible: false };
}

// figures: name -> {data, layout}. A chart that is there already keeps the view that the reader zoomed to.
function draw(figures) {
  for (const [name, figure] of Object.entries(figures)) {
    const element = document.querySelector(`[data-chart="${name}"]`);
    if (!element) continue;
    element.parentElement.hidden = false;
    element.setAttribute("aria-label", figure.summary);
    const layout = structuredClone(figure.layout);
    layout.xaxis.title = { text: AXES[axis] };
    layout.uirevision = axis;
    Plotly.react(element, figure.data.map(over), layout, SETTINGS);
  }
}

function choose(figures) {
  for (const radio of document.querySelectorAll("input[name=axis]")) {
    radio.addEventListener("change", () => { axis = radio.value; draw(figures()); });
    if (radio.checked) axis = radio.value;
  }
}
