"""The text of `python train.py --help`."""

from cli.overrides import groups
from cli.rows import rows

_TEXT = """\
usage: python train.py [--cfg] [-m] key=value ...

  --cfg   print the composed configuration and stop; with -m, the arguments of every run
  -m      run every combination of values given as a,b,c or range(20,601,20) or choice(a,b),
          one process per core; finished ones are skipped

Groups (option of conf/<group>/<option>.yaml):
{groups}

Rows of experiments (experiment=NAME row=ROW):
{rows}

Often used keys (all of them: --cfg):
  size.{{d_model,n_layers,n_heads,d_head,d_ff,dropout}}
  model.{{key_norm,read_norm,out_norm,output_scale,beta_max,short_conv,positions,norm,output}}
  model.feature_map.{{nu,num_features}}
  task.data=stdlib|wikitext103|wikitext2|ptb|wikitext|text  task.{{path,train,valid,test}}=PATH
  task.{{batch_size,seq_len}}  task.context=segment|carried  task.reset=never|document
  task.eval=segment|sliding|carried  task.eval_stride
  task.setting=capacity|update  task.n_keys  task.num_workers
  task.data=cldr|multi30k|wmt14|files  task.{{source_lang,target_lang,vocab_size,batch_tokens}}
  model@encoder= model@decoder= model@cross=   another model in one attention of task=translation
  model@alternate= model.alternate_every=   another model in every so many layers: a hybrid
  optimizer.lr  trainer.{{max_steps,max_time,devices,precision}}  seed  compile=true|false
  callbacks.checkpoint.every_n_train_steps  diagnostics.{{every_n_steps,sequences}}
  run_dir=PATH     everything of a run: config.yaml, metrics.csv, summary.json, tensorboard/,
                   checkpoints/{{last,best}}.ckpt
  resume=never|auto|PATH
                   refuse a folder that holds a run; go on with it; start from a checkpoint

Actions:
  action=fit       train, then test the best checkpoint, or the last if none is kept (default)
  action=test      ckpt=PATH [output=FILE]
  action=generate  ckpt=PATH prompt=TEXT|input=FILE [output=FILE]
                   generate.{{max_new_tokens,temperature,top_k,top_p}}
  action=translate ckpt=PATH [input=FILE] [output=FILE]   a sentence a line
                   translate.{{beam,length_penalty,batch_size}}
  action=diagnose  ckpt=PATH [output=FILE.html] diagnostics.{{report_sequences,capacity_draws}}
  All but fit take model and data from the checkpoint; keys on the command line go last.

Exit codes: 0 done, 2 configuration or data, 3 numerical, 4 checkpoint, 5 input/output,
130 / 143 signals, 1 unexpected (FWLIGHT_DEBUG=1 shows the traceback).
FWLIGHT_NATIVE=0 runs no compiled code; FWLIGHT_CACHE=PATH keeps it, and downloads, elsewhere."""


def usage() -> str:
    """Return the text, with the options that conf/ has now."""
    lines = [f"  {group}={'|'.join(options)}" for group, options in groups().items() if options]
    tables = [f"  {experiment}: {'|'.join(listed)}" for experiment, listed in rows().items()]
    return _TEXT.format(groups="\n".join(lines), rows="\n".join(tables))
