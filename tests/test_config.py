"""conf/: every file composes and builds, every mistake is explained, nothing is shared."""

import contextlib
import inspect
import itertools
import shutil
import warnings

import pytest
import torch

import cli.folders
import cli.room
from cli.building import bound, build, build_callbacks
from cli.composition import Composition, compose_config
from cli.folders import CONF, groups
from cli.launch import run_dir
from cli.main import exit_code_and_line
from cli.rows import rows
from cli.stored import check_resume, recompose
from fwlight.errors import CheckpointError, ConfigError
from fwlight.mixers import FastWeights, KeyValues
from fwlight.models import AdaptiveSoftmax, DecoderLM
from fwlight.run import strategy

OPTIONS = [
    (group, option)
    for group, options in groups().items()
    for option in options
    if group != "action"  # of which every file is composed
]
ROWS = rows()
MODELS = groups()["model"]
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "SLURM_STEP_NUM_TASKS")


def network(*arguments: str, vocab_size: int = 40) -> DecoderLM:
    torch.manual_seed(0)
    config = compose_config(["size=tiny", *arguments]).config
    return build("network", config["network"], vocab_size=vocab_size)


def fails(*arguments: str) -> str:
    with pytest.raises(ConfigError) as caught:
        compose_config(arguments)
    code, line = exit_code_and_line(caught.value)
    assert (code, len(line.splitlines())) == (2, 1)
    return line


# Every file


def test_config_groups_are_every_yaml_file():
    listed = {CONF / group / f"{x}.yaml" for group, options in groups().items() for x in options}
    others = {path for path in CONF.rglob("*.yaml") if path not in listed}
    bases = {
        "_fast_weight.yaml",
        "_fwm_lstm.yaml",
        "_network.yaml",
        "_any.yaml",
        "_lm_mini.yaml",
        "_lm_wt103.yaml",
        "_fwm_lm.yaml",
    }
    assert {path.name for path in others} == {"config.yaml", "_same.yaml", "_none.yaml", *bases}
    assert {"task", "model", "size", "optimizer", "trainer", "callbacks", "logger"} <= set(groups())


EVERY = [
    (group, option, row)
    for group, option in OPTIONS
    for row in (ROWS.get(option, [None]) if group == "experiment" else [None])
]


@pytest.mark.parametrize(("group", "option", "row"), EVERY, ids=str)
def test_config_every_option_builds(group: str, option: str, row: str | None, tmp_path):
    needed = ["task=retrieval"] if (group, option) == ("size", "retrieval") else []
    needed += ["task=image"] * (group == "network") + ["model=softmax"] * (group == "model/kernel")
    if option.startswith("lm_wt103"):
        for split in ("train", "valid", "test"):
            (tmp_path / f"wiki.{split}.tokens").touch()
        needed = [f"task.path={tmp_path}"]
    needed += [f"row={row}"] * (row is not None)
    composition = compose_config([*needed, f"{group}={option}"])
    config = composition.config
    assert composition.choices[group] == option
    assert build("task", config["task"]) is not None
    retrieval = config["network"]["_target_"].endswith("Retriever")
    large = config["model"].get("output") == "adaptive"
    sizes = {"n_keys": 40} if retrieval else {"vocab_size": 267_735 if large else 40}
    if config["network"]["_target_"].endswith("EncoderDecoder"):
        sizes["pad_id"] = 0
    if config["network"]["_target_"].endswith("ActorCritic"):
        sizes = {"n_inputs": 17, "n_actions": 3}
    if "network" in composition.choices:
        sizes = {"n_classes": 10, "shape": (1, 8, 8)}
    with torch.device("meta" if large else "cpu"):
        model = build("network", config["network"], **sizes)
    module = build("module", config["module"], model)
    assert module.network is model
    chosen = [node for node in config["callbacks"].values() if node is not None]
    assert len(build_callbacks(config)) == len(chosen) - 1
    if config["trainer"]["accelerator"] == "gpu" and not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="trainer: "):
            build("trainer", config["trainer"], logger=False)
    else:
        parts = {"logger": False, "strategy": strategy(config["trainer"], timeout=60.0)}
        trainer = build("trainer", config["trainer"], **parts)
        assert trainer.max_steps == config["trainer"]["max_steps"]


# Rows of tables


def test_a_row_is_its_keys_and_the_command_line_goes_last():
    row = ("experiment=lm_wt103_small", "row=performer_m16", "task.path=FOLDER")
    composition = compose_config(row)
    assert composition.choices["model"] == "performer"
    assert composition.config["model"]["feature_map"]["num_features"] == 16
    assert composition.config["row"] == "performer_m16"
    other = compose_config([*row, "model.feature_map.num_features=4"])
    assert other.config["model"]["feature_map"]["num_features"] == 4
    assert recompose(other.record(), []).config == other.config


def test_an_experiment_with_rows_takes_a_model_of_ones_own_instead():
    composition = compose_config(["experiment=translation_wmt14", "model=retnet"])
    assert (composition.choices["model"], composition.config["row"]) == ("retnet", None)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["experiment=lm_wt103_small"], "needs row=NAME"),
        (["experiment=lm_wt103_small", "row=linaer"], "did you mean linear?"),
        (["experiment=demo", "row=linear"], "experiment=demo has no rows"),
        (["row=linear"], "rows of which experiment? They are in catbabi, code_execution"),
        (
            ["experiment=lm_wt103_medium_full_context_linear"],
            "is now experiment=lm_wt103_medium row=full_context_linear",
        ),
    ],
)
def test_what_is_no_row_is_told(arguments, told):
    assert told in fails(*arguments)


