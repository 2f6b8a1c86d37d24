"""Where the value of a secret lies in a text: after its name, in all the ways that texts write it.

`name=value`, `"name": "value"` (also escaped, as in JSON in JSON), `name: str = value`,
`x["name"] = value`, `--name value`, `("name", "value")`, `{"name": "NAME", "value": "…"}`,
`<name>value</name>`, a header up to the end of its line, a block of YAML, a tuple, list or dict up
to its bracket; and the options of programs that take a password without a name.

This is a tokeniser. It reads on from a name, never back, and looks ahead a fixed number of
characters at most: the time is linear in the length of any text.
"""

from __future__ import annotations

import re
from functools import lru_cache

from entangle._shared import secret_names
from entangle._shared.spans import Span, places

#: How far a bracket may reach; one not closed by then is taken up to there.
_BRACKETED = 16_384
#: How far an XML element may reach; one not closed by then ends at the next tag.
_ELEMENT = 8_192
#: The usual greatest length of a name.
_LONGEST_NAME = 100
#: How far around a name to look.
_NEAR = 80

_OPENING, _CLOSING = "([{", ")]}"
#: Query parameters (after `?` or `&`) that grant access to an address.
_SIGNED = frozenset(["sig", "signature", "hmac", "awsaccesskeyid", "googleaccessid", "key-pair-id", "code"])
#: Headers whose whole line is secret.
_HEADERS = frozenset(["authorization", "proxy-authorization", "cookie", "cookies", "set-cookie", "cookie2", "set-cookie2"])
#: What may precede a name that begins a line.
_BEFORE = frozenset(("", "export", "set", "declare -x", "env", "#", "//", ">", "<", "+", "*", "$", "let", "const", "var"))
#: Programs that take a password by a short option, or by a positional argument.
_PROGRAMS = (
    (
        "curl",
        r"(?:\s|[\"'],\s?[\"'])(?:-u|-U|--user|--proxy-user)(?:[\"'],\s?[\"']|[ =])?\s{0,4}[\"']?(?P<secret>[^\s:\"']{1,200}:[^\s\"']+)",
    ),
    ("http", r"\s(?:-a|--auth)[ =]\s{0,4}[\"']?(?P<secret>[^\s:\"']{1,200}:[^\s\"']+)"),
    ("sshpass", r"(?:\s|[\"'],\s?[\"'])-p(?:[\"'],\s?[\"']|\s{0,4})[\"']?(?P<secret>[^\s\"']+)"),
    ("mysql", r"(?:\s|[\"'],\s?[\"'])-p(?P<secret>[^\s\"',]+)"),
    ("mariadb", r"(?:\s|[\"'],\s?[\"'])-p(?P<secret>[^\s\"',]+)"),
    ("login", r"(?:\s|[\"'],\s?[\"'])-p(?:[\"'],\s?[\"']|\s{1,4})[\"']?(?P<secret>[^\s\"']+)"),
    ("redis-cli", r"(?:\s|[\"'],\s?[\"'])-a(?:[\"'],\s?[\"']|\s{1,4})[\"']?(?P<secret>[^\s\"']+)"),
    ("ldap", r"(?:\s|[\"'],\s?[\"'])-w(?:[\"'],\s?[\"']|\s{1,4})[\"']?(?P<secret>[^\s\"']+)"),
    ("smbclient", r"\s-U\s{0,4}[\"']?[^\s%\"']{1,200}%(?P<secret>[^\s\"']+)"),
    ("openssl", r"\s-pass(?:in|out)?\s{1,4}[\"']?pass:(?P<secret>[^\s\"']+)"),
    ("zip", r"\s-P\s{0,4}[\"']?(?P<secret>[^\s\"']+)"),
    ("identified by", r"\s{0,4}'(?P<secret>[^'\n]{1,400})'"),
)
_ACCOUNTS = ("machine", "login")

