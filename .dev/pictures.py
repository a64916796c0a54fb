"""Draws the pictures of the docs: `.venv/bin/python -P .dev/pictures.py`. It needs a Docker engine, and makes a keep of
its own for it."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
from rich.console import Console
from rich.text import Text

from sandkeep.sandboxes import Keep, Task, show_watch, watch

PICTURES = Path(__file__).resolve().parent.parent / "docs" / "pictures"
WIDTH, HEIGHT = 112, 26

# Rich's own, without the fonts that a viewer would fetch from elsewhere.
FORMAT = """\
<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font: {char_height}px monospace; line-height: {line_height}px; }}
.{unique_id}-title {{ font: bold 18px sans-serif; }}
{styles}
</style>
<defs><clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/></clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g></g>
</svg>
"""


def save(name: str, title: str, draw: Callable[[Console], None]) -> None:
    """Draw on a console, and save what it shows."""
    with open(os.devnull, "w") as nowhere:
        console = Console(
            record=True, width=WIDTH, file=nowhere, force_terminal=True, color_system="truecolor", highlight=False
        )
        draw(console)
        svg = console.export_svg(title=title, code_format=FORMAT, unique_id=name)
    (PICTURES / f"{name}.svg").write_text("\n".join(line.rstrip() for line in svg.splitlines()) + "\n")


def typed(keep: Keep, task: Task, lines: list[str]) -> str:
    """What a terminal shows in which somebody opens one in a task and types."""
    side, theirs = pty.openpty()
    argv = [str(Path(sys.executable).with_name("sandkeep")), "terminal", task.id, "--", "bash", "--norc"]
    environment = os.environ | {"SANDKEEP_KEEP": str(keep.path), "TERM": "xterm-256color"}
    process = subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    waiting = [f"{line}\n" for line in lines]
    quiet = time.monotonic()
    while True:
        if select.select([side], (), (), 0.1)[0]:
            try:
                shown += os.read(side, 1 << 16)
            except OSError:  # the other side is closed
                break
            quiet = time.monotonic()
        elif time.monotonic() - quiet > 2 and waiting:
            os.write(side, waiting.pop(0).encode())
            quiet = time.monotonic()
    process.wait()
    os.close(side)
    return shown.decode(errors="replace").replace("\r\n", "\n")


def main() -> None:
    """Make a keep in which something goes on, and draw it."""
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, Keep.init(Path(folder) / ".sandkeep", actor="maya") as keep:
        login = keep.create_task("Fix the login test", tags=["urgent"])
        parser = keep.create_task("Upgrade the parser")
        keep.create_task("Write the guide")
        try:
            with login.lock(agent="fixer") as held, parser.lock("collaborative", agent="ann"):
                held.task.execute(["sh", "-c", "echo 'assert login()' >test.py; exit 1"])
                held.task.checkpoint("before the fix")
                held.task.start(["sh", "-c", "while :; do :; done"])
                first = watch.look(keep)
                time.sleep(2)
                picture = msgspec.structs.replace(watch.look(keep, first), keep="/home/maya/project/.sandkeep")
                save("watch", "sandkeep watch", lambda console: console.print(show_watch.frame(picture, WIDTH, HEIGHT)))
            lines = ["ls", "cat test.py", "id -u; pwd", "exit"]
            shown = f"$ sandkeep terminal {login.id} -- bash --norc\n" + typed(keep, login, lines)
            save("terminal", "sandkeep terminal", lambda console: console.print(Text.from_ansi(shown)))
        finally:
            for task in keep.tasks():
                keep.task(task.id).complete()
                keep.task(task.id).clean_up()


if __name__ == "__main__":
    main()
