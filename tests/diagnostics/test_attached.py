"""Somebody else's layers: what they pass to their kernels is what our memories would be given."""

import importlib.util
import json
import re
import sys
from functools import partial
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fwlight.diagnostics import attach, finalise_diagnosis
from fwlight.diagnostics.findings import find_out
from fwlight.diagnostics.interventions import intervene
from fwlight.diagnostics.layers import Layer, layer_statistics, shown, watch_forward
from fwlight.errors import ConfigError
from fwlight.feature_maps import SiLUFeatureMap
from fwlight.mixers import FastWeights, MultiHeadAttention, ScalarDecay
from fwlight.ops import delta_rule, sum_rule
from fwlight.types import LMBatch

needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None,
    reason="transformers is not installed: pip install 'fwlight[hf]'",
)
SIZES = {
    "vocab_size": 60,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
EXPERTS = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8}
MODELS = {
    "Qwen3Next": {
        **SIZES, **EXPERTS, "head_dim": 8, "shared_expert_intermediate_size": 8,
        "linear_key_head_dim": 4, "linear_value_head_dim": 6, "linear_num_key_heads": 2,
        "linear_num_value_heads": 4, "num_hidden_layers": 3,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    },
    "KimiLinear": {
        **SIZES, "num_experts": 2, "num_experts_per_token": 1, "moe_intermediate_size": 8,
        "kv_lora_rank": 4, "qk_rope_head_dim": 4, "v_head_dim": 4, "qk_nope_head_dim": 4,
        "linear_head_dim": 4, "linear_num_heads": 3, "num_hidden_layers": 3,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    },
    "OlmoHybrid": {
        **SIZES, "linear_key_head_dim": 4, "linear_value_head_dim": 8, "num_hidden_layers": 3,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    },
}  # fmt: skip


def make(name):
    """Return a tiny model of transformers with random weights."""
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**MODELS[name])
    network = getattr(transformers, f"{name}ForCausalLM")._from_config(
        config, attn_implementation="eager"
    )
    for p in network.parameters():  # reads of the first weights are too small to be worth a thing
        if p.ndim > 1:
            p.data *= 8
    return network.eval().requires_grad_(False)


def make_batch(b=3, t=70, n_types=60):
    ids = torch.randint(n_types, (b, t + 1), generator=torch.Generator().manual_seed(1))
    return LMBatch(ids[:, :-1], ids[:, 1:])


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, equal_nan=True)


@needs_transformers
@pytest.mark.parametrize("name", MODELS)
def test_memories_do_what_the_kernels_of_a_model_do_and_leave_again(name):
    model, batch = make(name), make_batch()
    code = vars(sys.modules[type(model).__module__])
    before = model(input_ids=batch.inputs, use_cache=False).logits
    kept, part = dict(code), next(x for n, x in model.named_modules() if n.endswith("layers.2"))
    with attach(model) as attached:
        layers = attached.layers
        assert [x.name for x in layers] == ["layer0", "layer2"]
        heads, keys, values = {"Qwen3Next": (4, 4, 6), "KimiLinear": (3, 4, 4)}.get(name, (2, 4, 8))
        assert (layers[0].n_heads, layers[0].d_dot, layers[0].memory.d_value) == (
            heads, keys, values,
        )  # fmt: skip
        observers = watch_forward(attached, layers, lambda: attached(batch))
        close(model(input_ids=batch.inputs, use_cache=False).logits, before)
        # With a cache, as decoding has one, the kernel goes on from the memory's state.
        cache = model(input_ids=batch.inputs[:, :-1], use_cache=True).past_key_values
        last = {"input_ids": batch.inputs[:, -1:], "past_key_values": cache}
        close(model(**last, use_cache=True).logits, before[:, -1:])
        (w,) = shown(layers[1], observers["layer2"], of=attached.sequences(batch)[""])
        assert w.gates["decay"].ndim == (4 if name == "KimiLinear" else 3)
        assert float(w.gates["decay"].max()) <= 0
        assert ((w.k.square().sum(-1) - 1).abs() < 1e-2).all()
        assert torch.equal(w.tokens, batch.inputs)
        effects = intervene(attached, [batch], layers=layers, heads=False)
        assert {"mean", "empty_4", "beta_2", "linear", "softmax"} <= set(effects[0].whole)
        assert effects[0].whole["mean"][0] != 0
        assert layers[1].memory.gates[0].maximum == (2 if name == "OlmoHybrid" else 1)
    assert dict(code) == kept
    assert not part._forward_hooks
    assert torch.equal(model(input_ids=batch.inputs, use_cache=False).logits, before)


