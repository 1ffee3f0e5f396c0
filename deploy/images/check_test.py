"""Tests of check.py: python3 check_test.py"""

import contextlib
import io
import pathlib
import tempfile
import unittest

import check

# A .dockerignore, paths that it includes, and paths that it excludes. Each was compared with `docker build`.
PATTERNS = [
    ("", "a.txt x/y/a.txt", ""),
    ("# x\n\n", "x/a.txt", ""),
    ("\\#odd\n", "a.txt", "#odd"),
    ("*\n!x\n", "x/a.txt x/y/a.txt", "a.txt xx/a.txt"),
    ("*\n!/x/a.txt\n! x/b.md \n", "x/a.txt x/b.md", "x/y/a.txt"),
    ("x\n!x/y/a.txt\n", "a.txt x/y/a.txt", "x/a.txt x/y/b.txt"),
    ("!x\nx\n", "a.txt", "x/a.txt"),
    ("x/y\n!x\n", "x/a.txt", "x/y/a.txt"),
    ("/x/y/\n./x/../z\n", "x/a.txt y/a.txt", "x/y/a.txt z/a.txt"),
    (" *.md \n", "x/a.md a.txt", "a.md"),
    ("**/*.md\n", "a.txt", "a.md x/y/a.md"),
    ("*/tests\n", "tests/a x/y/tests/a", "x/tests/a"),
    ("**/tests\n", "tests.rs x/testss/a", "tests/a x/y/tests/z/a"),
    ("x/**\n!x/y/**\n", "a x/y/z/a", "x/a"),
    ("x/**/a\n", "x/b", "x/a x/y/z/a"),
    ("**\n!x/a\n", "x/a", "a x/b"),
    # An exception that begins with a wildcard has no effect below an excluded folder.
    ("*\n!*/a.txt\n", "", "x/a.txt"),
    ("?.txt\n", "ab.txt x/a.txt", "a.txt"),
    ("s/a[bc]\n", "s/ad s/a", "s/ab s/ac"),
    ("s/a[^b]\n", "s/ab", "s/ac s/a-"),
    ("s/[[]x\ns/\\[y\n", "s/x s/y", "s/[x s/[y"),
    ("a.b\na+\n", "aab aa", "a.b a+"),
]

DOCKERFILE = r"""
# COPY comment .
FROM a AS b
COPY one/file ./
copy --chown=1:1 \
    # a comment in between
    two \
    three* /there/
ADD ["with blank", "."]
COPY --from=b /nowhere .
RUN echo && \
    COPY not-an-instruction .
"""
FILES = ("one/file", "two/src/main.rs", "two/tests/it.rs", "three-a", "three-b", "with blank", "Cargo.toml")


@contextlib.contextmanager
def folder():
    with tempfile.TemporaryDirectory() as name:
        root = pathlib.Path(name)
        for file in FILES:
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).touch()
        yield root


def problems(ignore, dockerfile=DOCKERFILE):
    with folder() as root:
        return list(check.missing(root, dockerfile, check.Ignore(ignore)))


class Test(unittest.TestCase):
    def test_patterns(self):
        for text, let_in, left_out in PATTERNS:
            ignore = check.Ignore(text)
            for paths, expected in ((let_in, True), (left_out, False)):
                for path in paths.split():
                    with self.subTest(ignore=text, path=path):
                        self.assertEqual(ignore.lets_in(path), expected)

    def test_every_source_of_the_context_is_found(self):
        found = [(number, *sources) for number, sources in check.copied(DOCKERFILE)]
        self.assertEqual(found, [(4, "one/file"), (5, "two", "three*"), (9, "with blank")])
        self.assertEqual(problems(""), [])

    def test_a_source_that_does_not_exist_is_reported(self):
        self.assertEqual(problems("", "COPY two four five* .\n"), [
            "line 1: four does not exist",
            "line 1: five* does not exist",
        ])

    def test_a_source_that_is_excluded_is_reported(self):
        self.assertEqual(problems("*\n!one\n!two\n!three-b\n"), ["line 9: with blank is excluded by .dockerignore"])
        self.assertEqual(problems("three*\ntwo/tests\n"), ["line 5: three* is excluded by .dockerignore"])
        self.assertEqual(problems("two/src\ntwo/tests\n"), ["line 5: two is excluded by .dockerignore"])

    def test_each_exception_of_the_dockerignore_is_needed(self):
        lines = (check.ROOT / ".dockerignore").read_text().splitlines()
        dockerfile = (check.ROOT / "deploy/images/Dockerfile").read_text()
        exceptions = [line for line in lines if line.startswith("!")]
        self.assertGreater(len(exceptions), 5)
        for exception in exceptions:
            with self.subTest(without=exception):
                ignore = check.Ignore("\n".join(line for line in lines if line != exception))
                self.assertNotEqual(list(check.missing(check.ROOT, dockerfile, ignore)), [])

    def test_a_setting_that_no_service_has_is_reported(self):
        with folder() as root:
            (root / "deploy").mkdir()
            (root / check.COMPOSE).write_text("FORMID_ONE: a\nFORMID_TWO: ${FORMID_IMAGE:-b}\n")
            for crate in ("shared", "collector", "dispatcher"):
                (root / crate).mkdir()
            (root / "collector/settings.rs").write_text('#[arg(long, env = "FORMID_ONE")]')
            self.assertEqual(check.unknown_settings(root), ["FORMID_TWO"])

    def test_the_checkout_passes(self):
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            wrong = check.main(check.ROOT)
        self.assertFalse(wrong, output.getvalue())


if __name__ == "__main__":
    unittest.main()
