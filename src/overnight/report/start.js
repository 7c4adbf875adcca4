// The report's own figures lie in the page.
"use strict";
{
  const figures = JSON.parse(document.getElementById("figures").textContent);
  choose(() => figures);
  draw(figures);
}
