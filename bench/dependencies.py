"""The packages of constraints.txt: their licences, and what is known to be wrong with them.

    python bench/dependencies.py licences                a table, by what each package says of itself
    python bench/dependencies.py advisories <folder>     without a network, by a copy of the Python packages' advisory database
                                                         (github.com/pypa/advisory-database), of its own date

Ends with 1 where a licence is unknown or asks more than to be named, and where an advisory holds.
"""

from __future__ import annotations

import importlib.metadata
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from packaging.version import InvalidVersion, Version

LOCK = Path(__file__).resolve().parent.parent / "constraints.txt"
# what a licence is called, and its name; the first that fits
KNOWN = {
    r"\b[AL]?GPL|General Public": "GPL",
    r"MPL|Mozilla": "MPL-2.0",
    r"Apache": "Apache-2.0",
    r"\bMIT\b": "MIT",
    r"BSD": "BSD",
    r"ISC": "ISC",
    r"PSF|Python Software Foundation": "PSF-2.0",
}
FREE = ("Apache-2.0", "MIT", "BSD", "ISC", "PSF-2.0")
NAMED = ("MPL-2.0",)  # changes of its own files stay under it; ours are not touched


class Package(NamedTuple):
    """One of the lock. `licence` is a name of KNOWN, "" where the package does not say; `says` are its own words."""

    name: str
    version: str
    licence: str
    says: str


def locked(lock: Path = LOCK) -> list[tuple[str, str]]:
    """Name and version of each package of the lock."""
    return [(name, version) for name, version in re.findall(r"^([\w.-]+)==(\S+)$", lock.read_text(), re.MULTILINE)]


def licences(lock: Path = LOCK) -> Iterator[Package]:
    """Yields each package of the lock, as far as it is installed here."""
    for name, version in locked(lock):
        try:
            told = importlib.metadata.metadata(name)
        except importlib.metadata.PackageNotFoundError:
            yield Package(name, version, "", "not installed here")
            continue
        classified = [c.rpartition(" :: ")[2] for c in told.get_all("Classifier") or [] if c.startswith("License ::")]
        plain = (told.get("License") or "").partition("\n")[0]
        says = told.get("License-Expression") or "; ".join(classified) or plain
        of = [told.get("License-Expression") or "", " ".join(classified), plain]
        found = next((licence for text in of for p, licence in KNOWN.items() if re.search(p, text)), "")
        yield Package(name, version, found, says[:70])


def table(packages: list[Package]) -> str:
    wide = [max(len(package[n]) for package in packages) for n in range(3)]
    lines = [f"{p.name:<{wide[0]}}  {p.version:<{wide[1]}}  {p.licence or '?':<{wide[2]}}  {p.says}" for p in packages]
    counted = Counter(package.licence or "unknown" for package in packages)
    return "\n".join(
        [*lines, "", f"{len(packages)} packages: " + ", ".join(f"{n} {k}" for k, n in counted.most_common())]
    )


def advisories(folder: Path, lock: Path = LOCK) -> tuple[list[str], str]:
    """A line for each advisory of a copy of the database that holds for the lock, and the day of the newest that is about
    any version of its packages: what came later the copy does not know."""
    lines, newest = [], "none"
    for name, version in locked(lock):
        for file in sorted((folder / "vulns" / name.lower()).glob("*.yaml")):
            told = yaml.safe_load(file.read_text())
            day = str(told.get("published", ""))[:10]
            newest = day if newest == "none" else max(newest, day)
            if not told.get("withdrawn") and any(_holds(Version(version), one) for one in told.get("affected", [])):
                lines.append(f"{name} {version}: {told['id']}: {' '.join(str(told.get('details', '')).split())[:160]}")
    return lines, newest


def _holds(version: Version, affected: dict[str, Any]) -> bool:
    """True for a version that is listed, or lies in one of the ranges."""
    if str(version) in affected.get("versions", []):
        return True
    for one in affected.get("ranges", []):
        if one.get("type") != "ECOSYSTEM":
            continue
        inside = False
        for event in one["events"]:  # in their order
            (kind, at), *_ = event.items()
            try:
                reached = version >= Version(str(at)) if kind != "last_affected" else version > Version(str(at))
            except InvalidVersion:
                continue
            if kind == "introduced" and not reached:
                break
            inside = True if kind == "introduced" else inside and not reached
        if inside:
            return True
    return False


def main(words: list[str]) -> int:
    if words == ["licences"]:
        packages = list(licences())
        print(table(packages))
        return 1 if [p for p in packages if p.licence not in (*FREE, *NAMED)] else 0
    if len(words) == 2 and words[0] == "advisories" and (Path(words[1]) / "vulns").is_dir():
        found, newest = advisories(Path(words[1]))
        print("\n".join([*found, f"{len(found)} advisories hold for {len(locked())} packages of {LOCK.name}"]))
        print(f"the newest that this copy has of any of them: {newest}")
        return 1 if found else 0
    print(__doc__)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