def ours(theirs):
    """Return our Gated DeltaNet with the parameters of a Qwen3-Next layer."""
    memory = partial(
        FastWeights, feature_map=SiLUFeatureMap, update_rule=delta_rule, decay=ScalarDecay,
        key_norm="l2_smooth", key_norm_eps=1e-6, query_norm_eps=1e-6, output_scale=None,
        out_norm="rmsnorm", out_norm_eps=1e-6,
    )  # fmt: skip
    layer = MultiHeadAttention(
        16, 2, 4, memory=memory, expand_v=1.5, value_heads_per_key=2, short_conv=4, out_gate="silu"
    )
    parts = theirs.in_proj_qkvz.weight.unflatten(0, (2, -1)).split([4, 4, 12, 12], dim=1)
    q, k, v, z = (x.flatten(0, 1) for x in parts)
    b, a = (x.flatten(0, 1) for x in theirs.in_proj_ba.weight.unflatten(0, (2, -1)).chunk(2, 1))
    state = {
        "in_proj.weight": torch.cat([q, k, v, b, a, z]),
        "short_conv.weight": theirs.conv1d.weight.squeeze(1),
        "memory.gates.1.A_log": theirs.A_log,
        "memory.gates.1.dt_bias": theirs.dt_bias,
        "memory.out_norm.weight": theirs.norm.weight,
        "out_proj.weight": theirs.out_proj.weight,
    }
    layer.load_state_dict(state)
    return layer.eval().requires_grad_(False)


@needs_transformers
def test_values_are_those_of_our_own_layer_with_the_same_parameters():
    model = make("Qwen3Next")
    theirs = model.model.layers[2].linear_attn
    theirs.dt_bias.copy_(torch.linspace(-4, 1, 4))
    theirs.norm.weight.uniform_(0.5, 2)
    own = ours(theirs)
    x = torch.randn(2, 100, 16, generator=torch.Generator().manual_seed(2))
    layer = Layer("layer0", own.memory, 4)
    expected = watch_forward(own, [layer], lambda: close(own(x)[0], theirs(x)))
    (mine,) = shown(layer, expected["layer0"])
    with attach(model) as attached:
        other = attached.layers[1]
        observed = watch_forward(attached, [other], lambda: close(theirs(x), own(x)[0]))
        (w,) = shown(other, observed["layer2"])
    for name in ("k", "v", "beta", "q"):
        close(getattr(w, name), getattr(mine, name))
    close(w.gates["decay"], mine.gates["decay"])
    found, wanted = (
        finalise_diagnosis(layer_statistics(a, [b]), 4) for a, b in ((other, w), (layer, mine))
    )
    assert found.verdicts == wanted.verdicts
    assert set(found.values) == set(wanted.values)
    names = ("beta/mean", "g/p50", "decay/half_life", "insert/mean", "remove/mean")
    names += ("frobenius/mean", "best/error", "last/scaled_error", "queries/scaled_error")
    for name in names:
        torch.testing.assert_close(found.values[name], wanted.values[name], rtol=1e-3, atol=1e-5)


@needs_transformers
def test_a_kernel_is_taken_by_one_and_left_whatever_fails(monkeypatch):
    model, other = make("Qwen3Next"), make("Qwen3Next")
    code = vars(sys.modules[type(model).__module__])
    kept, part = dict(code), model.model.layers[2].linear_attn
    with attach(model), pytest.raises(ConfigError, match="Qwen3NextGatedDeltaNet is attached al"):
        attach(other)
    with attach(other):
        pass
    monkeypatch.setattr(type(model), "forward", Mock(side_effect=RuntimeError("no memory")))
    with pytest.raises(RuntimeError, match="no memory"):
        attach(model)
    monkeypatch.undo()
    monkeypatch.setattr(type(model), "get_input_embeddings", lambda self: None)
    with pytest.raises(ConfigError, match="Qwen3NextForCausalLM has no embedding"):
        attach(model)
    assert dict(code) == kept
    assert not part._forward_hooks
    assert not part._forward_pre_hooks


