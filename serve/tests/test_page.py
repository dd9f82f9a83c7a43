"""The page in headless Chromium, on a desktop and on a phone.

    pytest serve/tests/test_page.py --screenshot nbs/images/page.png

also writes the picture of it that the documentation shows."""
import hashlib
import io
import os
import re
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from fashion_nbdev.core import LABELS, write_beside
from fashion_nbdev.image import ImageError, ImageLimits, image_header

webdriver = pytest.importorskip('selenium.webdriver', reason='selenium is not installed: make env')
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select, WebDriverWait  # noqa: E402

PHONE, DESKTOP = (360, 740), (1200, 800)
PHOTOGRAPHS = Path(__file__).parents[1] / 'fashion_serve/page/photographs'


@pytest.fixture(scope='module')
def driver(chromium_paths, tmp_path_factory):
    binary, chromedriver = chromium_paths
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in ('--headless=new', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--disable-background-networking', '--disable-component-update',
                 '--disable-sync', '--no-first-run', '--hide-scrollbars', '--lang=en', f'--user-data-dir={tmp_path_factory.mktemp("chromium")}'):
        options.add_argument(flag)
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL', 'performance': 'ALL'})
    driver = webdriver.Chrome(options, webdriver.ChromeService(chromedriver))
    yield driver
    driver.quit()


class Page:
    "What a visitor does and sees"
    def __init__(self, driver, url): self.driver, self.url = driver, url

    def open(self, size=DESKTOP, **media):
        width, height = size
        self.driver.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', dict(width=width, height=height, deviceScaleFactor=1, mobile=width < 500))
        self.driver.execute_cdp_cmd('Emulation.setTouchEmulationEnabled', dict(enabled=width < 500))
        self.driver.execute_cdp_cmd('Emulation.setEmulatedMedia', dict(features=[dict(name=k.replace('_', '-'), value=v) for k, v in media.items()]))
        self.driver.get(self.url)
        self.driver.execute_script('localStorage.clear()')
        self.driver.get(self.url)
        self.until(lambda: self.all('#model option'))
        return self

    def until(self, condition, seconds=20): return WebDriverWait(self.driver, seconds, .05).until(lambda _: condition())
    def one(self, css): return self.driver.find_element(By.CSS_SELECTOR, css)
    def all(self, css): return self.driver.find_elements(By.CSS_SELECTOR, css)
    def js(self, code, *args): return self.driver.execute_script(f'return {code}', *args)
    def bars(self): return self.all('#bars:not(.ghost) li:not([hidden])')
    def labels(self): return [b.get_attribute('data-label') for b in self.bars()]
    def wait_answer(self): self.until(lambda: len(self.bars()) == 3 and self.one('.answer').get_attribute('aria-busy') == 'false')

    def choose(self, model):
        Select(self.one('#model')).select_by_value(model)
        return self

    def samples(self): return {Path(b.get_attribute('data-sample')).stem: b for b in self.all('[data-sample]') if b.is_displayed()}

    def sample(self, label):
        (button := self.samples()[label]).click()
        self.until(lambda: button.get_attribute('aria-pressed') == 'true')
        self.wait_answer()

    def check_quiet(self):
        "Nothing went wrong in the browser, and it asked nobody but us"
        assert not (said := [e for e in self.driver.get_log('browser') if e['level'] in ('SEVERE', 'WARNING')]), said
        asked = re.findall(r'"method":"Network.requestWillBeSent".*?"request":\{.*?"url":"([^"]+)"', '\n'.join(e['message'] for e in self.driver.get_log('performance')))
        assert asked and all(url.startswith((self.url, 'data:', 'blob:', 'chrome:', 'chrome-untrusted:')) for url in asked), asked # the last two are the browser's own first tab


@pytest.fixture
def page(driver, service):
    driver.get_log('browser'), driver.get_log('performance')
    return Page(driver, service.url)


