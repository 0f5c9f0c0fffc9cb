// The dashboard starts here: the live channel, and the screen that the address asks for.

import { html, render, useErrorBoundary } from "../vendor/ui.js";
import { openChannel } from "./core/live.js";
import { route } from "./core/router.js";
import { Problem } from "./ui/kit.js";
import { Shell } from "./ui/shell.js";
import { Instance } from "./screens/instance.js";
import { Instances } from "./screens/instances.js";
import { Missing } from "./screens/missing.js";
import { Overview } from "./screens/overview.js";
import { Workflow } from "./screens/workflow.js";
import { Workflows } from "./screens/workflows.js";

const SCREENS = {
  overview: Overview,
  workflows: Workflows,
  workflow: Workflow,
  instances: Instances,
  instance: Instance,
  missing: Missing,
};

const App = () => {
  const { name, id } = route.value;
  const [broken, reset] = useErrorBoundary();
  if (broken) {
    const error = { title: "This screen failed", detail: `${broken.name}: ${broken.message}` };
    return html`<${Shell} trail=${[{ word: "Overview", address: "/" }]}><h1 tabindex="-1">AMP Workflows</h1><${Problem} error=${error} onRetry=${reset} /><//>`;
  }
  return html`<${SCREENS[name]} key=${`${name}:${id}`} id=${id} />`;
};

openChannel();
render(html`<${App} />`, document.getElementById("app"));
