"""Plans: which files and runs a sweep makes, what is passed on a command line, and in how much memory."""

from __future__ import annotations

import itertools
import subprocess
import tracemalloc
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from expc import digest
from expc.build import Compiled
from expc.emit.render import _shell
from expc.emit.shell import shell_file, summary
from expc.plan import MAX_MODULES
from expc.runs import records
from expc.sweep import Axis, flag_name, labels

if TYPE_CHECKING:
    from tests.compiler.conftest import Project

BASH = """\
run() {{ printf 'run %s %s\\n' "$1" "$2"; }}
stage() {{ printf 'stage %s\\n' "$*"; }}
skip() {{ printf 'skip %s|%s\\n' "$1" "$2"; }}
{script}
runs
"""


def script(made: Compiled) -> str:
    """The part of a sweep script that says what runs."""
    text: str = _shell().render(s=shell_file(made.plan, "generated/it"))
    seeds = next(line for line in text.splitlines() if line.startswith("seeds="))
    return seeds + "\n" + text[text.index("runs() {") : text.index("runner=$(")]


def walked(made: Compiled) -> list[str]:
    """What bash does with it."""
    told = subprocess.run(
        ["bash", "--norc", "-euo", "pipefail", "-c", BASH.format(script=script(made))],
        check=True, capture_output=True, text=True, cwd="/",
    )  # fmt: skip
    return told.stdout.splitlines()


def runs(made: Compiled) -> list[str]:
    lines = [line.removeprefix("run ") for line in walked(made) if line.startswith("run ")]
    assert len(lines) == len(set(lines)) == made.plan.runs
    return lines


def files(made: Compiled) -> list[str]:
    return [module.file for module in made.plan.modules]


# ---------------------------------------------------------------------------------------- axes and runs


def test_without_a_sweep_there_is_one_run(project: Project) -> None:
    made = project.compile()
    assert walked(made) == ["run  0", "stage read read.py -- --seed 0"]
    assert files(made) == ["read.py"]


def test_a_grid_is_every_combination(project: Project) -> None:
    made = project.compile(
        project.swept(
            "seeds: [3, 4]\ngrid:\n  read.optim.lr: [0.1, 0.2]\n  read.data.batch: [8, 16]"
        )
    )
    wanted = [
        f"lr={lr},batch={batch} {seed}"
        for lr, batch, seed in itertools.product((0.1, 0.2), (8, 16), (3, 4))
    ]
    assert runs(made) == wanted
    assert "stage read read.py -- --batch 8 --lr 0.1 --seed 3" in walked(made)


def test_zip_takes_values_side_by_side(project: Project) -> None:
    made = project.compile(
        project.swept("zip:\n  read.optim.lr: [0.1, 0.2]\n  read.data.batch: [8, 16]")
    )
    assert runs(made) == ["lr=0.1,batch=8 0", "lr=0.2,batch=16 0"]


def test_values_are_passed_as_the_field_holds_them(project: Project) -> None:
    made = project.compile(project.swept("grid: {read.optim.lr: [1, 0.5]}"))
    assert runs(made) == ["lr=1.0 0", "lr=0.5 0"]


@pytest.mark.parametrize(
    ("exclude", "left"),
    [
        ("{read.optim.lr: 0.1}", ["lr=0.2,batch=8", "lr=0.2,batch=16"]),
        ("{read.optim.lr: 0.1, read.data.batch: 8}", ["lr=0.1,batch=16", "lr=0.2,batch=8", "lr=0.2,batch=16"]),
        ("{read.optim.lr: 1}", ["lr=0.1,batch=8", "lr=0.1,batch=16", "lr=0.2,batch=8", "lr=0.2,batch=16"]),
        ("{read.optim.lr: 0.1, read.accumulate: 2}", ["lr=0.1,batch=8", "lr=0.1,batch=16", "lr=0.2,batch=8", "lr=0.2,batch=16"]),
        ("{read.optim.lr: 0.1, read.accumulate: 1}", ["lr=0.2,batch=8", "lr=0.2,batch=16"]),
        ("{condition: other}", ["lr=0.1,batch=8", "lr=0.1,batch=16", "lr=0.2,batch=8", "lr=0.2,batch=16"]),
    ],
)  # fmt: skip
def test_exclusions_leave_out_what_they_name_and_nothing_else(
    project: Project, exclude: str, left: list[str]
) -> None:
    made = project.compile(
        project.swept(
            f"grid:\n  read.optim.lr: [0.1, 0.2]\n  read.data.batch: [8, 16]\nexclude: [{exclude}]"
        )
    )
    assert runs(made) == [f"{label} 0" for label in left]