@pytest.mark.parametrize('size', [DESKTOP, PHONE], ids=['desktop', 'phone'])
def test_sample(page, size):
    page.open(size)
    for model, label, name, look in (None, 'pants', 'Pants', 'auto'), ('fashion_mnist', 'trouser', 'Trouser', 'pixelated'): # photographs first
        if model: page.choose(model)
        page.sample(label)
        assert page.labels()[0] == label and page.one('#headline strong').text == name and page.one('#made').text.startswith(model or 'clothing')
        page.until(lambda: page.js('document.getAnimations().length') == 0)
        widths = [page.js('arguments[0].getBoundingClientRect().right - arguments[1].getBoundingClientRect().left',
                          *bar.find_elements(By.CSS_SELECTOR, '.bar, .track')[::-1]) for bar in page.bars()]
        chances = [float(b.find_element(By.CLASS_NAME, 'percent').text.strip('<> %')) for b in page.bars()]
        whole = page.one('.track').rect['width']
        assert [100 * width / whole for width in widths] == pytest.approx(chances, abs=1.5) and chances == sorted(chances, reverse=True) and 0 < sum(chances) <= 100.2
        assert page.js('getComputedStyle(arguments[0]).imageRendering', page.one('#preview')) == look
        for button in page.samples().values():
            assert page.js('(s => [s.imageRendering, s.objectFit])(getComputedStyle(arguments[0].firstElementChild))', button) == [look, 'cover']
            assert button.rect['width'] == pytest.approx(button.rect['height'], abs=.1)
    before = page.one('#samples').size
    page.driver.execute_script('document.getElementById("samples").replaceChildren()') # as it is until the models are known
    assert page.one('#samples').size == before
    page.check_quiet()


def test_every_sample_is_answered(page):
    page.open()
    for model in 'clothing', 'fashion_mnist':
        assert [*page.choose(model).samples()] == [label.key for label in LABELS[model]]
        right = 0
        for label in page.samples():
            page.sample(label)
            assert page.one('#made').text.startswith(model + ' ')
            right += page.labels()[0] == label
        assert right >= 7, (model, right)
    page.check_quiet()


def test_photographs_are_small_and_tell_nothing_else():
    assert {p.stem for p in PHOTOGRAPHS.glob('*.jpg')} == {label.key for label in LABELS['clothing']} and 'CC0' in (PHOTOGRAPHS / 'LICENSE.txt').read_text()
    for path in PHOTOGRAPHS.glob('*.jpg'):
        with Image.open(path) as picture: assert path.stat().st_size < 25_000 and max(picture.size) <= 400 and not picture.getexif() and not {'exif', 'xmp', 'comment'} & {*picture.info}


def test_choose_a_file(page, tmp_path, png):
    page.open()
    for name, data in {'photo.jpg': png(400, 533, format='JPEG'), 'naïve name.webp': png(format='WEBP')}.items():
        (tmp_path / name).write_bytes(data)
        page.one('#file').send_keys(str(tmp_path / name))
        page.until(lambda: page.one('#preview').is_displayed())
        page.wait_answer()
    assert page.one('#choose').text == 'Choose other pictures'
    page.check_quiet()


@pytest.mark.parametrize('size', [DESKTOP, PHONE], ids=['desktop', 'phone'])
def test_several_at_once(page, tmp_path, samples, size):
    page.open(size)
    page.choose('fashion_mnist')
    for name, data in [*samples.items(), ('=spoilt', b'no picture')]: (tmp_path / f'{name}.png').write_bytes(data)
    page.one('#file').send_keys('\n'.join(str(p) for p in sorted(tmp_path.glob('*.png'))))
    page.until(lambda: page.one('#many-save').is_enabled())
    rows = page.all('#many-rows tr')
    assert len(rows) == 11 and page.one('#many-count').text == '10 of 11 answered, 1 failed' and page.js('document.getElementById("many-progress").value') == 11
    found = {row.find_element(By.TAG_NAME, 'th').text: row for row in rows}
    right = sum(found[f'{label}.png'].get_attribute('data-label') == label for label in samples)
    assert right >= 7 and 'bad' in found['=spoilt.png'].get_attribute('class') and 'JPEG, PNG' in found['=spoilt.png'].text
    assert page.js('document.documentElement.scrollWidth') <= size[0]
    page.one('[data-lang=ru]').click()
    names = {label.key: label.ru for label in LABELS['fashion_mnist']}
    for row in rows:
        if label := row.get_attribute('data-label'): assert names[label] in row.text
    assert page.one('#many-count').text == 'Готово: 10 из 11, не удалось: 1'
    weak = [(t, round(contrast(a, b), 2)) for t, a, b in page.js(COLOURS) if contrast(a, b) < 4.5]
    assert not weak, weak
    page.driver.execute_script("""window.saved = null; const make = URL.createObjectURL;
        URL.createObjectURL = blob => { blob.text().then(t => { window.saved = t; }); return make(blob); };""")
    page.one('#many-save').click()
    text = page.until(lambda: page.js('window.saved'))
    import csv
    import io
    table = list(csv.DictReader(io.StringIO(text.removeprefix('\ufeff'))))
    assert len(table) == 11 and table[0]['file'].startswith("'=") and table[0]['error'] == 'unsupported_format' # no formula for a spreadsheet
    assert {r['label'] for r in table[1:]} == {row.get_attribute('data-label') for row in rows[1:]} and all(0 < float(r['probability']) <= 1 for r in table[1:])