def test_a_checkpoint_of_an_experiment_of_one_row_is_read_on():
    arguments = ["experiment=lm_wt103_small", "row=linear", "task.path=FOLDER"]
    record = compose_config(arguments).record()
    record["choices"]["experiment"] += "_linear"
    record["overrides"].remove("row=linear")
    now = recompose(record, [])
    assert (now.choices["experiment"], now.config["row"]) == ("lm_wt103_small", "linear")


# Actions


@pytest.mark.parametrize("action", groups()["action"])
def test_config_every_action_names_a_function_that_takes_its_keys(action: str):
    needed = [] if action == "fit" else ["ckpt=a, ${x}", "prompt=b=${y}"]
    composition = compose_config([f"action={action}", *needed])
    assert composition.config["action"] == action
    assert "action" not in composition.choices
    bound_action = bound(composition.config[action])
    inspect.signature(bound_action).bind_partial()
    assert inspect.isfunction(bound_action.func)
    if action == "generate":
        assert bound_action.keywords["prompt"] == "b=${y}"


@pytest.mark.parametrize("text", ["_target_: x.y\n", "# @package other\n_target_: x.y\n"])
def test_config_action_of_ones_own_that_fills_no_section_is_one_line(own_conf, text):
    own_conf("action/mine.yaml", text)
    assert "conf/action/mine.yaml" in fails("action=mine", "ckpt=x")


@pytest.mark.parametrize(
    ("option", "rule"),
    [
        pytest.param(x, y, marks=() if y == "delta" or x == "dpfp" else pytest.mark.full)
        for x in groups()["model/feature_map"]
        for y in groups()["model/update_rule"]
    ],
)
def test_config_every_map_runs_under_every_rule(option: str, rule: str):
    model = network(f"model/feature_map={option}", f"model/update_rule={rule}")
    logits, _ = model(torch.arange(10)[None])
    assert logits.shape == (1, 10, 40)


# Named models

TABLE = {
    # model: feature map, key_norm, update rule, read_norm, out_norm, short_conv
    "linear": ("EluFeatureMap", "none", "sum_rule", "output", "Identity", 0),
    "performer": ("FAVORFeatureMap", "none", "sum_rule", "output", "Identity", 0),
    "sum_dpfp": ("DPFPFeatureMap", "none", "sum_rule", "output", "Identity", 0),
    "delta_linear": ("EluFeatureMap", "sum", "delta_rule", "none", "Identity", 0),
    "delta_performer": ("FAVORFeatureMap", "sum", "delta_rule", "none", "Identity", 0),
    "delta_dpfp": ("DPFPFeatureMap", "sum", "delta_rule", "none", "Identity", 0),
    "fwm": ("TanhFeatureMap", "none", "fwm_rule", "none", "LayerNorm", 0),
    "deltanet": ("SiLUFeatureMap", "l2", "delta_rule", "none", "RMSNorm", 4),
}


def test_config_named_models_are_the_papers():
    assert {*TABLE, "softmax"} <= set(MODELS)
    for name, row in TABLE.items():
        attention = network(f"model={name}").blocks[0].attention
        memory = attention.memory
        assert isinstance(memory, FastWeights)
        rule, conv = memory.update_rule.func.__name__, attention.short_conv
        slots = (type(memory.feature_map).__name__, memory.key_norm, rule, memory.read_norm)
        assert (*slots, type(memory.out_norm).__name__, conv.width if conv else 0) == row
        assert (memory.output_scale, memory.gates.rows) == (1.0, 2 * memory.has_beta)
    assert isinstance(network("model=softmax").blocks[0].attention.memory, KeyValues)


def test_config_dpfp_and_favor_have_as_many_features():
    # Schlag et al. 2021b, table 5: d_dot = 2 d_head for both
    for model in ("delta_dpfp", "delta_performer"):
        assert network(f"model={model}").blocks[0].attention.memory.d_dot == 32


def test_config_size_that_lacks_a_width_says_so():
    assert (
        fails("size=retrieval")
        == "error: size=retrieval has no d_model, which network.d_model needs"
    )


def test_config_slots_reach_the_memory():
    model = network(
        "model/feature_map=favor_lm",
        "model/update_rule=fwm",
        "model.key_norm=l2",
        "model.read_norm=output",
        "model.out_norm=layernorm",
        "model.output_scale=0.25",
        "model.beta_max=2",
        "model.short_conv=3",
        "model.read_eps=1e-3",
        "model.feature_map.num_features=5",
        "model.norm=pre",
        "model.positions=none",
    )
    attention = model.blocks[1].attention
    memory = attention.memory
    assert memory.update_rule.func.__name__ == "fwm_rule"
    assert (memory.key_norm, memory.read_norm, memory.output_scale) == ("l2", "output", 0.25)
    assert (memory.read_eps, memory.gates[0].maximum, memory.d_dot) == (1e-3, 2, 10)
    assert isinstance(memory.out_norm, torch.nn.LayerNorm)
    assert attention.short_conv.width == 3
    conv = network("model=softmax", "model.short_conv=2").blocks[0].attention.short_conv
    assert conv.width == 2
    assert (memory.feature_map.orthogonal, memory.feature_map.redraw) == ("inputs", "training")
    assert model.positions is None
    assert isinstance(model.final_norm, torch.nn.LayerNorm)