def test_exclusions_reach_structural_axes_and_conditions(project: Project) -> None:
    made = project.compile(
        project.swept(
            "conditions: {plain: {}, clipped: {read.clip: 1.0}}\n"
            "grid: {read.loss.loop.use: [bce, mse], read.optim.lr: [0.1, 0.2]}\n"
            "exclude:\n"
            "  - {condition: clipped, read.loss.loop.use: mse}\n"
            "  - {condition: plain, read.loss.loop.use: bce, read.optim.lr: 0.2}"
        )
    )
    assert runs(made) == [
        "plain,loop=bce,lr=0.1 0",
        "plain,loop=mse,lr=0.1 0",
        "plain,loop=mse,lr=0.2 0",
        "clipped,loop=bce,lr=0.1 0",
        "clipped,loop=bce,lr=0.2 0",
    ]


def test_an_excluded_choice_makes_no_file_and_need_not_fit(project: Project) -> None:
    """`bce` on probabilities is the reason for leaving that corner out."""
    made = project.compile(
        project.swept(
            "grid: {read.heads.loop.gives: [logits, prob], read.loss.loop.use: [bce, mse]}\n"
            "exclude: [{read.heads.loop.gives: prob, read.loss.loop.use: bce}]"
        )
    )
    assert files(made) == ["read_logits_bce.py", "read_logits_mse.py", "read_prob_mse.py"]
    assert summary(made.plan) == "3 runs: 2 gives x 2 loop, less 1 excluded"


@pytest.mark.parametrize(("batch", "count"), [("32", 3), ("32.0", 3), ("true", 4)])
def test_an_exclusion_means_a_number_however_it_is_written(
    project: Project, batch: str, count: int
) -> None:
    made = project.compile(
        project.swept(
            "grid: {read.data.batch: [1, 32], read.optim.lr: [0.1, 1]}\n"
            f"exclude: [{{read.data.batch: {batch}, read.optim.lr: 1}}]"
        )
    )
    assert len(runs(made)) == count


@pytest.mark.parametrize("axis", ["read.optim.lr: [0.1]", "read.optim.use: [adam]"])
def test_exclusions_that_leave_nothing_are_told(project: Project, axis: str) -> None:
    excluded = axis.replace("[", "").replace("]", "")
    (finding,) = project.findings(project.swept(f"grid: {{{axis}}}\nexclude: [{{{excluded}}}]"))
    assert finding.message == "the exclusions leave out every run"


def test_an_axis_reaches_into_what_a_condition_put_there(project: Project) -> None:
    """The condition's optimizer writes no rate: the axis does."""
    made = project.compile(
        project.swept(
            "conditions: {as_is: {}, plain: {read.optim: {use: sgd}}}\n"
            "grid: {read.optim.lr: [0.1, 0.2]}"
        )
    )
    stages = [line for line in walked(made) if line.startswith("stage")]
    assert stages == [
        f"stage read read_{use}.py -- --lr {lr} --seed 0"
        for use in ("adamw", "sgd")
        for lr in (0.1, 0.2)
    ]


