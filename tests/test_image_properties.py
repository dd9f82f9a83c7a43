"""Properties of fashion_nbdev.image that must hold for every file: hypothesis looks for the one that breaks them."""
import gzip
import io
import os
import struct
import subprocess
import sys
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from fashion_nbdev.core import ConfigError, repo_root
from fashion_nbdev.image import (
    IMAGE_ERRORS, RESIZE_RULES, ImageError, ImageLimits, decode_image, image_header, read_image, resize_image, to_fashion_mnist,
)

ROOT = repo_root()
settings.register_profile('image', database=None, deadline=None, derandomize=True, max_examples=60, suppress_health_check=list(HealthCheck))
few = settings.get_profile('image')

def read_idx(name):
    return np.frombuffer(gzip.decompress((ROOT/'samples/fashion-mnist'/name).read_bytes()), np.uint8, offset=16).reshape(-1, 28, 28)

GARMENTS = read_idx('t10k-images-idx3-ubyte.gz')
LOSSLESS = {'PNG': {}, 'BMP': {}, 'WEBP': {'lossless': True, 'exact': True}}
FORMATS = ('JPEG', 'PNG', 'WEBP', 'GIF', 'BMP')

def encode(im, fmt, **options):
    im.save(file := io.BytesIO(), fmt, **options)
    return file.getvalue()

