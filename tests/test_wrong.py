"""Wrong invocations of the four commands: each ends with one clear line that names what is wrong, and no run."""

import os
from pathlib import Path
from typing import Any

import pytest
from hydra.errors import HydraException

import flrl.run  # noqa: F401  # matplotlib logs when it is first imported on a machine
from flrl.attack import main as attack
from flrl.audit.__main__ import main as audit
from flrl.cli.explaining import one_line
from flrl.evaluate import main as evaluate
from flrl.train import main as train
from flrl.verify import main as verify

STRATEGIES = "; ".join(sorted(path.stem for path in (Path(__file__).parents[1] / "conf" / "strategy").glob("*.yaml")))
TRAIN = {
    "+vars.x=${vars.y}": "vars.x: there is no key vars.y to be interpolated",
    "rounds=5": "rounds=5: there is no such key; did you mean strategy.rounds?",
    "+rounds=5": "rounds=5: there is no such key; did you mean strategy.rounds?",
    "+lr=0.5": "lr=0.5: there is no such key; did you mean model.optimizer.lr or strategy.server_optimizer.lr?",
    "lr=0.5": "lr=0.5: there is no such key; did you mean model.optimizer.lr or strategy.server_optimizer.lr?",
    "epochs=3": "epochs=3: there is no such key; did you mean trainer.local_epochs?",
    "clients=3": "clients=3: there is no such key; did you mean adversary.clients?",
    "sampler=all": "sampler=all: there is no such key; did you mean strategy/sampler?",
    "optimizer=adam": "optimizer=adam: there is no such key; did you mean model/optimizer?",
    "strateg=fedavg": "strateg=fedavg: there is no such key; did you mean strategy?",
    "stategy.rounds=3": "stategy.rounds=3: there is no such key; did you mean strategy.rounds?",
    "strategy.roundz=1": "strategy.roundz=1: there is no such key; did you mean strategy.rounds?",
    "strategy.sampler.numm=3": "strategy.sampler.numm=3: there is no such key; did you mean strategy.sampler.num?",
    "strategy.lipschitz=1": (
        "strategy.lipschitz=1: there is no such key with the present choice; strategy=qfedavg has it"
    ),
    "+strategy.lipschitz=1": "strategy.lipschitz=1: FedAvg takes no 'lipschitz'; strategy=qfedavg does",
    "++strategy.roundz=2": "strategy.roundz=2: FedAvg takes no 'roundz'; did you mean rounds?",
    "model.optimizer.nesterov=true": (
        "model.optimizer.nesterov=true: there is no such key in the configuration, but torch.optim.SGD "
        "takes it: +model.optimizer.nesterov=true"
    ),
    "model.optimizer.nestrov=true": (
        "model.optimizer.nestrov=true: there is no such key; did you mean +model.optimizer.nesterov of torch.optim.SGD?"
    ),
    "+model.optimizer.momentun=0.9": "model.optimizer.momentun=0.9: SGD takes no 'momentun'; did you mean momentum?",
    "+model.net.hidden=3": (
        "model.net.hidden=3: softmax_regression takes no 'hidden'; model/net=char_lstm, model/net=mlp_2nn or "
        "model/net=regression does"
    ),
    "+partition.alfa=1": (
        "partition.alfa=1: iid takes no 'alfa'; it takes num_samples, labels, rng, num_clients, min_samples"
    ),
    "+dataset.classes=3": "dataset.classes=3: digits takes no 'classes'; it takes nothing",
    "dataset.num_classes=3": (
        "dataset.num_classes=3: there is no such key; did you mean model.net.num_classes or model.num_classes?"
    ),
    "+evaluation.evry=2": "evaluation.evry=2: Evaluator takes no 'evry'; did you mean every?",
    "+backend.workers=2": "backend.workers=2: SerialBackend takes no 'workers'; backend=process does",
    "+callbacks.checkpoint.evry=2": "callbacks.checkpoint.evry=2: Checkpoint takes no 'evry'; did you mean every?",
    "+callbacks.mine.x=3": "callbacks.mine={'x': 3}: must name an object with _target_",
    "+callbacks.mine=3": "callbacks.mine=3: must name an object with _target_",
    "~seed": "~seed: nothing runs without seed; set it instead of taking it away",
    "~dataset": "~dataset: nothing runs without dataset; set it instead of taking it away",
    "~nothing": "Could not delete from config. 'nothing' does not exist.",
    "strategy/samplr=all": "strategy/samplr=all: there is no such key; did you mean strategy/sampler?",
    "foo/bar=3": (
        "foo/bar=3: there is no such key; the groups are: adversary, backend, callbacks, dataset, debug, devices, "
        "evaluation, experiment, hparams_search, hydra, logger, model, partition, paths, strategy, trainer"
    ),
    "+strategy=fedprox": "strategy has a choice already: write strategy=fedprox, without +",
    "strategy@foo=fedavg": "Could not override 'strategy@foo'. Did you mean to override strategy?",
    "strategy=fedavgg": (
        f"In 'train': Could not find 'strategy/fedavgg'; Available options in 'strategy': {STRATEGIES}; "
        "did you mean 'fedavg'?"
    ),
    "model=softmax": (
        "In 'train': Could not find 'model/softmax'; Available options in 'model': char_lstm; char_transformer; "
        "dlg_lenet; dp_cnn; kinds; linear_regression; mcmahan_cnn; mentored; mlp_2nn; niid_cnn; resnet18; "
        "softmax_regression"
    ),
    "partition=dirichelet": (
        "In 'train': Could not find 'partition/dirichelet'; Available options in 'partition': "
        "blocks; classes; concept_shift; consecutive; dirichlet; dirichlet_equal; feature_shift; iid; inner_dirichlet; "
        "label_noise; mixture; natural; quantity_lognormal; quantity_power_law; quantity_skew; shards; temporal_drift; "
        "did you mean 'dirichlet'?"
    ),
    "partition=natural": (
        "partition natural needs a dataset that says whose its samples are, and this one has no Splits.groups: "
        "partition.column names an array of the dataset that says it"
    ),
    "partition=classes partition.classes_per_client=11": (
        "partition.classes_per_client=11: must be at least 1 and at most 10, the classes that there are"
    ),
    "partition/shift=rotation partition.shift.high=-90": (
        "partition.shift.high=-90: must be at least partition.shift.low=-45.0 and finite"
    ),
    "+partition.shift.low=3": "partition.shift={'low': 3}: must name an object with _target_",
    "logger=tensorbord": (
        "In 'train': Could not find 'logger/tensorbord'; Available options in 'logger': csv; many; "
        "none; tensorboard; wandb; wandb_offline; did you mean 'tensorboard'?"
    ),
    "+experiment=mnist_fedsvg": (
        "In 'train': Could not find 'experiment/mnist_fedsvg'; Available options in 'experiment': "
        "comparison; mnist_fedavg; scaffold_one_class; virtual_time; did you mean 'mnist_fedavg'?"
    ),
    "devices=equal devices.availability=0.5": (
        "devices.availability=0.5: is a group; choose devices/availability=fedscale or devices/availability=sine_days"
    ),
    "devices=equal +devices.availability=0.5": (
        "devices.availability=0.5: must be the configuration of an object, with _target_ or null"
    ),
    "devices=lognormal devices.samples_per_s.sigma=1000": (
        "devices.samples_per_s: must be positive, at least 1e-30, client 1 has 1.34132e-278 (Devices)"
    ),
    "strategy/transforms=secagg strategy/aggregator=median": (
        "strategy.transforms.secagg: hides each update from the server, and Median needs them: strategy/aggregator=mean"
    ),
    "strategy/transforms=[secagg,clip_norm]": (
        "strategy.transforms.clip_norm: nothing can change a masked update: put clip_norm first, before secagg"
    ),
    "attack=dlg": "Could not override 'attack'. No match in the defaults list.",
    "+debug=nothing": "In 'train': Could not find 'debug/nothing'; Available options in 'debug': default",
    "seed=abc": "Error merging override seed=abc; Value 'abc' of type 'str' could not be converted to Integer",
    "seed=-1": "seed=-1: must be at least 0 and below 2**63",
    "seed=1,2": (
        "Ambiguous value for argument 'seed=1,2'; 1. To use it as a list, use key=[value1,value2]; 2. "
        "To use it as string, quote the value: key=\\'value1,value2\\'; 3. To sweep over it, add "
        "--multirun to your command line"
    ),
    "seed=[1": (
        "seed=[1: no viable alternative at input '[1'; See "
        "https://hydra.cc/docs/1.2/advanced/override_grammar/basic for details"
    ),
    "seed=0 name=a=b": (
        "name=a=b: mismatched input '=' expecting <EOF>; See "
        "https://hydra.cc/docs/1.2/advanced/override_grammar/basic for details"
    ),
    "seed": (
        "Error parsing override 'seed'; missing EQUAL at '<EOF>'; See "
        "https://hydra.cc/docs/1.2/advanced/override_grammar/basic for details"
    ),
    "name=": "name=: must be the name of a folder below paths.outputs_dir, not empty and without ..",
    "name=../x": "name=../x: must be the name of a folder below paths.outputs_dir, not empty and without ..",
    "strategy.rounds=many": "strategy.rounds=many: must be a whole number",
    "strategy.rounds=2.5": "strategy.rounds=2.5: must be a whole number",
    "strategy.rounds=null": "strategy.rounds=null: must be a whole number",
    "strategy/transforms=paillier strategy.transforms.paillier.key_bits=100": (
        "strategy.transforms.paillier.key_bits=100: must be a multiple of 16 from 256 to 8192"
    ),
    "strategy/transforms=ckks strategy/aggregator=median": (
        "strategy.transforms.ckks: Median needs each update, and ckks hides them: strategy/aggregator=mean"
    ),
    "strategy/transforms=skellam strategy.transforms.skellam.survivors=99": (
        "strategy.transforms.skellam.survivors=99: a round has at most 10 clients"
    ),
    "strategy.min_clients=11": "strategy.min_clients=11: only 10 clients take part in a round",
    "strategy.sampler.num=11": "strategy.sampler.num=11: there are only 10 clients",
    "strategy.sampler.num=few": "strategy.sampler.num=few: must be a whole number or null",
    "strategy/sampler=trace": "strategy.sampler.file=null: must name a file with cohorts",
    "strategy/sampler=importance strategy.sampler.by=size": "strategy.sampler.by=size: must be norm or loss",
    "strategy=scaffold strategy/sampler=weighted": (
        "strategy.sampler: Scaffold needs clients' own weights, WeightedSampler gives others"
    ),
    "strategy.sampler.fraction=1.5": "strategy.sampler.fraction=1.5: must be above 0 and at most 1",
    "strategy/aggregator=krum strategy.aggregator.num_malicious=8": (
        "strategy.aggregator.num_malicious=8: Krum needs at least 19 clients in a round (Blanchard et al., 2017), and "
        "10 take part"
    ),
    "strategy/aggregator=krum strategy.aggregator.num_malicious=-1": (
        "strategy.aggregator.num_malicious=-1: must be a whole number, at least 0"
    ),
    "strategy/aggregator=trimmed_mean strategy.aggregator.num_malicious=1": (
        "strategy.aggregator: TrimmedMean takes share or num_malicious, the other is null"
    ),
    "strategy/aggregator=median strategy/aggregator/before=nmm": (
        "In 'strategy/aggregator/median': Could not find 'strategy/aggregator/before/nmm'; Available options in "
        "'strategy/aggregator/before': arc; bucketing; clip; nnm; none; did you mean 'nnm'?"
    ),
    "strategy/aggregator=fltrust": (
        "strategy.aggregator: FLTrust needs root samples, on which the server trains itself: root_samples=100"
    ),
    "root_samples=-1": "root_samples=-1: must be a whole number from 0 to 1428; every client keeps a sample",
    "adversary=alie": (
        "adversary: ALIE sees each honest client's update, and strategy.aggregator=Mean keeps none: choose a rule on "
        "rows, as strategy/aggregator=median; strategy/aggregator=row_mean is their mean"
    ),
    "adversary=alie strategy/transforms=dp strategy/sampler=all": (
        "adversary: ALIE sees each honest client's update, which needs a rule on rows, and strategy.transforms.dp "
        "needs the mean: leave one of them out"
    ),
    "adversary=mimic adversary.clients=10 strategy/aggregator=median": (
        "adversary: Mimic sees each honest client's update, and adversary.clients=10 leaves no honest client"
    ),
    "adversary=sign_flip adversary.clients=1.0": (
        "adversary.clients=1.0: a fraction must be at least 0 and below 1; a number of clients is written without a "
        "point"
    ),
    "adversary=sign_flip adversary.clients=[3,12]": "adversary.clients: there is no client 12, only 0 to 9",
    "adversary=sign_flip adversary.clients=some": (
        "adversary.clients=some: must be a whole number or a number or a list"
    ),
    "adversary=sign_flip adversary.start=3 adversary.stop=2": (
        "adversary.stop=2: must be at least adversary.start=3, or null"
    ),
    "adversary=label_flip adversary.mode=targeted adversary.source=10 adversary.target=1": (
        "adversary.source=10: there are only the classes 0 to 9"
    ),
    "adversary=label_flip adversary.num_classes=3": "adversary.num_classes=3: the dataset has 10 classes",
    "adversary=backdoor adversary.target=10": "adversary.target=10: there are only the classes 0 to 9",
    "adversary=backdoor adversary.kind=semantic adversary.indices=[99999] adversary.test_indices=[0]": (
        "adversary.indices: there are only the training samples 0 to 1437"
    ),
    "adversary=backdoor adversary.size=9": (
        "adversary.size=9, adversary.margin=0: the square does not fit into images of 8 x 8 pixels"
    ),
    "adversary=backdoor dataset=synthetic_classification": (
        "adversary.input_shape=[20]: a trigger needs images, [height, width] or [channels, height, width]"
    ),
    "strategy=scaffold strategy/aggregator=median": (
        "strategy.aggregator=Median: Scaffold's variates need the mean, strategy/aggregator=mean"
    ),
    "dataset=text": "dataset.file=data/text.txt: there is no such file; any text in UTF-8 will do",
    "dataset=diabetes": (
        "model.net.num_classes=null: the dataset's samples have no classes that could be read; set "
        "model.net.num_classes=..."
    ),
    "model=char_lstm": (
        "a language model needs samples that are sequences of whole numbers, as dataset=text has them: these are "
        "torch.float32 of shape [1, 8, 8]"
    ),
    "strategy.server_optimizer.lr=-1": "strategy: Invalid learning rate: -1",
    "strategy.server_optimizer=adam": (
        "strategy.server_optimizer=adam: a choice of this group is written strategy/server_optimizer=adam"
    ),
    "partition.num_clients=0": "partition.num_clients=0: must be at least 1",
    "partition.num_clients=5000": (
        "partition.num_clients=5000: 1438 training samples are too few for 1 (partition.min_samples) "
        "each; at most 1438 clients"
    ),
    "partition=dirichlet partition.alpha=0": "partition.alpha=0: must be positive and finite",
    "partition=shards partition.shards_per_client=0": "partition.shards_per_client=0: must be at least 1",
    "holdout=1.0": "holdout=1.0: must be at least 0 and below 1",
    "holdout=abc": "Error merging override holdout=abc; Value 'abc' of type 'str' could not be converted to Float",
    "evaluation.clients_every=1": (
        "evaluation.clients_every needs held-out samples: set holdout, for example holdout=0.2"
    ),
    "evaluation.every=0": "evaluation.every=0: must be at least 1",
    "on_client_failure=maybe": "on_client_failure=maybe: must be 'stop' or 'drop'",
    "trainer.precision=16": "trainer.precision=16: must be '32-true' or 'bf16-mixed'",
    "trainer.shuffle=perhaps": "trainer.shuffle=perhaps: must be true or false",
    "trainer.batch_size=0": "trainer.batch_size=0: must be at least 1",
    "trainer.local_epochs=0": "trainer.local_epochs=0: must be at least 1",
    "model.optimizer.lr=abc": "model.optimizer.lr=abc: must be a number",
    "model.optimizer.lr=-1": "model.optimizer: Invalid learning rate: -1",
    "model.optimizer=adam": "model.optimizer=adam: a choice of this group is written model/optimizer=adam",
    "model.optimizer.momentum=yes": "model.optimizer.momentum=yes: must be a number",
    "model._target_=torch.nn.Identity": "model: Identity is not a LightningModule",
    "model.net.input_shape=[1,9,9]": (
        "model.net.input_shape=[1, 9, 9]: the dataset's samples have the shape [1, 8, 8]"
    ),
    "model.net.input_shape=many": "model.net.input_shape=many: must be a list",
    "model.net.num_classes=3": "model.net.num_classes=3: the dataset has 10 classes",
    "model.num_classes=few": "model.num_classes=few: must be a whole number",
    "trainer=base": (
        "In 'train': Could not find 'trainer/base'; Available options in 'trainer': auto; eager; lightning; traced; "
        "vectorized"
    ),
    "trainer/private=dp_sgd trainer.private.max_norm=0": "trainer.private.max_norm=0: must be positive",
    "trainer/private=dp_sgd strategy=fedsgd": (
        "trainer.private: strategy FedSGD releases losses, gradients or outputs of samples without noise, besides "
        "private steps"
    ),
    "base=trainer": "Could not override 'base'. No match in the defaults list.",
    "+base=trainer": (
        "base/trainer: base: there is no such key; the top level has: name, seed, model_seed, sampling_seed, resume, "
        "tags, optimized_metric, target, privacy, log_clients, console, log_level, holdout, root_samples, "
        "held_out_clients, public_samples, on_client_failure, dataset, partition, model, "
        "trainer, strategy, adversary, devices, backend, evaluation, client_store, callbacks, logger, paths, vars; "
        "values of your own go below vars"
    ),
    "experiment=mnist_fedsvg": (
        "In 'train': Could not find 'experiment/mnist_fedsvg'; Available options in 'experiment': "
        "comparison; mnist_fedavg; scaffold_one_class; virtual_time; did you mean 'mnist_fedavg'?"
    ),
    "debug=defualt": (
        "In 'train': Could not find 'debug/defualt'; Available options in 'debug': default; did you mean 'default'?"
    ),
    "-m experiment=mnist_fedavg,mnist_fedsvg": (
        "In 'train': Could not find 'experiment/mnist_fedsvg'; Available options in 'experiment': "
        "comparison; mnist_fedavg; scaffold_one_class; virtual_time; did you mean 'mnist_fedavg'?"
    ),
    "callbacks=[default,early_stoping]": (
        "In 'train': Could not load 'callbacks/early_stoping'.; did you mean 'early_stopping'?"
    ),
    "evaluation=every_ten": (
        "In 'train': Could not find 'evaluation/every_ten'; Available options in 'evaluation': clients; default; "
        "every_10; did you mean 'every_10'?"
    ),
    "backend.threads=0": "backend.threads=0: must be at least 1",
    "backend.device=tpu": "backend.device=tpu: must be cpu, cuda or cuda:N",
    "backend=process backend.workers=0": "backend.workers=0: must be at least 1, or null",
    "callbacks.checkpoint.keep=0": "callbacks: checkpoint.keep=0: must be at least 1",
    "callbacks=[default,early_stopping] callbacks.early_stopping.patience=0": (
        "callbacks: early_stopping.patience=0: must be at least 1"
    ),
    "+foo=3": (
        "foo=3: there is no such key; the top level has: name, seed, model_seed, sampling_seed, resume, tags, "
        "optimized_metric, target, privacy, "
        "log_clients, console, log_level, holdout, root_samples, held_out_clients, public_samples, "
        "on_client_failure, dataset, partition, "
        "model, trainer, strategy, "
        "adversary, devices, backend, evaluation, client_store, callbacks, logger, paths, vars"
    ),
    "privacy.epsilon=1": (
        "privacy.epsilon=1: no part of the run adds noise for it; choose strategy/transforms=dp, or take the budget "
        "away"
    ),
    "strategy/transforms=dp": (
        "strategy.sampler: UniformSampler draws cohorts whose privacy is not counted here; strategy.transforms.dp "
        "needs sampler=poisson or all"
    ),
    "strategy/transforms=dp strategy/sampler=all privacy.epsilon=0.1 privacy.accountant=rdp": (
        "privacy.epsilon=0.1: the first round passes it (epsilon 4.729 at privacy.delta=1e-05); raise it or "
        "strategy.transforms.dp.noise_multiplier, or have fewer clients take part"
    ),
    "privacy.delta=2": "privacy.delta=2.0: must be above 0 and below 1",
    "target.value=0.9": "target.value=0.9: target.metric must name what is to reach it, such as test/accuracy",
    "target.metric=test/loss": "target.value=null: must be the number that test/loss is to reach",
    "console=jsn": "console=jsn: must be auto, rich, plain, json or quiet; did you mean json?",
    "log_level=debug": "log_level=debug: must be INFO, WARNING or ERROR",
    "seed=99999999999999999999": "seed=99999999999999999999: must be at least 0 and below 2**63",
    "strategy.server_optimizer.lr=null": "strategy.server_optimizer.lr=null: must be a number",
    "model.optimizer.lr=null": "model.optimizer.lr=null: must be a number",
    "model.net._target_=torch.nn.Nothing": "model.net._target_=torch.nn.Nothing: torch.nn has no 'Nothing'",
    "model._target_=nowhere.Model": "model._target_=nowhere.Model: there is no module 'nowhere' that Python finds",
    "model.net._target_=torch.nn.Liner": (
        "model.net._target_=torch.nn.Liner: torch.nn has no 'Liner'; did you mean 'Linear'?"
    ),
    "model._target_=trch.nn.Linear": (
        "model._target_=trch.nn.Linear: there is no module 'trch' that Python finds; did you mean 'torch'?"
    ),
    "hydra/launcher=jobblib": (
        "In 'hydra/config': Could not find 'hydra/launcher/jobblib'; Available options in 'hydra/launcher': basic; "
        "joblib; submitit_local; submitit_slurm; did you mean 'joblib'?"
    ),
    "backend=mpi backend.dedicated_server=true": (
        "backend.dedicated_server=true: needs a process for the server and one for clients at least: mpiexec -n 3 "
        "python -m flrl.train ..."
    ),
    "hydra.run.dir=/dev/null/x": (
        "hydra.run.dir=/dev/null/x: cannot be written into (Not a directory); choose another hydra.run.dir or "
        "paths.outputs_dir"
    ),
    "-m seed=0,1 hydra.sweep.dir=/dev/null/x": (
        "hydra.sweep.dir=/dev/null/x: cannot be written into (Not a directory); choose another hydra.sweep.dir or "
        "paths.outputs_dir"
    ),
    "--config-name=trian": "Cannot find primary config 'trian'. Check that it's in your config search path.",
    "-m model.optimizer.lr=interval(0,1)": (
        "a sweep takes lists of values; an interval is searched with +hparams_search=optuna_tpe"
    ),
    "model/optimizer=adamww": (
        "In 'model/softmax_regression': Could not find 'model/optimizer/adamww'; Available options in "
        "'model/optimizer': adam; adamw; sgd; did you mean 'adamw'?"
    ),
    "strategy/sampler=unform": (
        "In 'strategy/fedavg': Could not find 'strategy/sampler/unform'; Available options in 'strategy/sampler': "
        "all; importance; poisson; power_of_choice; round_robin; trace; uniform; weighted; did you mean 'uniform'?"
    ),
    "hparams_search=optuna_tp": (
        "In 'train': Could not find 'hparams_search/optuna_tp'; Available options in 'hparams_search': optuna_cmaes; "
        "optuna_random; optuna_tpe; did you mean 'optuna_tpe'?"
    ),
    "-m +hparams_search=optuna_tpe hydra.sweeper.n_trails=3": (
        "hydra.sweeper.n_trails=3: there is no such key; did you mean hydra.sweeper.n_trials?"
    ),
    "hydra.job.chdr=true": "hydra.job.chdr=true: there is no such key; did you mean hydra.job.chdir?",
    "hydra.rn.dir=x": "hydra.rn.dir=x: there is no such key; did you mean hydra.run.dir or hydra.sweep.dir?",
    "callbacks.progres.x=1": "callbacks.progres.x=1: there is no such key; did you mean callbacks.progress.x?",
    "client_store.budget=5": ("client_store.budget=5: there is no such key; did you mean client_store.budget_bytes?"),
    "client_store.budget_bytes=-1": "client_store.budget_bytes=-1: must be at least 0",
    "vars=3": "Error merging override vars=3; Cannot assign int to Dict[str, Any]",
    "backend.portable=maybe": "backend.portable=maybe: must be true or false",
    "backend=process backend.workers=many": "backend.workers=many: must be a whole number or null",
    "strategy.rounds=0": "strategy.rounds=0: must be at least 1",
    "strategy/transforms=[top_k,clip_norm]": (
        "strategy.transforms.clip_norm: would change what top_k has encoded: put clip_norm first"
    ),
    "strategy/transforms=downlink strategy.transforms.downlink.codec.bits=3": (
        "strategy.transforms.downlink.error_feedback=true: with these settings Integers is no contraction, so that "
        "errors could grow: set it to false"
    ),
    "strategy.transforms=[abc]": "strategy.transforms=[abc]: must be a dict, name: object, not a list",
    "resume=nowhere": "resume=nowhere: there is no run in this folder (nowhere/.hydra/config.yaml is missing)",
    "--config-dir=nowhere": "Additional config directory '{here}/nowhere' not found",
    "logger=wandb": (
        "logger=wandb needs an API key: set WANDB_API_KEY or run `wandb login`; logger=wandb_offline needs none"
    ),
    "-m seed=0,1 rounds=5": "rounds=5: there is no such key; did you mean strategy.rounds?",
    "-m seed=0,1 +lr=0.5": (
        "lr=0.5: there is no such key; did you mean model.optimizer.lr or strategy.server_optimizer.lr?"
    ),
    "-m name=../x seed=0,1": (
        "name=../x: must be the name of a folder below paths.outputs_dir, not empty and without .."
    ),
}