@pytest.mark.parametrize("dropout", ["", ", dropout: 0.3"])
def test_an_axis_over_a_shared_part_reaches_every_stage_that_takes_it(
    project: Project, dropout: str
) -> None:
    stage = project.text[project.text.index("  read:") :]
    project.text += stage.replace("  read:\n", "  later:\n")
    project.text += stage.replace("  read:\n", "  own:\n    model: {backbone: {dropout: 0.5}}\n")
    project.text = project.changed("channels: [4, 8]}", f"channels: [4, 8]{dropout}}}")
    made = project.compile(project.swept("grid: {model.backbone.dropout: [0.1, 0.2]}"))
    assert walked(made)[4:] == [
        "run dropout=0.2 0",
        "stage read read.py -- --backbone-dropout 0.2 --seed 0",
        "stage later later.py -- --backbone-dropout 0.2 --seed 0",
        "stage own own.py -- --seed 0",
    ]


def test_conditions_override_and_skip(project: Project) -> None:
    text = project.text + project.text[project.text.index("  read:") :].replace(
        "  read:\n", "  later:\n    init: {backbone: {from: read}}\n"
    )
    project.text = text
    made = project.compile(
        project.swept("conditions: {both: {}, cold: {read: skip, later.init: {}, later.clip: 2.0}}")
    )
    assert walked(made) == [
        "run both 0",
        "stage read read.py -- --seed 0",
        "stage later later_both.py --after read -- --seed 0",
        "run cold 0",
        "skip read|condition cold skips it",
        "stage later later_cold.py -- --seed 0",
    ]


def test_stages_run_after_those_they_start_from(project: Project) -> None:
    stage = project.text[project.text.index("  read:") :]
    text = project.text.replace("  read:\n", "  read:\n    init: {backbone: {from: later}}\n")
    project.text = text + stage.replace("  read:\n", "  later:\n")
    assert project.compile().plan.stages == ("later", "read")


def test_stages_that_wait_for_each_other_are_told(project: Project) -> None:
    stage = project.text[project.text.index("  read:") :]
    text = project.text.replace("  read:\n", "  read:\n    init: {backbone: {from: later}}\n")
    text += stage.replace("  read:\n", "  later:\n    init: {backbone: {from: read}}\n")
    (finding,) = project.findings(text)
    assert finding.code == "XC202"
    assert finding.message == "stages wait for each other: `read` -> `later` -> `read`"


# ------------------------------------------------------------------------------------------------ flags


def test_flags_are_passed_only_where_a_run_differs_from_its_file(project: Project) -> None:
    made = project.compile(
        project.swept(
            "conditions:\n  as_is: {}\n  wide: {model.backbone.channels: [8, 16]}\n"
            "  held: {read.loss.loop.weight: 2}"
        )
    )
    assert files(made) == ["read.py"]
    stages = [line for line in walked(made) if line.startswith("stage")]
    assert stages == [
        "stage read read.py -- --seed 0",
        "stage read read.py -- --backbone-channels 8,16 --seed 0",
        "stage read read.py -- --loop-weight 2.0 --seed 0",
    ]


def test_what_no_shell_word_can_say_spans_variants_and_shares_a_file(project: Project) -> None:
    made = project.compile(
        project.swept(
            "grid: {model.backbone.channels: [[4, 8], [8, 16]], read.data.drop_last: [true, false]}"
        )
    )
    assert files(made) == ["read.py"]
    stages = [line for line in walked(made) if line.startswith("stage")]
    assert stages == [
        "stage read read.py -- --seed 0",
        "stage read read.py -- --no-drop-last --seed 0",
        "stage read read.py -- --backbone-channels 8,16 --seed 0",
        "stage read read.py -- --no-drop-last --backbone-channels 8,16 --seed 0",
    ]
    assert runs(made)[0] == "channels=4-8,drop_last=true 0"


def test_a_swept_default_becomes_a_flag(project: Project) -> None:
    made = project.compile(project.swept("grid: {read.optim.eps: [1.0e-8, 1.0e-6]}"))
    (module,) = made.plan.modules
    assert {flag.field for flag in module.program.flags if flag.swept} == {"eps"}
    assert runs(made) == ["eps=1e-08 0", "eps=1e-06 0"]


# ------------------------------------------------------------------------------------------------ labels