NEEDLES = tuple(
    dict.fromkeys(
        (
            *secret_names.NEEDLES,
            *(f"{sign}{name}=" for name in sorted(_SIGNED) for sign in "?&;"),
            *("curl ", "curl'", 'curl"', "sshpass", "mysql", "mariadb", "login", "redis-cli", "ldap", "smbclient", "openssl", "zip "),
            *("http -", "identified by"),
        )
    )
)


@lru_cache(maxsize=1)
def _patterns() -> dict[str, re.Pattern[str]]:
    """Each pattern excludes what comes next, or is bounded: none backtracks at length."""
    quote = r"(?:\\{0,31}[\"'`]|&quot;|&#34;|&#39;|%22|%27|\\{1,31}u0022)"
    return {
        "name": re.compile(r"[\w-]*"),
        "blanks": re.compile(r"[ \t]*"),
        "space": re.compile(r"(?:\s|\\\n)*"),
        "quote": re.compile(quote),
        "opening": re.compile(rf"[rbfuRBFU]{{0,2}}(\"\"\"|'''|{quote})"),
        "separator": re.compile(r"==|!=|=>|->|\+=|:=|\?=|[:=]|%3[AaDd]"),
        "line": re.compile(r"[^\r\n\\]*"),
        "plain": re.compile(r"[^\s,;&)\]}\"'`<>\\(\[{]*"),
        "chain": re.compile(r"\.[A-Za-z_]\w{0,100}"),
        "operator": re.compile(r"[ \t]{0,20}(?:\\\r?\n\s{0,80})?(?:\+|%|or\b|and\b|if\b|else\b|\|\|?|\?\?)[ \t]{0,20}(?:\\\r?\n\s{0,80})?"),
        "default": re.compile(r"[ \t]{0,20}=(?!=)[ \t]{0,20}"),
        "adjacent": re.compile(r"\s{0,80}(?=[rbfuRBFU]{0,2}[\"'])"),
        "next": re.compile(r"[\w.%-]{1,64}[\"']?\s?[=:]|[\s\"'\\]|amp;|\Z"),
        "tail": re.compile(r"[^=:,;&\"'`\n(){}\[\]<>|\\]{0,400}(?=\n|\Z)"),
        "closer": re.compile(r"[\"'][ \t)\]};:,]{0,40}(?:\r?\n|\Z)"),
        "bracket": re.compile(r"\\.|[()\[\]{}\"'`]", re.DOTALL),
        "string": re.compile(r"\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\\\n]|\\.)*'|`[^`\n]*`"),
        "pair": re.compile(rf"{quote}\s{{0,4}},\s{{0,20}}(?=[rbuRBU]{{0,2}}{quote})"),
        "of name": re.compile(rf"{quote}?\s{{0,40}},?\s{{0,40}}{quote}?[vV](?:alue|ALUE){quote}?\s{{0,4}}[:=]\s{{0,4}}"),
        "form": re.compile(r"[\"'](?:\r?\n\r?\n|(?:\\r)?\\n(?:\\r)?\\n)"),
        "content": re.compile(r"[\"'](?:\s[^<>\n]{0,100})?(?<![=-])>"),
        "block": re.compile(r"[ \t]{0,20}(?:[!&][^\s]{0,40}[ ]{1,4}){0,2}(?:[|>][-+0-9]{0,3})?[ \t]{0,20}(?:#[^\n]{0,200})?\r?\n"),
        "keyword": re.compile(r"(?:^|[^\w])(?:if|elif|while|in|not|and|or|is|else|return|class|for|case|when)[ (]\s{0,4}[\w.]{0,60}\Z"),
        "environment": re.compile(r"[A-Z][A-Z0-9_]*\Z"),
        "attributes": re.compile(r"[^<>]{0,1000}>"),
    }