# RUN is a finished run of two rounds.
EVALUATE = {
    "run=nowhere": "run=nowhere: there is no run in this folder (nowhere/.hydra/config.yaml is missing)",
    "": "Missing mandatory value: run",
    "run=RUN rnd=1": "rnd=1: there is no such key; did you mean round?",
    "run=RUN +rounds=1": "rounds=1: there is no such key; did you mean round?",
    "run=RUN strategy.rounds=1": "strategy.rounds=1: there is no such key; did you mean round?",
    "run=RUN round=7": "round=7: RUN has no such checkpoint; there are: round-00001, round-00002",
    "run=RUN round=one": (
        "Error merging override round=one; Value 'one' of type 'str' could not be converted to Integer"
    ),
    "run=RUN clients=perhaps": (
        "Error merging override clients=perhaps; Value 'perhaps' is not a valid bool (type str)"
    ),
    "run=RUN batch_size=0": "evaluation.batch_size=0: must be at least 1",
    "run=RUN threads=0": "threads=0: must be at least 1",
    "run=RUN device=tpu": "device=tpu: must be cpu, cuda or cuda:N",
    "run=RUN ~round": "Could not delete from config. 'round' does not exist.",
}

VERIFY = {
    "run=nowhere": "run=nowhere: there is no run in this folder (nowhere/.hydra/config.yaml is missing)",
    "": "Missing mandatory value: run",
    "run=RUN round=7": "client and round come together, and without rounds: client=17 round=3",
    "run=RUN rounds=7": "rounds=7: RUN holds rounds 1 to 2",
    "run=RUN rounds=2..1": "rounds=2..1: RUN holds rounds 1 to 2",
    "run=RUN rounds=all": "rounds=all: must be one round, 3, or several, 3..5",
    "run=RUN client=1": "client and round come together, and without rounds: client=17 round=3",
    "run=RUN client=17 round=1": "client=17: takes no part in round 1; its cohort is 0, 1, 2, 3, 4, 5, 6, 7, 8, 9",
    "run=RUN backend=mpii": (
        "In 'verify': Could not find 'backend/mpii'; Available options in 'backend': mpi; process; "
        "serial; did you mean 'mpi'?"
    ),
    "run=RUN backend.threads=0": "backend.threads=0: must be at least 1",
    "run=RUN backend.device=tpu": "backend.device=tpu: must be cpu, cuda or cuda:N",
    "run=RUN backend.wrkers=2": "backend.wrkers=2: there is no such key; backend has: threads, device, portable",
    "run=RUN +client_id=3": "client_id=3: there is no such key; did you mean client?",
    "run=RUN clients=true": "clients=true: there is no such key; did you mean client?",
    "run=RUN ~backend": "~backend: nothing runs without backend; set it instead of taking it away",
}