@pytest.mark.parametrize(("group", "option"), [o for o in OPTIONS if o[0].startswith("model")])
def test_config_layers_share_nothing(group: str, option: str):
    of = ["model=softmax"] * (group == "model/kernel")
    model = network(*of, f"{group}={option}")
    for first, second in itertools.combinations(model.blocks, 2):
        assert not {id(m) for m in first.modules()} & {id(m) for m in second.modules()}
        pointers = [
            {t.untyped_storage().data_ptr() for t in (*block.parameters(), *block.buffers())}
            for block in (first, second)
        ]
        assert not pointers[0] & pointers[1]


@pytest.mark.parametrize("name", ["delta_dpfp", "softmax"])
def test_config_output_layer_reaches_the_network(name: str):
    assert isinstance(network(f"model={name}").output, torch.nn.Linear)
    output = network(f"model={name}", "model.output=adaptive", "model.cutoffs=[9,20]").output
    assert isinstance(output, AdaptiveSoftmax)
    assert output.sizes == [9, 11, 20]


def test_config_layers_draw_their_own_random_features():
    maps = [b.attention.memory.feature_map for b in network("model=performer").blocks]
    assert not torch.equal(maps[0].projection, maps[1].projection)


# Mistakes

TYPED = ("prompt", "ckpt", "against", "input", "output", "run_dir", "resume")
TYPED += ("task.path", "task.test")

