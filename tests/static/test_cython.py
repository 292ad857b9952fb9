"""Every cdef function says noexcept or except: a bare one takes the GIL after each call to ask for an exception."""

import re

OBJECTS = {"object", "bytes", "bytearray", "str", "list", "dict", "tuple", "set", "type"}     # NULL says it; no clause possible
HEAD = re.compile(r"^\s*(?:cdef|cpdef)\s+(?!class\b|struct\b|union\b|enum\b|extern\b|packed\b|ctypedef\b)(.+)$")
SIGNATURE = re.compile(r"^(?P<type>.*?)\b(?P<name>\w+)\s*\((?P<rest>.*)$", re.S)


def functions(source: str):
    """(line, signature) of each cdef function, its lines joined up to the closing parenthesis and what follows it."""
    lines = source.splitlines()
    for number, line in enumerate(lines, 1):
        head = HEAD.match(re.sub(r"#.*", "", line))
        if not head or "(" not in head.group(1) or "=" in head.group(1).split("(")[0]:
            continue
        text, at = head.group(1), number
        while text.count("(") > text.count(")") and at < len(lines):
            text += " " + re.sub(r"#.*", "", lines[at]).strip()
            at += 1
        if not re.match(r"^[^()]*\(\s*\*", text):                  # a pointer to a function, not a function
            yield number, text


def bare(source: str) -> list[int]:
    wrong = []
    for number, text in functions(source):
        signature = SIGNATURE.match(text)
        if not signature:
            continue
        after = text[text.rindex(")"):]
        kind = signature["type"].replace("inline", "").replace("public", "").replace("api", "").split()
        returns_object = not kind or kind[-1].split("[")[0] in OBJECTS
        if not returns_object and "noexcept" not in after and "except" not in after:
            wrong.append(number)
    return wrong


def test_every_cdef_function_says_how_it_fails(tree, root):
    wrong = []
    for path in tree:
        if path.suffix in (".pyx", ".pxd", ".pxi"):
            wrong += [f"{path}:{number}" for number in bare((root / path).read_text())]
    assert not wrong, "cdef functions with neither noexcept nor except:\n" + "\n".join(wrong)


def test_the_rule_sees_what_it_should():
    source = """
cdef inline int good(int a) noexcept nogil:
cdef void bad(int a) nogil:
cdef int also_bad(int a,
                  int b):
cdef object python_object(x):
cdef int fine(int a) except -1:
cdef int value = call(3)
cdef void (*pointer)(int) noexcept
cdef class Thing:
"""
    assert bare(source) == [3, 4]