def exif_of(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()

def picture(seed, width, height, mode='RGB'):
    "A real garment, turned into any size and mode"
    garment = Image.fromarray(GARMENTS[seed % len(GARMENTS)])
    colour = Image.merge('RGB', [garment, ImageOps.mirror(garment), ImageOps.invert(garment)]).resize((width, height))
    return colour.quantize(8) if mode == 'P' else colour.convert(mode)

def progressive(scans):
    file = encode(picture(1, 32, 32), 'JPEG', progressive=True) # ten scans
    last = file.rindex(b'\xff\xda')
    return file[:-2] + file[last:-2]*(scans - 10) + b'\xff\xd9'

SEEDS = [encode(picture(i, 24, 18, mode), fmt, **options)
         for i, (fmt, mode, options) in enumerate([
             ('JPEG', 'RGB', {'exif': exif_of(6)}), ('JPEG', 'L', {}), ('JPEG', 'CMYK', {}), ('JPEG', 'RGB', {'progressive': True}),
             ('PNG', 'RGBA', {'exif': exif_of(8)}), ('PNG', 'P', {'transparency': 0}), ('PNG', '1', {}), ('PNG', 'I;16', {}), ('PNG', 'LA', {}),
             ('WEBP', 'RGB', {'exif': exif_of(5)}), ('WEBP', 'RGBA', {'lossless': True}),
             ('GIF', 'P', {'transparency': 0}), ('GIF', 'L', {'comment': b'hello'}), ('BMP', 'RGB', {}), ('BMP', 'P', {}), ('BMP', '1', {}),
         ])]

def array_or_error(data, channels=3, **kwargs):
    "What decoding gives: an array that keeps the contract or an ImageError that does; anything else is a failure, warnings too"
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        try: img = decode_image(data, channels, **kwargs)
        except ImageError as e:
            assert e.code in IMAGE_ERRORS and str(e) == e.message and e.message and '\n' not in e.message and len(e.message) < 300
            return e
    assert img.dtype == np.uint8 and img.ndim == 3 and img.shape[2] == channels and img.size
    assert image_header(data)[1:] == img.shape[1::-1]
    return img

# ---------------------------------------------------------------- whatever the bytes are

MAGIC = [b'\xff\xd8\xff', b'\xff\xd8\xff\xe1', b'\x89PNG\r\n\x1a\n\0\0\0\rIHDR', b'RIFF\x40\0\0\0WEBPVP8X', b'RIFF\x40\0\0\0WEBPVP8 ',
         b'RIFF\x40\0\0\0WEBPVP8L', b'GIF89a', b'GIF87a\1\0\1\0', b'BM' + bytes(12) + b'\x28\0\0\0', b'BM' + bytes(12) + b'\x0c\0\0\0', b'']

@settings(few, max_examples=150)
@given(st.sampled_from(MAGIC), st.binary(max_size=400), st.sampled_from((1, 3)))
@example(b'', b'', 3)
def test_arbitrary_bytes_are_an_array_or_an_image_error(magic, rest, channels):
    array_or_error(magic + rest, channels)

@settings(few, max_examples=250)
@given(st.sampled_from(SEEDS), st.data(), st.sampled_from((1, 3)))
def test_damaged_files_are_an_array_or_an_image_error(file, data, channels):
    damaged = bytearray(file)
    for _ in range(data.draw(st.integers(1, 6))): # the first bytes, where the sizes are, more often
        at = data.draw(st.one_of(st.integers(0, min(60, len(file) - 1)), st.integers(0, len(file) - 1)))
        damaged[at] = data.draw(st.integers(0, 255))
    array_or_error(bytes(damaged), channels)

@settings(few, max_examples=100)
@given(st.sampled_from(SEEDS), st.floats(0, 1), st.binary(max_size=50))
def test_cut_files_are_an_array_or_an_image_error(file, share, tail):
    array_or_error(file[:int(share*len(file))] + tail)

@settings(few)
@given(st.sampled_from(SEEDS), st.floats(0.05, 0.6))
def test_a_file_without_its_second_half_is_an_error(file, share):
    result = array_or_error(file[:int(share*len(file))])
    assert isinstance(result, ImageError) and result.code in ('corrupt', 'unsupported_format')

@settings(few)
@given(st.sampled_from(SEEDS), st.data())
def test_a_block_moved_into_another_place(file, data):
    a, b, c = sorted(data.draw(st.lists(st.integers(0, len(file)), min_size=3, max_size=3)))
    array_or_error(file[:a] + file[b:c] + file[a:b] + file[c:])
    array_or_error(file[:b] + file[a:])

@settings(few)
@given(st.sampled_from(SEEDS), st.sampled_from((bytes, bytearray, memoryview)), st.sampled_from((1, 3)))
def test_the_same_bytes_give_the_same_array(file, kind, channels):
    assert np.array_equal(decode_image(kind(file), channels), decode_image(file, channels))
    assert np.array_equal(read_image(kind(file), 28, 20, channels), read_image(file, 28, 20, channels))

@pytest.mark.parametrize('wrong', ['boot.png', Path('boot.png'), None, 7, [1, 2], io.BytesIO(b'x'), np.zeros(4, np.uint8)])
def test_what_is_not_bytes_is_an_image_error(wrong):
    for func in image_header, decode_image, lambda x: read_image(x, 28, 28):
        with pytest.raises(ImageError) as e: func(wrong)
        assert e.value.code == 'not_bytes'

@pytest.mark.filterwarnings('ignore::DeprecationWarning')
@pytest.mark.parametrize('fmt', ['TIFF', 'PPM', 'ICO', 'TGA', 'PCX', 'EPS', 'JPEG2000', 'AVIF', 'DIB', 'SGI', 'ICNS', 'PDF', 'MSP', 'XBM', 'IM', 'DDS'])
def test_other_formats_are_refused(fmt):
    try: file = encode(picture(0, 32, 32, '1' if fmt in ('MSP', 'XBM') else 'RGB'), fmt)
    except (OSError, KeyError): pytest.skip(f'this Pillow cannot write {fmt}')
    assert array_or_error(file).code == 'unsupported_format'

# ---------------------------------------------------------------- good files

MODES = {'JPEG': ('L', 'RGB', 'CMYK'), 'PNG': ('1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'I;16'), 'WEBP': ('RGB', 'RGBA'), 'GIF': ('1', 'L', 'P', 'RGB'),
         'BMP': ('1', 'L', 'P', 'RGB', 'RGBA')}

@settings(few, max_examples=150)
@given(st.sampled_from([(fmt, mode) for fmt, modes in MODES.items() for mode in modes]), st.integers(1, 70), st.integers(1, 70), st.integers(0, 199),
       st.sampled_from((1, 3)))
def test_any_size_mode_and_format_has_the_right_shape(kind, width, height, seed, channels):
    fmt, mode = kind
    file = encode(picture(seed, width, height, mode), fmt)
    assert image_header(file) == (fmt, width, height)
    img = array_or_error(file, channels)
    assert img.shape == (height, width, channels)

@settings(few)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 199), st.sampled_from(('L', 'RGB')))
def test_lossless_formats_agree_to_the_last_bit(width, height, seed, mode):
    im = picture(seed, width, height, mode)
    for channels in 1, 3:
        want = np.asarray(im.convert('L' if channels == 1 else 'RGB')).reshape(height, width, channels)
        for fmt, options in LOSSLESS.items():
            assert np.array_equal(decode_image(encode(im.convert('RGB') if fmt == 'WEBP' else im, fmt, **options), channels), want), fmt