MISTAKES = [
    # arguments, what the line must say
    (["modle=linear"], ["modle", "did you mean model?"]),
    (["model=delta_dppf"], ["did you mean delta_dpfp?", "softmax", "performer"]),
    (["model=_fast_weight"], ["_fast_weight", "delta_dpfp"]),
    (["model=../size/demo"], ["../size/demo", "delta_dpfp"]),
    (["model=null"], ["delta_dpfp"]),
    (["size=huge"], ["size=huge", "demo", "tiny"]),
    (["model/feature_maps=elu"], ["did you mean model/feature_map?"]),
    (["model/feature_map=dfpf"], ["did you mean dpfp?", "favor"]),
    (["size.d_modle=3"], ["did you mean size.d_model?", "n_heads"]),
    (["d_model=3"], ["did you mean size.d_model?"]),
    (["learning_rate=3"], ["learning_rate is not a key"]),
    (["size.d_model=abc"], ["size.d_model=abc", "whole number"]),
    (["size.d_model=12.5"], ["size.d_model=12.5", "whole number"]),
    (["size.d_model=true"], ["size.d_model=true", "whole number"]),
    (["size.n_layers=0"], ["size.n_layers=0", "at least 1"]),
    (["size.d_head=-1"], ["size.d_head=-1", "at least 1"]),
    (["size.n_heads=5"], ["size.n_heads=5", "size.d_model=128"]),
    (["size.dropout=1.5"], ["size.dropout=1.5", "at most 1"]),
    (["model.feature_map.nu=0"], ["model.feature_map.nu=0", "at least 1"]),
    (["model.feature_map.num_features=4"], ["num_features", "model/feature_map=dpfp", "nu"]),
    (["model.short_conv=1"], ["model.short_conv=1", "at least 2"]),
    (["model.short_conv=9"], ["model.short_conv=9", "at most 8"]),
    (["model.key_norm=summ"], ["model.key_norm=summ", "none, sum, l2"]),
    (["model.read_norm=yes"], ["none, output, full"]),
    (["model.output=sparse"], ["model.output=sparse", "dense, adaptive"]),
    (["model.cutoffs=[0,4]"], ["model.cutoffs=[0, 4]", "at least 1"]),
    (["model.cutoffs=4"], ["model.cutoffs=4", "list"]),
    (["model.positions=learned"], ["sinusoidal, sinusoidal_reversed, rotary, none"]),
    (["model.beta_max=3"], ["model.beta_max=3", "at most 2"]),
    (["model/update_rule=delta", "model.update_rule.backend=cuda"], ["auto, recurrent, chunk"]),
    (["model=softmax", "model/feature_map=favor"], ["model=softmax has no feature map"]),
    (["model=softmax", "model.key_norm=sum"], ["model.key_norm", "model=softmax"]),
    (["optimizer.lr=-1"], ["optimizer.lr=-1", "above 0"]),
    (["optimizer.lr=nan"], ["optimizer.lr=nan"]),
    pytest.param(
        ["task.num_workers=100000"],
        ["task.num_workers asks for 100000 processes", "4 a core"],
        marks=pytest.mark.fault(43),
    ),
    (
        ["trainer=ddp", "trainer.devices=4000", "task.batch_size=4000", "task.num_workers=2"],
        ["task.num_workers asks for 8000 processes"],
    ),
    (
        ["trainer=ddp", "trainer.devices=4000", "task.batch_size=4000"],
        ["trainer.devices asks for 4000 processes"],
    ),
    (["optimizer.betas=[0.9]"], ["optimizer.betas=[0.9]", "two"]),
    (["optimizer.betas=[0.9,1]"], ["optimizer.betas=[0.9, 1]", "must be below 1"]),
    (["optimizer.betas=[0.9,nan]"], ["optimizer.betas", "is not a number"]),
    (["optimizer.eps=1e-300"], ["optimizer.eps=1e-300", "at least 1e-30"]),
    (["optimizer.schedule=linera"], ["cosine_reference, linear, wsd, inverse_sqrt, constant"]),
    (
        ["optimizer.schedule=wsd", "optimizer.decay_steps=1950"],
        ["optimizer.warmup_steps=100 and optimizer.decay_steps=1950", "trainer.max_steps=2000"],
    ),
    (["optimizer.ema_decay=1"], ["optimizer.ema_decay=1", "below 1"]),
    (
        [
            *("optimizer.ema_decay=0.9", "callbacks.checkpoint.average_last=2"),
            "callbacks.checkpoint.keep_every_n_train_steps=10",
        ],
        ["average_last=2 and optimizer.ema_decay=0.9", "choose one"],
    ),
    (
        ["optimizer.average_from=9", "optimizer.ema_decay=0.9"],
        ["ema_decay=0.9 and optimizer.average_from=9", "choose one"],
    ),
    (["optimizer.average_from=stall"], ["optimizer.average_from=stall", "whole number or stalled"]),
    (["locked_dropout.input=2"], ["locked_dropout.input=2", "at most 1"]),
    (["model=lstm", "model.weight_dropout=-1"], ["model.weight_dropout=-1", "at least 0"]),
    (["test.temperature=best"], ["test.temperature=best", "a number or valid"]),
    (["loss.activation_weights=1"], ["did you mean loss.activation_weight?"]),
    (["optimizer=sdg"], ["optimizer=sdg", "sgd"]),
    (["model.recompute=true", "compile=true"], ["model.recompute=true beside compile=true"]),
    (["model.recompute=yes"], ["model.recompute=yes is not true or false"]),
    (["optimizer.groups.embedding.lr=1"], ["optimizer.groups.embedding", "matrices, embeddings"]),
    (["optimizer.groups.gates.weight_decay=-1"], ["gates.weight_decay=-1", "at least 0"]),
    (["optimizer=sgd", "optimizer.algorithm.momentun=0.5"], ["did you mean", "algorithm.momentum"]),
    (["optimizer=sgd", "optimizer.algorithm._target_=os.system"], ["_target_ is not a key"]),
    (["trainer.max_steps=0"], ["trainer.max_steps=0"]),
    (["trainer.max_time=6"], ["trainer.max_time=6", "DD:HH:MM:SS"]),
    (["trainer.max_time=00:00:00:00"], ["trainer.max_time=00:00:00:00", "above 0"]),
    (["trainer.precision=bf16"], ["32-true, bf16-mixed"]),
    (["trainer.max_epoch=3"], ["did you mean trainer.max_epochs?"]),
    (["trainer.logger=false"], ["trainer.logger is refused", "logger= chooses"]),
    (["trainer.default_root_dir=x"], ["run_dir=PATH"]),
    (["trainer.enable_checkpointing=true"], ["=true is refused", "run's folder"]),
    (["trainer.profiler=simpel"], ["is not simple or advanced or pytorch"]),
    (["trainer.profiler=simple", "action=test", "ckpt=x"], ["trainer.profiler is of action=fit"]),
    (["logger=[tensorboard,wand]"], ["did you mean wandb?", "--config-dir"]),
    (["trainer.devices=0"], ["trainer.devices=0"]),
    (["trainer=cuda"], ["trainer=cuda", "gpu"]),
    (["task.batch_size=0"], ["task.batch_size=0"]),
    (["task.seq_len=x"], ["task.seq_len=x"]),
    (["seed=-1"], ["seed=-1"]),
    (["seed=4294967296"], ["at most 4294967295"]),
    (["seed=" + "9" * 5000], ["cannot be read"]),
    (["size.n_layers=1000000"], ["size.n_layers=1000000", "at most 10000"]),
    (["size.d_ff=" + "9" * 30], ["at most 2147483647"]),
    (["size.n_layers=" + "[" * 2000 + "]" * 2000], ["too many brackets"]),
    (["trainer.devices=1000000"], ["at most 4096"]),
    (["rank_timeout=1e30"], ["at most 1000000000"]),
    (["generate.temperature=1e-38"], ["0 or at least 1e-06"]),
    (["generate.top_p=1e-50"], ["at least 1e-06"]),
    (["callbacks.text_samples.temperature=-1"], ["0 or at least 1e-06"]),
    (["callbacks.text_samples.prompts=abc"], ["text_samples.prompts=abc", "list"]),
    (["task=retrieval", "callbacks.early_stopping.patience=abc"], ["patience=abc"]),
    (["task=retrieval", "callbacks.early_stopping.min_delta=abc"], ["min_delta=abc"]),
    (["task=retrieval", "callbacks.early_stopping.stopping_threshold=nan"], ["threshold=nan"]),
    (["task=mqar", "task.power=1e30"], ["task.power=1e+30", "at most 100"]),
    (["task=translation", "task.vocab_size=2147483647"], ["at most 10000000"]),
    (["translate.length_penalty=1e30"], ["at most 100"]),
    (["trainer.max_time='\u0967\u0966:00:00:00'"], ["DD:HH:MM:SS"]),
    (["optimizer.lr=interval(1e-4,1e-2)"], ["a,b,c or range"]),
    (["model=glob(*)"], ["a,b,c or range"]),
    (["seed=shuffle(1,2)"], ["-m"]),
    (["model=[linear,softmax]"], ["only one option"]),
    (["task=[]"], ["only one option"]),
    *(
        pytest.param([f"{key}={empty}"], [f"{key}=", "is empty"], marks=pytest.mark.fault(46))
        for key in TYPED
        for empty in ("", "  ")
    ),
    (["callbacks.checkpoint.average_last=3"], ["average_last=3", "only 0", "keep_every"]),
    (
        [
            "callbacks.checkpoint.average_last=3",
            "callbacks.checkpoint.keep_every_n_train_steps=700",
        ],
        ["only 2 copies", "=700"],
    ),
    (["action=fitt"], ["did you mean fit?", "generate, robustness, test, translate"]),
    (["action=test"], ["action=test needs ckpt="]),
    (["action=generate", "ckpt=x"], ["prompt=TEXT"]),
    (["action=test", "ckpt=x", "against=y"], ["against=y is of action=diagnose"]),
    (["ckpt=x"], ["resume=PATH"]),
    (["resume=auto"], ["run_dir"]),
    (["size=tiny,demo"], ["size=tiny,demo", "-m"]),
    (["size"], ["key=value"]),
    (["=3"], ["key=value"]),
    (["--config-dir=/tmp"], ["--help"]),
    (["+new=1"], ["+new=1"]),
    (["~callbacks"], ["~callbacks"]),
    (["hydra.run.dir=/tmp"], ["hydra.run.dir"]),
    (["hydra.searchpath=[/tmp]"], ["hydra.searchpath"]),
    (["size={d_model: 3}"], ["size"]),
    (["model.update_rule=3"], ["section", "backend"]),
    (["model.attention._target_=os.system"], ["_target_"]),
    (["model.attention={_target_: os.system}"], ["YAML"]),
    (["optimizer.betas=[{_target_: os.system}]"], ["plain values"]),
    (["task.data=${oc.env:HOME}"], ["YAML"]),
    (["network.attention.key_norm=sum"], ["did you mean model.key_norm?"]),
]


