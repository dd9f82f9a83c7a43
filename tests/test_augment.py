"Properties of augmentation and of the shifts that hold for any photograph, size and seed"
import math
from io import BytesIO

import numpy as np
import pytest
import torch
from fashion_nbdev.config import AugmentConfig
from fashion_nbdev.core import ConfigError
from fashion_nbdev.crops import find_photos, frames, random_boxes, random_resized_crop, sample_boxes
from fashion_nbdev.image import resize_image
from fashion_nbdev.photo_augment import (
    colour_jitter, degrade, make_photo_augment, random_background, random_erasing, trivial_augment,
)
from fashion_nbdev.shifts import REPORTED, accuracy_under_shifts, background, background_share, plot_shifts, shifted
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

SIDES, SEEDS = st.integers(2, 90), st.integers(0, 2**31)
EVERYTHING = AugmentConfig(flip=True, min_area=.3, rotate=20, colour=.5, trivial=True, degrade=.5, erase=.5)
STEPS = dict(
    crop=lambda x, g: random_resized_crop(x, 40, 30, .3, 20, g, flip=True), colour=lambda x, g: colour_jitter(x, .5, g), trivial=trivial_augment,
    degrade=lambda x, g: degrade(x, .5, g), erase=lambda x, g: random_erasing(x, .5, g), background=lambda x, g: random_background(x, .5, g),
    all=make_photo_augment(EVERYTHING, 40, 30))
OFF = dict(
    colour=lambda x, g: colour_jitter(x, 0, g), degrade=lambda x, g: degrade(x, 0, g), erase=lambda x, g: random_erasing(x, 0, g),
    background=lambda x, g: random_background(x, 0, g))


def rng(seed=0): return torch.Generator().manual_seed(seed)


def photo(height, width, seed=0):
    "Coloured noise, smooth enough to survive resizing, never pure white"
    coarse = np.random.default_rng(seed).integers(0, 200, (5, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR))


def batch(n=6, side=64, seed=0):
    "Portrait, landscape and square photographs in white squares, uint8 [n, 3, side, side]"
    shapes = [(40, 30), (30, 40), (35, 35)]
    squares = [resize_image(photo(*shapes[i % 3], seed + i), side, side, 'pad') for i in range(n)]
    return torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2)


# Augmentation

@pytest.mark.parametrize('name', STEPS)
def test_step_follows_the_generator_and_nothing_else(name):
    step, x = STEPS[name], batch(12)
    kept = x.clone()
    first = step(x, rng(1))
    torch.manual_seed(99); np.random.seed(99) # the global generators have no say
    assert torch.equal(first, step(x, rng(1)))
    assert torch.equal(first, step(x.contiguous(), rng(1))), 'the layout in memory changed the result'
    assert not torch.equal(first, step(x, rng(2)))
    assert torch.equal(x, kept), 'the input was written to'
    assert first.dtype == torch.uint8 and first.shape[:2] == (12, 3)
    state = torch.get_rng_state()
    step(x, rng(1))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize('name', OFF)
def test_step_that_is_off_changes_nothing(name):
    x = batch()
    assert torch.equal(OFF[name](x, rng()), x)


@settings(max_examples=60, deadline=None)
@given(height=st.integers(8, 90), width=st.integers(8, 90), side=st.integers(8, 100), seed=SEEDS)
def test_photographs_are_found_in_their_squares(height, width, side, seed):
    img = resize_image(photo(height, width, seed), side, side, 'pad')
    scale = side/max(height, width)
    w, h = max(1, round(width*scale)), max(1, round(height*scale))
    left, top, right, bottom = find_photos(torch.from_numpy(img).permute(2, 0, 1)[None])[0].tolist()
    assert w <= right - left <= w + 1 and h <= bottom - top <= h + 1 # bars differ by a pixel where they cannot be equal
    outside = np.ones((side, side), bool)
    outside[top:bottom, left:right] = False
    assert (img[outside] == 255).all()


@settings(max_examples=60, deadline=None)
@given(side=st.integers(1, 80), height=SIDES, width=SIDES, min_area=st.floats(.01, 1), rotate=st.sampled_from([0, 15, 180]), rule=st.sampled_from(['crop', 'pad', 'stretch']), seed=SEEDS)
def test_any_size_gives_the_size_asked_for(side, height, width, min_area, rotate, rule, seed):
    x = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (2, 3, side, side), dtype=np.uint8))
    assert random_resized_crop(x, height, width, min_area, rotate, rng(seed), True, rule, .875).shape == (2, 3, height, width)


