// An address where there is nothing.

import { html } from "../../vendor/ui.js";
import { route, to } from "../core/router.js";
import { useTitle } from "../ui/hooks.js";
import { Empty } from "../ui/kit.js";
import { Shell } from "../ui/shell.js";

/** A page or thing that does not exist. `what` names the kind, `id` the one that was asked for. */
export const NotThere = ({ what, id, back, backWord }) => html`<${Empty} icon="search" title=${`There is no ${what} “${id}”.`}>
  <p class="muted">It may have been removed, or the address has a typing error.</p>
  <a class="button primary" ...${to(back)}>${backWord}</a>
<//>`;

export const Missing = () => {
  useTitle("Not found");
  return html`<${Shell} trail=${[{ word: "Overview", address: "/" }, { word: "Not found" }]}>
    <h1 class="sr" tabindex="-1">Not found</h1>
    <${NotThere} what="page" id=${route.value.path} back="/" backWord="Go to the overview" />
  <//>`;
};