@pytest.mark.fault(14)
@pytest.mark.parametrize(("arguments", "snippets"), MISTAKES, ids=lambda v: " ".join(v)[:40])
def test_config_mistake_is_explained(arguments: list[str], snippets: list[str]):
    message = fails(*arguments)
    for snippet in snippets:
        assert snippet in message, message


def test_config_errors_of_constructors_are_configuration_errors():
    for arguments, word in (
        (["model.feature_map.nu=99"], "nu=99"),
        (["model=linear", "model.read_norm=full"], "full"),
        (["model.output=adaptive"], "cutoffs="),
    ):
        with pytest.raises(ConfigError, match=word):
            network(*arguments)
    config = compose_config(["callbacks.progress.every_n_steps=0"]).config
    with pytest.raises(ConfigError, match="every_n_steps=0"):
        build_callbacks(config)


@pytest.mark.parametrize(
    ("argument", "least"),
    [
        ("model.feature_map.num_features=2147483647", 2**31 * 8 * 4),
        ("size.d_model=131072", 40 * 131072 * 16),
        ("size.n_layers=10000", 1 << 20),
        ("size.d_ff=50000", 50_000 * 16 * 16),
    ],
)
def test_config_network_that_memory_does_not_hold_is_refused_while_it_is_built(
    monkeypatch, argument, least
):
    monkeypatch.setattr(cli.room, "memory", lambda: min(least, 1 << 28))
    message = rf"[\d,]+ parameters or more.*GiB: make {argument} smaller"
    with pytest.raises(ConfigError, match=message):
        in_memory("model=performer", argument)
    monkeypatch.setattr(cli.room, "memory", lambda: None)
    in_memory("model=performer")


def test_config_counts_shared_weights_once_and_gradients_where_it_trains(monkeypatch):
    parameters = sum(p.numel() for p in in_memory().parameters())
    on_a_gpu = "trainer=gpu"
    for arguments, room, fits in (
        ([], 16 * parameters, True),
        ([], 16 * parameters - 1, False),
        ([on_a_gpu], 16 * parameters - 1, True),
        ([on_a_gpu], 8 * parameters - 1, False),
    ):
        monkeypatch.setattr(cli.room, "memory", lambda room=room: room)
        with contextlib.nullcontext() if fits else pytest.raises(ConfigError):
            in_memory(*arguments)


def in_memory(*arguments: str):
    config = compose_config(["size=tiny", *arguments]).config
    return cli.room.build_in_memory(config, lambda: network(*arguments))


@pytest.mark.parametrize(
    ("arguments", "warned"),
    [
        ([], None),
        (["model=sum_dpfp"], None),
        (["model/update_rule=sum"], "un-normalised sum"),
        (["model/update_rule=sum", "model.read_norm=output"], None),
        (["model/update_rule=sum", "model.out_norm=layernorm"], None),
        (["model=retnet"], None),
        (["model=linear", "model/feature_map=tanh"], "TanhFeatureMap has features of both signs"),
        (["model/feature_map=silu"], "SiLUFeatureMap has features of both signs"),
        (["model/feature_map=silu", "model.key_norm=l2"], None),
    ],
)
def test_config_sum_that_may_be_near_0_or_large_is_warned_of(arguments, warned):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        network(*arguments)
    told = {str(x.message) for x in caught if x.category is RuntimeWarning}
    assert len(told) == (warned is not None)
    assert all(warned in text for text in told)


def test_config_key_without_a_place_in_the_task_is_warned_of():
    assert compose_config(["task=retrieval"]).warnings == []
    (warning,) = compose_config(["task=retrieval", "model=deltanet"]).warnings
    assert warning == "task=retrieval has no place for model.short_conv, which does nothing"


def test_config_short_run_shortens_the_default_warmup_only():
    composition = compose_config(["trainer.max_steps=20"])
    assert composition.config["optimizer"]["warmup_steps"] == 2
    assert "warmup_steps" in composition.warnings[0]
    with pytest.raises(ConfigError, match=r"warmup_steps=30 is longer than trainer.max_steps=20"):
        compose_config(["trainer.max_steps=20", "optimizer.warmup_steps=30"])


