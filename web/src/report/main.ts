/**
 * Puts the pages' own figures in the place of a report's pictures, which remain for print and where this does not run.
 */

import { mount } from "svelte";
import "./report.css";
import { figureOf } from "./figures";
import HeatFigure from "./HeatFigure.svelte";
import LineFigure from "./LineFigure.svelte";
import PanelsFigure from "./PanelsFigure.svelte";
import { unpack } from "./packed";

async function show(place: Element): Promise<void> {
  const target = place.querySelector(".interactive");
  const packed = target?.querySelector("script")?.textContent;
  if (!target || !packed) return;
  const figure = figureOf(await unpack(packed));
  // Its width must be known when it is drawn.
  place.classList.add("moving");
  if (figure.kind === "heat") mount(HeatFigure, { target, props: { figure } });
  else if (figure.kind === "panels") mount(PanelsFigure, { target, props: { figure } });
  else mount(LineFigure, { target, props: { figure } });
}

for (const place of document.querySelectorAll("figure.live")) {
  show(place).catch((error) => {
    // What cannot be shown otherwise stays the picture that it is.
    place.classList.remove("moving");
    console.error(error);
  });
}
