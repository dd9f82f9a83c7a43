"What /openapi.json promises is what is answered: requests made from it, right and wrong ones (schemathesis)"
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import schemathesis
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from fashion_serve.main import create_app
from fashion_serve.settings import Settings

DOC = create_app(Settings()).openapi()
OPERATIONS = [(path, method) for path, methods in DOC['paths'].items() for method in methods]


@pytest.fixture(scope='module')
def described(started, models_dir):
    with started('--port', '0', '--models_dir', str(models_dir), FASHION_DEADLINE='30') as service:
        yield schemathesis.openapi.from_url(service.url + 'openapi.json')


def test_keys_and_parameters_are_described():
    assert {*DOC['components']['securitySchemes']} == {'bearer', 'key'}
    for path, method in OPERATIONS:
        operation = DOC['paths'][path][method]
        assert bool(operation.get('security')) == bool({'401', '403'} & {*operation['responses']}), (path, method)
        assert 'version' not in [p['name'] for p in operation.get('parameters', ())]


@pytest.mark.parametrize('mode', [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=['right', 'wrong'])
@pytest.mark.parametrize('path, method', OPERATIONS)
def test_every_answer_is_one_that_is_described(described, path, method, mode, turns):
    @hypothesis.given(described[path][method].as_strategy(generation_mode=mode))
    @hypothesis.settings(max_examples=turns(15, 500), deadline=None, derandomize=True, database=None, suppress_health_check=list(hypothesis.HealthCheck))
    def ask(case): case.call_and_validate(timeout=30, excluded_checks=[positive_data_acceptance]) # no schema says what a picture is
    try: ask()
    except hypothesis.errors.Unsatisfiable: assert mode is GenerationMode.NEGATIVE # nothing can be wrong with a request without parameters


# ---- examples
def json_contents(of: dict) -> Iterator[dict]:
    "What JSON or lines of it a body or an answer may be"
    yield from (content for kind, content in of.get('content', {}).items() if kind.endswith('json'))


def resolved(schema: dict) -> dict: return DOC['components']['schemas'][schema['$ref'].rpartition('/')[2]] if '$ref' in schema else schema


def examples(content: dict) -> list:
    "Beside the schema, in it, or of the items of a list"
    schema = resolved(content['schema'])
    beside = [content['example']] if 'example' in content else [example['value'] for example in content.get('examples', {}).values()]
    return beside or schema.get('examples') or [[example] for example in resolved(schema.get('items', {})).get('examples', ())]


@pytest.fixture
def wrong(tmp_path):
    "What is wrong with some values, if their schemas are asked"
    def ask(values: list, schemas: list[dict]) -> str:
        schema, value = tmp_path / 'schema.json', tmp_path / 'value.json'
        schema.write_text(json.dumps({'$schema': 'https://json-schema.org/draft/2020-12/schema', 'prefixItems': schemas, 'components': DOC['components']}))
        value.write_text(json.dumps(values))
        done = subprocess.run([Path(sys.executable).with_name('check-jsonschema'), '--schemafile', schema, value], capture_output=True, text=True)
        return done.stdout + done.stderr if done.returncode else ''
    return ask


def described_json() -> Iterator[dict]:
    for path, method in OPERATIONS:
        operation = DOC['paths'][path][method]
        for of in (*operation['responses'].values(), operation.get('requestBody', {})): yield from json_contents(of)


def test_what_is_json_has_a_shape_and_examples():
    for content in described_json():
        schema = resolved(content['schema'])
        fields = schema if 'properties' in schema else resolved(schema['items'])
        assert fields['properties'] and examples(content), content
        for example in examples(content):
            for row in example if isinstance(example, list) else [example]: assert {*fields['required']} <= {*row} <= {*fields['properties']}, content


def test_examples_are_of_that_shape(wrong):
    pairs = {json.dumps(pair): pair for content in described_json() for example in examples(content) for pair in [(example, content['schema'])]} # each once
    assert pairs and not wrong(*map(list, zip(*pairs.values())))


def test_a_wrong_example_would_be_noticed(wrong):
    said = wrong([{'index': 0}, {'index': -1}, {'index': 0, 'timing_ms': {}}], [{'$ref': '#/components/schemas/BatchLine'}] * 3)
    assert '$[0]' not in said and '$[1].index' in said and '$[2].timing_ms' in said


def test_examples_of_requests_are_answered_as_described(client, wrong):
    answers, schemas = [], []
    for path, method in OPERATIONS:
        operation = DOC['paths'][path][method]
        for kind, content in operation.get('requestBody', {}).get('content', {}).items():
            bodies = [dict(json=example) for example in examples(content)] if kind == 'application/json' else [
                dict(content=client.get('/' + example['externalValue']).content, headers={'Content-Type': kind.replace('*', 'jpeg')}) for example in content.get('examples', {}).values()]
            for body in bodies:
                answer = client.request(method, path.format(name='fashion_mnist'), **body)
                assert answer.status_code == 200, answer.text
                answers.append(answer.json())
                schemas.append(operation['responses']['200']['content']['application/json']['schema'])
    assert len(answers) == 3 and not wrong(answers, schemas) # a picture in two ways, a tensor