@pytest.mark.parametrize('rule', ['crop', 'pad', 'stretch'])
def test_without_augmentation_a_photograph_is_framed_as_in_serving(rule):
    for size in ((120, 90), (90, 120), (100, 100)):
        img = photo(*size)
        x = torch.from_numpy(resize_image(img, 120, 120, 'pad')).permute(2, 0, 1)[None]
        ours = make_photo_augment(AugmentConfig(), 48, 64, rule, .875)(x, rng())[0].permute(1, 2, 0).numpy()
        served = resize_image(img, 48, 64, rule, .875)
        assert np.abs(ours.astype(int) - served).mean() < 3
        assert np.abs(ours[:, ::-1].astype(int) - served).mean() > 10, 'the comparison would pass with any picture'


@settings(max_examples=40, deadline=None)
@given(w=st.floats(5, 400), h=st.floats(5, 400), aspect=st.floats(.3, 3), min_area=st.floats(.01, 1), seed=SEEDS)
def test_boxes_keep_their_share_and_stay_inside(w, h, aspect, min_area, seed):
    x, y, bw, bh = random_boxes(torch.tensor([[50., 60, w, h]]).expand(50, 4), aspect, min_area, rng(seed)).unbind(1)
    share = bw*bh/(w*h)
    assert share.min() > min_area - 1e-3 and share.max() < 1 + 1e-3
    for at, size, middle, whole in ((x, bw, 50, w), (y, bh, 60, h)):
        assert ((at - size/2) >= middle - whole/2 - 1e-3*whole).all() and ((at + size/2) <= middle + whole/2 + 1e-3*whole).all()


def test_half_are_mirrored_and_half_are_turned():
    x = batch(1, 32).expand(1200, 3, 32, 32)
    plain = random_resized_crop(x[:1], 16, 16, 1, 0, rng(), resize='stretch')
    flipped = random_resized_crop(x, 16, 16, 1, 0, rng(), True, 'stretch')
    same, mirrored = ((flipped == other).flatten(1).all(1) for other in (plain, plain.flip(3)))
    assert (same ^ mirrored).all() and abs(mirrored.float().mean() - .5) < .06
    turned = (random_resized_crop(x, 16, 16, 1, 30, rng(), False, 'stretch') != plain).flatten(1).any(1)
    assert abs(turned.float().mean() - .5) < .06


def test_turns_are_as_wide_as_asked():
    "A bright bar through the centre shows the angle"
    x = torch.zeros(300, 3, 65, 65, dtype=torch.uint8)
    x[:, :, 31:34] = 250
    out = random_resized_crop(x, 65, 65, 1, 30, rng(), resize='stretch')[:, 0, 10:55, 10:55].float()
    v, u = torch.meshgrid(torch.arange(45) - 22., torch.arange(45) - 22., indexing='ij')
    weight = out.sum((1, 2))
    xx, yy, xy = ((out*m).sum((1, 2))/weight for m in (u*u, v*v, u*v))
    angles = torch.rad2deg(.5*torch.atan2(2*xy, xx - yy))
    assert angles.abs().max() < 32 and angles.max() > 25 and angles.min() < -25
    assert abs(angles.mean()) < 3


def test_colour_strength_is_the_spread():
    x = torch.full((3000, 3, 2, 2), 90, dtype=torch.uint8)
    spread = [colour_jitter(x, s, rng()).float().mean((1, 2, 3)).log2().std().item() for s in (.25, .5, 1)]
    for s, found in zip((.25, .5, 1), spread): assert found == pytest.approx(s/math.sqrt(3), rel=.1) # of a uniform draw from -s to s
    red = torch.tensor([180, 60, 60], dtype=torch.uint8).view(1, 3, 1, 1).expand(500, 3, 2, 2)
    assert (colour_jitter(red, .3, rng())[:, 0] > colour_jitter(red, .3, rng())[:, 1]).all(), 'a little jitter keeps red red'


@pytest.mark.parametrize('name', ['degrade', 'erase', 'background'])
def test_share_of_changed_images_is_the_probability(name):
    func = dict(degrade=degrade, erase=random_erasing, background=random_background)[name]
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (400, 3, 24, 24), dtype=np.uint8))
    if name == 'background': x[:, :, :6] = 40; x[:, :, -6:] = 40
    for p in (.2, 1.0):
        changed = (func(x, p, rng(3)) != x).flatten(1).any(1).float().mean()
        assert abs(changed - p) < .06


def test_small_picture_settings_are_refused():
    for cfg in (AugmentConfig(crop=2), AugmentConfig(cutout=8)):
        with pytest.raises(ConfigError, match='augment.min_area and augment.erase'): make_photo_augment(cfg, 32, 32)
    with pytest.raises(ConfigError, match='choose one of crop, pad, stretch'): make_photo_augment(AugmentConfig(), 32, 32, 'fashion_mnist')


