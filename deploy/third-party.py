#!/usr/bin/env python3
"""Writes the third-party notices of a build of clipgate: crates, Rust's standard library, the dashboard's plots. Their
licences require these notices in every distribution.

    deploy/third-party.py DIRECTORY [--target TRIPLE]

Writes THIRD-PARTY.txt and COPYRIGHT-rust-std.html to DIRECTORY. The image and the package run it during their build, on
Cargo.lock and the sources that are compiled. The files are not in the repository, because every change of Cargo.lock would
make them stale. Needs cargo and python3 without further modules.
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Third-party code in the repository.
UPLOT = ROOT / "src/admin/dashboard/uplot"
UPLOT_HEAD = re.compile(r"/\*! (?P<home>\S+) \(v(?P<version>\S+)\) \*/")
LICENCE_FILE = re.compile(r"(licen[cs]e|copying|copyright|notice|unlicense)([-._].*)?", re.IGNORECASE)
# Suffixes of source files, which are not licence texts.
NO_TEXT = {".rs", ".py", ".js", ".toml", ".json", ".html", ".sh"}
# For crates without a licence file: the text of the licence that their Cargo.toml names.
MIT = """Copyright (c) {authors}

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated documentation
files (the "Software"), to deal in the Software without restriction, including without limitation the rights to use, copy,
modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit persons to whom the
Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE,
ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""
WIDTH = 100


def run(*command):
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def host():
    line = next(line for line in run("rustc", "-vV").splitlines() if line.startswith("host: "))
    return line.removeprefix("host: ")


def linked(target):
    """Returns the linked packages, without build dependencies, proc macros and test dependencies."""
    metadata = run("cargo", "metadata", "--locked", "--format-version", "1", "--filter-platform", target)
    packages = {(p["name"], p["version"]): p for p in json.loads(metadata)["packages"]}
    edges = ["--edges", "normal,no-proc-macro", "--prefix", "none", "--format", "{p}"]
    tree = run("cargo", "tree", "--locked", "--target", target, *edges)
    names = {tuple(line.split()[:2]) for line in tree.splitlines() if line.strip()}
    found = [packages[name, version.removeprefix("v")] for name, version in sorted(names)]
    return [package for package in found if Path(package["manifest_path"]).parent != ROOT]


def licence_texts(package):
    """Returns the texts of the licence files of a crate by path. REUSE puts them into LICENSES/."""
    root = Path(package["manifest_path"]).parent
    named = [root / package["license_file"]] if package["license_file"] else []
    files = [path for path in root.rglob("*") if LICENCE_FILE.fullmatch(path.name) and path.suffix not in NO_TEXT]
    files += (root / "LICENSES").glob("*.txt")
    files = sorted({path for path in files + named if path.is_file()})
    return {str(path.relative_to(root)): path.read_text(encoding="utf-8", errors="replace") for path in files}


def standard_text(package, apache):
    """Returns the standard text of the licence of a crate without a licence file, or None for an unknown licence."""
    authors = ", ".join(author.split(" <")[0] for author in package["authors"]) or f"the authors of {package['name']}"
    return {"MIT": MIT.format(authors=authors), "Apache-2.0": apache}.get(package["license"])


def notices(target):
    """Returns rows of (component, licence, home), and each text with its components, in a stable order."""
    rows, texts = [], {}

    def add(component, name, text):
        # Ignores line wrapping: the same text occurs with different line breaks.
        of_text = texts.setdefault(" ".join(text.split()), (text.strip("\n"), []))
        of_text[1].append(f"{component} ({name})")

    packages = [(package, licence_texts(package)) for package in linked(target)]
    apache = next(
        (text for _, files in packages for name, text in files.items() if "APACHE" in name and "Version 2.0" in text), None
    )
    missing = []
    for package, files in packages:
        component = f"{package['name']} {package['version']}"
        home = package["repository"] or package["homepage"] or f"https://crates.io/crates/{package['name']}"
        rows.append((component, package["license"] or "see its text", home))
        if not any("/" not in name or name.startswith("LICENSES/") or name == package["license_file"] for name in files):
            text = standard_text(package, apache)
            if text is None:
                missing.append(f"{component}: no licence file, and no standard text of {package['license']}")
                continue
            add(component, f"{package['license']}, as its Cargo.toml says", text)
        for name, text in files.items():
            add(component, name, text)
    head = UPLOT_HEAD.match((UPLOT / "uPlot.iife.min.js").read_text(encoding="utf-8"))
    rows.append((f"uPlot {head['version']}", "MIT", head["home"]))
    add(f"uPlot {head['version']}", "LICENSE", (UPLOT / "LICENSE").read_text(encoding="utf-8"))
    if missing:
        sys.exit("\n".join(missing))
    return rows, sorted(texts.values(), key=lambda text: text[1])


def page(target, rows, texts):
    version = json.loads(run("cargo", "metadata", "--locked", "--no-deps", "--format-version", "1"))["packages"][0]["version"]
    lines = [
        f"clipgate {version} ({target}) contains third-party work under these licences. The licence of clipgate is in",
        "LICENSE, the notices of Rust's standard library are in COPYRIGHT-rust-std.html.",
        "",
    ]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines += [f"  {component:<{widths[0]}}  {licence:<{widths[1]}}  {home}" for component, licence, home in rows]
    for text, components in texts:
        lines += ["", "=" * WIDTH, *components, "-" * WIDTH, text]
    return "\n".join(lines) + "\n"


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    arguments.add_argument("directory", type=Path)
    arguments.add_argument("--target", metavar="TRIPLE", help="target of the build (default: this machine)")
    options = arguments.parse_args()
    target = options.target or host()
    std_notices = Path(run("rustc", "--print", "sysroot").strip()) / "share/doc/rust/COPYRIGHT-library.html"
    if not std_notices.is_file():
        sys.exit(f"{std_notices} is missing: the toolchain lacks the notices of its standard library; install a toolchain with rustup")
    options.directory.mkdir(parents=True, exist_ok=True)
    (options.directory / "COPYRIGHT-rust-std.html").write_bytes(std_notices.read_bytes())
    (options.directory / "THIRD-PARTY.txt").write_text(page(target, *notices(target)), encoding="utf-8")


main()