@pytest.mark.parametrize(
    ("paths", "wanted"),
    [
        (["read.optim.lr"], ["lr"]),
        (["read.loss.loop.use"], ["loop"]),
        (["a.optim.lr", "b.optim.lr"], ["a_optim_lr", "b_optim_lr"]),
        (["a.optim.lr", "b.loss.lr", "c.clip"], ["optim_lr", "loss_lr", "clip"]),
        (["read.data.split.seed"], ["split_seed"]),
        (["read.data.row"], ["data_row"]),
        (["read.data.folder"], ["data_folder"]),
        (["read.data.UID", "read.data.N"], ["data_UID", "N"]),
        (["read.optim.betas.0"], ["_0"]),
        (["read.x.$(touch y)"], ["_touch_y_"]),
    ],
)
def test_labels_are_short_and_one_for_each_path(paths: list[str], wanted: list[str]) -> None:
    made = labels([Axis("grid", (path,), (), ()) for path in paths])
    assert [made[path] for path in paths] == wanted


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ("[{use: conv_net, channels: [4]}, {use: conv_net, channels: [8]}]", ["conv_net-channels-4", "conv_net-channels-8"]),
        ("[{use: conv_net}, {use: mlp, in_features: 64}]", ["conv_net", "mlp"]),
        ("[{a: 1}, {b: 1}]", ["a-1", "b-1"]),
        ("[a/b, a-b, c]", ["a-b-f5effa", "a-b-4a3ef9", "c"]),
        ("[null, none]", ["none-74234e", "none-30a092"]),
        ("[[-1, 1], [1, 1]]", ["-1-1", "1-1"]),
        ("[1, 1.0]", ["1", "1.0"]),
    ],
)  # fmt: skip
def test_different_values_have_different_words(values: str, words: list[str]) -> None:
    rows = tuple((value,) for value in yaml.safe_load(values))
    assert [word for (word,) in Axis("grid", ("read.x",), rows, ()).words] == words


def test_a_word_fits_into_a_folder_s_name() -> None:
    (word,), (other,) = Axis("grid", ("x",), (("a" * 300,), ("a" * 299,)), ()).words
    assert word != other and len(word) < 64


def test_a_swept_split_seed_is_not_the_run_s_seed(project: Project) -> None:
    made = project.compile(project.swept("seeds: [5, 6]\ngrid: {read.data.split.seed: [1, 2]}"))
    assert [line for line in walked(made) if line.startswith("stage")] == [
        f"stage read read.py -- --split-seed {split} --seed {seed}"
        for split in (1, 2)
        for seed in (5, 6)
    ]


# --------------------------------------------------------------------------------------------- structure


def test_equal_programs_share_one_file(project: Project) -> None:
    made = project.compile(
        project.swept(
            "conditions: {one: {read.clip: 1.0}, other: {read.clip: 2.0}, none_at_all: {}}"
        )
    )
    assert files(made) == ["read_one.py", "read_none_at_all.py"]
    structures = [digest.structure(module.program) for module in made.plan.modules]
    assert len(set(structures)) == 2


def test_a_choice_of_component_is_a_file_named_by_it(project: Project) -> None:
    made = project.compile(
        project.swept(
            "grid: {read.loss.loop.use: [bce, mse], read.optim: [{use: sgd}, {use: adam}]}"
        )
    )
    assert files(made) == [
        "read_bce_sgd.py", "read_bce_adam.py", "read_mse_sgd.py", "read_mse_adam.py",
    ]  # fmt: skip


def test_names_of_files_do_not_depend_on_what_else_is_swept(project: Project) -> None:
    alone = project.compile(project.swept("grid: {read.loss.loop.use: [bce, mse]}"))
    beside = project.compile(
        project.swept("grid: {read.loss.loop.use: [bce, mse], read.optim.lr: [0.1, 0.2]}")
    )
    assert files(alone) == files(beside) == ["read_bce.py", "read_mse.py"]