def possible(text: str) -> bool:
    """Whether the text holds any sign between names and values, or an option of a program."""
    if (
        "=" in text
        or ":" in text
        or "&" in text
        or '"' in text
        or "'" in text
        or ">" in text
        or "%" in text
        or "--" in text
        or text[:1] == "-"
    ):
        return True
    # An option, an account, a line of a Dockerfile.
    return " -" in text or "\n-" in text or "\t-" in text or "login" in text or "ENV " in text or "ARG " in text


def spans(text: str, low: str) -> list[Span]:
    """Where in the text the values of secrets lie.

    `low` is the text in lower case, of the same length.
    """
    return _Reader(text, low).spans()


class _Reader:
    """Reads one text."""

    def __init__(self, text: str, low: str) -> None:
        self.text = text
        self.low = low
        self.end = len(text)  # of the part to read: a quoted name has its value in the quotes
        self.patterns = _patterns()
        self.roles = " user " in low or " role " in low
        self.accounts = all(word in low for word in _ACCOUNTS)

    def spans(self) -> list[Span]:
        """The values after names, and those of programs' options."""
        low = self.low
        needles = (*secret_names.NEEDLES, *secret_names.further(), *(name for name in _SIGNED if f"{name}=" in low))
        hits = sorted({at for needle in [needle for needle in needles if needle in low] for at in places(low, needle)})
        found: list[Span] = []
        done = 0
        for hit in hits:
            if hit < done:
                continue
            start = self._start_of_name(hit, done)
            done = self._match("name", hit)
            span = self._of_name(start, done)
            if span is not None and span[1] > span[0]:
                found.append(span)
                done = max(done, span[1])
        return found + self._of_programs()

    def _match(self, pattern: str, at: int) -> int:
        """The end of what the pattern matches at `at`; `at` itself if it does not match."""
        match = self._found(pattern, at)
        return match.end() if match is not None else at

    def _found(self, pattern: str, at: int) -> re.Match[str] | None:
        return self.patterns[pattern].match(self.text, at, self.end)

    def _start_of_name(self, at: int, floor: int) -> int:
        text = self.text
        while at > floor and (text[at - 1].isalnum() or text[at - 1] in "_-"):
            at -= 1
        return at

    # The name and its surroundings ---------------------------------------------------------------

    def _of_name(self, start: int, end: int) -> Span | None:
        """The value of the name between `start` and `end`, if it is a secret's."""
        text = self.text
        name = text[start:end]
        dashes = len(name) - len(name.lstrip("-"))
        name = name.strip("-")
        if not name:
            return None
        if start and text[start - 1] == "%" and not dashes and re.match("[0-9A-F]{2}", name):
            start, name = start + 2, name[2:]  # what follows %22
        before = text[start + dashes - 1] if start + dashes else ""
        low_name = name.lower()
        signed = before in "?&;" and low_name in _SIGNED if before else False
        if not signed and not (secret_names.is_secret if len(name) <= _LONGEST_NAME else secret_names.tells)(name):
            return None
        start += dashes
        end = start + len(name)
        if before in ("<", ":") or text.startswith("&lt;", max(0, start - 4)):
            span = self._of_element(start, end)
            if span is not None:
                return span
        if signed and low_name == "code" and self._match("plain", end + 1) - end < 16:
            return None
        quote = self._quote_before(start - dashes)
        before_it = start - dashes - len(quote)
        after = self._found("quote", end)
        if after is not None:
            for kind in ("of name", "form", "content"):
                if (match := self._found(kind, end)) is not None:
                    return self._other_forms(kind, match.end(), before_it)
            pair = self._found("pair", end)
            if pair is not None and quote and (dashes or self._opened_before(before_it)):
                return self._value(pair.end(), first=False, colon=False, operators=False)
            end = after.end()
            quote = ""
        elif (match := self._found("of name", end)) is not None:
            return self._value(match.end(), first=True, colon=False, operators=False)
        at = self._match("space", end)
        if text.startswith("]", at):
            at = self._match("space", at + 1)
        separator = self._found("separator", at)
        if separator is None:
            return self._after_blank(start, end, at, dashes)
        return self._separated(start, name, quote, separator[0], separator.end(), quoted=after is not None)

    def _quote_before(self, start: int) -> str:
        """The quote before a name, with its backslashes."""
        text = self.text
        if not start or text[start - 1] not in "\"'`":
            return ""
        at = start - 1
        while at and start - at < 32 and text[at - 1] == "\\":
            at -= 1
        return text[at:start]

    def _opened_before(self, at: int) -> bool:
        """Whether an opening bracket precedes the string that begins there."""
        text = self.text
        if at and text[at - 1] in "rbuRBU":
            at -= 1
        return at > 0 and text[at - 1] in _OPENING

    def _after_blank(self, start: int, end: int, at: int, dashes: int) -> Span | None:
        """`--name value`, `ENV name value`; `password value` in lists of accounts and in SQL."""
        text = self.text
        if at == end or at >= len(text) or text[at] == "-":
            return None
        name = self.low[start:end]
        account = self.accounts and name in ("password", "passwd")
        statement = text[at] == "'" and (text[start:end].isupper() or self.roles)
        if dashes or account or statement or text[max(0, start - 4) : start] in ("ENV ", "ARG "):
            return self._value(at, first=False, colon=False, operators=False)
        return None

    def _other_forms(self, kind: str, at: int, before: int) -> Span | None:
        text = self.text
        attribute = before > 0 and text[before - 1] in "=: "
        if kind == "of name":
            return self._value(at, first=False, colon=False, operators=False) if attribute else None
        if before <= 0 or text[before - 1] != "=":
            return None
        if kind == "form":
            return at, self._line_end(at)
        return at, self._content_end(at)

    def _content_end(self, at: int) -> int:
        """The end of an XML element's text: the next tag, else the end of the line."""
        end = self.text.find("<", at, at + _ELEMENT)
        return end if end >= 0 else self._line_end(at)

    def _of_element(self, start: int, end: int) -> Span | None:
        """The content of the XML element of this name."""
        text = self.text
        escaped = text.startswith("&gt;", end)
        if escaped:
            at = end + 4
            last = text.find("&lt;", at, at + _ELEMENT)
            return at, last if last >= 0 else self._line_end(at)
        opening = max(text.rfind("<", max(0, start - _NEAR), start), 0)
        if text[opening : opening + 1] != "<" or text[opening + 1 : opening + 2] == "/" or any(c.isspace() for c in text[opening:start]):
            return None
        at = self._match("attributes", end)
        if at == end:
            return None
        if text[at - 2] == "/":
            return end, at - 2  # it has attributes only
        closing = text.find(f"</{text[opening + 1 : end]}", at, at + _ELEMENT)
        return at, closing if closing >= 0 else self._content_end(at)

    def _separated(self, start: int, name: str, quote: str, separator: str, at: int, quoted: bool) -> Span | None:
        """The value after a separator."""
        text = self.text
        head = text[max(0, start - _NEAR) : start]
        line = head[head.rfind("\n") + 1 :]
        begins = not quote and (start <= _NEAR or "\n" in head) and line.strip(" \t-") in _BEFORE
        first = begins or bool(quote and not quoted) or line.rstrip()[-1:] in (",", ";", ":", "|", *_OPENING)
        if quote and not quoted:  # 'name: value', a header in a command
            limit = text.find(quote, at, at + _BRACKETED)
            if limit >= 0:
                self.end = limit
        try:
            return self._behind(start, name.lower(), separator, at, begins, first, quoted, bool(quote), line)
        finally:
            self.end = len(text)

    def _behind(
        self, start: int, name: str, separator: str, at: int, begins: bool, first: bool, quoted: bool, enclosed: bool, line: str
    ) -> Span | None:
        """The value after a separator, up to the end of what holds the name."""
        text = self.text
        header = not quoted and (name in _HEADERS or name.endswith("authorization"))
        if header and (separator == ":" or name.endswith("authorization")):
            began = self._match("blanks", at)
            if enclosed or self._found("opening", began) is None:
                end = self._header_end(began)
                return (began, end) if end > began else None
        environment = start == 0 and separator == "=" and not enclosed and not quoted
        if environment and self.patterns["environment"].match(text[: at - 1]) and not _any_space(text):
            return at, len(text)
        if begins and separator == ":" and (block := self._found("block", at)) is not None:
            return self._block(block.end(), len(line) - len(line.lstrip(" ")))
        began = self._match("space", at)
        if "\n" in text[at:began] and not quoted and self.patterns["keyword"].search(line):
            return None  # `if password:`
        span = self._value(began, first and separator in ("=", ":"), separator == ":", operators=True)
        if span is not None and header and text.startswith(";", span[1]):
            return span[0], self._header_end(span[1])
        return span

    def _header_end(self, at: int) -> int:
        """The end of a header's line, also within an escaped text."""
        while (at := self._match("line", at)) < self.end and self.text[at] == "\\" and self.text[at + 1 : at + 2] not in ("r", "n"):
            at += 1
        return at

    def _line_end(self, at: int) -> int:
        end = self.text.find("\n", at, self.end)
        return end if end >= 0 else self.end

    def _block(self, at: int, margin: int) -> Span | None:
        """The lines indented deeper than the name, or list items level with it."""
        text = self.text
        end = at
        while end < len(text):
            began = self._match("blanks", end)
            line_end = self._line_end(began)
            if began < line_end and text[began] not in "\r" and began - end <= margin and not text.startswith("- ", began):
                break
            end = line_end + 1
        end = min(end, len(text))
        began = self._match("space", at)
        while end > began and text[end - 1].isspace():
            end -= 1
        return (began, end) if end > began else None

    # The value -----------------------------------------------------------------------------------

    def _value(self, at: int, first: bool, colon: bool, operators: bool) -> Span | None:
        """The expression that begins there.

        `first`: the name begins its line, so the value may be several words.
        """
        text = self.text
        if at >= self.end or self._closes(at):
            return None
        if text[at] in _OPENING:
            inner = self._match("space", at + 1)
            closed = self._bracket(at)
            end = closed - 1 if closed and text[closed - 1] in _CLOSING else closed
            while end > inner and text[end - 1].isspace():
                end -= 1
            further = self._further(closed, colon, quoted=False) if operators else closed
            if further > closed:
                return at, further
            return (inner, end) if end > inner else None
        end, quoted = self._atom(at, first)
        if end == at:
            return None
        if operators:
            end = self._further(end, colon, quoted)
        if first and not quoted and (tail := self._found("tail", end)) is not None:
            end = tail.end()
            while text[end - 1].isspace():
                end -= 1
        return at, end

    def _closes(self, at: int) -> bool:
        """Whether the quote there closes the string around the name: `input("Password: ")`."""
        return (match := self._found("closer", at)) is not None and match.end() > at

    def _further(self, end: int, colon: bool, quoted: bool) -> int:
        """The end of an expression that continues:

        `"a" "b"`, `a or "b"`, a type and its default.
        """
        text = self.text
        while end < self.end:
            next_one = end
            if quoted and (adjacent := self._found("adjacent", end)) is not None:
                next_one = adjacent.end()
            if next_one == end or text[next_one : next_one + 1] not in tuple("\"'rbfuRBFU"):
                operator = self._found("operator", end)
                if operator is None and colon:
                    operator = self._found("default", end)
                if operator is None:
                    return end
                next_one = operator.end()
            if next_one >= self.end:
                return end
            after, quoted = (self._bracket(next_one), False) if text[next_one] in _OPENING else self._atom(next_one, False)
            if after == next_one:
                return end
            end = after
        return end

    def _atom(self, at: int, first: bool) -> tuple[int, bool]:
        """The end of a string, or of a word with its calls and indices; whether it is a string."""
        text = self.text
        opening = self._found("opening", at)
        if opening is not None:
            end = self._closing(opening.end(), opening[1])
            quoted = True
        else:
            end, quoted = self._plain(at, first), False
        while self.end > end > at:
            if text[end] in "([" and (quoted or text[end - 1].isalnum() or text[end - 1] in "_)]"):
                end = self._bracket(end)
            elif quoted and (after := self._match("chain", end)) > end:
                end = after
            elif not quoted and text[end - 1] in ")]" and text[end] == ".":
                end = self._plain(end, first)
            else:
                break
        return end, quoted

    def _closing(self, at: int, mark: str) -> int:
        """The end of a string opened by that mark."""
        text = self.text
        if len(mark) == 3 and mark[0] == mark[1] == mark[2]:
            end = text.find(mark, at, self.end)
            return end + 3 if end >= 0 else self.end
        backslashes = len(mark) - len(mark.lstrip("\\"))
        end = text.find(mark, at, self.end)
        while end >= 0:
            before = end
            while before > at and text[before - 1] == "\\":
                before -= 1
            # The number of backslashes before a quote tells how deep the quote is nested.
            if (end - before + backslashes) % (2 * (backslashes + 1)) == backslashes:
                break
            end = text.find(mark, end + 1, self.end)
        if end >= 0 and (end - at <= _BRACKETED or text.find("\n", at, end) < 0):
            return end + len(mark)
        return self._line_end(at)

    def _bracket(self, at: int) -> int:
        """The end of the bracket opened there; of one not closed, how far the search went."""
        text, bracket, string = self.text, self.patterns["bracket"], self.patterns["string"]
        limit = min(self.end, at + _BRACKETED)
        depth = 0
        while (found := bracket.search(text, at, limit)) is not None:
            letter = found[0]
            at = found.end()
            if letter in _OPENING:
                depth += 1
            elif letter in _CLOSING:
                depth -= 1
                if depth <= 0:
                    return at
            elif letter in "\"'`" and (whole := string.match(text, at - 1, limit)) is not None:
                at = whole.end()
        return limit

    def _plain(self, at: int, first: bool) -> int:
        """The end of an unquoted word.

        Its terminators may stand in it if another letter follows.
        """
        text, length = self.text, self.end
        plain, what_is_next = self.patterns["plain"], self.patterns["next"]
        start = at
        while at < length:
            at = plain.match(text, at, length).end()  # type: ignore[union-attr]
            if at >= length:
                break
            letter = text[at]
            following = text[at + 1 : min(at + 2, length)]
            if letter.isspace():
                break
            if letter == "\\":
                quote = self._found("quote", at)
                if quote is not None or following in ("\n", ""):
                    break
            elif letter in ",;&":
                if (at == start and not first) or what_is_next.match(text, at + 1, length) is not None:
                    break
            elif letter in _OPENING:
                if letter != "{" and at > start:
                    break  # a call or an index: the caller handles it
                at = self._bracket(at)
                continue
            elif letter == "<":
                if following in ("/", "!", "") or following.isalpha():
                    break
            elif not (following.isalnum() or following == "_") or at == start:
                break
            at += 1
        return at

    # Programs ------------------------------------------------------------------------------------

    def _of_programs(self) -> list[Span]:
        found: list[Span] = []
        for program, pattern in [(program, pattern) for program, pattern in _PROGRAMS if program in self.low]:
            done = 0
            for at in places(self.low, program):
                if at < done:
                    continue
                end = min(len(self.text), at + 400)
                line_end = self.text.find("\n", at, end)
                done = line_end if line_end >= 0 else end
                for match in _program(pattern).finditer(self.text, at + len(program), done):
                    found.append(match.span("secret"))
        return found


@lru_cache(maxsize=32)
def _program(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


def _any_space(text: str) -> bool:
    return len(text.split(None, 1)) > 1 or text != text.strip()
