"Which models answer: loaded beside the old ones, exchanged in one step, tried on a share of the traffic, agreed on by all workers"
import asyncio
import os
import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from fashion_nbdev.core import FashionError
from fashion_nbdev.model_file import read_model
from fashion_serve.board import Board, Note, Plan, TrialPlan
from fashion_serve.errors import Problem, log
from fashion_serve.metrics import MODEL, ROLLBACKS
from fashion_serve.models import Model, candidate_file, find_models, open_model, pick_default
from fashion_serve.settings import Settings

ENOUGH, LATELY = 5, 50 # answers of a candidate before it is called slow, and the last ones, which are looked at
SLOWER = 2.0 # times as long as the model it would replace: too slow
AGREE = 15.0 # seconds in which all workers follow a change
LOOK = .2 # seconds between two looks at what all have agreed on


@dataclass(eq=False)
class Trial:
    "A candidate beside the model that it may replace"
    model: Model
    share: float # of the requests
    shadow: bool # asked beside the other one: its answers are compared and thrown away
    answers: int = 0
    failures: int = 0
    agreed: int = 0 # answers with the label that the other one gave; of a shadow only
    times: list[float] = field(default_factory=list) # as long as the other one each of the last answers took

    def count(self, seconds: float, usual: float):
        "An answer, and how long the other one takes for it"
        self.answers, self.times = self.answers + 1, [*self.times[1 - LATELY:], seconds / usual]

    def verdict(self) -> str:
        "Why it must go; empty if it may stay"
        n, times = self.answers + self.failures, self.times
        if self.failures and self.failures > .02 * n: return f'{self.failures} of its {n} answers failed'
        return f'it takes {median(times):.1f} times as long' if len(times) >= ENOUGH and median(times) > SLOWER else ''