ATTACK = {
    "run=nowhere attack=analytic": (
        "run=nowhere: there is no run in this folder (nowhere/.hydra/config.yaml is missing)"
    ),
    "attack=analytic": "Missing mandatory value: run",
    "run=RUN attack=analytic round=7": "round=7: RUN holds rounds 1 to 2",
    "run=RUN attack=analytic client=17": (
        "client=17: takes no part in round 2; its cohort is 0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
    ),
    "run=RUN attack=analytic client=some": "client=some: must be a client's id, all (or sum), or null",
    "run=RUN attack=analytic client=-1": "client=-1: must be a client's id, all (or sum), or null",
    "run=RUN attack=analytic clients=3": "clients=3: there is no such key; did you mean client?",
    "run=RUN attack=analytic device=tpu": "device=tpu: must be cpu, cuda or cuda:N",
    "run=RUN attack=analytic candidates=0": "candidates=0: must be at least 1",
    "run=RUN attack=analytic seed=-1": "seed=-1: must be at least 0",
    "run=RUN attack=analytic logger=csv": (
        "logger=csv: attacks are logged to W&B alone: logger=wandb or logger=wandb_offline"
    ),
    "run=RUN attack=analytic attack.max_mixture=3": (
        "attack.max_mixture=3: there is no such key; did you mean attack.max_mixtures?"
    ),
    "run=RUN attack=analytic +attack.max_mixture=3": (
        "attack.max_mixture=3: Analytic takes no 'max_mixture'; did you mean max_mixtures?"
    ),
    "run=RUN attack=analytic attack.max_mixtures=0": "attack.max_mixtures=0: must be at least 1",
    "run=RUN attack=analytic attack.max_mixtures=many": "attack.max_mixtures=many: must be a whole number",
    "run=RUN attack=analytic attack._target_=torch.nn.Identity": ("attack: Identity is no flrl.attacks.Attack"),
    "run=RUN attack=all +attack.dlgg=3": "attack.dlgg=3: must name an attack with _target_",
    "run=RUN atack=analytic": "atack=analytic: there is no such key; did you mean attack?",
}

