"""One word per thing, docstrings that begin with a verb, and names of tests that fit in a line."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = [
    path
    for name in subprocess.run(
        ["git", "ls-files", "*.py"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    if (path := ROOT / name).exists()
]
LONGEST_NAME = 80

# --- the list
VERBS = frozenset(
    re.findall(
        r"[\w-]+",
        """
        abort accept act add adopt aim allow announce answer append apply arrange ask assemble assert assign
        attend augment average begin bound bring build call cancel carry centre change charge check choose claim
        clear close cluster collect come compare compile complain complete compute configure connect consume
        convert copy corrupt count cover create crop cut damage deal decide declare decode decompress delete
        deliver demote deploy derive describe do download draw drop dump embed encode end escape estimate
        evaluate exchange exit expand expect explain export extract fail fetch fill filter find finish fit flag
        flatten flip float flush follow forbid forget format forward free gather get give go group guess halve
        hand hash have hear help hide hold ignore imagine imitate import index initialise insert interleave
        interpolate introduce join judge jump keep kill know label launch lead learn leave let like limit link
        list listen load lock log look make map mark mask match measure mend merge miss mix move multiply name
        normalise note number observe offer omit open order pair parse pass patch pause pay pick place plan plot
        point pool pop pre-train predict prefetch prepare press pretend print produce project promise propose
        protect prove provide publish pull push put quantise quit raise rank read rebuild receive record reduce
        refine refuse register reject release reload remember remind remove rename render repeat replace report
        reproduce request require rescale reset resize resolve restart restore restrict resume retry return
        revive rewind root round run sample save say scale scan scatter schedule score seal search see seed
        segment select send serve set share shift show shrink shuffle shut sign silence simulate sit skip sleep
        slice slide smooth snap solve sort sound spell split spoil spread stack stand standardise start state
        stay step stop store stream stretch strip style subtract suggest sum supply suppress swap switch take
        teach tell terminate test time tokenize top touch trace track train transform translate try turn unwrap
        update upload use validate verify visit wait walk warn wash watch weigh widen work wrap write yield
        """,
    )
)

NOUNS = re.compile(
    r"(Call|Change|Copy|Count|Cut|Group|Index|Label|List|Look|Mask|Measure|Name|Number|Order|Pair|Part|Place|Plan"
    r"|Point|Position|Range|Root|Run|Sample|Score|Set|Share|Sort|Start|State|Step|Sum|Time|Top|Value|Work) of\b"
    r"|Names\b|Step and"
)


def begins_with_verb(docstring: str) -> bool:
    """Tell whether a docstring begins with a verb: `Build it`, `Builds it`; `Share of`, `Count of` are nouns."""
    word = re.split(r"[\s,;:.]", docstring.lstrip(), maxsplit=1)[0].lower()
    if not docstring[:1].isupper() or NOUNS.match(docstring):
        return False
    forms = [word, word.removesuffix("s"), word.removesuffix("es"), f"{word.removesuffix('ies')}y"]
    return any(form in VERBS for form in forms)


# --- end of the list


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield the functions of a file that do something: no test, property, fixture or preset."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            decorators = [ast.unparse(one) for one in node.decorator_list]
            is_thing = any("property" in one or "fixture" in one for one in decorators) or "presets" in path.as_posix()
            if not is_thing and not node.name.startswith("test_"):
                yield node


def test_docstrings_of_functions_begin_with_a_verb() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {docstring.splitlines()[0]}"
        for path in FILES
        for node in functions(path)
        if (docstring := ast.get_docstring(node)) and not begins_with_verb(docstring)
    ]
    assert not found, "\n".join(found)


def test_names_of_tests_have_at_most_80_characters() -> None:
    names = [name for path in FILES for name in re.findall(r"^ *def (test_\w+)", path.read_text(), re.MULTILINE)]
    assert len(names) > 500
    assert not [name for name in names if len(name) > LONGEST_NAME]


@pytest.mark.parametrize(
    ("word", "instead"),
    [
        ("UnitFolder|UnitJob|MapUnits|map_units|images_per_unit(?!['=])", "shard"),
        ("two_stream_visibility|visibility|visible_rows|count_targets", "attention mask, context, predicted"),
        ("S,? S", "side: S are the rows that are attended to"),
        ("wiring", "graph or chain"),
        (r"engine[./](console|preflight|outbox|openmp)|Outbox", "logs, disk_space, retry_queue, threads"),
        ("_Told|_told|_the_very|may_heal|units_elsewhere|build_elsewhere|at_hand", "what a newcomer would search for"),
    ],
)
def test_a_thing_has_one_word(word: str, instead: str) -> None:
    texts = {path: path.read_text(encoding="utf-8") for path in FILES if path != Path(__file__)}
    found = [str(path.relative_to(ROOT)) for path, text in texts.items() if re.search(rf"\b({word})\b", text)]
    assert not found, f"say {instead}"