@pytest.mark.parametrize("chosen", [["experiment=demo"], ["experiment=fwm_words", "row=lstm"]])
def test_debugging_shortens_experiments_too(chosen):
    def updates(*more):
        return compose_config([*chosen, "task.path=x", *more]).config["trainer"]["max_steps"]

    assert updates() > 5
    assert updates("debug=fdr") == 3
    assert updates("debug=fdr", "trainer.max_steps=5") == 5


def test_config_reversed_positions_switch_text_samples_off():
    composition = compose_config(["model.positions=sinusoidal_reversed"])
    assert "text_samples" in composition.warnings[0]
    names = [type(callback).__name__ for callback in build_callbacks(composition.config)]
    assert "Progress" in names
    assert "TextSamples" not in names
    assert "reversed" in fails(
        "model.positions=sinusoidal_reversed", "action=generate", "ckpt=x", "prompt=x"
    )


def test_config_task_chooses_defaults_that_the_command_line_changes():
    recall = compose_config(["task=mqar"])
    assert recall.choices["size"] == "mqar"
    assert recall.config["callbacks"]["text_samples"] is None
    assert recall.config["task"]["seed"] == recall.config["seed"]
    assert recall.config["model"]["norm"] == "pre"
    changed = compose_config(["size=tiny", "task=mqar", "model.norm=post"]).config
    assert (changed["size"]["d_model"], changed["model"]["norm"]) == (32, "post")
    assert compose_config([]).choices["size"] == "demo"


@pytest.fixture
def own_conf(monkeypatch, tmp_path):
    """A copy of conf/ that files can be put into: call it with a place below conf/ and a text."""
    copy = tmp_path / "conf"
    shutil.copytree(CONF, copy)
    monkeypatch.setattr(cli.folders, "CONF", copy)

    def add(place: str, text: str) -> None:
        (copy / place).write_text(text, encoding="utf-8")

    return add


def test_config_option_of_ones_own_may_lack_what_has_a_default(own_conf):
    target = "_target_: fwlight.training.optim.OptimizerConfig\n"
    own_conf("optimizer/sgd.yaml", f"{target}lr: 0.1\n")
    config = compose_config(["optimizer=sgd", "trainer.max_steps=20"]).config
    module = build("module", config["module"], network())
    assert module.optimizer_config.lr == 0.1
    assert "warmup_steps" in fails("optimizer=sgd", "optimizer.warmup_steps=3")


@pytest.mark.parametrize(
    ("place", "text", "word"),
    [
        ("trainer/mine.yaml", "_target_: lightning.Trainer\nmax_steps: 3\n", "trainer.max_time"),
        ("logger/mine.yaml", "_target_: x.Y\n", "begin with a name"),
        ("callbacks/mine.yaml", "mine: 3\n", "callbacks.mine is no section"),
        ("task/mine.yaml", "# @package _global_\ntask: {data: stdlib}\n", "task=mine"),
        ("size/mine.yaml", "d_head: 4\n", "size=mine"),
        ("size/mine.yaml", "- 3\n", "size=mine"),
        ("size/mine.yaml", "3\n", "conf/"),
        ("size/mine.yaml", "defaults: 3\n", "size/mine"),
        ("size/mine.yaml", "defaults: [mine]\n", "defaults"),
        ("optimizer/mine.yaml", "{momentum: 0.9}\n", "momentum"),
        ("optimizer/mine.yaml", "lr: [\n", "optimizer/mine"),
        ("experiment/mine.yaml", "# @package _global_\nsize: 3\n", "size"),
        ("experiment/mine.yaml", "# @package _global_\nrows: [1]\n", "rows"),
        ("experiment/mine.yaml", "# @package _global_\nrows: {a: 1}\n", "rows"),
        ("experiment/mine.yaml", "# @package _global_\nrows: {\n", "conf/"),
        ("experiment/mine.yaml", "# @package _global_\nmodel: null\n", "model"),
        ("experiment/mine.yaml", "# @package _global_\ntrainer: null\n", "trainer"),
        ("experiment/mine.yaml", "# @package _global_\ncallbacks: null\n", "callbacks"),
    ],
)
def test_config_option_of_ones_own_that_lacks_a_part_is_one_line(own_conf, place, text, word):
    own_conf(place, text)
    assert word in fails(f"{place.partition('/')[0]}=mine")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("_target_: torch.optim.SGD\n_partial_: true\nlr: 0.1\n", "OptimizerConfig"),
        ("lr: 0.1\n", "OptimizerConfig"),
        ("_target_: nowhere.Missing\nlr: 0.1\n", "nowhere"),
        ("_target_: fwlight.training.optim.Missing\nlr: 0.1\n", "Missing"),
        ("_target_: 3\n", "3"),
    ],
)
def test_config_option_of_ones_own_that_is_none_is_told_when_it_is_built(own_conf, text, word):
    own_conf("optimizer/sgd.yaml", text)
    config = compose_config(["optimizer=sgd"]).config
    with pytest.raises(ConfigError, match=word):
        build("module", config["module"], network())


# Values


def test_config_of_a_test_starts_no_workers_whatever_the_training_had():
    compose_config(["action=test", "ckpt=x", "task.num_workers=100000"])


