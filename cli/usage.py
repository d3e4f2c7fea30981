"""The text of `--help`."""

import itertools
import textwrap

import yaml

from cli.folders import COMMAND, file_of, groups
from cli.overrides import actions
from cli.rows import rows

_TEXT = """\
usage: {command} [--cfg] [-m] [--config-dir FOLDER] key=value ...

  --cfg   print the composed configuration and stop; with -m, the arguments of every run
  -m      run every combination of values given as a,b,c or range(20,601,20) or choice(a,b),
          one process per core, or as jobs of a cluster (launcher=slurm); finished ones are skipped;
          a table of all of them at the end
  --config-dir FOLDER
          also take options of one's own, FOLDER/<group>/<option>.yaml, whose classes are looked for
          beside FOLDER and in the current folder; may be given more than once
  --version

Runs side by side, finished or not: python -m fwlight.runs [FOLDER] (--help)

Groups (option of conf/<group>/<option>.yaml):
{groups}

Parameters of the blocks of softmax attention, without embeddings (size=NAME):
{sizes}

Rows of experiments (experiment=NAME row=ROW):
{rows}

Often used keys (all of them: --cfg):
  size.{{d_model,n_layers,n_heads,d_head,d_ff,dropout}}
  model.{{key_norm,read_norm,out_norm,output_scale,beta_max,short_conv}}
  model.{{positions,norm,block_norm,feed_forward,qk_norm,output,untied_output}}   or block=NAME
  model.feature_map.{{nu,num_features}}  model.recompute=true|false
  model.{{weight_dropout,d_inner}}  locked_dropout.{{words,input,hidden,output}}   of LSTMs
  task.data=stdlib|wikitext103|wikitext2|ptb|text8|enwik8|shakespeare|wikitext|text
  task.{{path,train,valid,test}}=PATH
  task.tokenizer=words|chars|bytes|bpe|PATH  task.{{vocab_size,min_count,max_vocab_size}}
  task.{{batch_size,seq_len}}  task.context=segment|carried  task.reset=never|document
  task.lengths=fixed|drawn
  task.eval=segment|sliding|carried  task.eval_stride
  task.setting=capacity|update  task.n_keys  task.problem=parity|recall|...
  task.{{train_length,test_lengths}}  task.num_workers
  task.data=cldr|multi30k|wmt14|files  task.{{source_lang,target_lang,vocab_size,batch_tokens}}
  task.data=digits|mnist5k|cifar10|folder  task.{{shift,flip,warp}}
  model.{{patch_size,pool,directions}}
  task.environment.{{n_islands,n_transports,episode_length}}  task.{{n_graphs,randomize_train}}
  model@encoder= model@decoder= model@cross=   another model in one attention of task=translation
  model@alternate= model.alternate_every=   another model in every so many layers: a hybrid
  optimizer.{{lr,weight_decay,warmup_steps}}  optimizer.groups.{{matrices,...}}.{{lr,weight_decay}}
  optimizer.schedule=cosine|linear|wsd|inverse_sqrt|constant
  optimizer.{{ema_decay,average_from,average_patience}}
  seed  compile=true|false
  trainer.{{max_steps,max_time,devices,precision,profiler}}, and what else Lightning's Trainer takes
  callbacks=[default,NAME]  logger=[tensorboard,NAME]  several at once
  launcher.{{partition,account,time,stop_before,cpus,gpus,memory,at_a_time,modules,lines,wait}}
                   of launcher=slurm
  callbacks.checkpoint.every_n_train_steps  diagnostics.{{every_n_steps,sequences}}
  diagnostics.scalars=main|all   which of them TensorBoard shows; metrics.csv has all
  run_dir=PATH     everything of a run: config.yaml, run.json, metrics.csv, summary.json,
                   checkpoints/{{last,best}}.ckpt, TensorBoard's events
  resume=never|auto|PATH
                   refuse a folder that holds a run; go on with it; start from a checkpoint

Actions:
{actions}
  All but fit take model and data from the checkpoint; keys on the command line go last.

Exit codes: 0 done, 2 configuration or data, 3 numerical, 4 checkpoint, 5 input/output,
130 / 143 signals, 1 unexpected (FWLIGHT_DEBUG=1 shows the traceback).
FWLIGHT_NATIVE=0 runs no compiled code; FWLIGHT_CACHE=PATH keeps it, and downloads, elsewhere."""


def usage() -> str:
    """Return the text, with the options that there are now."""
    lines = [f"  {group}={'|'.join(options)}" for group, options in groups().items() if options]
    tables = [f"  {experiment}: {'|'.join(listed)}" for experiment, listed in rows().items()]
    told = [line for name in actions() for line in _about_action(name)]
    counted = [f"{name}={n / 1e6:.3g}M" for name, n in block_parameters().items()]
    sizes = textwrap.wrap(", ".join(counted), 96, initial_indent="  ", subsequent_indent="  ")
    texts = {"groups": lines, "rows": tables, "actions": told, "sizes": sizes}
    filled = {name: "\n".join(text) for name, text in texts.items()}
    return _TEXT.format(command=COMMAND, **filled)


def block_parameters() -> dict[str, int]:
    """Return the parameters of all blocks of a network, by size; of those with every width."""
    found = {}
    for name in groups()["size"]:
        text = file_of("size", name).read_text(encoding="utf-8")
        size = yaml.safe_load(text)
        if "d_model" not in size:
            continue
        width, heads, inner = size["d_model"], size["n_heads"] * size["d_head"], size["d_ff"]
        attention, norms = 4 * width * heads, 4 * width
        feed_forward = 2 * width * inner + inner + width
        found[name] = size["n_layers"] * (attention + feed_forward + norms)
    return dict(sorted(found.items(), key=lambda item: item[1]))


def _about_action(name: str) -> list[str]:
    """Return the comment that the file of an action begins with, beside its name."""
    text = file_of("action", name).read_text(encoding="utf-8")
    comment = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
    about = [line.lstrip("# ") for line in comment if "@package" not in line] or [""]
    first, *others = about
    return [f"  action={name:<10} {first}".rstrip(), *(f"{'':20}{line}" for line in others)]