def test_what_lies_outside_has_the_colour_given():
    x, fill = batch(3, 40), torch.tensor([[10, 200, 30]], dtype=torch.uint8).expand(3, 3)
    photos = find_photos(x)
    out = sample_boxes(x, frames(photos, 40, 40, 'pad'), 40, 40, fill, photos=photos)
    for image, source, (l, t, r, b) in zip(out, x, photos.tolist()):
        assert torch.equal(image[:, t:b, l:r], source[:, t:b, l:r])
        outside = torch.ones(40, 40, dtype=torch.bool)
        outside[t:b, l:r] = False
        assert (image[:, outside] == fill[0][:, None]).all()


# Shifts

@settings(max_examples=25, deadline=None)
@given(height=st.integers(1, 140), width=st.integers(1, 140), seed=SEEDS)
def test_every_shift_takes_any_picture_and_leaves_it_alone(height, width, seed):
    img = photo(height, width, seed).copy()
    kept = img.copy()
    for name in REPORTED:
        out = shifted(img, name)
        assert out.dtype == np.uint8 and out.ndim == 3 and out.shape[2] == 3 and out.size, name
        assert np.array_equal(out, shifted(img, name)), f'{name} is not the same twice'
        assert not np.shares_memory(out, img) and np.array_equal(img, kept), name


@settings(max_examples=25, deadline=None)
@given(colour=st.tuples(*[st.integers(0, 255)]*3), noise=st.integers(0, 8), seed=SEEDS)
def test_plain_walls_are_replaced_whatever_their_colour(colour, noise, seed):
    wall = np.full((120, 90, 3), colour, np.int16) + np.random.default_rng(seed).integers(-noise, noise + 1, (120, 90, 3))
    img = wall.clip(0, 255).astype(np.uint8)
    other = tuple(255 if v < 128 else 0 for v in colour) # far away in every channel
    img[30:90, 25:65] = other
    out = background(img)
    assert (out[:25] == (0, 170, 60)).mean() > .98 and (out[35:85, 30:60] == other).mean() > .98
    assert background_share(img) == pytest.approx(1 - 60*40/(120*90), abs=.05)


def test_accuracy_counts_what_the_model_gets_right():
    "A model that reads the mean brightness is right as long as brightness stays"
    photos = [np.full((120, 100, 3), 60 if i % 3 == 0 else 160, np.uint8) for i in range(45)]
    labels = np.array([0 if i % 3 == 0 else 1 for i in range(45)])
    predict = lambda x: np.stack([100 - x.mean((1, 2, 3)), x.mean((1, 2, 3)) - 100], 1)
    rows = {r['shift']: r for r in accuracy_under_shifts(photos, labels, predict, lambda img: resize_image(img, 8, 8), progress=False, batch_size=7)}
    assert {k: r['accuracy'] for k, r in rows.items() if k in ('none', 'crop', 'rotate', 'blur', 'jpeg', 'small')} == dict.fromkeys(('none', 'crop', 'rotate', 'blur', 'jpeg', 'small'), 1.0)
    assert rows['dark']['accuracy'] == rows['low light']['accuracy'] == pytest.approx(1/3) # all called dark
    assert rows['dark']['drop'] == pytest.approx(2/3) and rows['bright']['accuracy'] == 1.0
    for r in rows.values(): assert 0 <= r['low'] <= r['accuracy'] <= r['high'] <= 1 and r['high'] - r['low'] > .05 and r['n'] == 45
    fig = plot_shifts(list(rows.values()))
    assert [round(bar.get_width(), 4) for bar in fig.axes[0].patches] == [round(r['accuracy'], 4) for r in rows.values()]


def test_photographs_are_read_one_at_a_time():
    alive = []

    def files():
        for i in range(20):
            Image.fromarray(photo(60, 50, i)).save(file := BytesIO(), 'PNG')
            alive.append(i)
            yield file.getvalue()

    def predict(x):
        seen.append((len(alive), len(x)))
        return x.reshape(len(x), -1)[:, :3].astype(float)

    seen = []
    rows = accuracy_under_shifts(files(), [0]*20, predict, lambda img: resize_image(img, 8, 8), progress=False, batch_size=5, shifts=['crop'])
    assert seen == [(n, 5) for n in (5, 10, 15, 20) for _ in range(2)], 'the model runs as soon as a batch is full'
    assert [r['shift'] for r in rows] == ['none', 'crop']