@pytest.mark.parametrize("key", ["prompt", "input", "output", "run_dir", "resume", "task.path"])
def test_config_free_text_is_kept_as_typed(key: str):
    text = "a, b = ${size.d_model} \\${x} 'it''s' \"q\" [1] {2} #3 é : /x=1,y\\"
    values = compose_config([f"{key}={text}"]).config
    for part in key.split("."):
        values = values[part]
    assert values == text


def test_config_free_text_reaches_the_data_module(tmp_path):
    folder = tmp_path / "a=1, ${b}"
    folder.mkdir()
    (folder / "x.txt").write_text("one two three\n" * 100, encoding="utf-8")
    config = compose_config(["task.data=text", f"task.path={folder}/x.txt"]).config
    data = build("task", config["task"])
    data.setup("fit")
    assert data.network_sizes


def test_config_last_value_wins():
    composition = compose_config(["size=tiny", "seed=2", "size=demo", "seed=3"])
    assert (composition.choices["size"], composition.config["seed"]) == ("demo", 3)
    assert composition.overrides == ["seed=3"]


@pytest.mark.parametrize("limit", ["0", "0.0", "0.5", "3", "null"])
def test_config_evaluation_can_be_limited_to_nothing_or_a_part(limit: str):
    value = compose_config([f"trainer.limit_val_batches={limit}"]).config["trainer"]
    assert value["limit_val_batches"] == (None if limit == "null" else float(limit))


def test_config_early_stopping_keeps_the_other_callbacks():
    default, early = (
        compose_config([f"callbacks={x}"]).config["callbacks"] for x in ("default", "early")
    )
    stopping = early.pop("early_stopping")
    assert early == default
    assert stopping["monitor"] == "val/loss"
    both = compose_config(["callbacks=early", "callbacks.early_stopping.patience=2"])
    assert both.config["callbacks"]["early_stopping"]["patience"] == 2


def test_config_several_callback_files_can_be_chosen():
    config = compose_config(["callbacks=[progress,throughput]"]).config
    assert len(build_callbacks(config)) == 2
    every = build_callbacks(compose_config([]).config)
    assert (
        len(build_callbacks(compose_config(["callbacks.progress=null"]).config)) == len(every) - 1
    )
    bare = compose_config(["callbacks=none"]).config
    assert build_callbacks(bare) == []
    assert bare["callbacks"]["checkpoint"]["every_n_train_steps"] > 0


# Checkpoints


def record(*arguments: str) -> dict:
    return compose_config(arguments).record()


def test_stored_configuration_composes_the_same_model():
    stored = record(
        "size=tiny",
        "model=delta_performer",
        "model/feature_map=favor_lm",
        "model.output_scale=0.5",
        "task.data=text",
        "task.path=/a b.txt",
        "trainer=ddp",
        "callbacks=none",
        "run_dir=/x",
        "trainer.max_steps=7",
    )
    again = recompose(stored, ["action=generate", "ckpt=c", "prompt=p", "seed=4"])
    values = again.config
    assert values["network"] == stored["config"]["network"]
    assert values["task"] == {**stored["config"]["task"], "lengths_seed": 4}
    assert (values["action"], values["seed"], values["run_dir"]) == ("generate", 4, None)
    # what belongs to the machine comes from the command line alone
    assert again.choices["trainer"] == "cpu"
    assert again.choices["callbacks"] == "default"
    assert values["trainer"]["max_steps"] != 7


def test_stored_configuration_is_plain_containers():
    def plain(value: object) -> bool:
        if isinstance(value, dict):
            return all(type(k) is str and plain(v) for k, v in value.items())
        if isinstance(value, list):
            return all(map(plain, value))
        return value is None or type(value) in (str, int, float, bool)

    assert plain(record("model=performer", "trainer=ddp"))


@pytest.mark.parametrize(
    "bad",
    [
        {"overrides": ["model.attention._target_=os.system"]},
        {"overrides": ["model.attention={_target_: os.system}"]},
        {"overrides": ["model.update_rule=${oc.create:'{_target_: os.system}'}"]},
        {"overrides": ["hydra.searchpath=[/tmp]"]},
        {"choices": {"model": "../../evil"}},
        {"choices": {"hydra/launcher": "evil"}},
    ],
    ids=str,
)
def test_stored_configuration_brings_no_targets(bad: dict):
    with pytest.raises(ConfigError):
        recompose(record("size=tiny") | bad, ["action=test", "ckpt=c"])


@pytest.mark.parametrize(
    "bad", [None, 3, {}, {"choices": {}, "overrides": [3], "config": {}}, {"choices": []}], ids=str
)
def test_stored_garbage_is_a_checkpoint_error(bad: object):
    for call in (lambda: recompose(bad, []), lambda: check_resume(bad, compose_config([]))):
        with pytest.raises(CheckpointError):
            call()


@pytest.mark.parametrize(
    ("change", "old"),
    [
        ("size.d_ff=32", "size.d_ff=64"),
        ("size=demo", "size=tiny"),
        ("model=linear", "model=delta_dpfp"),
        ("model/feature_map=tanh", "model/feature_map=dpfp"),
        ("model/update_rule=fwm", "model/update_rule=delta"),
        ("model.feature_map.nu=2", "model.feature_map.nu=1"),
        ("model.norm=pre", "model.norm=post"),
        ("model.short_conv=4", "model.short_conv=0"),
        ("task.seq_len=3", "task.seq_len=128"),
        ("task.batch_size=3", "task.batch_size=16"),
        ("task.data=text", "task.data=stdlib"),
    ],
)
def test_resume_with_another_model_or_task_names_both_values(change: str, old: str):
    with pytest.raises(ConfigError) as caught:
        check_resume(record("size=tiny"), compose_config(["size=tiny", change]))
    assert change in str(caught.value)
    assert old in str(caught.value)