def test_drop_and_paste(page, samples):
    page.open()
    make = '''const bytes = Uint8Array.from(atob(arguments[0]), c => c.charCodeAt(0)), data = new DataTransfer();
        data.items.add(new File([bytes], 'a.png', {type: 'image/png'}));
        document.dispatchEvent(arguments[1] === 'drop' ? new DragEvent('drop', {dataTransfer: data, cancelable: true, bubbles: true})
                                                       : new ClipboardEvent('paste', {clipboardData: data, cancelable: true, bubbles: true}));'''
    import base64
    page.choose('fashion_mnist')
    for way, label in (('drop', 'trouser'), ('paste', 'bag')):
        page.driver.execute_script(make, base64.b64encode(samples[label]).decode(), way)
        page.until(lambda label=label: page.labels()[:1] == [label])
    page.check_quiet()


def test_errors_are_shown_and_forgotten(page, tmp_path, png):
    page.open()
    (tmp_path / 'notes.txt').write_text('no picture at all')
    page.one('#file').send_keys(str(tmp_path / 'notes.txt'))
    page.until(lambda: page.one('#problem').text)
    assert 'JPEG, PNG, WebP, GIF or BMP' in page.one('#problem').text and page.one('#problem').get_attribute('role') == 'alert'
    assert not page.bars() and not page.one('#preview').is_displayed()
    page.one('[data-lang=ru]').click()
    assert 'Это не изображение' in page.one('#problem').text
    (tmp_path / 'good.png').write_bytes(png())
    page.one('#file').send_keys(str(tmp_path / 'good.png'))
    page.wait_answer()
    assert not page.one('#problem').text
    assert [e for e in page.driver.get_log('browser') if '415' not in e['message']] == [] # Chromium itself logs the 415


def test_what_cannot_be_read_is_said(page, tmp_path, samples):
    page.open().sample('hat')
    page.driver.execute_script("window.bytes = Blob.prototype.arrayBuffer; Blob.prototype.arrayBuffer = () => Promise.reject(new DOMException('gone', 'NotReadableError'))") # as of a folder that is dropped
    (tmp_path / 'gone.png').write_bytes(samples['bag'])
    page.one('#file').send_keys(str(tmp_path / 'gone.png'))
    page.until(lambda: page.one('#problem').text)
    assert 'cannot be read' in page.one('#problem').text and page.one('.answer').get_attribute('aria-busy') == 'false' and not page.bars()
    page.driver.execute_script('Blob.prototype.arrayBuffer = window.bytes')
    page.sample('hat')
    assert not page.one('#problem').text
    page.check_quiet()


SLOW_AND_NOTED = '''window.asked = []; const ask = window.fetch;
    window.fetch = async (url, ...more) => { window.asked.push([String(url), more[0]?.body?.size]); await new Promise(done => setTimeout(done, 150)); return ask(url, ...more); };'''


