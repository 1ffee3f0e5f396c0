"""Checks the build context of the images, without a container engine: python3 check.py [FOLDER]

Every source of every COPY and ADD in a Dockerfile must exist below FOLDER (the top folder of the checkout), and
.dockerignore must not exclude it. The settings in compose.yaml must exist in the services.
"""

import glob
import json
import os
import pathlib
import re
import shlex
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
DOCKERFILES = "deploy/images/*Dockerfile"
COMPOSE = "deploy/compose.yaml"


class Ignore:
    """A .dockerignore file, with the rules of Docker's documentation. Where engines differ, the rules are those of the
    strictest one: `docker build` without BuildKit."""

    def __init__(self, text):
        # For each pattern: its text, its regular expression, and whether it is an exception (begins with "!").
        self.patterns = []
        for line in text.removeprefix("\ufeff").splitlines():
            # A comment must begin in the first column; a pattern may have spaces around it.
            pattern = "" if line.startswith("#") else line.strip()
            exception = pattern.startswith("!")
            pattern = pattern.removeprefix("!").strip()
            if pattern:
                # A leading slash means the build context, to which all patterns are relative anyway.
                pattern = os.path.normpath(pattern).lstrip("/")
                self.patterns.append((pattern, re.compile(regular_expression(pattern), re.DOTALL), exception))

    def lets_in(self, path):
        """Whether a path, relative to the build context, is included. The last pattern that matches the path or one of
        its parent folders decides. Patterns that would not change the decision are not evaluated."""
        above = [False] * len(self.patterns)
        parts = path.split("/")
        for length in range(1, len(parts) + 1):
            part = "/".join(parts[:length])
            excluded, matched = False, []
            for (_, expression, exception), matches in zip(self.patterns, above):
                matches = matches or (excluded == exception and bool(expression.fullmatch(part)))
                excluded = not exception if matches else excluded
                matched.append(matches)
            above = matched
            # An excluded folder is searched only if an exception begins with its path.
            if excluded and not any(text.startswith(part + "/") for text, _, exception in self.patterns if exception):
                return False
        return not excluded


def regular_expression(pattern):
    """Converts a pattern of Go's filepath.Match, with ** for any number of folders, to a regular expression."""
    result, rest = "", pattern
    while rest:
        if rest.startswith("**"):
            rest = rest[2:].removeprefix("/")
            result += "(?:.*/)?" if rest else ".*"
            continue
        character, rest = rest[0], rest[1:]
        if character == "*":
            result += "[^/]*"
        elif character == "?":
            result += "[^/]"
        elif character == "[" and (group := re.match(r"\^?(?:\\.|[^\]\\])+\]", rest)):
            result += "(?!/)[" + group[0].replace("[", r"\[")
            rest = rest[group.end() :]
        elif character == "\\" and rest:
            result += re.escape(rest[0])
            rest = rest[1:]
        else:
            result += re.escape(character)
    return result


def copied(dockerfile):
    """Yields the line number and the sources of each COPY and ADD from the build context."""
    lines = iter(enumerate(dockerfile.splitlines(), 1))
    for number, line in lines:
        while line.rstrip().endswith("\\"):
            following = next(lines, (0, ""))[1]
            # Comments and empty lines are allowed between the lines of an instruction.
            if not following.strip() or following.lstrip().startswith("#"):
                continue
            line = line.rstrip()[:-1] + " " + following
        name, _, rest = line.strip().partition(" ")
        if name.upper() not in ("COPY", "ADD"):
            continue
        flags, rest = re.fullmatch(r"((?:\s*--\S+)*)\s*(.*)", rest).groups()
        if "--from=" in flags:
            continue
        words = json.loads(rest) if rest.startswith("[") else shlex.split(rest)
        yield number, [word for word in words[:-1] if "://" not in word]


def missing(root, dockerfile, ignore):
    """Yields errors for sources that a Dockerfile copies from the folder root."""
    for number, sources in copied(dockerfile):
        for source in sources:
            pattern = os.path.normpath(source).lstrip("/")
            found = [os.path.relpath(path, root) for path in glob.glob(f"{glob.escape(str(root))}/{pattern}")]
            if not found:
                yield f"line {number}: {source} does not exist"
            elif not any(ignore.lets_in(path) for each in found for path in files(root, each)):
                yield f"line {number}: {source} is excluded by .dockerignore"


def files(root, path):
    """Yields the file, or all files below the folder."""
    if not (root / path).is_dir():
        yield path
    for folder, _, names in os.walk(root / path):
        yield from (os.path.relpath(os.path.join(folder, name), root) for name in names)


def unknown_settings(root):
    """The settings in compose.yaml that exist in no service."""
    sources = [path for crate in ("shared", "collector", "dispatcher") for path in (root / crate).rglob("*.rs")]
    known = {name for path in sources for name in re.findall(r'env = "(FORMID_\w+)"', path.read_text())}
    return sorted(set(re.findall(r"(?m)^ *(FORMID_\w+):", (root / COMPOSE).read_text())) - known)


def main(root):
    ignore = Ignore((root / ".dockerignore").read_text())
    problems = [f"{COMPOSE}: no service has the setting {name}" for name in unknown_settings(root)]
    for path in sorted(root.glob(DOCKERFILES)):
        problems += [f"{path.relative_to(root)}: {problem}" for problem in missing(root, path.read_text(), ignore)]
    print(*problems, sep="\n", end="\n" if problems else "")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main(pathlib.Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT))