def test_an_axis_that_only_a_variant_reads_is_structural(project: Project) -> None:
    """`decay` is looked at under an optimizer that decays: the split is found by going on until it is stable."""
    made = project.compile(
        project.swept("grid: {read.optim.decay: [weights, all], read.optim.lr: [0.1, 0.2]}")
    )
    assert [axis.paths for axis in made.space.structural] == [("read.optim.decay",)]
    assert [axis.paths for axis in made.space.loops] == [("read.optim.lr",)]
    assert files(made) == ["read_weights.py", "read_all.py"]


def test_a_structural_path_is_never_a_loop(project: Project) -> None:
    made = project.compile(
        project.swept(
            "grid: {read.monitor: [{best: accuracy}, {best: brier}], read.clip: [1.0, 2.0]}"
        )
    )
    read = set().union(
        *(program.structural for v in made.space.variants for program in v.programs.values())
    )
    for axis in made.space.loops:
        for path in axis.places(made.experiment):
            assert not any(path[: len(seen)] == seen for seen in read)


def test_two_stages_never_share_a_file_s_name(project: Project) -> None:
    stage = project.text[project.text.index("  read:") :]
    project.text += stage.replace("  read:\n", "  read_mse:\n")
    made = project.compile(project.swept("grid: {read.loss.loop.use: [bce, mse]}"))
    assert len(files(made)) == len(set(files(made))) == 3


def test_a_sweep_that_forks_too_often_is_refused_before_it_is_spread_out(project: Project) -> None:
    rows = ", ".join(f"[{n}, {n}]" for n in range(1, 200))
    axes = (
        f"model.backbone.channels: [{rows}], read.optim.betas: [{', '.join(['[0.9, 0.9]'] * 199)}]"
    )
    found = project.findings(project.swept(f"grid: {{{axes}, read.loss.loop.use: [bce, mse]}}"))
    assert any(finding.code == "XC503" for finding in found)
    assert MAX_MODULES <= 100


# ------------------------------------------------------------------------------------------------- size


def test_a_million_runs_are_planned_in_bounded_memory(project: Project) -> None:
    def grid(n: int) -> str:
        def numbers(scale: float) -> str:
            return ", ".join(f"{scale * (i + 1):.6f}" for i in range(n))

        return project.swept(
            f"seeds: [0]\ngrid:\n  read.optim.lr: [{numbers(1e-5)}]\n"
            f"  read.optim.weight_decay: [{numbers(1e-4)}]\n  read.clip: [{numbers(1e-2)}]"
        )

    project.compile(grid(2))
    tracemalloc.start()
    try:
        made = project.compile(grid(100))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert made.plan.runs == 1_000_000
    assert peak < 50 * 2**20
    assert len(made.space.variants) == 1
    assert len(script(made)) < 20_000
    assert made.plan.axes == ("100 lr", "100 weight_decay", "100 clip")


def test_the_plan_s_text_grows_with_the_axes_and_not_with_their_product(project: Project) -> None:
    def size(n: int) -> int:
        values = ", ".join(str(i + 1) for i in range(n))
        grid = f"grid: {{read.optim.lr: [{values}], read.clip: [{values}], read.accumulate: [{values}]}}"
        return len(script(project.compile(project.swept(grid))))

    assert size(40) < 4 * size(10)


def test_shell_is_free_of_the_project_s_place(project: Project, tmp_path: Path) -> None:
    assert str(tmp_path) not in script(project.compile())


# ------------------------------------------------------------------------------------------- own arguments

OWN = """\
class Net:
    def __init__(self, shift: float = 0.0, scale=1, sizes=(1, 2), gain: "float | None" = None,
                 copy: bool = False, model_config: int = 1, _state: int = 0) -> None: ...
    def forward(self, image): ...
class Open:
    def __init__(self, **options) -> None: ...
    def forward(self, image): ...
class Rows:
    columns = {"image": "features", "digit": "class", "loop": "prob"}
    def __init__(self, split_val: float = 0.5, float: int = 1, seed: int = 3) -> None: ...
    def tensors(self): ...
class Head:
    def __init__(self, out: int) -> None: ...
"""


