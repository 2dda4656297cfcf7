#!/usr/bin/env python3
"""Writes the notices of all that a build of clipgate has in it and others have written: crates, Rust's standard library,
the dashboard's plots. Their licences let it be given away with these notices, and not without.

    deploy/third-party.py DIRECTORY [--target TRIPLE]

DIRECTORY gets THIRD-PARTY.txt and COPYRIGHT-rust-std.html. It is made where an image or a package is built, from
Cargo.lock and the sources that are compiled there, and is not kept in the repository: a copy there would be out of date
with the next change of Cargo.lock. Needs cargo and python3, and no module of others.
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# What the repository has of others beside crates.
UPLOT = ROOT / "src/admin/dashboard/uplot"
UPLOT_HEAD = re.compile(r"/\*! (?P<home>\S+) \(v(?P<version>\S+)\) \*/")
LICENCE_FILE = re.compile(r"(licen[cs]e|copying|copyright|notice|unlicense)([-._].*)?", re.IGNORECASE)
# Ends of names that are sources and no texts.
NO_TEXT = {".rs", ".py", ".js", ".toml", ".json", ".html", ".sh"}
# For crates whose archive has no file of their licence, which is then that of Cargo.toml.
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
    """Returns the packages that are linked: neither what only builds need, nor macros, nor what only tests need."""
    metadata = run("cargo", "metadata", "--locked", "--format-version", "1", "--filter-platform", target)
    packages = {(p["name"], p["version"]): p for p in json.loads(metadata)["packages"]}
    edges = ["--edges", "normal,no-proc-macro", "--prefix", "none", "--format", "{p}"]
    tree = run("cargo", "tree", "--locked", "--target", target, *edges)
    names = {tuple(line.split()[:2]) for line in tree.splitlines() if line.strip()}
    found = [packages[name, version.removeprefix("v")] for name, version in sorted(names)]
    return [package for package in found if Path(package["manifest_path"]).parent != ROOT]


def licence_texts(package):
    """Returns the licence files of a crate by their names in it."""
    root = Path(package["manifest_path"]).parent
    named = [root / package["license_file"]] if package["license_file"] else []
    files = [path for path in root.rglob("*") if LICENCE_FILE.fullmatch(path.name) and path.suffix not in NO_TEXT]
    files = sorted({path for path in files + named if path.is_file()})
    return {str(path.relative_to(root)): path.read_text(encoding="utf-8", errors="replace") for path in files}


def standard_text(package, apache):
    """Returns the text of a licence whose file is not in the crate; None for one that is not known here."""
    authors = ", ".join(author.split(" <")[0] for author in package["authors"]) or f"the authors of {package['name']}"
    return {"MIT": MIT.format(authors=authors), "Apache-2.0": apache}.get(package["license"])


def notices(target):
    """Returns rows of (component, licence, home), and each text with who has it, in one order however often it is made."""
    rows, texts = [], {}

    def add(component, name, text):
        # The same text may be wrapped in another way.
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
        if not any("/" not in name or name == package["license_file"] for name in files):
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
        f"clipgate {version} ({target}) has in it the work of others, under these licences. Its own is in LICENSE, and what",
        "Rust's standard library has in it in COPYRIGHT-rust-std.html.",
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
    arguments.add_argument("--target", metavar="TRIPLE", help="what the build is for; this machine's own where it is not given")
    asked = arguments.parse_args()
    target = asked.target or host()
    of_std = Path(run("rustc", "--print", "sysroot").strip()) / "share/doc/rust/COPYRIGHT-library.html"
    if not of_std.is_file():
        sys.exit(f"{of_std} is missing: the toolchain has no notices of its standard library; take one of rustup's")
    asked.directory.mkdir(parents=True, exist_ok=True)
    (asked.directory / "COPYRIGHT-rust-std.html").write_bytes(of_std.read_bytes())
    (asked.directory / "THIRD-PARTY.txt").write_text(page(target, *notices(target)), encoding="utf-8")


main()
