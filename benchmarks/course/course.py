"""Train fast.ai's course recipe and ours until 94 % of the validation images are told right, in turns, and write results/course.csv.

    python benchmarks/course/course.py [--ours configs/recipes/epochs_20.yaml] [--target 0.94]

Both go through `fashion_train`: the same data, the same loop and the same number formats; what differs is the recipe. After
each epoch one is stopped and the other goes on, so that what disturbs the machine disturbs both; only its own turns count.
What is reported is the ratio, and the minutes of this machine on this day."""
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import timm
from fastcore.script import call_parse
from torch import nn
from torch.nn.functional import leaky_relu

from fashion_nbdev.benchmark import command_line
from fashion_nbdev.config import load_config
from fashion_nbdev.results import conditions, write_results

HERE = Path(__file__).resolve().parent
COURSE = HERE / 'course.yaml'
WIDTHS = (16, 32, 64, 128, 256, 512) # channels of the blocks; each but the first halves the picture


class Shifted(nn.Module):
    "The course's activation: a leaky ReLU, moved so that its mean is about zero"
    def forward(self, x): return leaky_relu(x, .1) - .4


class Block(nn.Module):
    "Two convolutions beside a mean of what comes in"
    def __init__(self, c_in: int, c_out: int, stride: int, size: int):
        super().__init__()
        conv = lambda c, stride: nn.Sequential(nn.Conv2d(c, c_out, size, stride, size//2, bias=False), nn.BatchNorm2d(c_out))
        self.block = nn.Sequential(conv(c_in, 1), Shifted(), conv(c_out, stride))
        self.beside = nn.Sequential(nn.AvgPool2d(2, ceil_mode=True) if stride > 1 else nn.Identity(), nn.Conv2d(c_in, c_out, 1))
        self.act = Shifted()

    def forward(self, x): return self.act(self.block(x) + self.beside(x))


class CourseResNet(nn.Module):
    "The wide network of the course"
    def __init__(self, num_classes: int = 10, in_chans: int = 1, drop_rate: float = 0.0):
        super().__init__()
        self.num_classes, self.num_features = num_classes, WIDTHS[-1]
        blocks = [Block(before, w, 1 if i == 0 else 2, 5 if i == 0 else 3) for i, (before, w) in enumerate(zip((in_chans, *WIDTHS), WIDTHS))]
        self.blocks = nn.Sequential(*blocks, nn.Flatten())
        self.head = nn.Sequential(nn.Dropout(drop_rate), nn.Linear(WIDTHS[-1], num_classes, bias=False), nn.BatchNorm1d(num_classes))
        for m in self.modules():
            if isinstance(m, nn.Conv2d): nn.init.kaiming_normal_(m.weight, a=.1)

    def forward(self, x): return self.head(self.blocks(x))


@timm.models.register_model
def course_resnet(pretrained=False, **kwargs) -> CourseResNet:
    "What timm calls to build it"
    given = {k: v for k, v in kwargs.items() if k in ('num_classes', 'in_chans', 'drop_rate')}
    return timm.models.build_model_with_cfg(CourseResNet, 'course_resnet', pretrained, pretrained_cfg=dict(input_size=(1, 28, 28), first_conv='blocks.0.block.0.0', classifier='head.1'), **given)


class Turn:
    "One training in a process of its own, which runs only while it is its turn"
    def __init__(self, config: Path, runs: str, set_: list[str]):
        self.config, self.log, self.active, self.told, self.reached = config, Path(runs)/load_config(config).name/'one/logs/training.log', 0.0, [], None
        self.process = subprocess.Popen([sys.executable, __file__, '--train', str(config), '--runs', runs, '--change', ' '.join(set_)], stdout=subprocess.DEVNULL, start_new_session=True)
        os.killpg(self.process.pid, signal.SIGSTOP)

    def accuracies(self) -> list[float]: # of the epochs so far
        return [float(a) for a in re.findall(r'epoch \d+/\d+ .* accuracy ([\d.]+)', self.log.read_text())] if self.log.exists() else []

    def epoch(self, target: float):
        "Go on until an epoch has ended"
        os.killpg(self.process.pid, signal.SIGCONT)
        begun = time.perf_counter()
        while len(found := self.accuracies()) == len(self.told) and self.process.poll() is None: time.sleep(.1)
        self.active += time.perf_counter() - begun
        if self.process.poll() is None: os.killpg(self.process.pid, signal.SIGSTOP)
        if len(found) > len(self.told) and found[-1] >= target and not self.reached: self.reached = (self.active/60, len(found))
        self.told = found
        print(f'{self.config.stem}: epoch {len(found)}, {found[-1] if found else 0:.4f} after {self.active/60:.1f} minutes', flush=True)

    def end(self):
        if self.process.poll() is None: os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    @property
    def done(self) -> bool: return self.process.poll() is not None or self.reached is not None

    def row(self) -> dict:
        minutes, epoch = self.reached or (None, None)
        return dict(recipe=self.config.stem, minutes=minutes, epoch=epoch, best=max(self.told, default=None), minutes_spent=self.active/60)


def race(configs: list[Path], target: float, set_: list[str]) -> list[dict]:
    "Both recipes, epoch by epoch"
    with tempfile.TemporaryDirectory() as runs:
        turns = [Turn(config, runs, set_) for config in configs]
        try:
            while not all(t.done for t in turns):
                for t in turns:
                    if not t.done: t.epoch(target)
        finally:
            for t in turns: t.end()
    return [t.row() for t in turns]


@call_parse
def main(
    ours: str = 'configs/recipes/epochs_20.yaml', # the recipe beside the course's
    target: float = 0.94, # share of the validation images
    change: str = '', # settings for both, such as train.epochs=2
    out: str = 'results/course.csv',
    train: str = '', # used by itself: train this configuration
    runs: str = '', # used by itself: into this folder
):
    "Time to an accuracy: fast.ai's course recipe against ours"
    if train:
        from fashion_nbdev.improvements import fashion_train
        return fashion_train(train, run='one', verbose=True, set=change.split(), runs=runs)
    course, own = race([COURSE, Path(ours)], target, change.split())
    ratio = course['minutes']/own['minutes'] if course['minutes'] and own['minutes'] else None
    rows = [course | dict(target=target, ours_is_faster=None), own | dict(target=target, ours_is_faster=ratio)]
    print(f'to {target:.0%}: course {course["minutes"]}, ours {own["minutes"]} minutes')
    print(f'  -> {write_results(out, rows, **conditions(command_line("python benchmarks/course/course.py", ours=ours, target=f"{target:g}", change=change), n_runs=1))}')