@settings(few)
@given(st.integers(1, 8), st.integers(2, 40), st.integers(2, 40), st.sampled_from(('PNG', 'JPEG', 'WEBP')), st.sampled_from((1, 3)))
def test_orientation_is_that_of_pillow(orientation, width, height, fmt, channels):
    file = encode(picture(orientation, width, height), fmt, exif=exif_of(orientation), **LOSSLESS.get(fmt, {}))
    plain = encode(picture(orientation, width, height), fmt, **LOSSLESS.get(fmt, {}))
    stored = decode_image(plain, channels)
    turned = {1: stored, 2: stored[:, ::-1], 3: stored[::-1, ::-1], 4: stored[::-1], 5: stored.swapaxes(0, 1), 6: stored.swapaxes(0, 1)[:, ::-1],
              7: stored[::-1, ::-1].swapaxes(0, 1), 8: stored.swapaxes(0, 1)[::-1]}[orientation]
    assert np.array_equal(decode_image(file, channels), turned)
    if channels == 3: assert np.array_equal(turned, np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(file))).convert('RGB')))

@settings(few)
@given(st.binary(max_size=80), st.sampled_from((b'', b'II*\0', b'MM\0*', b'II*\0\x08\0\0\0')), st.sampled_from(('JPEG', 'PNG', 'WEBP')))
def test_bad_exif_never_fails_a_readable_picture(junk, start, fmt):
    exif = b'Exif\0\0' + start + junk
    img = decode_image(encode(picture(3, 20, 20), fmt, exif=exif))
    assert img.shape == (20, 20, 3)

@settings(few)
@given(st.integers(0, 255), st.integers(0, 255), st.sampled_from(('PNG', 'WEBP')))
def test_transparency_lies_on_white(value, alpha, fmt):
    file = encode(Image.new('RGBA', (3, 3), (value, 0, 255, alpha)), fmt, **LOSSLESS[fmt])
    want = [255 + (v - 255)*alpha/255 for v in (value, 0, 255)]
    assert np.abs(decode_image(file)[1, 1] - want).max() <= 1

@settings(few)
@given(st.lists(st.integers(0, 65535), min_size=1, max_size=30))
def test_sixteen_bit_grey_is_scaled(values):
    grey = np.array([values], np.uint16)
    assert np.array_equal(decode_image(encode(Image.fromarray(grey), 'PNG'), 1)[..., 0], grey >> 8)

def test_inverted_cmyk_of_adobe():
    file = encode(Image.new('RGB', (16, 16), (200, 30, 60)).convert('CMYK'), 'JPEG', quality=100)
    assert np.abs(decode_image(file)[8, 8].astype(int) - (200, 30, 60)).max() <= 3
    assert read_image(file, 4, 4).shape == (4, 4, 3)

# ---------------------------------------------------------------- limits

@settings(few, max_examples=40)
@given(st.integers(1, 60), st.integers(1, 60), st.sampled_from(FORMATS))
def test_limits_are_exact(width, height, fmt):
    file = encode(picture(0, width, height), fmt)
    exact = {'max_bytes': len(file), 'max_pixels': width*height, 'max_side': max(width, height)}
    assert decode_image(file, limits=ImageLimits(**exact)).shape == (height, width, 3)
    for key, code in dict(max_bytes='too_large', max_pixels='too_many_pixels', max_side='side_too_long').items():
        for func in image_header, decode_image, lambda file, limits: read_image(file, 28, 28, limits=limits):
            with pytest.raises(ImageError) as e: func(file, limits=ImageLimits(**{**exact, key: exact[key] - 1}))
            assert e.value.code == code