@pytest.fixture
def own(project: Project) -> Project:
    """The spec with a net of the user's own."""
    project.write("lab.py", OWN)
    project.text = project.changed("{use: conv_net, channels: [4, 8]}", "{use: 'lab:Net'}")
    return project


def test_a_value_that_looks_like_a_flag_is_joined_to_its_own(own: Project) -> None:
    made = own.compile(
        own.swept(
            "conditions: {a: {model.backbone.sizes: [3]}, b: {model.backbone.sizes: [-1, 2]}}\n"
            "grid: {model.backbone.shift: [-1.0e-5, 2]}"
        )
    )
    first, _, second, _ = [line for line in walked(made) if line.startswith("stage")]
    assert first == "stage read read.py -- --backbone-shift=-1e-05 --seed 0"
    assert second == "stage read read.py -- --backbone-sizes=-1,2 --backbone-shift=-1e-05 --seed 0"
    assert (
        "--backbone-shift=-1e-05 --seed 2"
        in own.render(own.swept("grid: {model.backbone.shift: [-1.0e-5, 2]}")).files["read.py"]
    )


@pytest.mark.parametrize(
    ("axis", "wanted"),
    [
        ("model.backbone.scale: [1, 1.5, 2]", ["read_1.py", "read_1_5.py"]),
        ("model.backbone.scale: [1, 2]", ["read.py"]),
        ("model.backbone.gain: [1, 1.5]", ["read.py"]),
        ("model.backbone.sizes: [[1, 2], [1.5]]", ["read_1_2.py", "read_1_5.py"]),
    ],
)
def test_a_flag_reads_one_type(own: Project, axis: str, wanted: list[str]) -> None:
    """Where no type is declared, values of two types are two programs."""
    made = own.compile(own.swept(f"grid: {{{axis}}}"))
    assert files(made) == wanted
    for words in records(made.plan):
        if words[0] == "stage":
            module = next(m for m in made.plan.modules if m.file == words[2])
            fields = {flag_name(flag): flag.default for flag in module.program.flags}
            for flag, text in itertools.pairwise(words):
                if isinstance(fields.get(flag), int | float):
                    type(fields[flag])(text)  # type: ignore[call-overload]


def test_fields_never_share_a_name_nor_hide_a_type(own: Project) -> None:
    text = own.text.replace("use: digits,", "use: 'lab:Rows', split_val: 0.3, float: 2, seed: 4,")
    (module,) = own.compile(text).plan.modules
    fields = [flag.field for flag in module.program.flags]
    assert len(set(fields)) == len(fields)
    assert not {"float", "seed"} & set(fields)


def test_names_that_the_validator_uses_are_ordinary_arguments(own: Project) -> None:
    text = own.text.replace("'lab:Net'", "'lab:Net', copy: true")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (module,) = own.compile(text).plan.modules
    assert "backbone_copy" in {flag.field for flag in module.program.flags}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("'lab:Net'", "'lab:Open', foo-bar: 1", "`foo-bar` is not a name"),
        ("'lab:Net'", "'lab:Open', lambda: 1", "`lambda` is a word of Python"),
        ("'lab:Net'", "'lab:Net', shift: .inf", "`shift` takes a finite number, not `inf`"),
        ("'lab:Net'", "'lab:Net', scale: .nan", "`scale` takes a finite number"),
        ("'lab:Net'", "'lab:Net', sizes: [1, .inf]", "`sizes` takes a finite number"),
        ("linear_head, out: 10", "'lab:Head', out: 10", "`lab:Head` takes no `in_features`, the width of what the head reads"),
    ],
)  # fmt: skip
def test_what_can_t_be_printed_is_told(own: Project, old: str, new: str, message: str) -> None:
    (finding,) = own.findings(own.text.replace(old, new))
    assert finding.message == message


def test_a_class_of_one_s_own_may_be_called_path(own: Project) -> None:
    own.write("lab.py", OWN.replace("class Net", "class Path"))
    text = own.text.replace("lab:Net", "lab:Path")
    printed = own.render(text).files["read.py"]
    assert "from pathlib import Path" in printed
    assert "self.backbone = lab.Path()" in printed