@pytest.mark.parametrize(
    ("before", "after"), list(itertools.permutations(["adam", "sgd", "muon"], 2))
)
def test_resume_with_another_optimizer_names_both(before, after):
    stored = record("size=tiny", f"optimizer={before}")
    told = f"optimizer={after}, but the checkpoint was trained with optimizer={before}"
    with pytest.raises(ConfigError, match=told):
        check_resume(stored, compose_config(["size=tiny", f"optimizer={after}"]))


def test_resume_with_other_training_warns_once_with_the_effective_value():
    stored = record("size=tiny")
    assert check_resume(stored, compose_config(["size=tiny"])) == []
    changed = ["optimizer.lr=0.5", "size.dropout=0.3", "trainer.max_steps=9000"]
    (warning,) = check_resume(stored, compose_config(["size=tiny", *changed]))
    assert all(text in warning for text in changed)
    free_keys = ("task.eval_batch_size=3", "task.path=/elsewhere", "trainer=ddp", "callbacks=none")
    for free in (*free_keys, "model.recompute=true"):
        assert check_resume(stored, compose_config(["size=tiny", free])) == []


def test_stored_configuration_of_an_earlier_version_lacks_later_keys():
    stored = record("size=tiny")
    del stored["config"]["model"]["short_conv"]
    assert check_resume(stored, compose_config(["size=tiny"])) == []
    assert recompose(stored, ["action=test", "ckpt=c"]).config["model"]["short_conv"] == 0


def test_stored_model_cannot_be_changed_by_the_command_line():
    stored = record("size=tiny", "task.data=text", "task.path=/a")
    with pytest.raises(ConfigError, match=r"size\.d_ff=8"):
        recompose(stored, ["action=test", "ckpt=c", "size.d_ff=8"])
    again = recompose(stored, ["action=test", "ckpt=c", "task.path=/b", "size.dropout=0"])
    assert again.config["task"]["path"] == "/b"


# The run's folder


@pytest.fixture
def one_process(monkeypatch) -> None:
    for name in (*RANK_VARIABLES, "FWLIGHT_RUN_DIR"):
        monkeypatch.delenv(name, raising=False)


def composed(*arguments: str) -> Composition:
    return compose_config(["model=linear", *arguments])


@pytest.mark.usefixtures("one_process")
def test_run_dir_is_chosen_once_and_handed_on(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLURM_PROCID", "0")  # a process in an allocation, which srun did not start
    monkeypatch.setenv("SLURM_NTASKS", "2")
    first = run_dir(composed())
    assert first.startswith(str(tmp_path / "runs" / "lm_linear"))
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert run_dir(composed()) == first
    assert run_dir(composed("run_dir=/here")) == "/here"


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("variable", RANK_VARIABLES)
def test_run_dir_is_asked_for_under_a_launcher(monkeypatch, variable):
    monkeypatch.setenv(variable, "2")
    with pytest.raises(ConfigError, match="run_dir=PATH"):
        run_dir(composed())


# Parts of a translation model


def parts(*arguments: str) -> dict[str, set[str]]:
    torch.manual_seed(0)
    config = compose_config(["task=translation", "size=tiny", *arguments]).config
    model = build("network", config["network"], vocab_size=40, pad_id=0)
    found = {
        "encoder": [block.attention.memory for block in model.encoder],
        "decoder": [block.attention.memory for block in model.decoder],
        "cross": [block.cross.memory for block in model.decoder],
    }
    return {
        part: {type(getattr(memory, "feature_map", memory)).__name__ for memory in memories}
        for part, memories in found.items()
    }


def test_config_parts_follow_the_model_and_its_slots_unless_chosen():
    everywhere = {
        "encoder": {"EluFeatureMap"},
        "decoder": {"EluFeatureMap"},
        "cross": {"EluFeatureMap"},
    }
    assert parts("model=linear") == everywhere
    assert parts("model=delta_dpfp", "model/feature_map=elu") == everywhere
    for part in everywhere:
        chosen = parts("model=linear", f"model@{part}=softmax")
        assert chosen == {**everywhere, part: {"KeyValues"}}
    inner = parts(
        "model=softmax", "model@encoder=delta_dpfp", "model/feature_map@encoder.feature_map=favor"
    )
    assert inner["encoder"] == {"FAVORFeatureMap"}
    config = compose_config(
        ["task=translation", "model@cross=sum_dpfp", "cross.feature_map.nu=3"]
    ).config
    assert config["network"]["cross"]["memory"]["feature_map"]["nu"] == 3
    assert config["network"]["decoder"]["memory"]["feature_map"]["nu"] == 1


def test_config_parts_are_stored_compared_and_explained():
    old = compose_config(["task=translation", "model@encoder=softmax", "size=tiny"])
    assert old.choices["model@encoder"] == "softmax"
    assert "model@cross" not in old.choices
    same = recompose(old.record(), ["action=test", "ckpt=x"])
    assert same.config["network"] == old.config["network"]
    new = compose_config(["task=translation", "size=tiny"])
    with pytest.raises(ConfigError, match="model@encoder=the model's, but the checkpoint"):
        check_resume(old.record(), new)
    assert "task=lm has no such part as encoder" in fails("model@encoder=softmax")
    assert "did you mean softmax" in fails("task=translation", "model@encoder=sofmax")