def test_default_limits_at_the_boundary():
    assert image_header(encode(Image.new('1', (12_000, 1)), 'PNG')).width == 12_000
    assert array_or_error(encode(Image.new('1', (12_001, 1)), 'PNG')).code == 'side_too_long'
    assert image_header(encode(Image.new('1', (5000, 5000)), 'PNG')).width == 5000
    assert array_or_error(encode(Image.new('1', (5001, 5000)), 'PNG')).code == 'too_many_pixels'
    assert image_header(progressive(100)).width == 32
    assert array_or_error(progressive(101)).code == 'too_many_scans'
    file = encode(picture(0, 9, 9), 'PNG')
    assert decode_image(file + bytes(10_000_000 - len(file))).shape == (9, 9, 3)
    assert array_or_error(file + bytes(10_000_001 - len(file))).code == 'too_large'

def chunk(kind, data): return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

def hostile():
    "name -> (file, the code it must end with or None for a picture)"
    png, gif = encode(picture(0, 9, 9), 'PNG'), encode(picture(0, 9, 9), 'GIF')
    after_palette = 13 + 3*(2 << (gif[10] & 7))
    jpeg = encode(picture(0, 9, 9), 'JPEG')
    zipped = zlib.compress(bytes(2_000_000))
    return {
        'webp of 36 bytes': (b'RIFF\x1c\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0' + b'\xfe\x3f\0'*2 + b'VP8L\0\0', 'too_many_pixels'),
        'a thousand scans': (progressive(1000), 'too_many_scans'),
        'text bomb': (png[:33] + chunk(b'zTXt', b'a\0\0' + zipped)*80 + png[33:], None),
        'profile bomb': (png[:33] + chunk(b'iCCP', b'a\0\0' + zipped) + png[33:], None),
        'comments of one byte': (gif[:after_palette] + b'!\xfe' + b'\1x'*1_000_000 + b'\0' + gif[after_palette:], 'corrupt'),
        'a million chunks': (png[:33] + chunk(b'teXt', b'')*500_000 + png[33:], 'corrupt'),
        'a million segments': (jpeg[:2] + b'\xff\xfe\0\2'*1_000_000 + jpeg[2:], 'corrupt'),
        'gif with a huge canvas': (gif[:6] + b'\xff\xff\xff\xff' + gif[10:], 'too_many_pixels'),
        'png of no pixels': (png[:16] + bytes(8) + png[24:], 'corrupt'),
        'bmp with 65,535 colours': (b'BM' + bytes(8) + struct.pack('<IIiiHHI4I', 62, 40, 9, 9, 1, 1, 0, 36, 0, 0, 65535) + bytes(200), 'corrupt'),
        'bmp with negative width': (b'BM' + bytes(8) + struct.pack('<IIiiHHI', 54, 40, -5, 5, 1, 24, 0) + bytes(200), 'too_many_pixels'),
    }

@pytest.mark.parametrize('name', hostile())
def test_hostile_files_are_cheap(name):
    file, code = hostile()[name]
    result = array_or_error(file)
    assert getattr(result, 'code', None) == code

def test_an_animation_gives_its_first_frame():
    frames = [Image.fromarray(g) for g in GARMENTS[:4]]
    for fmt in 'PNG', 'WEBP', 'GIF':
        file = encode(frames[0], fmt, save_all=True, append_images=frames[1:], **LOSSLESS.get(fmt, {}))
        assert np.array_equal(decode_image(file, 1)[..., 0], GARMENTS[0])

# ---------------------------------------------------------------- resizing

@settings(few, max_examples=120)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 64), st.integers(1, 64), st.sampled_from(RESIZE_RULES), st.sampled_from((1, 3)),
       st.floats(0.05, 1))
def test_resizing_has_the_right_shape(h, w, height, width, rule, channels, crop_pct):
    channels = 1 if rule == 'fashion_mnist' else channels
    img = np.asarray(picture(h, w, h, 'L' if channels == 1 else 'RGB')).reshape(h, w, channels)
    out = resize_image(img, height, width, rule, crop_pct)
    assert out.shape == (height, width, channels) and out.dtype == np.uint8 and out.flags.writeable
    if rule == 'crop' and (h, w) == (height, width): return # an array is taken for prepared, a file is not
    assert np.array_equal(read_image(encode(Image.fromarray(img.squeeze(2) if channels == 1 else img), 'PNG'), height, width, channels, rule, crop_pct), out)