AUDIT = {
    "run=nowhere": "run=nowhere: there is no run in this folder (nowhere/.hydra/config.yaml is missing)",
    "run=.": ".: there is no run in this folder nor below it",
    "": "Missing mandatory value: run",
    "run=RUN epsilon=-1": "epsilon=-1.0: must be at least 0 and finite, or null",
    "run=RUN unit=user": "unit=user: must be client or sample",
    "run=RUN guesses=[0.5,2]": "guesses=[0.5, 2.0]: must be shares of the canaries, above 0 and at most 1",
    "run=RUN confidance=0.9": "confidance=0.9: there is no such key; did you mean confidence?",
    "run=RUN attacks.inversion.max_mixtures=0": "attacks.inversion: attack.max_mixtures=0: must be at least 1",
}


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No account and no graphics card."""
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HYDRA_FULL_ERROR", "0")
        patch.setattr("sys.argv", ["flrl-train", "strategy.rounds=2", "logger=none", f"hydra.run.dir={folder}"])
        train()
    return folder


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_there_are_enough_of_them() -> None:
    assert len(TRAIN) + len(EVALUATE) + len(VERIFY) >= 75


@pytest.mark.parametrize(("arguments", "message"), TRAIN.items(), ids=TRAIN)
def test_train(cli: Any, arguments: str, message: str) -> None:
    logger = () if "logger" in arguments else ("logger=none",)
    done = cli(*arguments.split(), *logger)
    assert (done.code, done.err) == (
        1,
        f"error: {message.format(here=os.getcwd()) if '{here}' in message else message}\n",
    )
    assert not list(Path().glob("**/metrics.jsonl"))


# Yamls of a user's own in my/, each with a mistake; the command line that takes it, and the message.
OWN = {
    "model/bad.yaml": ("_target_: torch.nn.Liner", "model=bad", "model._target_=torch.nn.Liner: torch.nn has no "
                       "'Liner'; did you mean 'Linear'?"),
    "strategy/mine.yaml": ("defaults: [fedavgg]", "strategy=mine",
                           "In 'strategy/mine': Could not load 'strategy/fedavgg'.; did you mean 'fedavg'?"),
    "strategy/typo.yaml": ("defaults: [fedavg, _self_]\nroundz: 3", "strategy=typo",
                           "strategy.roundz=3: FedAvg takes no 'roundz'; did you mean rounds?"),
    "evaluation/own.yaml": ("every: 1", "evaluation=onw", "In 'train': Could not find 'evaluation/onw'; Available "
                            "options in 'evaluation': clients; default; every_10; own; did you mean 'own'?"),
    "experiment/a.yaml": ("# @package _global_\ntrainer:\n  batchsize: 3", "experiment=a",
                          "trainer.batchsize=3: TracedTrainer takes no 'batchsize'; did you mean batch_size?"),
    "experiment/b.yaml": ("# @package _global_\nsede: 3", "experiment=b", "experiment/b: sede: there is no such key; "
                          "did you mean seed or partition.seed?; values of your own go below vars"),
    "experiment/c.yaml": ("# @package _global_\ndefaults:\n  - override /stratgy: fedavg", "experiment=c",
                          "In 'experiment/c': Could not override 'stratgy'. No match in the defaults list. Did you "
                          "mean strategy?"),
    "dataset/h.yaml": ("_target_: my_dta.halves", "dataset=h",
                       "dataset._target_=my_dta.halves: there is no module 'my_dta' that Python finds"),
}  # fmt: skip


@pytest.mark.parametrize(("file", "case"), OWN.items(), ids=OWN)
def test_a_mistake_in_a_yaml_of_ones_own(cli: Any, file: str, case: tuple[str, str, str]) -> None:
    text, argument, message = case
    Path("my", file).parent.mkdir(parents=True)
    Path("my", file).write_text(f"{text}\n")
    done = cli("--config-dir=my", argument, "logger=none")
    assert (done.code, done.err) == (1, f"error: {message}\n")


def test_a_yaml_that_is_none(cli: Any) -> None:
    Path("my/experiment").mkdir(parents=True)
    Path("my/experiment/e.yaml").write_text("a: [1\n")
    done = cli("--config-dir=my", "experiment=e")
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert done.err.startswith("error: a yaml cannot be read: while parsing a flow sequence")
    assert "my/experiment/e.yaml" in done.err


def test_absent_plugins_are_named_with_their_command() -> None:
    text = (
        "In 'hydra/config': Could not find 'hydra/launcher/joblib'\n\nAvailable options in 'hydra/launcher':\n\tbasic"
    )
    assert one_line(HydraException(text)).endswith(
        "; it comes with a plugin: pip install 'flrl[sweep]', or hydra-joblib-launcher"
    )


@pytest.mark.parametrize("setting", ["callbacks.early_stopping.monitor=test/acc", "optimized_metric=test/acc"])
def test_a_metric_that_nothing_logs_is_named_after_the_first_evaluation(cli: Any, setting: str) -> None:
    done = cli("callbacks=[default,early_stopping]", setting, "strategy.rounds=3", "logger=none", "hydra.run.dir=run")
    assert done.err.count("\n") == 1
    assert "test/acc" in done.err
    assert "test/accuracy" in done.err
    rounds = len(Path("run/metrics.jsonl").read_text().splitlines())
    assert (done.code, rounds) == ((1, 1) if setting.startswith("callbacks") else (0, 3))


def test_no_data_and_no_download(cli: Any) -> None:
    done = cli("dataset=mnist", "dataset.download=false", "dataset.data_dir=nowhere")
    assert done.code == 1
    assert done.err.startswith(f"error: MNIST is not in {Path('nowhere/MNIST/raw').resolve()} and could not be fetched")
    assert "by hand" in done.err.splitlines()[-1]


@pytest.mark.parametrize(("arguments", "message"), EVALUATE.items(), ids=EVALUATE)
def test_evaluate(cli: Any, finished: Path, arguments: str, message: str) -> None:
    before = files(finished)
    done = cli(*arguments.replace("RUN", str(finished)).split(), main=evaluate)
    assert (done.code, done.err) == (1, f"error: {message.replace('RUN', str(finished))}\n")
    assert files(finished) == before


@pytest.mark.parametrize(("arguments", "message"), VERIFY.items(), ids=VERIFY)
def test_verify(cli: Any, finished: Path, arguments: str, message: str) -> None:
    before = files(finished)
    done = cli(*arguments.replace("RUN", str(finished)).split(), main=verify)
    assert (done.code, done.err) == (1, f"error: {message.replace('RUN', str(finished))}\n")
    assert files(finished) == before


@pytest.mark.parametrize(("arguments", "message"), ATTACK.items(), ids=ATTACK)
def test_attack(cli: Any, finished: Path, arguments: str, message: str) -> None:
    before = files(finished)
    done = cli(*arguments.replace("RUN", str(finished)).split(), main=attack)
    assert (done.code, done.err) == (1, f"error: {message.replace('RUN', str(finished))}\n")
    assert files(finished) == before


@pytest.mark.parametrize(("arguments", "message"), AUDIT.items(), ids=AUDIT)
def test_audit(cli: Any, finished: Path, arguments: str, message: str) -> None:
    before = files(finished)
    done = cli(*arguments.replace("RUN", str(finished)).split(), main=audit)
    assert (done.code, done.err) == (1, f"error: {message.replace('RUN', str(finished))}\n")
    assert files(finished) == before


def test_an_attack_that_does_not_exist(cli: Any, finished: Path) -> None:
    done = cli(f"run={finished}", "attack=analitic", main=attack)
    assert done.err.startswith(
        "error: In 'attack': Could not find 'attack/analitic'; Available options in 'attack': all;"
    )
    assert done.err.endswith("; did you mean 'analytic'?\n")
    assert cli(f"run={finished}", main=attack).err.startswith("error: attack=: choose one of all, analytic")


@pytest.mark.parametrize("main", [train, evaluate, verify, attack, audit])
def test_an_option_that_does_not_exist(cli: Any, main: Any) -> None:
    done = cli("--nonsense", main=main)
    assert done.code == 2
    assert done.err.splitlines()[-1] == "flrl-train: error: unrecognized arguments: --nonsense"