class Registry:
    "The models of one worker, kept as all workers have agreed"
    def __init__(self, settings: Settings, board: Board):
        self.settings, self.board = settings, board
        self.models: dict[str, Model] = {}
        self.trials: dict[str, Trial] = {}
        self.default, self.plan = '', Plan()
        self.changing = asyncio.Lock() # one change at a time

    def load(self):
        "Open all models for the first time; raises `FashionError`"
        plan = self.board.plan()
        if not plan.models: plan = self._first_plan()
        self.default = pick_default(list(plan.models), self.settings.default_model)
        for name, version in plan.models.items(): self._serve(self._open(name, self._file(name, version)))
        for name, trial in plan.trials.items(): self._try(name, trial)
        self.plan = plan

    def _first_plan(self) -> Plan:
        "The files that are there when the service starts: a worker that begins later answers with them, whatever lies in the folder then"
        with self.board.editing() as plan:
            if plan.models: return plan # another worker was first
            self.board.see(self._files())
            for name, path in find_models(self.settings.models_dir).items():
                data, info = read_model(path)
                self.board.keep(info.version, data)
                plan.models[name] = info.version
            return plan

    def _file(self, name: str, version: str) -> Path:
        "Where a version lies: on the board, and if something has tidied that up, again from where it came"
        kept, path = self.board.file(version), find_models(self.settings.models_dir).get(name)
        if not kept.is_file() and path:
            data, info = read_model(path)
            if info.version == version: self.board.keep(version, data)
        return kept

    def _open(self, name: str, path: Path) -> Model:
        return open_model(name, read_model(path)[0], self.settings)

    def _serve(self, model: Model):
        old = self.models.get(model.name)
        self.models = self.models | {model.name: model} # one assignment: a request sees the old models or the new ones
        if old: MODEL.labels(old.name, old.version).set(0)
        MODEL.labels(model.name, model.version).set(1)
        ROLLBACKS.labels(model.name) # shown from the start: an alert counts from 0

    def _try(self, name: str, wanted: TrialPlan | None):
        trials = {k: v for k, v in self.trials.items() if k != name}
        if wanted: trials[name] = Trial(self._open(name, self.board.file(wanted.version)), wanted.share, wanted.shadow)
        self.trials = trials

    def get(self, name: str | None) -> Model:
        "The model of that name, or the default one; raises `Problem`"
        if model := self.models.get(name or self.default): return model
        raise Problem('unknown_model', f'there is no model {name[:40]!r}: choose one of {", ".join(self.models)}')

    def pick(self, name: str | None) -> Model:
        "The same, or for a share of the requests the candidate that is tried beside it"
        model = self.get(name)
        trial = self.trials.get(model.name)
        return trial.model if trial and not trial.shadow and random.random() < trial.share else model

    def shadow_of(self, model: Model) -> Trial | None:
        "The candidate that is to be asked the same, this time"
        trial = self.trials.get(model.name)
        return trial if trial and trial.shadow and random.random() < trial.share else None

    # ---- changes, all of them through the plan that the workers share
    async def reload(self, name: str) -> str:
        "Read the model's file again; nothing changes if it is bad. Raises `Problem`"
        self.get(name)
        try: path = find_models(self.settings.models_dir).get(name)
        except FashionError as e: raise Problem('bad_model', f'nothing was changed: {e}') from None
        return await self._change(name, path, lambda plan, version: plan.models.update({name: version}))

    async def try_out(self, name: str, share: float, shadow: bool) -> str:
        "Try the candidate beside a model (its file is NAME.next.onnx); raises `Problem`"
        self.get(name)
        trial = lambda version: TrialPlan(version, share, shadow)
        return await self._change(name, candidate_file(self.settings.models_dir, name), lambda plan, version: plan.trials.update({name: trial(version)}))

    async def promote(self, name: str):
        "Let the candidate answer from now on; raises `Problem`"
        if not (trial := self.trials.get(name)): raise Problem('no_trial', f'no candidate for {name[:40]!r} is being tried')
        await self._agree(lambda plan: (plan.models.update({name: trial.model.version}), plan.trials.pop(name, None)))

    async def end_trial(self, name: str, why: str = ''):
        "Stop trying the candidate; `why` if it failed"
        if name not in self.trials: raise Problem('no_trial', f'no candidate for {name[:40]!r} is being tried')
        def end(plan: Plan):
            if plan.trials.pop(name, None) and why: # the worker that is first to notice says so
                ROLLBACKS.labels(name).inc()
                log.warning('the candidate for %s is no longer tried: %s', name, why)
        await self._agree(end)

    async def _change(self, name: str, path: Path | None, edit) -> str:
        if path is None: raise Problem('bad_model', f'there is no file for it: {name}.onnx, or {name}.next.onnx to try one')
        def verify() -> tuple[str, bytes]: # and warm it up, before anything changes
            data = read_model(path)[0]
            return open_model(name, data, self.settings).version, data
        try: version, data = await asyncio.to_thread(verify)
        except FashionError as e: raise Problem('bad_model', f'nothing was changed: {e}') from None
        await self._agree(lambda plan: (self.board.keep(version, data), edit(plan, version)))
        return version

    async def _agree(self, edit):
        "Change the plan, and wait until every worker has followed"
        with self.board.editing() as plan: edit(plan)
        await self.follow()
        end = time.monotonic() + AGREE
        while time.monotonic() < end:
            if self.board.all_follow(plan.generation): return self.board.tidy()
            await asyncio.sleep(LOOK / 4)
        raise Problem('not_ready', f'it is decided, but not all processes have followed in {AGREE:g} s: ask again', {'Retry-After': '5'})

    async def follow(self):
        "Do what the plan says, as far as it is not done"
        async with self.changing:
            plan = self.board.plan()
            if plan.generation == self.plan.generation: return
            for name, version in plan.models.items():
                if self.models[name].version != version: self._serve(await asyncio.to_thread(self._open, name, self.board.file(version)))
            for name in {*plan.trials, *self.trials}:
                if plan.trials.get(name) != self.plan.trials.get(name): await asyncio.to_thread(self._try, name, plan.trials.get(name))
            self.plan = plan
            self.board.publish(Note(True, list(self.models), plan.generation))

    async def keep_following(self):
        "Until it is cancelled: follow the plan, end a trial that went badly, and notice files that were exchanged"
        for i in range(2**62):
            await asyncio.sleep(LOOK)
            try:
                await self.follow()
                for name, trial in list(self.trials.items()):
                    if why := trial.verdict(): await self.end_trial(name, why)
                if self.settings.watch and i % 10 == 0 and self.board.is_first(): await self._notice()
            except Exception: log.exception('following a change of models failed') # the next look may do better

    def _files(self) -> dict[str, list]:
        return {name: [str(path), os.stat(path).st_mtime_ns, os.stat(path).st_size] for name, path in find_models(self.settings.models_dir).items()}

    async def _notice(self):
        "Reload a model whose file is another one since the last look, whoever looked; one that is still being written is bad, and another one at the next look"
        try: now = self._files()
        except (FashionError, OSError): return # no file, for the moment: what answers lies on the board
        if now == (seen := self.board.seen()): return
        self.board.see(now)
        for name, stamp in now.items():
            if name in self.models and seen.get(name) != stamp:
                try: await self.reload(name)
                except Problem as e: log.warning('%s.onnx was exchanged, but %s', name, e.detail)