@pytest.fixture
def folder(tmp_path):
    """A function that saves a model, with a tokenizer, as transformers does."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    def save(network):
        network.save_pretrained(tmp_path / "model")
        words = {"[unk]": 0} | {f"w{i}": i for i in range(1, 60)}
        tokenizer = Tokenizer(models.WordLevel(words, unk_token="[unk]"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer.enable_truncation(5)  # as for inputs of a model that can read no more
        tokenizer.enable_padding(length=5)
        tokenizer.save(str(tmp_path / "model" / "tokenizer.json"))
        return tmp_path / "model"

    return save


def run(*arguments):
    from fwlight.diagnose_hf import main

    return main([str(x) for x in arguments])


@needs_transformers
@pytest.mark.parametrize("name", ["Qwen3Next", "KimiLinear"])
def test_report_of_a_folder(name, folder, tmp_path, capsys, monkeypatch):
    model = make(name)
    path, text = folder(model), tmp_path / "text.txt"
    batch = make_batch(4, 8, 59)
    ids = torch.cat([batch.inputs, batch.targets[:, -1:]], 1) + 1
    text.write_text("\n".join(" ".join(f"w{i}" for i in row) for row in ids.tolist()))
    monkeypatch.setattr("fwlight.diagnose_hf._LOGITS", 1)  # room for one sequence at a time
    few = ("--seq-len=8", "--interventions=2", "--draws=1")
    assert run(path, "--text", text, "--out", tmp_path / "out", *few) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert [x.split(":")[0] for x in lines[:4]] == ["layer0", "layer2"] * 2
    assert "recall error" in lines[0]
    assert "worth" in lines[2]
    assert lines[4] == str(tmp_path / "out" / "diagnosis.html")
    page = (tmp_path / "out" / "diagnosis.html").read_text()
    logits = model(input_ids=ids[:, :-1]).logits
    loss = float(F.cross_entropy(logits.mT, ids[:, 1:]))
    size = sum(x.numel() for x in model.parameters())
    assert (
        f"{name}ForCausalLM, delta rule with a decay, {size:,} parameters, loss {loss:.3f} nats"
    ) in page
    assert "On 4 sequences of 8 tokens" in page
    assert "the 2 of 3 layers whose memory is known here" in page
    softmax = "Layers of KimiLinearAttention called no kernel that is known here." in page
    assert softmax == (name == "KimiLinear")
    assert "short_conv" not in page.partition("<h2>Configuration")[0]  # it has one
    assert set(re.findall(r"""(?:src|href)=["'](.{5})""", page)) == {"data:"}
    with attach(model) as attached:
        whole = LMBatch(ids[:, :-1], ids[:, 1:])
        found = find_out(attached, [whole], layers=attached.layers, draws=0)
    assert f"{found[0].layer.name}: {found[0].line}" == lines[0]


