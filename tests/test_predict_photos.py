"""From a folder of photographs to a table, through a colour network in INT8: nothing is replaced, only small."""
import csv
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from PIL import Image
from torch import nn

from fashion_nbdev.config import DataConfig
from fashion_nbdev.core import Label, repo_root
from fashion_nbdev.data import load_dataset
from fashion_nbdev.model_file import ModelError, ModelInfo, pack_model, read_model
from fashion_nbdev.predict import Failure, Prediction, Predictor, predict_files
from fashion_nbdev.quantize import ServedModel, export_onnx, predict_logits, quantize_onnx, torch_gap

HEIGHT, WIDTH, CROP = 96, 80, 0.875
LABELS = tuple(Label(key, key.title(), ru) for key, ru in (('dress', 'Платье'), ('hat', 'Шляпа'), ('shoes', 'Обувь')))


def picture(seed: int, width: int, height: int, mode: str = 'RGB') -> Image.Image:
    "Blots of colour"
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (9, 7, 3), dtype=np.uint8)).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def encode(im: Image.Image, fmt: str = 'JPEG', **options) -> bytes:
    im.save(file := io.BytesIO(), fmt, **options)
    return file.getvalue()


class Net(nn.Module):
    "Stem, depthwise and pointwise convolution with ReLU6, as in EfficientNet-Lite"
    def __init__(self):
        super().__init__()
        def layer(i, o, k, s, g=1): return nn.Sequential(nn.Conv2d(i, o, k, s, k//2, groups=g, bias=False), nn.BatchNorm2d(o), nn.ReLU6())
        self.layers = nn.Sequential(layer(3, 8, 3, 2), layer(8, 8, 3, 1, 8), layer(8, 16, 1, 1), layer(16, 16, 5, 2, 16))
        self.last = nn.Linear(16, len(LABELS))

    def forward(self, x): return self.last(self.layers(x).mean((2, 3)))


def info(name='tiny', height=HEIGHT, width=WIDTH, **more) -> ModelInfo:
    return ModelInfo(name, LABELS, height, width, 3, **{'resize': 'crop', 'crop_pct': CROP, **more})


def inputs(n: int, height=HEIGHT, width=WIDTH) -> np.ndarray:
    return np.stack([np.asarray(picture(i, width, height)) for i in range(n)])


@pytest.fixture(scope='module')
def served():
    torch.manual_seed(0)
    net = Net().train()
    with torch.no_grad():
        for _ in range(20): net(torch.from_numpy(inputs(16)).permute(0, 3, 1, 2).float()/127.5 - 1) # batch norm's statistics
    return ServedModel(net.eval(), (.5, .5, .5), (.5, .5, .5)).eval()


@pytest.fixture(scope='module')
def fp32(served): return export_onnx(served, HEIGHT, WIDTH, 3)


@pytest.fixture(scope='module')
def int8(fp32): return quantize_onnx(fp32, inputs(12))


@pytest.fixture(scope='module')
def predictor(int8): return Predictor(pack_model(int8, info()))


@pytest.fixture(scope='module')
def model(int8, tmp_path_factory):
    path = tmp_path_factory.mktemp('models')/'tiny.onnx'
    path.write_bytes(pack_model(int8, info()))
    return path


FILES = { # name -> content: every size, format and way to be wrong
    '00.jpg': encode(picture(0, 400, 533)), '01.jpg': encode(picture(1, 533, 400)), '02.png': encode(picture(2, 60, 41), 'PNG'),
    '03 cmyk.jpg': encode(picture(3, 300, 300, 'CMYK')), '04 grey.jpg': encode(picture(4, 120, 300, 'L')), '05.webp': encode(picture(5, 200, 90), 'WEBP'),
    '06 cut.jpg': encode(picture(6, 400, 533))[:3000], '07 text.jpg': b'no picture', '08 empty.png': b'', '09.jpeg': encode(picture(9, WIDTH, HEIGHT)),
    '10 tiff.jpg': encode(picture(10, 50, 50), 'TIFF'), '11 platье.gif': encode(picture(11, 50, 80), 'GIF'), '12 one.bmp': encode(picture(12, 1, 1), 'BMP'),
}
BROKEN = {'06 cut.jpg': 'corrupt', '07 text.jpg': 'unsupported_format', '08 empty.png': 'empty', '10 tiff.jpg': 'unsupported_format'}


@pytest.fixture
def shop(tmp_path):
    (folder := tmp_path/'shop').mkdir()
    for name, data in FILES.items(): (folder/name).write_bytes(data)
    return folder


# The network in INT8

def test_int8_reads_the_photograph_itself(served, fp32, int8):
    ops = [n.op_type for n in onnx.load_from_string(int8).graph.node]
    assert not {'Cast', 'Mul', 'Sub', 'Clip', 'BatchNormalization', 'Gather'} & set(ops), ops
    p32, p8 = (Predictor(pack_model(graph, info())) for graph in (fp32, int8))
    images = inputs(40)
    assert torch_gap(served, p32, images) < 1e-3
    a, b = (predict_logits(p, images) for p in (p32, p8))
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > .99


def test_signed_activations_agree_too(fp32):
    images = inputs(20)
    a, b = (predict_logits(Predictor(pack_model(graph, info())), images) for graph in (fp32, quantize_onnx(fp32, images, 's8s8', 'extremes')))
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > .99


def test_efficientnet_lite_becomes_integers_from_the_first_layer_to_the_last(tmp_path):
    import timm
    torch.manual_seed(0)
    net = timm.create_model('tf_efficientnet_lite0', num_classes=len(LABELS)).eval()
    int8 = quantize_onnx(export_onnx(ServedModel(net, (.5,)*3, (.5,)*3).eval(), 64, 64, 3), inputs(4, 64, 64))
    options = ort.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path/'optimised.onnx'), 3
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        ort.InferenceSession(int8, options, providers=['CPUExecutionProvider'])
    ops = [n.op_type for n in onnx.load(tmp_path/'optimised.onnx').graph.node]
    assert ops.count('QLinearConv') == 49 and not {'Conv', 'FusedConv', 'QuantizeLinear', 'Cast', 'Mul', 'Sub', 'Clip', 'Gather'} & set(ops), ops
    assert Predictor(pack_model(int8, info('lite', 64, 64))).predict(encode(picture(0, 400, 533))).top


# One photograph

def test_the_models_crop_is_in_its_file_and_is_applied(int8, tmp_path):
    framed = np.full((560, 480, 3), (255, 0, 0), np.uint8) # a red frame of 1/16 of each side, which a crop of 0.875 leaves outside
    framed[35:525, 30:450] = 128
    for crop, red in (0.875, False), (1.0, True):
        (path := tmp_path/'tiny.onnx').write_bytes(pack_model(int8, info(crop_pct=crop)))
        assert read_model(path)[1].crop_pct == crop
        p = Predictor.load(path)
        for x in (encode(Image.fromarray(framed), 'PNG'), framed):
            got = p.prepare(x)
            assert got.shape == (HEIGHT, WIDTH, 3) and (got[0, :, 0].min() > 200) == red and np.abs(got[8:-8, 8:-8].astype(int) - 128).max() <= 8
    with pytest.raises(ModelError, match="'crop_pct' is 0.05, but must be a number from 0.1 to 1"): pack_model(int8, info(crop_pct=0.05))


@pytest.mark.parametrize('resize', ['crop', 'pad', 'stretch'])
def test_serving_and_training_see_the_same_pixels(int8, resize, tmp_path):
    good = {name: data for name, data in FILES.items() if name not in BROKEN}
    for split, (label, key) in product(('train', 'valid'), enumerate(('dress', 'hat', 'shoes'))):
        (folder := tmp_path/'photos'/split/key).mkdir(parents=True)
        files = good if split == 'valid' and not label else {f'{split} {key}.png': encode(picture(20 + 3*(split == 'valid') + label, 64, 64), 'PNG')}
        for name, data in files.items(): (folder/name).write_bytes(data)
    data = DataConfig(dataset='folder', archive=str(tmp_path/'photos'), labels=('dress', 'hat', 'shoes'), height=HEIGHT, width=WIDTH, resize=resize, crop_pct=CROP)
    valid = load_dataset(data, progress=False)['valid']
    p = Predictor(pack_model(int8, info(resize=resize)))
    trained = {image.tobytes() for image in valid.images[valid.labels == 0]}
    assert {p.prepare(data).tobytes() for data in good.values()} == trained and len(trained) == len(good)


def test_one_thread_unless_told_otherwise(model):
    assert Predictor.load(model).threads == 1
    before = threading.active_count(), len(os.listdir('/proc/self/task')) if Path('/proc/self/task').exists() else 0
    Predictor.load(model).predict(FILES['00.jpg'])
    assert (threading.active_count(), len(os.listdir('/proc/self/task')) if before[1] else 0) == before # ONNX Runtime started none


# Many of them

def test_a_batch_of_mixed_sizes_gives_what_single_photographs_give(predictor):
    good = [data for name, data in FILES.items() if name not in BROKEN]
    for batch_size in 1, 4, 16: assert [p.top for p in predictor.predict(good, batch_size=batch_size)] == [predictor.predict(x).top for x in good]


@pytest.mark.parametrize('out', ['preds.csv', 'preds.jsonl'])
@pytest.mark.parametrize('workers', [1, 3])
def test_a_folder_becomes_rows_in_order_whatever_is_in_it(predictor, shop, tmp_path, out, workers):
    assert predict_files([shop], predictor, 2, tmp_path/out, batch_size=2, workers=workers) == (len(FILES), len(BROKEN))
    text = (tmp_path/out).read_text(encoding='utf-8')
    rows = list(csv.DictReader(io.StringIO(text))) if out.endswith('csv') else [json.loads(line) for line in text.splitlines()]
    assert [Path(r['file']).name for r in rows] == list(FILES)
    for name, row in zip(FILES, rows):
        assert (row.get('error') or None) == BROKEN.get(name)
        if name in BROKEN: assert row['message'] and not row.get('label')
        else:
            want = predictor.predict(FILES[name], 2).top
            assert (row['label'], row['label_2']) == (want[0].label, want[1].label) and float(row['probability']) == round(want[0].probability, 6)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([out, 'shop'])


def test_a_photograph_that_vanishes_is_a_row(predictor, shop):
    def paths():
        for name in FILES: yield str(shop/name)
    first = next(results := predictor.stream(paths(), batch_size=1, workers=1))
    for name in FILES: (shop/name).unlink(missing_ok=True)
    rest = list(results)
    assert isinstance(first, Prediction) and len(rest) == len(FILES) - 1
    assert isinstance(rest[-1], Failure) and rest[-1].code == 'unreadable' and rest[-1].source == str(shop/'12 one.bmp')


def test_batches_are_worked_on_at_the_same_time(int8):
    "Decoding and network of one batch beside those of another: each waits for the other here, so alone none would ever end"
    class Together(Predictor):
        barrier = None
        def logits(self, batch):
            if self.barrier: self.barrier.wait()
            return super().logits(batch)
    p = Together(pack_model(int8, info()))
    p.barrier = threading.Barrier(2, timeout=30)
    assert len(list(p.stream([FILES['00.jpg']]*24, batch_size=4, workers=2))) == 24


def run(code: str, *args, **options) -> subprocess.Popen:
    env = os.environ | {'PYTHONPATH': str(repo_root()), 'OMP_NUM_THREADS': '1'}
    return subprocess.Popen([sys.executable, *(['-c', code] if code else []), *map(str, args)], env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


GROWTH = '''
import resource, sys
from fashion_nbdev.predict import Predictor, predict_files
model, shop, out = sys.argv[1:]
p, kb = Predictor.load(model), []
for n in 20, 400:
    print(*predict_files([shop]*n, p, 2, out), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
'''


@pytest.mark.skipif(sys.platform != 'linux', reason='ru_maxrss has another unit elsewhere')
@pytest.mark.parametrize('suffix', ['.csv', '.parquet'])
def test_memory_does_not_grow_with_the_folder(model, shop, tmp_path, suffix):
    done, err = (child := run(GROWTH, model, shop, tmp_path/f'preds{suffix}')).communicate(timeout=300)
    assert child.returncode == 0, err
    (few, _, small), (many, failed, large) = ([int(x) for x in line.split()] for line in done.splitlines())
    assert (few, many, failed) == (20*len(FILES), 400*len(FILES), 400*len(BROKEN))
    assert large - small < (8_000 if suffix == '.csv' else 24_000), f'{few} photographs: {small:,} KB, {many}: {large:,} KB' # Parquet keeps a row group


COMMAND = '''import signal, sys; from fashion_nbdev.predict import fashion_predict
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler) # ignored by what a shell starts in the background
    sys.exit(fashion_predict())
'''


def test_the_last_line_says_how_many_and_how_fast(model, shop, tmp_path):
    (script := tmp_path/'predict.py').write_text(COMMAND)
    out, err = (child := run('', script, shop, '--model', model, '--out', tmp_path/'preds.csv')).communicate(timeout=120)
    assert child.returncode == 1 and out == ''
    assert err.splitlines()[-1].startswith(f'{len(FILES)} photographs in ') and f' a second, {len(BROKEN)} could not be read (tiny ' in err, err


@pytest.mark.skipif(os.name == 'nt', reason='sends a signal')
@pytest.mark.parametrize('suffix, sent', [('.csv', signal.SIGINT), ('.parquet', signal.SIGINT), ('.csv', signal.SIGTERM)])
def test_an_interruption_leaves_no_half_written_output(model, shop, tmp_path, suffix, sent):
    (script := tmp_path/'predict.py').write_text(COMMAND)
    (folder := tmp_path/'out').mkdir()
    (out := folder/f'preds{suffix}').write_text('from last week')
    child = run('', script, *[shop]*20_000, '--model', model, '--out', out)
    for _ in range(600):
        if len(os.listdir(folder)) > 1: break # it has begun to write beside
        time.sleep(.1)
    time.sleep(.5)
    child.send_signal(sent)
    _, err = child.communicate(timeout=60)
    assert (child.returncode, err) == (130, 'fashion_predict: interrupted\n')
    assert os.listdir(folder) == [out.name] and out.read_text() == 'from last week'
