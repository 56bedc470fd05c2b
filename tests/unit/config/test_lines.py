"""Lines of keys and elements, in texts that try to mislead."""

from __future__ import annotations

import tomllib

from hypothesis import given
from hypothesis import strategies as st

from mlx_router.config.lines import find_lines, line_of

TRICKY = """# [gateway]
a = "x = 1 # [b]"
"quoted.key" = "it's"
[gateway] # comment ]
port = 1
text = \"\"\"
[not.a.table]
key = 3 \\"\"\"
\"\"\"
inline = { x = 1, y = [1, 2], "z w" = { deep = 2 } }
dotted.key.here = 1
[[specialist]]
name = "a"
adapters = [ # one ]
  "a", "b",
  # "c"
  "d" ,
]
[specialist.more]
x = 1
[[specialist]]
name = "b"
[[specialist.part]]
y = 1
[[specialist.part]]
y = 2
"""


def test_a_text_that_misleads() -> None:
    tomllib.loads(TRICKY)
    lines = find_lines(TRICKY)
    assert lines["a",] == 2
    assert lines["quoted.key",] == 3
    assert lines["gateway",] == 4
    assert lines["gateway", "port"] == 5
    assert lines["gateway", "text"] == 6
    assert lines["gateway", "inline", "z w", "deep"] == 10
    assert lines["gateway", "inline", "y", 1] == 10
    assert lines["gateway", "dotted", "key", "here"] == 11
    assert lines["specialist", 0] == 12
    assert lines["specialist", 0, "adapters", 1] == 15
    assert lines["specialist", 0, "adapters", 2] == 17
    assert lines["specialist", 0, "more", "x"] == 20
    assert lines["specialist", 1, "name"] == 22
    assert lines["specialist", 1, "part", 1, "y"] == 26
    assert not any(path[0] in ("not", "b") for path in lines)
    assert line_of(lines, ("gateway", "host")) == 4
    assert line_of(lines, ("policy", "fallback")) is None


KEYS = st.sampled_from(["a", "b-c", '"d e"', "'f.g'", "h"])
VALUES = st.sampled_from(
    [
        "1",
        '"x"',
        "'#'",
        '"""\na = 1\n[b]\n"""',
        "'''\n]\n'''",
        "[\n1, # ]\n[2,\n3]]",
        "{ q = 1, r = '}' }",
        "1979-05-27",
    ]
)


@given(
    st.lists(
        st.tuples(KEYS, VALUES, st.sampled_from(["", " # c = 1 [x]", "\n", "\n# [y]"])),
        max_size=5,
        unique_by=lambda i: i[0],
    )
)
def test_keys_are_found_where_they_were_written(pairs: list[tuple[str, str, str]]) -> None:
    text, expected = "", {}
    for key, value, gap in pairs:
        expected[key.strip("\"'")] = text.count("\n") + 1
        text += f"{key} = {value}{gap}\n"
    tomllib.loads(text)
    lines = find_lines(text)
    assert {path[0]: line for path, line in lines.items() if len(path) == 1} == expected
