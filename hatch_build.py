"""Build the pages into the package: a wheel or an sdist made of a checkout holds what `web/` builds."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PAGES = Path("src/levada/web/static")


class Pages(BuildHookInterface):  # type: ignore[type-arg]
    """Run `npm ci` and `npm run build` in a checkout; an sdist carries the pages already, and needs no Node.js."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the pages, unless this is an editable install, which `make web` serves."""
        root = Path(self.root)
        if version == "editable" or not (root / ".git").exists():
            self._require(root)
            return
        npm = shutil.which("npm")
        if npm:
            for words in (["ci"], ["run", "build"]):
                subprocess.run([npm, *words], cwd=root / "web", check=True, stdout=subprocess.DEVNULL)
        self._require(root)

    def _require(self, root: Path) -> None:
        """An sdist without pages would be wrong for everyone; a wheel of one's own can do without them."""
        if (root / PAGES / "index.html").exists():
            return
        rule = "The pages of `levada serve` and `levada explore` are built by Node.js 20 or later: run `make web`."
        if self.target_name == "sdist":
            raise RuntimeError(f"An sdist carries the pages, and there are none in {PAGES}. {rule}")
        self.app.display_warning(f"This wheel is without pages. {rule}")
