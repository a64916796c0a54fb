"""A root file system of Debian or Ubuntu packages, without a registry: `mmdebstrap` on the host's own apt sources.

The sources are what apt itself reports of this host, so no mirror stands in the code and no key is trusted that this
host does not trust. The same packages give the same bytes. Needs no root where user name spaces are allowed. Errors:
`ImageBuildFailed`, and its `ImageToolMissing` where mmdebstrap is wanted and missing.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from sandkeep.sandboxes.errors import ImageBuildFailed, ImageToolMissing
from sandkeep.sandboxes.recipe import ORIGINS, Recipe

EPOCH = 1_767_225_600
"""An image's id covers its times, so they have to be the same on every machine and every day."""

_REPORT_SECONDS = 3.0
# mmdebstrap copies these from the host. They say where an image was made, and the engine puts its own in their place.
_COPIED = "/etc/hostname /etc/resolv.conf"


def install(recipe: Recipe, folder: Path, progress: Callable[[str], None]) -> Path:
    """Write the recipe's packages, installed, into a new tar file in the empty `folder`. Takes up to minutes."""
    tools = {"mmdebstrap": "mmdebstrap"} | ({"newuidmap": "uidmap"} if os.geteuid() else {})
    if missing := " ".join(package for tool, package in tools.items() if not shutil.which(tool)):
        raise ImageToolMissing(f"no registry image to make {recipe.name} from; without one, apt-get install {missing}")
    folder.chmod(0o711)  # for mmdebstrap without root, which reads its files as another uid
    (folder / "host.sources").write_text(_apt_sources(recipe))
    # How this host reaches its sources: proxies, certificates, checks. mmdebstrap reads none of that itself.
    reach = ("Acquire::http", "Acquire::Check-", "Acquire::Retries")
    options = _apt("apt-config", "dump", "--no-empty", "--format", '%F "%v";%n')
    (folder / "host.conf").write_text("".join(f"{line}\n" for line in options if line.startswith(reach)))
    _mmdebstrap(recipe, folder, progress)
    return folder / "layer.tar"


def _apt(*command: str) -> list[str]:
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError) as error:
        said = last_line(getattr(error, "stderr", "") or str(error))
        raise ImageBuildFailed(f"{command[0]}: {said}; repair apt, then try again") from error


def _apt_sources(recipe: Recipe) -> str:
    """This host's sources of the recipe's release and of no other origin, as apt itself reports them."""
    form = "$(REPO_URI)\t$(RELEASE)\t$(COMPONENT)\t$(CODENAME)\t$(ORIGIN)\t$(ARCHITECTURE)\t$(SOURCESENTRY)"
    wanted = {recipe.codename + pocket for pocket in ("", "-updates", "-security")}
    stanzas = []
    for line in sorted(set(_apt("apt-get", "indextargets", "--format", form, "Created-By: Packages"))):
        uri, release, component, codename, origin, arch, entry = line.split("\t")
        # Ubuntu gives all its pockets one codename; only the source's own word tells them apart.
        settled = codename in wanted and not release.endswith(("-backports", "-proposed"))
        if settled and origin == ORIGINS[recipe.distribution] and arch == recipe.arch:
            suite = f"Types: deb\nURIs: {uri}\nSuites: {release}\nComponents: {component}\n"
            stanzas.append(suite + _signed_by(entry))
    if not stanzas:
        raise ImageBuildFailed(
            f"apt has no list of {ORIGINS[recipe.distribution]} {recipe.codename} for {recipe.arch}; "
            "run apt-get update (or add such a source), then try again"
        )
    return "\n".join(stanzas)


def _signed_by(entry: str) -> str:
    """The key of the source that apt calls `FILE:NUMBER` (stanza or line): the one thing apt does not report."""
    name, _, number = entry.rpartition(":")
    text = Path(name).read_text()
    if name.endswith(".sources"):
        bare = re.sub(r"(?m)^#.*\n?", "", text)
        stanza = "".join(re.split(r"\n\s*\n", bare.strip())[int(number) - 1 : int(number)])
        field = re.search(r"(?im)^signed-by:.*(\n[ \t].*)*", stanza)
        return f"{field[0]}\n" if field else ""
    option = re.search(r"\[.*?\bsigned-by=([^]\s]+)", text.splitlines()[int(number) - 1])
    return f"Signed-By: {option[1].replace(',', ' ')}\n" if option else ""


def _mmdebstrap(recipe: Recipe, folder: Path, progress: Callable[[str], None]) -> None:
    hook = "extract" if recipe.variant == "extract" else "customize"  # the last that there is
    command = [
        "mmdebstrap",
        f"--mode={'root' if os.geteuid() == 0 else 'unshare'}",
        f"--variant={recipe.variant}",
        f"--architectures={recipe.arch}",
        *(f"--include={package}" for package in recipe.packages),
        f"--aptopt={folder / 'host.conf'}",
        # Else whose a folder in the image is depends on whether apt's own user can enter our temporary folder.
        '--aptopt=APT::Sandbox::User "root"',
        *(f"--dpkgopt={option}" for option in recipe.dpkg_options.split()),
        f"--{hook}-hook=rm -rf " + " ".join(f'"$1"{path}' for path in f"{recipe.removed} {_COPIED}".split()),
        *(recipe.codename, f"{folder / 'layer.tar'}", f"{folder / 'host.sources'}"),
    ]
    environment = os.environ | {"SOURCE_DATE_EPOCH": str(EPOCH), "LC_ALL": "C.UTF-8", "TMPDIR": str(folder.parent)}
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        while process.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(_REPORT_SECONDS)
            stages = re.findall(r"(?m)^I: (.*)", log.read_text(errors="replace"))
            progress(f"mmdebstrap: {stages[-1][:100] if stages else 'starting'}")
    finally:
        process.terminate()
        process.wait()
    if process.returncode:
        said = log.read_text(errors="replace")
        said = "".join(re.findall(r"(?m)^E: .*", said)[:1]) or last_line(said)
        raise ImageBuildFailed(f"mmdebstrap: {said}; see whether apt-get update works on this host, then try again")


def last_line(text: str) -> str:
    """The end of what a program has said."""
    return (text.strip().splitlines() or [""])[-1].strip()[:300]
