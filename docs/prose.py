"""Checks the prose of the pages: proselint, and a short style of our own.

    python docs/prose.py [page …]       by default all pages, the README and others beside it

Code and the targets of links are not checked. The exit status is 1 if a line breaks a rule. The
style:

- a sentence has at most 45 words; a colon or a semicolon ends a sentence, too;
- it has none of the words in `WEASELS`, which add nothing.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
#: Most words of a sentence.
LONGEST = 45

#: Words that promise or belittle, and say nothing that a reader could check.
WEASELS = (
    "basically", "clearly", "easily", "extremely", "fairly", "incredibly", "just works", "leverage", "obviously", "of course",
    "powerful", "quite", "rather simple", "really", "seamless", "seamlessly", "simply", "utilize", "very",
)  # fmt: skip

#: The checks of proselint that count. The others are about novels, or about characters that
#: Markdown sets itself.
CHECKS = (
    "cliches", "hedging", "malapropisms", "mixed_metaphors", "mondegreens", "nonwords", "oxymorons", "redundancy",
)  # fmt: skip


def _blank(match: re.Match[str]) -> str:
    return re.sub(r"[^\n]", " ", match[0])


def prose(text: str) -> str:
    """A page with spaces in place of all that is no prose, so that lines and columns stay."""
    for pattern in (
        r"^( *)```.*?^\1```[^\n]*$",
        r"<!-- bench:begin -->.*?<!-- bench:end -->",
        r"<!--.*?-->",
        r"^---\n.*?^---$",
        r"`+[^`\n]+`+",
        r"\]\([^)\n]*\)",
        r"^\|[-:| ]+\|$",
        r"https?://\S+",
    ):
        text = re.sub(pattern, _blank, text, flags=re.MULTILINE | re.DOTALL)
    return text


def sentences(text: str) -> list[tuple[int, str]]:
    """The sentences of a page's prose, each with its line."""
    found = []
    # A heading, a list item, a cell of a table and an empty line end the sentence before them.
    for part in re.finditer(r"(?:(?!\n\s*\n|\n\s*(?:[-*+#>|]|\d+\.)\s?|\|).)+", text, re.DOTALL):
        at = part.start()
        for sentence in re.split(r"(?<=[.!?:;])\s+", part[0]):
            place = text.find(sentence, at)
            at = place + len(sentence)
            found.append((text.count("\n", 0, place) + 1, " ".join(sentence.split())))
    return found


def own_style(text: str) -> list[tuple[int, str]]:
    """What breaks the style, each with its line."""
    said = prose(text)
    wrong = [
        (line, f"a sentence of {count} words, beginning {sentence[:50]!r}: part it")
        for line, sentence in sentences(said)
        if (count := len(re.findall(r"\b[\w'-]+\b", sentence))) > LONGEST
    ]
    for match in re.finditer(rf"\b({'|'.join(WEASELS)})\b", said, re.IGNORECASE):
        wrong.append((said.count("\n", 0, match.start()) + 1, f"{match[0]!r} says nothing: leave it out"))
    return sorted(wrong)


def from_proselint(pages: list[Path]) -> list[str]:
    """What proselint says of the pages."""
    with tempfile.TemporaryDirectory() as folder:
        copies = {}
        for number, page in enumerate(pages):
            copy = Path(folder) / f"{number}.md"
            copy.write_text(prose(page.read_text(encoding="utf-8")), encoding="utf-8")
            copies[str(copy)] = str(page.relative_to(ROOT))
        command = [str(Path(sys.executable).with_name("proselint")), "check", *copies]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        sys.exit(f"proselint ended with {done.returncode}\n{done.stderr}")
    found = re.findall(rf"^(.+?)(:\d+:\d+: (?:{'|'.join(CHECKS)})\b.*)$", done.stdout, re.MULTILINE)
    return [copies[copy] + said for copy, said in found]


def main() -> int:
    rest = ["README.md", "CONTRIBUTING.md", "SECURITY.md"]
    pages = [Path(name).resolve() for name in sys.argv[1:]] or [
        *sorted((ROOT / "docs").rglob("*.md")),
        *(ROOT / name for name in rest if (ROOT / name).exists()),
    ]
    wrong = [
        f"{page.relative_to(ROOT)}:{line}: {what}" for page in pages for line, what in own_style(page.read_text(encoding="utf-8"))
    ] + from_proselint(pages)
    print(*wrong, sep="\n")
    print(f"{len(pages)} pages, {len(wrong)} to be mended")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