def test_all_of_several_ask_the_same_model(page, tmp_path, samples):
    page.open()
    page.driver.execute_script(SLOW_AND_NOTED)
    for i in range(7): (tmp_path / f'{i}.png').write_bytes(samples['bag'])
    page.one('#file').send_keys('\n'.join(str(p) for p in sorted(tmp_path.iterdir())))
    page.choose('fashion_mnist').samples()['bag'].click() # another model, meanwhile
    page.until(lambda: page.one('#many-save').is_enabled())
    page.wait_answer()
    asked = [re.search('model=([a-z_]+)', url)[1] for url, _ in page.js('window.asked') if 'predict' in url]
    assert sorted(asked) == ['clothing'] * 7 + ['fashion_mnist']


def test_a_large_photograph_travels_small(page, tmp_path):
    noise = np.random.default_rng(42).integers(0, 256, (1500, 2000, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((3000, 2250)).save(tmp_path / 'large.jpg', quality=97)
    assert 2_000_000 < (tmp_path / 'large.jpg').stat().st_size < ImageLimits().max_bytes
    page.open().driver.execute_script(SLOW_AND_NOTED)
    page.one('#file').send_keys(str(tmp_path / 'large.jpg'))
    page.wait_answer()
    assert page.js('window.asked')[0][1] < (tmp_path / 'large.jpg').stat().st_size / 2


def test_a_language_that_another_program_has_kept(page):
    page.open()
    for kept in ('de', 'toString'):
        page.driver.execute_script('localStorage.setItem("fashion_nbdev.lang", arguments[0])', kept)
        page.driver.refresh()
        page.until(lambda: page.all('#model option'))
        assert page.one('h1').text == 'What garment is this?'


@pytest.mark.parametrize('kind, width, height', [('BMP', 2600, 1900), ('WEBP', 4500, 3600)]) # too many bytes; too many pixels for a WebP
def test_too_large_is_made_smaller(page, tmp_path, png, kind, width, height):
    (big := tmp_path / f'big.{kind.lower()}').write_bytes(png(width, height, format=kind, quality=1, method=0))
    with pytest.raises(ImageError): image_header(big.read_bytes(), ImageLimits())
    page.open().one('#file').send_keys(str(big))
    page.wait_answer()
    page.check_quiet()


def test_what_the_browser_can_open_the_server_gets(page, tmp_path, png):
    (tmp_path / 'photo.avif').write_bytes(png(400, 533, format='AVIF'))
    with pytest.raises(ImageError): image_header((tmp_path / 'photo.avif').read_bytes(), ImageLimits())
    page.open().one('#file').send_keys(str(tmp_path / 'photo.avif'))
    page.wait_answer()
    (tmp_path / 'large.heic').write_bytes(bytes(11_000_000))
    page.one('#file').send_keys(str(tmp_path / 'large.heic'))
    page.until(lambda: 'of at most 10 MB' in page.one('#problem').text)
    page.check_quiet()


def test_a_model_only_guesses_about_what_it_is_not_for(page, tmp_path, png):
    page.open()
    said = lambda: page.js("document.querySelector('#headline span').textContent") # in one step: an answer replaces it
    page.choose('fashion_mnist').sample('bag')
    assert said() == 'This looks like'
    page.choose('clothing') # which never saw such a garment
    page.until(lambda: said() == 'Not sure, perhaps')
    page.sample('hat')
    assert said() == 'This looks like'
    page.choose('fashion_mnist')
    page.until(lambda: said() == 'Not sure, perhaps')
    page.sample('bag')
    assert said() == 'This looks like'
    (tmp_path / 'own.png').write_bytes(png(400, 533))
    page.one('#file').send_keys(str(tmp_path / 'own.png'))
    page.until(lambda: said() == 'Not sure, perhaps')


def test_a_server_that_is_away_is_asked_again(page, tmp_path, samples):
    page.open()
    for name, data in list(samples.items())[:6]: (tmp_path / f'{name}.png').write_bytes(data)
    files = '\n'.join(str(p) for p in sorted(tmp_path.glob('*.png')))
    page.driver.execute_script("""window.asked = window.fetch; let away = 2; window.fetch = (...a) => away-- > 0 ? Promise.reject(new TypeError('away')) : window.asked(...a);""")
    page.one('#file').send_keys(files)
    page.until(lambda: page.one('#many-count').text == '6 of 6 answered')
    assert not page.one('#many-again').is_displayed()
    page.driver.execute_script("""window.fetch = async (...a) => new Response('<html>', { status: 500 });""")
    page.one('#file').send_keys(files)
    page.until(lambda: page.one('#many-count').text == '0 of 6 answered, 6 failed')
    page.driver.execute_script('window.fetch = window.asked')
    page.one('#many-again').click()
    page.until(lambda: page.one('#many-count').text == '6 of 6 answered')
    page.driver.execute_script("""window.fetch = (url, { signal }) => new Promise((_, no) => signal.addEventListener('abort', () => no(new DOMException('', 'AbortError'))));""")
    page.one('#file').send_keys(files)
    page.until(lambda: page.one('#many-stop').is_displayed())
    page.one('#many-stop').click()
    assert page.one('#many-count').text == '0 of 6 answered' and page.one('#many-again').is_displayed() and page.one('#many-save').is_enabled()


def test_a_key_is_asked_for(page, serve, tmp_path, samples):
    (tmp_path / 'keys.txt').write_text(f'shop {hashlib.sha256(b"open sesame").hexdigest()}\n')
    keyed = serve('--port', '0', env=dict(os.environ, FASHION_KEYS_FILE=str(tmp_path / 'keys.txt'), FASHION_WORKERS='1'))
    keyed.wait()
    page = Page(page.driver, keyed.url).open()
    page.samples()['hat'].click()
    page.until(lambda: page.one('#key-form').is_displayed())
    assert 'those who have a key' in page.one('#problem').text
    page.one('#key').send_keys('open sesame', Keys.ENTER)
    page.wait_answer()
    assert page.labels()[0] == 'hat' and not page.one('#key-form').is_displayed()


def test_keyboard(page):
    page.open()
    seen, body = [], page.one('body')
    for _ in range(16):
        page.driver.switch_to.active_element.send_keys(Keys.TAB)
        now = page.driver.switch_to.active_element
        seen.append(now.get_attribute('id') or Path(now.get_attribute('data-sample') or '').stem or now.get_attribute('data-lang') or now.tag_name)
        if now != body: assert page.js('getComputedStyle(arguments[0]).outlineStyle', now) == 'solid', seen
        if seen[-1] == 'shorts': break
    assert seen == ['en', 'ru', 'drop', 'model', 'dress', 'hat', 'longsleeve', 'outwear', 'pants', 'shirt', 'shoes', 'shorts'], seen # none of those that are hidden
    page.js('document.getElementById("file").addEventListener("click", e => { e.preventDefault(); document.title = "opened"; })')
    page.driver.switch_to.active_element.send_keys(Keys.ENTER)
    page.wait_answer()
    assert page.labels()[0] == 'shorts'
    page.one('#drop').send_keys(Keys.SPACE)
    assert page.driver.title == 'opened'
    page.check_quiet()


def test_russian(page):
    page.open().one('[data-lang=ru]').click()
    for model, label in ('clothing', 'hat'), ('fashion_mnist', 'ankle_boot'):
        page.choose(model).sample(label)
        names = {label.key: label.ru for label in LABELS[model]}
        assert [b.find_element(By.CLASS_NAME, 'name').text for b in page.bars()] == [names[label] for label in page.labels()]
        assert [b.accessible_name for b in page.samples().values()] == [f'Пример: {name}' for name in names.values()]
    assert page.one('h1').text == 'Что это за вещь?' and page.js('document.documentElement.lang') == 'ru'
    latin = [t for t in page.js("[...document.querySelectorAll('[data-t]')].map(e => [e.dataset.t, e.textContent])") if not re.search('[а-яё]', t[1].lower())]
    assert not latin, latin
    page.driver.refresh() # the choice stays
    page.until(lambda: page.one('h1').text == 'Что это за вещь?')


LOADED = "performance.getEntriesByType('resource').map(e => e.name).filter(n => /(jpg|png)$/.test(n))"


def test_model_choice(driver, serve, models_dir, tmp_path):
    service = serve('--port', '0', '--models_dir', str(models_dir))
    service.wait()
    page = Page(driver, service.url).open()
    choice = Select(page.one('#model'))
    assert choice.first_selected_option.get_attribute('value') == 'clothing' and not page.one('#note').text
    page.until(lambda: len(page.js(LOADED)) == 10)
    assert all('page/photographs/' in name for name in page.js(LOADED)) # those that are hidden are not fetched
    before = page.one('#samples').size
    page.choose('fashion_mnist')
    assert '28×28' in page.one('#note').text and page.one('#samples').size == before
    page.until(lambda: len(page.js(LOADED)) == 20)
    page.sample('bag')
    page.choose('clothing')
    page.until(lambda: page.one('#made').text.startswith('clothing'))
    assert set(page.labels()) <= {label.key for label in LABELS['clothing']} and 'bag' not in page.samples()
    (tmp_path / 'fashion_mnist.onnx').write_bytes((models_dir / 'fashion_mnist.onnx').read_bytes())
    (service := serve('--port', '0', '--models_dir', str(tmp_path))).wait()
    page = Page(driver, service.url).open()
    page.until(lambda: len(page.js(LOADED)) == 10)
    assert all('page/samples/' in name for name in page.js(LOADED)) and [*page.samples()] == [label.key for label in LABELS['fashion_mnist']]


def contrast(a, b):
    "WCAG 2 contrast of two rgb() texts"
    def luminance(colour):
        parts = [int(v) / 255 for v in re.findall(r'\d+', colour)[:3]]
        return sum(w * (v / 12.92 if v <= .04045 else ((v + .055) / 1.055) ** 2.4) for w, v in zip((.2126, .7152, .0722), parts))
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + .05) / (low + .05)


COLOURS = '''[...document.querySelectorAll('body *')].filter(e => e.checkVisibility() && [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())).map(e => {
    let ground = e; while (ground && getComputedStyle(ground).backgroundColor === 'rgba(0, 0, 0, 0)') ground = ground.parentElement;
    return [e.textContent.trim().slice(0, 40), getComputedStyle(e).color, getComputedStyle(ground ?? document.body).backgroundColor]; })'''


@pytest.mark.parametrize('size', [DESKTOP, PHONE], ids=['desktop', 'phone'])
@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_readable_and_nothing_sticks_out(page, size, scheme, tmp_path):
    page.open(size, prefers_color_scheme=scheme, prefers_reduced_motion='reduce')
    (tmp_path / 'notes.txt').write_text('no picture at all')
    for lang in ('en', 'ru'):
        page.one(f'[data-lang={lang}]').click()
        for state in ('first', 'answer', 'problem'):
            if state == 'answer': page.sample('shirt')
            if state == 'problem':
                page.one('#file').send_keys(str(tmp_path / 'notes.txt'))
                page.until(lambda: page.one('#problem').text)
            weak = [(t, round(contrast(a, b), 2)) for t, a, b in page.js(COLOURS) if contrast(a, b) < 4.5]
            assert not weak, (lang, state, weak)
            assert page.js('document.documentElement.scrollWidth') <= size[0], (lang, state)
    small = [e.accessible_name for e in page.all('button, select') if e.is_displayed() and min(e.rect['width'], e.rect['height']) < 24]
    assert not small and all(e.accessible_name for e in page.all('button, select, a') if e.is_displayed()), small
    assert page.one('#shoot').is_displayed() == (size == PHONE)


def test_screenshot(page, request):
    "Only with --screenshot"
    path = request.config.getoption('--screenshot')
    if not path: pytest.skip('give --screenshot nbs/images/page.png to write one')
    page.open((1200, 796), prefers_color_scheme='light').sample('dress')
    page.js('document.activeElement.blur()')
    time.sleep(1) # the bars have grown
    picture, about = Image.open(io.BytesIO(page.driver.get_screenshot_as_png())), PngInfo()
    about.add_text('version', re.search(r'version (\w+)', page.js('document.body.innerText'))[1]) # so that a test knows when it is stale
    with write_beside(path) as tmp: picture.save(tmp, 'PNG', optimize=True, pnginfo=about)
    assert Path(path).stat().st_size < 400_000