@settings(few)
@given(st.integers(0, 255), st.integers(1, 50), st.integers(1, 50), st.sampled_from(('crop', 'stretch')))
def test_a_plain_picture_stays_plain(value, h, w, rule):
    assert (resize_image(np.full((h, w, 3), value, np.uint8), 32, 24, rule) == value).all()

@settings(few, max_examples=30)
@given(st.integers(100, 900), st.integers(100, 900), st.integers(1, 8), st.sampled_from(('crop', 'pad', 'stretch')), st.sampled_from((1, 3)))
def test_a_jpeg_decoded_smaller_is_close_to_one_decoded_whole(w, h, orientation, rule, channels):
    light = np.linspace(0, 60, w)[:, None] + np.linspace(0, 60, h)[:, None, None] # from a corner, so that there is no margin of one colour
    file = encode(Image.fromarray((np.asarray(picture(orientation, w, h))//2 + light).astype(np.uint8)), 'JPEG', quality=90, exif=exif_of(orientation))
    whole = resize_image(decode_image(file, channels), 40, 32, rule)
    assert np.abs(read_image(file, 40, 32, channels, rule).astype(int) - whole).mean() < 2 # hard edges, a little softer

def test_settings_are_checked_before_the_file():
    for kwargs in dict(channels=2), dict(resize='squash'), dict(crop_pct=0), dict(height=0), dict(resize='fashion_mnist', channels=3):
        with pytest.raises(ConfigError): read_image(b'', **{'height': 28, 'width': 28, **kwargs})

# ---------------------------------------------------------------- Fashion-MNIST's convention

@pytest.mark.parametrize('name', ['t10k-images-idx3-ubyte.gz', 'train-images-idx3-ubyte.gz'])
def test_real_images_pass_unchanged_and_inverted_ones_are_turned_back(name):
    images = read_idx(name)
    assert len(images) >= 200
    for img in images:
        assert np.array_equal(to_fashion_mnist(img)[..., 0], img)
        assert np.array_equal(to_fashion_mnist(255 - img)[..., 0], img)

@settings(few)
@given(st.integers(0, 199), st.integers(60, 250), st.integers(0, 60), st.integers(0, 60), st.integers(180, 255))
def test_a_dark_garment_on_a_bright_page_fills_the_frame(seed, side, above, left, page):
    garment = 255 - np.asarray(Image.fromarray(GARMENTS[seed]).resize((side, side)))
    photo = np.full((side + above + 10, side + left + 10), page, np.uint8)
    photo[above + 5:above + 5 + side, left + 5:left + 5 + side] = np.minimum(garment, page)
    out = to_fashion_mnist(photo)[..., 0]
    assert np.array_equal(to_fashion_mnist(out)[..., 0], out) # once converted, for ever
    rows, cols = np.flatnonzero((out > 0).any(1)), np.flatnonzero((out > 0).any(0))
    assert max(np.ptp(rows), np.ptp(cols)) >= 25 # the longest side fills the frame
    assert abs((rows[0] + rows[-1]) - 27) <= 3 and abs((cols[0] + cols[-1]) - 27) <= 3 # centred

# ---------------------------------------------------------------- around it

def test_importing_loads_neither_torch_nor_fastai():
    code = "import fashion_nbdev.image, sys; assert not {'torch', 'fastai', 'matplotlib', 'onnxruntime'} & set(sys.modules)"
    subprocess.run([sys.executable, '-c', code], check=True)

def clothing_zip():
    folders = [os.environ.get('FASHION_DATA_DIR'), ROOT.parent/'shared'/'data']
    return next((path for folder in folders if folder and (path := Path(folder)/'clothing-dataset-small.zip').is_file()), None)

def test_real_photographs_decode_as_pillow_decodes_them():
    if not (path := clothing_zip()): pytest.skip('needs clothing-dataset-small.zip in FASHION_DATA_DIR')
    with zipfile.ZipFile(path) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith('.jpg'))[::200]
        for file in map(archive.read, names):
            want = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(file))).convert('RGB'))
            assert np.array_equal(decode_image(file), want)
            assert read_image(file, 224, 224, crop_pct=0.875).shape == (224, 224, 3)
