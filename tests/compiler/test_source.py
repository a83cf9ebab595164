"""Reading text: plain data, and the place of every key and value."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expc.findings import Span, SpecError
from expc.source import MAX_BYTES, Source, parse, read


def under(source: Source, span: Span) -> str:
    """The text that a span covers, by its offsets; lines and columns must agree with them."""
    lines = source.text.splitlines(keepends=True)

    def offset(line: int, col: int) -> int:
        return sum(map(len, lines[: line - 1])) + col - 1

    assert offset(span.line, span.col) == span.start
    assert offset(span.end_line, span.end_col) == span.end
    return source.text[span.start : span.end]


def refused(text: str) -> str:
    with pytest.raises(SpecError) as caught:
        parse(text, "x.yaml")
    (finding,) = caught.value.findings
    assert finding.span.file == "x.yaml" and finding.span.line >= 1
    return f"{finding.code} {finding.message}"


@pytest.mark.parametrize(
    "text",
    [
        "a: 1\nb: {c: [10, 20]}\n",
        "b:\n  c:\n    - 10\n    - 20\na: 1\n",
        '"a": 1\n? b\n: {"c": [10,\n   20]}\n',
        "# été ☃ 🎉\na: 1\nb: {c: [10, 20]} # ça\n",
        "é: 🎉\na: 1\nb: {'c': [10, 20]}\n",
        "a:   1\r\nb:\r\n  c: [10, 20]\r\n",
    ],
)
def test_keys_and_values_know_their_place(text: str) -> None:
    source = parse(text, "x.yaml")
    assert source.data["b"] == {"c": [10, 20]}
    assert under(source, source.keys[("a",)]).strip("\"'") == "a"
    assert under(source, source.values[("a",)]) == "1"
    assert under(source, source.keys[("b", "c")]).strip("\"'") == "c"
    assert under(source, source.values[("b", "c", 0)]) == "10"
    assert under(source, source.values[("b", "c", 1)]) == "20"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.text("abcéß漢🎉", min_size=1, max_size=4),
            st.text(st.characters(categories=["L", "N", "So"]), min_size=1, max_size=6),
        ),
        min_size=1,
        max_size=6,
        unique_by=lambda pair: pair[0],
    )
)
def test_spans_count_characters_whatever_they_are(pairs: list[tuple[str, str]]) -> None:
    text = "".join(f"{key}: '{value}'\n" for key, value in pairs)
    source = parse(text, "x.yaml")
    for key, value in pairs:
        assert source.data[key] == value
        assert under(source, source.keys[(key,)]) == key
        assert under(source, source.values[(key,)]) == f"'{value}'"


def test_a_flow_map_is_covered_whole_and_a_block_begins_where_it_begins() -> None:
    source = parse("a: {b: 1, c: [2]}\nd:\n  e: 3\nf: 4\n", "x.yaml")
    assert under(source, source.values[("a",)]) == "{b: 1, c: [2]}"
    block = source.values[("d",)]
    assert (block.line, block.col) == (3, 3)
    assert block.start == block.end


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("1_000", 1000),
        ("-3", -3),
        ("0x1f", 31),
        ("1.5", 1.5),
        ("1.0e-3", 0.001),
        ("3e-4", "3e-4"),  # a string, in YAML 1.1
        ("true", True),
        ("no", False),
        ("off", False),
        ("'no'", "no"),
        ("null", None),
        ("~", None),
        ("", None),
        ("2026-01-01", "2026-01-01"),
        ("'1'", "1"),
        (".inf", float("inf")),
        ("!!float '['", "["),
        ("!!int abc", "abc"),
        ("'{{ x }}'", "{{ x }}"),
    ],
)
def test_scalars_are_read_as_yaml_reads_them(text: str, value: object) -> None:
    read_value = parse(f"a: {text}\n", "x.yaml").data["a"]
    assert read_value == value
    assert type(read_value) is type(value)


def test_a_number_of_thousands_of_digits_is_read_as_something() -> None:
    """Python refuses to read it as a whole number: it must not crash here."""
    assert not isinstance(parse("a: " + "9" * 5000, "x.yaml").data["a"], int)


def test_scalars_keep_their_text_and_say_whether_they_were_quoted() -> None:
    source = parse("a: 3e-4\nb: '3e-4'\nc: [no]\n", "x.yaml")
    found = {scalar.path: (scalar.text, scalar.value, scalar.plain) for scalar in source.scalars}
    assert found[("a",)] == ("3e-4", "3e-4", True)
    assert found[("b",)] == ("3e-4", "3e-4", False)
    assert found[("c", 0)] == ("no", False, True)


def test_a_key_that_stands_twice_is_told_and_the_first_counts() -> None:
    source = parse("a:\n  b: 1\n  c: 2\n  b: 3\n", "x.yaml")
    assert source.data == {"a": {"b": 1, "c": 2}}
    (twice,) = source.duplicates
    assert (twice.path, twice.span.line, twice.first.line) == (("a", "b"), 4, 2)


def test_an_alias_is_read_as_what_it_stands_for_and_keeps_a_place() -> None:
    source = parse("a: &x {lr: 1.0}\nb: *x\n", "x.yaml")
    assert source.data["b"] == {"lr": 1.0}
    assert source.keys[("b",)].line == 2
    assert source.values[("b", "lr")].line == 1  # where the number really stands


def test_aliases_can_t_unfold_without_end() -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)
    )
    assert "more than a person could read" in refused(bomb)
    assert "more than a person could read" in refused("a: &x [*x]")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "XC007 `x.yaml` is empty"),
        ("# nothing\n", "XC007 `x.yaml` is empty"),
        ("- 1\n", "XC007 `x.yaml` is not a map"),
        ("word", "XC007 `x.yaml` is not a map"),
        ("a: [1\n", "XC006 this is not YAML"),
        ("a: 'b\n", "XC006 this is not YAML"),
        ("a:\n\tb: 1\n", "XC006 this is not YAML: a tab can't indent YAML"),
        ("a: 1\n---\nb: 2\n", "XC006 this holds a second document"),
        ("a: *b\n", "XC006 this is not YAML: found undefined alias"),
        ("a: \0\n", "XC006 this is not YAML"),
        ("? [a]\n: 1\n", "XC005 a key must be plain text"),
        ("b: {<<: {a: 1}}\n", "XC005 a key must be plain text"),
        ("a: " + "[" * 60 + "]" * 60, "XC006 this spec unfolds"),
        ("[" * 9999, "XC006"),
    ],
)
def test_what_can_t_be_read_is_one_finding(text: str, says: str) -> None:
    assert refused(text).startswith(says)


def test_syntax_errors_stand_where_they_are() -> None:
    with pytest.raises(SpecError) as caught:
        parse("a: 1\nb:\n  - x\n  y: 2\n", "x.yaml")
    assert caught.value.findings[0].span.line == 4


def test_files_that_are_no_specs_are_named(tmp_path: Path) -> None:
    def said(path: Path) -> str:
        with pytest.raises(SpecError) as caught:
            read(path, tmp_path)
        return caught.value.findings[0].message

    (tmp_path / "big.yaml").write_text("a: " + "x" * MAX_BYTES)
    (tmp_path / "latin.yaml").write_bytes("a: é".encode("latin-1"))
    assert said(tmp_path / "gone.yaml") == "there is no file `gone.yaml`"
    assert "is a folder" in said(tmp_path)
    assert "a spec may be 512 KiB" in said(tmp_path / "big.yaml")
    assert said(tmp_path / "latin.yaml") == "`latin.yaml` is not text: byte 3 is not UTF-8"


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    path = tmp_path / "bom.yaml"
    path.write_bytes(b"\xef\xbb\xbfexpc: 1\n")
    assert read(path, tmp_path).data == {"expc": 1}


# ------------------------------------------------------------------------------------------- allows


def allows(text: str) -> list[tuple[str, str | None, int]]:
    source = parse(text, "x.yaml")
    for allow in source.allows:
        assert under(source, allow.span).startswith("# expc: allow")
        assert under(source, allow.name_span) == allow.name
    return [(allow.name, allow.reason, allow.line) for allow in source.allows]


def test_an_allow_covers_its_line() -> None:
    assert allows("a: 1\nb: 2  # expc: allow low-lr -- it is a probe\n") == [
        ("low-lr", "it is a probe", 2)
    ]


@pytest.mark.parametrize(
    "text", ["a: '# expc: allow one -- x'\n", 'a: "1\n  # expc: allow one -- x"\n']
)
def test_quoted_text_allows_nothing(text: str) -> None:
    assert allows(text + "b: 2  # expc: allow two -- y\n") == [("two", "y", text.count("\n") + 1)]


def test_an_allow_that_stands_alone_covers_the_next_line_of_the_spec() -> None:
    text = "# expc: allow one -- because\n# and a word\n\n  # expc: allow two\na: é\n"
    assert allows(text) == [("one", "because", 5), ("two", None, 5)]


def test_an_allow_at_the_end_covers_itself() -> None:
    assert allows("a: 1\n# expc: allow one -- because\n") == [("one", "because", 2)]


def test_an_allow_after_odd_characters_keeps_its_place() -> None:
    assert allows("é🎉: 漢\nb: '🎉' # expc: allow x-y -- ça va\n") == [("x-y", "ça va", 2)]