@needs_transformers
def test_a_folder_that_is_no_such_model_is_one_line(folder, tmp_path, capsys):
    import transformers

    def fails(*arguments):
        assert run(*arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        return line

    numbers = tmp_path / "tokens"
    numbers.write_text("1 2 3 " * 20)
    few = ("--tokens", numbers, "--seq-len=8")
    assert "there is no folder" in fails(tmp_path / "nowhere", *few)
    assert "no model" in fails(tmp_path, *few)
    sizes = {"vocab_size": 60, "n_positions": 16, "n_embd": 8, "n_layer": 1, "n_head": 1}
    sizes |= {"bos_token_id": None, "eos_token_id": None}
    path = folder(transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)))
    assert "GPT2LMHeadModel has no layer" in fails(path, *few)
    assert "--seq-len=256 can be 59" in fails(path, "--tokens", numbers)
    assert "'1' is no whole number" in fails(path, *few, "--seq-len=1")
    assert "not allowed with" in fails(path, *few, "--text", numbers)
    assert "is required" in fails(path)
    (tmp_path / "latin").write_bytes(b"w1 \xe9 w2")
    assert "not UTF-8" in fails(path, "--text", tmp_path / "latin")
    assert "cannot be read: No such" in fails(path, "--text", tmp_path / "nothing")
    (tmp_path / "large").write_text("1 60 " * 20)
    assert "none of the 60" in fails(path, "--tokens", tmp_path / "large", "--seq-len=8")
    (path / "tokenizer.json").unlink()
    assert "--tokens FILE" in fails(path, "--text", numbers)
    about = json.loads((path / "config.json").read_text())
    weights = path / "model.safetensors"
    (path / "config.json").write_text(json.dumps({**about, "n_layer": 2}))
    assert "has no weights for transformer.h.1" in fails(path, *few)
    weights.write_bytes(weights.read_bytes()[:100])
    assert "cannot be loaded" in fails(path, *few)
    # Code beside a model is not run, and files that may hold code are not read.
    (path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    auto = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    other = {**about, "model_type": "mine", "auto_map": auto}
    (path / "config.json").write_text(json.dumps(other))
    assert "model_type=mine is unknown to transformers" in fails(path, *few)
    assert not (tmp_path / "ran").exists()
    weights.rename(path / "pytorch_model.bin")
    assert "no weights as safetensors" in fails(path, *few)
    (path / "adapter_config.json").write_text("{}")
    assert "adapter" in fails(path, *few)


# Layers with the names and conventions of fla, whose kernels need a GPU


def by_heads(x, d):
    return x.unflatten(-1, (-1, d))


def kernel(rule, *, q, k, v, scale, beta=None, **gates):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    gates = {name: x.transpose(1, 2) for name, x in gates.items()}
    beta = None if beta is None else beta.transpose(1, 2)
    o, _ = rule(q * scale, k, v, *(() if beta is None else (beta,)), **gates)
    return o.transpose(1, 2), None


def fused_recurrent_delta_rule(
    q, k, v, beta=None, scale=None, initial_state=None, output_final_state=False,
    cu_seqlens=None, use_qk_l2norm_in_kernel=False,
):  # fmt: skip
    q, k = (x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt() for x in (q, k))
    return kernel(delta_rule, q=q, k=k, v=v, beta=beta, scale=k.shape[-1] ** -0.5)


def chunk_kda(
    q, k, v, g, beta, scale=None, initial_state=None, output_final_state=False,
    use_qk_l2norm_in_kernel=False, use_gate_in_kernel=False, **kwargs,
):  # fmt: skip
    q, k = (x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt() for x in (q, k))
    rate = kwargs["A_log"].exp()[:, None]
    g = -rate * F.softplus(g + kwargs["dt_bias"].view(g.shape[2:]))
    return kernel(delta_rule, q=q, k=k, v=v, beta=beta, decay=g, scale=k.shape[-1] ** -0.5)


def chunk_gated_delta_rule(
    q, k, v, g, beta=None, use_qk_l2norm_in_kernel=False, use_gate_in_kernel=False,
    use_beta_sigmoid_in_kernel=False, allow_neg_eigval=False, A_log=None, dt_bias=None,
):  # fmt: skip
    g, beta = -A_log.exp() * F.softplus(g + dt_bias), 2 * beta.sigmoid()
    return kernel(delta_rule, q=q, k=k, v=v, beta=beta, decay=g, scale=k.shape[-1] ** -0.5)


def chunk_linear_attn(q, k, v, scale=None, normalize=True):
    o, _ = kernel(sum_rule, q=q, k=k, v=v, scale=1.0)
    return o / ((q * k.cumsum(1)).sum(-1, keepdim=True) + 1e-10), None


class Projected(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.g = (nn.Linear(8, 8) for _ in range(4))
        self.b, self.a = nn.Linear(8, 2), nn.Linear(8, 2)
        self.A_log, self.dt_bias = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.ones(2))

    def qkv(self, x):
        return {n: by_heads(getattr(self, n)(x), 4) for n in "qkv"}


class DeltaNet(Projected):
    def forward(self, x):
        beta = self.b(x).sigmoid()
        return fused_recurrent_delta_rule(
            **self.qkv(x), beta=beta, use_qk_l2norm_in_kernel=True
        )[0].flatten(2)  # fmt: skip


class KimiDeltaAttention(Projected):
    def __init__(self):
        super().__init__()
        self.dt_bias = nn.Parameter(torch.linspace(-3, 1, 8))

    def forward(self, x):
        return chunk_kda(
            **self.qkv(x), g=by_heads(self.g(x), 4), beta=self.b(x).sigmoid(), A_log=self.A_log,
            dt_bias=self.dt_bias, use_qk_l2norm_in_kernel=True, use_gate_in_kernel=True,
        )[0].flatten(2)  # fmt: skip


class GatedDeltaNet(Projected):
    def __init__(self):
        super().__init__()
        self.allow_neg_eigval = True
        self.chunk_gated_delta_rule = chunk_gated_delta_rule  # as earlier layers hold theirs

    def forward(self, x):
        of = self.qkv(x)
        of |= {n: F.normalize(of[n], dim=-1) for n in "qk"}
        return self.chunk_gated_delta_rule(
            **of, g=self.a(x), beta=self.b(x), use_gate_in_kernel=True, A_log=self.A_log,
            use_beta_sigmoid_in_kernel=True, allow_neg_eigval=True, dt_bias=self.dt_bias,
        )[0].flatten(2)  # fmt: skip


class LinearAttention(Projected):
    def forward(self, x):
        of = self.qkv(x)
        of |= {n: F.elu(of[n]) + 1 for n in "qk"}
        return chunk_linear_attn(**of)[0].flatten(2)


class LanguageModel(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.embedding, self.blocks = nn.Embedding(20, 8), nn.ModuleList(layers)
        self.out = nn.Linear(8, 20)

    def get_input_embeddings(self):
        return self.embedding

    def forward(self, input_ids, use_cache):
        x = self.embedding(input_ids)
        for block in self.blocks:
            x = x + block(x)
        return SimpleNamespace(logits=self.out(x))


def test_layers_named_as_those_of_fla_are_understood_with_what_their_kernels_compute():
    torch.manual_seed(0)
    kinds = (DeltaNet, KimiDeltaAttention, GatedDeltaNet, LinearAttention, DeltaNet)
    model, batch = LanguageModel(*(kind() for kind in kinds)), make_batch(2, 30, 20)
    own, there = dict(vars(model.blocks[2])), dict(globals())
    before = model(batch.inputs, use_cache=False).logits
    with attach(model) as attached:
        assert [x.name for x in attached.layers] == [f"layer{i}" for i in range(5)]
        memories = [x.memory for x in attached.layers]
        norms = ["l2_smooth", "l2_smooth", "l2", "none", "l2_smooth"]
        assert [x.key_norm for x in memories] == norms
        assert [x.read_norm for x in memories] == ["none"] * 3 + ["output", "none"]
        assert [x.has_beta for x in memories] == [True] * 3 + [False, True]
        assert memories[2].gates[0].maximum == 2
        observers = watch_forward(attached, attached.layers, lambda: attached(batch))
        assert all(len(x.writes) == 1 for x in observers.values())
        close(model(batch.inputs, use_cache=False).logits, before)
    assert dict(globals()) == there
    assert dict(vars(model.blocks[2])) == own


class OtherDeltaNet(DeltaNet):
    def forward(self, x):
        of = self.qkv(x)
        return fused_recurrent_delta_rule(**of, beta=self.b(x).sigmoid())[0].flatten(2)


def test_a_kernel_that_does_something_else_is_refused_and_left_as_it_was():
    """This one normalises keys although it isn't asked to."""
    there = dict(globals())
    with pytest.raises(ConfigError, match=r"blocks\.1 \(OtherDeltaNet\): fused_recurrent_delta"):
        attach(LanguageModel(DeltaNet(), OtherDeltaNet()))
    assert dict(globals()) == there
    with pytest.raises(ConfigError, match="LanguageModel has no layer"):
        attach(LanguageModel(nn.Linear(8, 8)))
